"""A bucket of our own for sessions: made, protected, and removed when nothing is left in it.

It is closed to the public and to requests without TLS, removes unfinished uploads after a week,
and sessions after some days where that is wanted. A tag says that all of this was set; it is
written last, so that a bucket of which the making was cut is finished the next time.
"""

from __future__ import annotations

import json
import logging
import time
from collections.abc import Callable, Mapping
from typing import Any, Protocol

from pestfleet.store.errors import NoPermission
from pestfleet.store.names import BLOBS, SESSIONS
from pestfleet_worker.errors import PestfleetError

logger = logging.getLogger(__name__)

STORE = "pestfleet:store"  # tag of a bucket of ours: which settings it has
_SETTINGS = 1  # raised when what `make_bucket` sets is changed
UPLOAD_DAYS = 7  # until what an unfinished upload has left is removed
# Content of cases is shared, and renewed when it is used and older than a week
# (pestfleet.store.case_files), so it has to live longer than the sessions that use it.
CONTENT_DAYS = 14
_HOME = "us-east-1"  # the one region that must not be named when a bucket is made there

# Codes while S3 makes up its mind: a new bucket is not known everywhere at once, and the name of
# one that was removed is free some time later only.
_PASSING = ("NoSuchBucket", "OperationAborted")
_PATIENCE = 60.0  # seconds for that
_PAUSE = 2.0


class Caller(Protocol):
    """Sends requests to one account and region, such as `pestfleet.targets.ecs.access.Cloud`.

    What it raises for an error has S3's error code as `code`.
    """

    @property
    def region(self) -> str: ...

    @property
    def account(self) -> str: ...

    @property
    def partition(self) -> str: ...

    def call(self, service: str, operation: str, /, **parameters: Any) -> dict[str, Any]: ...


def make_bucket(
    cloud: Caller,
    name: str,
    *,
    tags: Mapping[str, str],
    expire_days: int = 0,
    wait: Callable[[float], object] = time.sleep,
) -> bool:
    """Have a bucket of ours in the cloud's region; the answer is whether it was made now.

    `expire_days`: what was not written to for so long is removed from sessions (0: never).
    Permissions: s3:ListBucket, s3:GetBucketTagging; to make one also s3:CreateBucket,
    s3:PutBucketTagging, s3:PutBucketPublicAccessBlock, s3:PutBucketPolicy,
    s3:PutLifecycleConfiguration. Raises `NoPermission` where the name is somebody else's, and
    what `cloud.call` raises.
    """
    wanted = {**tags, STORE: f"{_SETTINGS} {expire_days} days"}
    there = _is_there(cloud, name)
    if there and wanted.items() <= _read_tags(cloud, name).items():
        return False
    if not there:
        _create(cloud, name, wait)

    def change(operation: str, **parameters: Any) -> None:
        _retry(
            lambda: cloud.call(
                "s3", operation, Bucket=name, ExpectedBucketOwner=cloud.account, **parameters
            ),
            wait,
        )

    change(
        "put_public_access_block",
        PublicAccessBlockConfiguration={
            "BlockPublicAcls": True,
            "IgnorePublicAcls": True,
            "BlockPublicPolicy": True,
            "RestrictPublicBuckets": True,
        },
    )
    change("put_bucket_policy", Policy=json.dumps(make_policy(name, partition=cloud.partition)))
    change(
        "put_bucket_lifecycle_configuration",
        LifecycleConfiguration={"Rules": make_rules(expire_days)},
    )
    change(
        "put_bucket_tagging",
        Tagging={"TagSet": [{"Key": key, "Value": value} for key, value in wanted.items()]},
    )
    return not there


def remove_bucket_if_empty(cloud: Caller, name: str) -> bool:
    """Remove a bucket that `make_bucket` has made, if nothing is in it; is it gone now?

    Permissions: s3:GetBucketTagging, s3:DeleteBucket. Raises what `cloud.call` raises.
    """
    try:
        tags = _read_tags(cloud, name)
        if tags and STORE not in tags:  # without any it is one of which the making was cut
            logger.info("bucket %s stays: it is not ours", name)
            return False
        cloud.call("s3", "delete_bucket", Bucket=name, ExpectedBucketOwner=cloud.account)
    except PestfleetError as error:
        if _code(error) == "BucketNotEmpty":
            return False
        if _code(error) != "NoSuchBucket":
            raise
    return True


