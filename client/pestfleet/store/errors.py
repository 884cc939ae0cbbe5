"""What goes wrong with a store, told by bucket and object, each with what to do about it."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from importlib import import_module
from typing import Any

from pestfleet_worker.errors import SessionError, TargetError

# Error codes of S3 (API reference, "Error responses"). Answers to HEAD have no body, so that the
# SDK has only the status for them.
_NO_BUCKET = {"NoSuchBucket"}
_MISSING = {"NoSuchKey", "404", "NotFound", "NoSuchUpload"}
_CHANGED = {"PreconditionFailed", "412", "ConditionalRequestConflict", "409"}
_DENIED = {"AccessDenied", "403", "Forbidden", "AllAccessDisabled", "AccountProblem"}
_CREDENTIALS = {
    "InvalidAccessKeyId", "SignatureDoesNotMatch", "ExpiredToken", "ExpiredTokenException",
    "InvalidToken", "TokenRefreshRequired", "InvalidSecurity", "UnrecognizedClientException",
}  # fmt: skip
_CLOCK = {"RequestTimeTooSkewed", "RequestExpired"}
_ELSEWHERE = {
    "PermanentRedirect", "301", "TemporaryRedirect", "307", "AuthorizationHeaderMalformed",
    "IllegalLocationConstraintException",
}  # fmt: skip
_BUSY = {
    "SlowDown", "503", "500", "502", "504", "InternalError", "ServiceUnavailable",
    "RequestTimeout", "Throttling", "ThrottlingException", "RequestLimitExceeded",
    "OperationAborted", "BandwidthLimitExceeded",
}  # fmt: skip
_DAMAGED = {
    "BadDigest", "InvalidDigest", "XAmzContentSHA256Mismatch", "IncompleteBody",
    "InvalidRange", "416",  # it is shorter than it was said to be
}  # fmt: skip
_NOT_KNOWN = {"NotImplemented", "501"}


class StoreError(TargetError):
    """The store did not do what it was asked. `place`: s3://bucket/key; `code`: S3's."""

    passing = False  # may the same request do later?

    def __init__(self, message: str, *, place: str, code: str = "", remedy: str = "") -> None:
        super().__init__(message, remedy=remedy)
        self.place = place
        self.code = code


class NoBucket(StoreError):
    """There is no such bucket."""


class NotStored(StoreError):
    """There is no such object."""


class NoPermission(StoreError):
    """These credentials may not do that."""


class NoCredentials(StoreError):
    """There are no credentials, or they are not good any more."""


class WrongRegion(StoreError):
    """The bucket is in another region."""


class Unreachable(StoreError):
    """The server does not answer, or has too much to do. It may later."""

    passing = True


class Changed(StoreError):
    """The object is not what it was when we looked, or is there already: nothing was written."""


class Damaged(StoreError):
    """What arrived is not what was sent."""


class NotSupported(StoreError):
    """The server does not know this request: it speaks a part of S3 only."""


class FileChanged(StoreError):
    """The file was changed while it was being sent; nothing was written."""

    passing = True


class ClaimHeld(SessionError):
    """The session has another master."""


class ClaimLost(SessionError):
    """Another master has taken the session over."""


@contextmanager
def typed(what: str, place: str) -> Iterator[None]:
    """Turns what the SDK raises into a `StoreError`; everything else is let through.

    `what`: such as "read"; `place`: s3://bucket/key. Only requests belong into it: an `OSError` is
    taken for the network's.
    """
    try:
        yield
    except StoreError:
        raise
    except Exception as error:
        explained = _explain(error, what, place)
        if explained is error:
            raise
        raise explained from error


def _explain(error: Exception, what: str, place: str) -> Exception:
    """What the SDK raised, as an error of ours; a defect of ours stays what it is."""
    exceptions: Any = import_module("botocore.exceptions")
    if isinstance(error, exceptions.ClientError):
        return _explain_answer(error.response, what, place)
    missing: tuple[Any, ...] = (exceptions.NoCredentialsError, exceptions.PartialCredentialsError,
               exceptions.CredentialRetrievalError, exceptions.TokenRetrievalError,
               exceptions.SSOError)  # fmt: skip
    if isinstance(error, missing):
        return NoCredentials(
            f"cannot {what} {place}: no credentials are to be had: {error}",
            place=place,
            remedy="Set AWS_PROFILE, or AWS_ACCESS_KEY_ID and AWS_SECRET_ACCESS_KEY, or log in, "
            "such as with aws sso login.",
        )
    # Some errors of its transport come through as they are.
    transport = type(error).__module__.partition(".")[0] in ("urllib3", "http")
    unanswered = transport or isinstance(error, (exceptions.BotoCoreError, OSError))
    ours = isinstance(error, exceptions.ParamValidationError)
    if unanswered and not ours:
        return Unreachable(
            f"cannot {what} {place}: no answer: {error}",
            place=place,
            remedy="Look at the network, the endpoint's address and proxies (HTTPS_PROXY).",
        )
    return error


def _explain_answer(answer: dict[str, dict[str, str]], what: str, place: str) -> StoreError:
    fault = answer.get("Error", {})
    code, said = str(fault.get("Code", "")), str(fault.get("Message", ""))
    status = int(answer.get("ResponseMetadata", {}).get("HTTPStatusCode", 400))
    kind, remedy = _classify(code, status, place)
    text = f"cannot {what} {place}: {said or code} ({code})"
    return kind(text, place=place, code=code, remedy=remedy)


def _classify(code: str, status: int, place: str) -> tuple[type[StoreError], str]:
    bucket = "/".join(place.split("/")[:3])
    if code in _NO_BUCKET:
        return NoBucket, f"Make the bucket, or name another than {bucket}."
    if code in _MISSING:
        return NotStored, ""
    if code in _CHANGED:
        return Changed, ""
    if code in _CREDENTIALS:
        return NoCredentials, (
            "Look at AWS_PROFILE and the AWS_… variables, or log in again, such as with aws sso "
            "login."
        )
    if code in _CLOCK:
        return NoCredentials, "Set the clock of this machine: it is wrong by many minutes."
    if code in _DENIED:
        return NoPermission, (
            f"Ask the owner of {bucket} for the permission: the policy of pestfleet run "
            "--dry-run has it. Is the bucket yours?"
        )
    if code in _ELSEWHERE:
        return WrongRegion, (
            f"{bucket} is in another region: name that with --region, or as ?region=NAME in the "
            "store's address."
        )
    if code in _NOT_KNOWN:
        return NotSupported, ""
    if code in _DAMAGED:
        return Damaged, "It was damaged on its way; try again."
    if code in _BUSY or status >= 500 or status == 429:
        return Unreachable, "The server failed, or has too much to do; try again in some minutes."
    return StoreError, ""
