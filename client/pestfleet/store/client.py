"""Addresses of stores, and the one place where clients for S3 are made.

Credentials come from the SDK's usual places (variables, ~/.aws, a task's or machine's role), never
from an address.
"""

from __future__ import annotations

import re
import threading
from dataclasses import dataclass
from importlib import import_module
from typing import Any
from urllib.parse import parse_qs, quote, urlsplit

from pestfleet_worker.errors import ConfigurationError

_BUCKET = re.compile(r"[A-Za-z0-9._-]{3,255}")  # what the SDK takes; old buckets have such names
_making = threading.Lock()  # the SDK makes clients in one thread at a time


@dataclass(frozen=True, slots=True)
class Address:
    """`s3://bucket/prefix`, with `?endpoint=URL` and `&region=NAME` for other servers than AWS."""

    bucket: str
    prefix: str = ""
    endpoint: str = ""
    region: str = ""

    def __str__(self) -> str:
        options = [
            f"{name}={quote(value, safe='')}"
            for name, value in (("endpoint", self.endpoint), ("region", self.region))
            if value
        ]
        path = f"/{self.prefix}" if self.prefix else ""
        return f"s3://{self.bucket}{path}" + ("?" + "&".join(options) if options else "")


def parse_address(place: str, *, what: str = "a store") -> Address:
    """Raises `ConfigurationError` where `place` is no address of `what`."""
    parts = urlsplit(place)
    options = {name: values[-1] for name, values in parse_qs(parts.query).items()}
    unknown = options.keys() - {"endpoint", "region"}
    fits = parts.scheme == "s3" and _BUCKET.fullmatch(parts.netloc)
    if not fits or unknown or parts.fragment:
        raise ConfigurationError(
            f"{_hide_login(place)!r} is not the address of {what}",
            remedy="Write s3://bucket/prefix or s3://bucket/prefix?endpoint=URL&region=NAME; "
            "credentials belong in the AWS_… variables or in ~/.aws.",
        )
    return Address(
        bucket=parts.netloc,
        prefix=parts.path.strip("/"),
        endpoint=options.get("endpoint", ""),
        region=options.get("region", ""),
    )


def make_client(
    *,
    endpoint: str = "",
    region: str = "",
    what: str = "a store in S3",
    connect_seconds: float = 5.0,
    read_seconds: float = 60.0,
    attempts: int = 5,
    connections: int = 32,
) -> Any:
    """A boto3 client for S3; no request is made. `attempts`: of a request, with pauses between.

    The SDK's own checksums, which not every server knows, are left out where they are not
    required. Raises `ConfigurationError`.
    """
    try:
        boto3, config = import_module("boto3"), import_module("botocore.config")
    except ImportError as error:
        raise ConfigurationError(
            f"{what} needs boto3, which is not here: {error}",
            remedy="Install it with: pip install 'pestfleet[s3]'",
        ) from error
    settings = config.Config(
        connect_timeout=connect_seconds,
        read_timeout=read_seconds,
        retries={"mode": "standard", "total_max_attempts": attempts},
        max_pool_connections=connections,
        request_checksum_calculation="when_required",
        response_checksum_validation="when_required",
    )
    try:
        with _making:
            return boto3.client(
                "s3", endpoint_url=endpoint or None, region_name=region or None, config=settings
            )
    except Exception as error:
        # Wrong endpoint, region or profile: the SDK raises ValueError and errors of its own.
        raise ConfigurationError(
            f"the client of {what} cannot be made: {error}",
            remedy="Check endpoint and region in its address, and the AWS_… variables.",
        ) from error


def _hide_login(place: str) -> str:
    start, at, end = place.rpartition("@")
    return f"{start.partition('://')[0]}://***@{end}" if at else place