def make_policy(name: str, *, partition: str = "aws") -> dict[str, Any]:
    """The bucket's policy: nothing without TLS (S3 user guide, "Security best practices")."""
    arn = f"arn:{partition}:s3:::{name}"
    return {
        "Version": "2012-10-17",
        "Statement": [
            {
                "Sid": "OnlyWithTls",
                "Effect": "Deny",
                "Principal": "*",
                "Action": "s3:*",
                "Resource": [arn, f"{arn}/*"],
                "Condition": {"Bool": {"aws:SecureTransport": "false"}},
            }
        ],
    }


def make_rules(expire_days: int = 0) -> list[dict[str, Any]]:
    """The bucket's lifecycle rules. The run cache never expires by them."""
    rules: list[dict[str, Any]] = [
        {
            "ID": "pestfleet-unfinished-uploads",
            "Status": "Enabled",
            "Filter": {"Prefix": ""},
            "AbortIncompleteMultipartUpload": {"DaysAfterInitiation": UPLOAD_DAYS},
        }
    ]
    if expire_days:
        rules += [
            {
                "ID": f"pestfleet-{prefix.rstrip('/')}",
                "Status": "Enabled",
                "Filter": {"Prefix": prefix},
                "Expiration": {"Days": days},
            }
            for prefix, days in ((SESSIONS, expire_days), (BLOBS, expire_days + CONTENT_DAYS))
        ]
    return rules


def _is_there(cloud: Caller, name: str) -> bool:
    try:
        cloud.call("s3", "head_bucket", Bucket=name, ExpectedBucketOwner=cloud.account)
    except PestfleetError as error:
        code = _code(error)
        if code in ("404", "NoSuchBucket", "NotFound"):
            return False
        if code in ("403", "Forbidden", "AccessDenied"):
            raise _make_foreign(cloud, name, code) from error
        raise
    return True


def _create(cloud: Caller, name: str, wait: Callable[[float], object]) -> None:
    place = (
        {}
        if cloud.region == _HOME
        else {"CreateBucketConfiguration": {"LocationConstraint": cloud.region}}
    )
    try:
        _retry(lambda: cloud.call("s3", "create_bucket", Bucket=name, **place), wait)
    except PestfleetError as error:
        code = _code(error)
        if code == "BucketAlreadyExists":
            raise _make_foreign(cloud, name, code) from error
        if code != "BucketAlreadyOwnedByYou":  # by another launch, just now
            raise


def _read_tags(cloud: Caller, name: str) -> dict[str, str]:
    try:
        answer = cloud.call(
            "s3", "get_bucket_tagging", Bucket=name, ExpectedBucketOwner=cloud.account
        )
    except PestfleetError as error:
        if _code(error) == "NoSuchTagSet":
            return {}
        raise
    return {tag["Key"]: tag["Value"] for tag in answer["TagSet"]}


def _retry(call: Callable[[], object], wait: Callable[[float], object]) -> None:
    deadline = time.monotonic() + _PATIENCE
    while True:
        try:
            call()
            return
        except PestfleetError as error:
            if _code(error) not in _PASSING or time.monotonic() > deadline:
                raise
            logger.info("asked again: %s", error.message)
        wait(_PAUSE)


def _make_foreign(cloud: Caller, name: str, code: str) -> NoPermission:
    return NoPermission(
        f"bucket {name} cannot be used: it belongs to somebody else, or you may not see it",
        place=f"s3://{name}",
        code=code,
        remedy="Name a bucket of your own as bucket in [amazon], or ask for the permission "
        f"s3:ListBucket on it in account {cloud.account}.",
    )


def _code(error: PestfleetError) -> str:
    return str(getattr(error, "code", ""))
