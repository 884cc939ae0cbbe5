"""EC2 machines of workers: their template, their group, and those that run."""

from __future__ import annotations

from collections.abc import Iterator

from pestfleet.targets.ecs.access import Cloud
from pestfleet.targets.ecs.naming import as_dict
from pestfleet.targets.ecs.resources.kinds import Body, Found, Kind, Search, ask, take
from pestfleet.targets.ecs.resources.vpc import find_by_tag
from pestfleet.targets.ecs.resources.waiting import has_code, insist


def _find_templates(search: Search) -> Iterator[Found]:
    return find_by_tag(
        "launch-template", "launch_templates", "LaunchTemplates", "LaunchTemplateId"
    )(search)


def _remove_template(search: Search, found: Found) -> None:
    missing = ("NotFound",)
    ask(search.cloud, "ec2", "delete_launch_template", missing, LaunchTemplateId=found.ident)


def _find_instances(search: Search) -> Iterator[Found]:
    """Those that run, also where their group has gone."""
    cloud = search.cloud
    wanted = [
        {"Name": "tag:pestfleet:session", "Values": [search.session]},
        {
            "Name": "instance-state-name",
            "Values": ["pending", "running", "stopping", "stopped"],
        },
    ]
    pages = cloud.find_all("ec2", "describe_instances", "Reservations", Filters=wanted)
    for one in (instance for page in pages for instance in page["Instances"]):
        ident = one["InstanceId"]
        arn = search.name_arn("ec2", f"instance/{ident}")
        yield Found("instance", ident, arn, as_dict(one.get("Tags")), True, ident)


def _terminate(search: Search, found: Found) -> None:
    missing = ("NotFound",)
    ask(search.cloud, "ec2", "terminate_instances", missing, InstanceIds=[found.ident])


def _find_group(search: Search) -> Iterator[Found]:
    name = search.names.cluster
    answer = search.cloud.call(
        "autoscaling", "describe_auto_scaling_groups", AutoScalingGroupNames=[name]
    )
    for one in answer.get("AutoScalingGroups", ()):
        if not one.get("Status"):  # which it has when it is being deleted
            arn = one["AutoScalingGroupARN"]
            yield Found("auto-scaling-group", name, arn, as_dict(one.get("Tags")), True, arn)


def _name_group(cloud: Cloud, body: Body, answer: Body) -> str:
    """Its ARN, which only the description has."""
    name = body["AutoScalingGroupName"]
    found = cloud.call("autoscaling", "describe_auto_scaling_groups", AutoScalingGroupNames=[name])
    return str(found["AutoScalingGroups"][0]["AutoScalingGroupARN"])


def _remove_group(search: Search, found: Found) -> None:
    """With its machines, whatever runs on them."""
    insist(
        lambda: ask(
            search.cloud,
            "autoscaling",
            "delete_auto_scaling_group",
            ("ValidationError",),  # of a name that is not there
            AutoScalingGroupName=found.name,
            ForceDelete=True,
        ),
        when=has_code("ScalingActivityInProgress", "ResourceInUse", "ResourceContention"),
    )


KINDS = (
    Kind(
        "launch-template",
        "ec2",
        "create_launch_template",
        take("LaunchTemplate", "LaunchTemplateId"),
        _find_templates,
        _remove_template,
        exists=(r"^InvalidLaunchTemplateName\.AlreadyExists",),
    ),
    Kind(
        "auto-scaling-group",
        "autoscaling",
        "create_auto_scaling_group",
        _name_group,
        _find_group,
        _remove_group,
        exists=("^AlreadyExists",),
    ),
    Kind("instance", "ec2", "run_instances", take("Instances"), _find_instances, _terminate),
)
