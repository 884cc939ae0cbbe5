"""Entries of the run cache as objects in an S3 bucket, or a server that speaks S3.

    <prefix>/v1/<case digest>/<first two digits>/<hash>

An object appears whole or not at all, and a conditional write (`If-None-Match: *`, S3 API
reference, PutObject) keeps the first of two writers. The entry has its checksum in itself, so
the SDK's own checksums, which not every server knows, are used only where they are required.
Credentials come from the SDK's usual places, never from the cache's address.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import closing, contextmanager
from typing import Any

from pestfleet.cache.directory import LAYOUT, MAX_BYTES
from pestfleet.cache.keys import RunKey, parse_name
from pestfleet.cache.shelf import CacheError, Leftovers, ShelfError, Stored
from pestfleet.store.client import Address, make_client, parse_address
from pestfleet_worker.errors import ConfigurationError

CONNECT_SECONDS = 3.0
READ_SECONDS = 10.0
_MISSING = {"NoSuchKey", "404", "NotFound"}
_EMPTY = {"InvalidRange", "416"}
_EXISTS = {"PreconditionFailed", "412", "ConditionalRequestConflict", "409"}
_NOT_KNOWN = {"NotImplemented", "501"}


class BucketShelf:
    """`s3://bucket/prefix`, with `?endpoint=URL` and `&region=NAME` for other servers than AWS."""

    slow = True

    def __init__(self, place: str, *, client: Any = None) -> None:
        """`client`: a boto3 S3 client; made when it is first needed if there is none.

        Raises `CacheError` when the address is none.
        """
        with _as_cache_errors():
            address = parse_address(place, what="a run cache")
        self.place = place
        self._bucket = address.bucket
        self._prefix = "/".join(part for part in (address.prefix, LAYOUT) if part) + "/"
        self._conditional = True
        self._client = client if client is not None else _make_client(address)

    def read(self, key: RunKey) -> bytes | None:
        """See `Shelf.read`."""
        return self._get(key, {})

    def read_head(self, key: RunKey, size: int) -> bytes | None:
        """See `Shelf.read_head`."""
        return self._get(key, {"Range": f"bytes=0-{size - 1}"})

    def write(self, key: RunKey, data: bytes, *, replace: bool, expires: float) -> bool:
        """See `Shelf.write`. A server without conditional writes keeps the last writer's."""
        request = {
            "Bucket": self._bucket,
            "Key": self._prefix + key.name,
            "Body": data,
            "ContentType": "application/octet-stream",
            "Metadata": {"pestfleet-expires": f"{expires:.0f}"},
        }
        if not replace and self._conditional:
            try:
                with _typed(f"write {key.name}"):
                    self._client.put_object(**request, IfNoneMatch="*")
                return True
            except _ServerError as error:
                if error.code in _EXISTS:
                    return False
                if error.code not in _NOT_KNOWN:
                    raise
                self._conditional = False
        with _typed(f"write {key.name}"):
            if not replace and self.read_head(key, 1) is not None:
                return False
            self._client.put_object(**request)
        return True

    def remove(self, key: RunKey) -> bool:
        """See `Shelf.remove`. S3 does not tell whether there was one: always true."""
        with _typed(f"remove {key.name}"):
            self._client.delete_object(Bucket=self._bucket, Key=self._prefix + key.name)
        return True

    def set_aside(self, key: RunKey) -> None:
        """See `Shelf.set_aside`: removed, for a bucket with versions keeps it anyhow."""
        self.remove(key)

    def list_entries(self, case: str | None = None) -> Iterator[Stored]:
        """See `Shelf.list_entries`: 1,000 a request. `used` is when an entry was written."""
        prefix = f"{self._prefix}{case}/" if case else self._prefix
        for page in self._list_pages(Prefix=prefix):
            for item in page.get("Contents", ()):
                key = parse_name(item["Key"].removeprefix(self._prefix))
                if key is not None:
                    yield Stored(key, item["Size"], item["LastModified"].timestamp())

    def list_cases(self) -> Iterator[str]:
        """See `Shelf.list_cases`."""
        for page in self._list_pages(Prefix=self._prefix, Delimiter="/"):
            for item in page.get("CommonPrefixes", ()):
                yield item["Prefix"].removeprefix(self._prefix).rstrip("/")

    def clean(self, *, before: float, dry_run: bool) -> Leftovers:
        """See `Shelf.clean`: a bucket has no leftovers."""
        return Leftovers()

    def claim_sweep(self, seconds: float) -> bool:
        """See `Shelf.claim_sweep`: a bucket is pruned by command only."""
        return False

    def close(self) -> None:
        self._client.close()

    def _get(self, key: RunKey, options: dict[str, str]) -> bytes | None:
        try:
            with _typed(f"read {key.name}"):
                answer = self._client.get_object(
                    Bucket=self._bucket, Key=self._prefix + key.name, **options
                )
                with closing(answer["Body"]) as body:
                    if answer["ContentLength"] > MAX_BYTES:
                        raise ShelfError(f"{key.name} has {answer['ContentLength']:,} bytes")
                    data: bytes = body.read()
                return data
        except _ServerError as error:
            if error.code in _MISSING:
                return None
            if error.code in _EMPTY and options:
                return b""  # no first byte: the object has none
            raise

    def _list_pages(self, **request: str) -> Iterator[dict[str, Any]]:
        with _typed("list the entries"):
            pages = self._client.get_paginator("list_objects_v2")
            yield from pages.paginate(Bucket=self._bucket, **request)


class _ServerError(ShelfError):
    """The server answered, with an error. `code`: S3's error code."""

    def __init__(self, text: str, code: str) -> None:
        super().__init__(text)
        self.code = code


@contextmanager
def _typed(what: str) -> Iterator[None]:
    """Turns the SDK's errors, and its transport's, into `ShelfError`."""
    try:
        yield
    except ShelfError:
        raise
    except Exception as error:
        response = getattr(error, "response", None)
        if isinstance(response, dict):
            fault = response.get("Error", {})
            code = str(fault.get("Code", ""))
            text = f"S3 refused to {what}: {code} {fault.get('Message', '')}".rstrip()
            raise _ServerError(text, code) from error
        # The SDK's, its transport's and its parsers' errors have no base of their own.
        raise ShelfError(f"S3 could not {what}: {type(error).__name__}: {error}") from error


def _make_client(address: Address) -> Any:
    with _as_cache_errors():
        return make_client(
            endpoint=address.endpoint,
            region=address.region,
            what="a run cache in S3",
            connect_seconds=CONNECT_SECONDS,
            read_seconds=READ_SECONDS,
            attempts=2,
            connections=16,
        )


@contextmanager
def _as_cache_errors() -> Iterator[None]:
    try:
        yield
    except ConfigurationError as error:
        raise CacheError(error.message, remedy=error.remedy) from error
