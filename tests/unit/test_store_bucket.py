"""A bucket of our own: how it is made, that it is finished where that was cut, how it goes."""

from __future__ import annotations

import json
from collections.abc import Iterator
from typing import Any

import boto3
import pytest
from moto import mock_aws
from moto.iam.access_control import PermissionResult
from moto.s3.models import FakeBucket, s3_backends

from pestfleet.store.bucket import (
    STORE,
    make_bucket,
    make_policy,
    make_rules,
    remove_bucket_if_empty,
)
from pestfleet.store.errors import NoPermission
from pestfleet.targets.ecs.access import Cloud, Refused

NAME = "pestfleet-123456789012-eu-central-1"
TAGS = {"pestfleet:role": "store"}
SETTINGS = {
    "s3:CreateBucket",
    "s3:PutBucketPublicAccessBlock",
    "s3:PutBucketPolicy",
    "s3:PutLifecycleConfiguration",
    "s3:PutBucketTagging",
}


@pytest.fixture(scope="module", autouse=True)
def _aws() -> Iterator[None]:
    with pytest.MonkeyPatch.context() as patch, mock_aws():
        patch.delenv("AWS_PROFILE", raising=False)
        yield


@pytest.fixture(autouse=True)
def _empty() -> None:
    s3_backends["123456789012"]["aws"].reset()


def make_cloud(region: str = "eu-central-1") -> Cloud:
    return Cloud(boto3.Session(region_name=region), region)


def read_settings(cloud: Cloud, name: str = NAME) -> dict[str, Any]:
    client = cloud.client("s3")
    return {
        "region": client.get_bucket_location(Bucket=name)["LocationConstraint"],
        "tags": {t["Key"]: t["Value"] for t in client.get_bucket_tagging(Bucket=name)["TagSet"]},
        "closed": client.get_public_access_block(Bucket=name)["PublicAccessBlockConfiguration"],
        "policy": json.loads(client.get_bucket_policy(Bucket=name)["Policy"]),
        "rules": client.get_bucket_lifecycle_configuration(Bucket=name)["Rules"],
    }


@pytest.mark.parametrize(
    ("region", "place"), [("eu-central-1", "eu-central-1"), ("us-east-1", None)]
)
def test_a_bucket_is_made_and_protected(region: str, place: str | None) -> None:
    cloud = make_cloud(region)
    assert make_bucket(cloud, NAME, tags=TAGS, expire_days=30)
    found = read_settings(cloud)
    assert found["region"] == place
    assert found["tags"] == {**TAGS, STORE: "1 30 days"}
    assert set(found["closed"].values()) == {True}
    assert found["policy"] == make_policy(NAME)
    rules = {rule["ID"]: rule for rule in found["rules"]}
    assert rules["pestfleet-unfinished-uploads"]["AbortIncompleteMultipartUpload"] == {
        "DaysAfterInitiation": 7
    }
    assert rules["pestfleet-sessions"]["Expiration"]["Days"] == 30
    assert rules["pestfleet-sessions"]["Filter"]["Prefix"] == "sessions/"
    assert rules["pestfleet-blobs"]["Expiration"]["Days"] == 44
    assert set(cloud.calls) == {"s3:ListBucket", "sts:GetCallerIdentity", *SETTINGS}


def test_a_bucket_that_is_there_costs_two_requests() -> None:
    make_bucket(make_cloud(), NAME, tags=TAGS)
    cloud = make_cloud()
    assert not make_bucket(cloud, NAME, tags=TAGS)
    assert cloud.calls == {
        "s3:ListBucket": 1, "s3:GetBucketTagging": 1, "sts:GetCallerIdentity": 1,
    }  # fmt: skip


def test_another_expiry_is_set() -> None:
    make_bucket(make_cloud(), NAME, tags=TAGS)
    assert len(read_settings(make_cloud())["rules"]) == 1
    assert not make_bucket(make_cloud(), NAME, tags=TAGS, expire_days=5)
    assert len(read_settings(make_cloud())["rules"]) == 3


class Cut(Exception):
    """The process is killed."""


class CutCloud(Cloud):
    """FAKE: the process ends right after a request."""

    def __init__(self, last: str) -> None:
        super().__init__(boto3.Session(region_name="eu-central-1"), "eu-central-1")
        self._last = last

    def call(self, service: str, operation: str, **parameters: Any) -> dict[str, Any]:
        answer = super().call(service, operation, **parameters)
        if operation == self._last:
            raise Cut
        return answer


