"""S3: the bucket that all sessions of an account in a region share."""

from __future__ import annotations

from pestfleet.store.bucket import make_bucket, remove_bucket_if_empty
from pestfleet.targets.ecs.access import Cloud
from pestfleet.targets.ecs.planned import name_bucket
from pestfleet.targets.ecs.resources.kinds import Body, Kind, use


def remove_bucket(cloud: Cloud) -> bool:
    """Remove the bucket that sessions share, where it is ours and nothing is in it; is it gone?"""
    return remove_bucket_if_empty(cloud, name_bucket(cloud.account, cloud.region))


def _make(cloud: Cloud, body: Body) -> str:
    name = str(body["Bucket"])
    make_bucket(cloud, name, tags={})
    return name


KINDS = (Kind("bucket", "s3", "create_bucket", use("Bucket"), make=_make),)
