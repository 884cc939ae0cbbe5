"""Amazon's APIs in one region, as the credentials of this machine see them.

Every request goes through `Cloud`, which names it, counts it, and turns what boto3 raises into
errors that say what was refused, and what to do. boto3 repeats requests that were throttled or got
no answer (botocore, retries in mode "standard").
"""

from __future__ import annotations

import os
import threading
from collections import Counter
from collections.abc import Iterator
from functools import cached_property
from typing import Any

from pestfleet.targets.base import Where
from pestfleet_worker.errors import ConfigurationError, TargetError

ATTEMPTS = 8  # of one request, with pauses of up to 20 s between
CONNECT_SECONDS, READ_SECONDS = 5.0, 30.0

_DENIED = ("AccessDenied", "AccessDeniedException", "UnauthorizedOperation", "AuthorizationError")
_EXPIRED = ("ExpiredToken", "ExpiredTokenException", "RequestExpired")
_STRANGE = ("InvalidClientTokenId", "UnrecognizedClientException", "AuthFailure",
            "InvalidSignatureException", "SignatureDoesNotMatch")  # fmt: skip
_BUSY = ("Throttling", "ThrottlingException", "RequestLimitExceeded", "TooManyRequestsException",
         "SlowDown")  # fmt: skip


class Unreachable(TargetError):
    """Amazon does not answer. It may later."""


class Refused(TargetError):
    """Amazon's answer is an error. `action`: such as ecs:CreateService; `code`: its error code."""

    def __init__(
        self, action: str, code: str, said: str, *, status: int = 400, remedy: str = ""
    ) -> None:
        super().__init__(f"Amazon refuses {action}: {said or code} ({code})", remedy=remedy)
        self.action = action
        self.code = code
        self.said = said
        self.status = status

    @property
    def denied(self) -> bool:
        """Are we not allowed to?"""
        return self.code in _DENIED


class Cloud:
    """One account and region. Its methods may be called from any thread."""

    def __init__(self, session: Any, region: str) -> None:
        """`session`: a `boto3.Session`."""
        self._session = session
        self.region = region
        self.calls: Counter[str] = Counter()  # action -> requests, pages each
        self._clients: dict[str, Any] = {}
        self._lock = threading.Lock()  # boto3 makes clients in one thread at a time

    @cached_property
    def identity(self) -> dict[str, str]:
        """`Account`, `Arn`, `UserId` of who asks (STS, GetCallerIdentity)."""
        return dict(self.call("sts", "get_caller_identity"))

    @property
    def account(self) -> str:
        """The number of the account."""
        return self.identity["Account"]

    @cached_property
    def partition(self) -> str:
        """`aws`, `aws-cn` or `aws-us-gov`: the second word of an ARN."""
        from botocore.exceptions import UnknownRegionError

        try:
            return str(self._session.get_partition_for_region(self.region))
        except UnknownRegionError as error:
            raise ConfigurationError(
                f"Amazon has no region {self.region}",
                remedy="Say --region, such as --region eu-central-1, or set AWS_REGION.",
            ) from error

    def elsewhere(self, region: str) -> Cloud:
        """The same account in another region. Raises `ConfigurationError`: no such name."""
        _check_region(region)
        return Cloud(self._session, region)

    def client(self, service: str) -> Any:
        """boto3's client of a service, for what `call` has no form for."""
        from botocore.config import Config

        with self._lock:
            if service not in self._clients:
                config = Config(
                    connect_timeout=CONNECT_SECONDS,
                    read_timeout=READ_SECONDS,
                    retries={"mode": "standard", "total_max_attempts": ATTEMPTS},
                    max_pool_connections=32,
                )
                self._clients[service] = self._session.client(
                    service, region_name=self.region, config=config
                )
            return self._clients[service]

    def call(self, service: str, operation: str, /, **parameters: Any) -> dict[str, Any]:
        """One request, such as `call("ecs", "create_cluster", clusterName="a")`.

        Raises `Refused`, `Unreachable`, `ConfigurationError` (no credentials).
        """
        client = self.client(service)
        action = name_action(client, operation)
        self.calls[action] += 1
        try:
            answer: dict[str, Any] = getattr(client, operation)(**parameters)
        except Exception as error:
            raise _explain(error, action) from error
        return answer

    def find_all(
        self, service: str, operation: str, key: str, /, **parameters: Any
    ) -> Iterator[Any]:
        """What a paged request lists below `key`, of all pages. Raises as `call` does."""
        client = self.client(service)
        action = name_action(client, operation)
        try:
            for page in client.get_paginator(operation).paginate(**parameters):
                self.calls[action] += 1
                yield from page.get(key) or ()
        except Exception as error:
            raise _explain(error, action) from error


