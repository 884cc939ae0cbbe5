"""The Resource Groups Tagging API over all services that a fleet uses."""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping
from typing import TYPE_CHECKING, Any

from moto.backends import get_backend

from amazon_refusal import Refusal, paginate
from amazon_requests import ApiCall

if TYPE_CHECKING:
    from moto_server import Amazon

Found = tuple[str, Mapping[str, str]]  # ARN, tags


def get_resources(amazon: Amazon, call: ApiCall) -> dict[str, Any]:
    """GetResources: pages of at most 100.

    As with the real one, roles of IAM and Auto Scaling groups are not found ("Services that support
    the Resource Groups Tagging API"), and some of what is gone still is: inactive clusters and task
    definitions, terminated instances.
    """
    filters = call.parameters.get("TagFilters") or ()
    kinds = call.parameters.get("ResourceTypeFilters") or ()
    names = set(call.parameters.get("ResourceARNList") or ())
    if names and (filters or kinds):
        said = "ResourceARNList can not be used with TagFilters or ResourceTypeFilters"
        raise Refusal("InvalidParameterException", said)
    # All pages of a question are of one listing.
    asked = repr((filters, kinds, sorted(names), call.region))
    if not call.parameters.get("PaginationToken") or asked not in amazon.state.listings:
        amazon.state.listings[asked] = [
            {
                "ResourceARN": arn,
                "Tags": [{"Key": key, "Value": value} for key, value in tags.items()],
            }
            for arn, tags in list_tagged(amazon, call.region)
            if tags
            and (not names or arn in names)
            and (not kinds or any(_is_kind(arn, kind) for kind in kinds))
            and all(_has(tags, one["Key"], one.get("Values") or ()) for one in filters)
        ]
    found = amazon.state.listings[asked]
    answer = {"ResourceTagMappingList": found}
    page = paginate(call.parameters, answer, "ResourceTagMappingList", token="PaginationToken",
                    size="ResourcesPerPage", most=100, usual=50)  # fmt: skip
    return {"PaginationToken": "", **page}


def list_tagged(amazon: Amazon, region: str) -> Iterator[Found]:
    """All resources of a region that can have tags."""
    account = amazon.account
    yield from amazon.state.ecs.list_tagged(region)
    for service, home in (
        ("ecs", region), ("ec2", region), ("logs", region), ("secretsmanager", region),
        ("efs", region), ("s3", "aws"),
    ):  # fmt: skip
        if service == "s3":
            backend = get_backend("s3")[account][home]
            wanted = {
                bucket.arn for bucket in backend.buckets.values() if bucket.region_name == region
            }
            found = [one for one in backend.iter_tagged_resources() if one.arn in wanted]
        else:
            found = list(amazon.backend(service, region=home).iter_tagged_resources())
        yield from ((one.arn, one.tags) for one in found)
    ec2 = amazon.backend("ec2", region=region)
    more = {
        "launch-template": list(ec2.launch_templates),
        "vpc-endpoint": [one.id for one in ec2.vpc_end_points.values() if one.state != "deleted"],
        "key-pair": [one.id for one in ec2.key_pairs.values()],
        "elastic-ip": [one.allocation_id for one in ec2.addresses],
    }
    for kind, ids in more.items():
        for name in ids:
            yield f"arn:aws:ec2:{region}:{account}:{kind}/{name}", dict(ec2.tags.get(name, {}))
    ecs = amazon.backend("ecs", region=region)
    for provider in ecs.capacity_providers.values():
        yield provider.capacity_provider_arn, _read(provider.tags)
    ecr = amazon.backend("ecr", region=region)
    for repository in ecr.repositories.values():
        yield repository.arn, ecr.tagger.get_tag_dict_for_resource(repository.arn)
    cloud_map = amazon.backend("servicediscovery", region=region)
    for one in (*cloud_map.namespaces.values(), *cloud_map.services.values()):
        yield one.arn, cloud_map.tagger.get_tag_dict_for_resource(one.arn)
    scheduler = amazon.backend("scheduler", region=region)
    for group in scheduler.schedule_groups.values():
        yield group.arn, scheduler.tagger.get_tag_dict_for_resource(group.arn)


def _read(tags: Any) -> dict[str, str]:
    return {tag["key"]: tag["value"] for tag in tags or ()}


def _has(tags: Mapping[str, str], key: str, values: Any) -> bool:
    return key in tags and (not values or tags[key] in values)


def _is_kind(arn: str, kind: str) -> bool:
    """`ecs` or `ecs:service` of arn:aws:ecs:REGION:ACCOUNT:service/…"""
    service, _, resource = kind.partition(":")
    words = arn.split(":", 5)
    first = re.split(r"[:/]", words[5])[0]
    if service == "s3":
        first = ""
    return words[2] == service and (not resource or first == resource or service == "s3")