@pytest.mark.parametrize(
    "last",
    [
        "create_bucket",
        "put_public_access_block",
        "put_bucket_policy",
        "put_bucket_lifecycle_configuration",
        "put_bucket_tagging",
    ],
)
def test_a_bucket_whose_making_was_cut_is_finished(last: str) -> None:
    with pytest.raises(Cut):
        make_bucket(CutCloud(last), NAME, tags=TAGS)
    cloud = make_cloud()
    assert not make_bucket(cloud, NAME, tags=TAGS)
    assert read_settings(cloud)["tags"] == {**TAGS, STORE: "1 0 days"}


class FailingCloud(Cloud):
    """FAKE: some requests are refused, some times."""

    def __init__(self, faults: dict[str, list[str]]) -> None:
        super().__init__(boto3.Session(region_name="eu-central-1"), "eu-central-1")
        self._faults = faults

    def call(self, service: str, operation: str, **parameters: Any) -> dict[str, Any]:
        if self._faults.get(operation):
            raise Refused(f"s3:{operation}", self._faults[operation].pop(0), "fake")
        return super().call(service, operation, **parameters)


def test_what_a_new_bucket_does_not_know_yet_is_asked_again() -> None:
    waited: list[float] = []
    cloud = FailingCloud(
        {"create_bucket": ["OperationAborted"], "put_bucket_policy": ["NoSuchBucket"] * 2}
    )
    assert make_bucket(cloud, NAME, tags=TAGS, wait=waited.append)
    assert len(waited) == 3


@pytest.mark.parametrize(
    "faults",
    [{"head_bucket": ["403"]}, {"head_bucket": ["404"], "create_bucket": ["BucketAlreadyExists"]}],
    ids=["seen", "taken"],
)
def test_a_bucket_of_somebody_else_is_not_used(faults: dict[str, list[str]]) -> None:
    with pytest.raises(NoPermission, match="belongs to somebody else") as caught:
        make_bucket(FailingCloud(faults), NAME, tags=TAGS)
    assert "bucket in [amazon]" in caught.value.remedy


def test_two_launches_make_one_bucket() -> None:
    make_bucket(make_cloud(), NAME, tags=TAGS)
    faults = {"head_bucket": ["404"], "create_bucket": ["BucketAlreadyOwnedByYou"]}
    make_bucket(FailingCloud(faults), NAME, tags=TAGS)


def test_refusals_come_through() -> None:
    with pytest.raises(Refused, match="put_bucket_policy"):
        make_bucket(FailingCloud({"put_bucket_policy": ["AccessDenied"]}), NAME, tags=TAGS)


def test_an_empty_bucket_of_ours_goes(monkeypatch: pytest.MonkeyPatch) -> None:
    # moto takes the policy's condition (no TLS) for always true.
    monkeypatch.setattr(FakeBucket, "get_permission", lambda *_: PermissionResult.NEUTRAL)
    cloud = make_cloud()
    make_bucket(cloud, NAME, tags=TAGS)
    cloud.client("s3").put_object(Bucket=NAME, Key="cache/x", Body=b"")
    assert not remove_bucket_if_empty(cloud, NAME)
    cloud.client("s3").delete_object(Bucket=NAME, Key="cache/x")
    assert remove_bucket_if_empty(cloud, NAME)
    assert cloud.client("s3").list_buckets()["Buckets"] == []
    assert remove_bucket_if_empty(cloud, NAME)


def test_a_bucket_of_the_users_stays() -> None:
    cloud = make_cloud()
    place: Any = {"LocationConstraint": "eu-central-1"}
    cloud.client("s3").create_bucket(Bucket=NAME, CreateBucketConfiguration=place)
    cloud.client("s3").put_bucket_tagging(
        Bucket=NAME, Tagging={"TagSet": [{"Key": "owner", "Value": "ann"}]}
    )
    assert not remove_bucket_if_empty(cloud, NAME)
    assert len(cloud.client("s3").list_buckets()["Buckets"]) == 1


def test_without_tls_nothing_is_allowed_in_any_partition() -> None:
    statement = make_policy("b", partition="aws-cn")["Statement"][0]
    assert statement["Resource"] == ["arn:aws-cn:s3:::b", "arn:aws-cn:s3:::b/*"]
    assert statement["Effect"] == "Deny"
    assert statement["Condition"] == {"Bool": {"aws:SecureTransport": "false"}}


def test_the_run_cache_does_not_expire() -> None:
    prefixes = [rule["Filter"]["Prefix"] for rule in make_rules(10) if "Expiration" in rule]
    assert sorted(prefixes) == ["blobs/", "sessions/"]
    assert [rule for rule in make_rules() if "Expiration" in rule] == []