def name_action(client: Any, operation: str) -> str:
    """What IAM calls an operation of boto3's: `create_service` of ECS is ecs:CreateService."""
    model = client.meta.service_model
    prefix = {"resourcegroupstaggingapi": "tag", "efs": "elasticfilesystem"}.get(
        model.service_name, model.signing_name
    )
    name = client.meta.method_to_api_mapping[operation]
    # Amazon S3 user guide, "Required permissions for S3 API operations".
    known = {
        "s3:ListObjectsV2": "s3:ListBucket",
        "s3:HeadBucket": "s3:ListBucket",
        "s3:HeadObject": "s3:GetObject",
        "s3:DeleteObjects": "s3:DeleteObject",
        "s3:PutBucketLifecycleConfiguration": "s3:PutLifecycleConfiguration",
        "s3:GetBucketLifecycleConfiguration": "s3:GetLifecycleConfiguration",
        "s3:PutPublicAccessBlock": "s3:PutBucketPublicAccessBlock",
        "s3:CreateMultipartUpload": "s3:PutObject",
        "s3:UploadPart": "s3:PutObject",
        "s3:CompleteMultipartUpload": "s3:PutObject",
    }
    return known.get(f"{prefix}:{name}", f"{prefix}:{name}")


def connect(where: Where) -> Cloud:
    """Raises `ConfigurationError` where there is no region, no such profile, or no boto3.

    No request is made.
    """
    try:
        import boto3
        from botocore.exceptions import BotoCoreError
    except ModuleNotFoundError as error:
        if (error.name or "").partition(".")[0] not in ("boto3", "botocore"):
            raise
        raise ConfigurationError(
            f"Amazon's cloud needs the package {error.name}, which is not installed",
            remedy="pip install 'pestfleet[ecs]'",
        ) from error
    try:
        # boto3 itself reads AWS_DEFAULT_REGION only.
        region = where.region or os.environ.get("AWS_REGION", "")
        session = boto3.Session(profile_name=where.profile or None, region_name=region or None)
    except BotoCoreError as error:
        raise ConfigurationError(
            f"your AWS configuration cannot be used: {error}",
            remedy="Look at ~/.aws/config; --profile names one of its profiles.",
        ) from error
    if not session.region_name:
        raise ConfigurationError(
            "no region of Amazon is given",
            remedy="Say --region, such as --region eu-central-1, or set AWS_REGION.",
        )
    _check_region(str(session.region_name))
    return Cloud(session, str(session.region_name))


def _check_region(region: str) -> None:
    from botocore.exceptions import InvalidRegionError
    from botocore.utils import validate_region_name

    try:
        validate_region_name(region)
    except InvalidRegionError as error:
        raise ConfigurationError(
            f"{region!r} is not the name of one region of Amazon",
            remedy="Say --region with one, such as --region eu-central-1.",
        ) from error


def _explain(error: Exception, action: str) -> Exception:
    """What boto3 raised, as an error of ours; defects of ours stay what they are."""
    from botocore import exceptions

    if isinstance(error, exceptions.ClientError):
        return _explain_refusal(error, action)
    missing = (exceptions.NoCredentialsError, exceptions.PartialCredentialsError,
               exceptions.CredentialRetrievalError, exceptions.TokenRetrievalError,
               exceptions.SSOError)  # fmt: skip
    if isinstance(error, missing):
        return ConfigurationError(
            f"no credentials of Amazon are to be had: {error}",
            remedy="Log in, such as with aws sso login, or set AWS_PROFILE.",
        )
    wrong = (exceptions.ParamValidationError, exceptions.OperationNotPageableError)
    if isinstance(error, exceptions.BotoCoreError | OSError) and not isinstance(error, wrong):
        return Unreachable(
            f"Amazon does not answer {action}: {error}",
            remedy="Look at the network, the region, and proxies (HTTPS_PROXY).",
        )
    return error


def _explain_refusal(error: Any, action: str) -> Exception:
    fault = error.response.get("Error", {})
    code, said = str(fault.get("Code", "")), str(fault.get("Message", ""))
    status = int(error.response.get("ResponseMetadata", {}).get("HTTPStatusCode", 400))
    if code in _EXPIRED:
        return ConfigurationError(
            f"your credentials of Amazon have expired ({action}: {said})",
            remedy="Log in again, such as with aws sso login.",
        )
    if code in _STRANGE:
        return ConfigurationError(
            f"Amazon does not know your credentials ({action}: {said})",
            remedy="Look at AWS_PROFILE and at the clock of this machine, or log in again.",
        )
    remedy = ""
    if code in _DENIED:
        remedy = (
            f"You need the permission {action}: pestfleet run --dry-run prints a policy with all "
            "of them for your administrator."
        )
    elif code in _BUSY:
        remedy = f"It was asked {ATTEMPTS} times; try again in some minutes."
    elif status >= 500:
        remedy = "Amazon failed; try again in some minutes."
    return Refused(action, code, said, status=status, remedy=remedy)
