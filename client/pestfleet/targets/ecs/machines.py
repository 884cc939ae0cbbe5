"""EC2 machines for workers: a launch template, an Auto Scaling group, a capacity provider."""

from __future__ import annotations

import base64
import math
from typing import Any

from pestfleet.costs.charges import Charge
from pestfleet.targets.ecs.access import Cloud, Refused
from pestfleet.targets.ecs.naming import PATH, REGION, as_list
from pestfleet.targets.ecs.planned import Ground, Machine, Planned, refer
from pestfleet.targets.ecs.rules import specify
from pestfleet.targets.ecs.sizes import choose_sizes
from pestfleet_worker.errors import ConfigurationError

DISK = 60  # GiB of a machine, encrypted; the least that the AMI wants is 30

# Public parameters that name Amazon's newest image for ECS ("Retrieving Amazon ECS-optimized Linux
# AMI metadata", ECS developer guide).
_IMAGE = "resolve:ssm:/aws/service/ecs/optimized-ami/amazon-linux-2023/{}recommended/image_id"


def find_machine(cloud: Cloud, kind: str) -> Machine:
    """What a type of machines has. Raises `ConfigurationError` for none that there is."""
    try:
        answer = cloud.call("ec2", "describe_instance_types", InstanceTypes=[kind])
        (found,) = answer["InstanceTypes"]
    except (Refused, ValueError) as error:
        if isinstance(error, Refused) and error.code not in (
            "InvalidInstanceType", "InvalidParameterValue"
        ):  # fmt: skip
            raise
        raise ConfigurationError(
            f"there is no type of machines {kind!r} in {cloud.region}",
            remedy="See aws ec2 describe-instance-type-offerings, or leave --instances out for "
            "Fargate.",
        ) from error
    architectures = found.get("ProcessorInfo", {}).get("SupportedArchitectures", [])
    return Machine(
        kind,
        int(found["VCpuInfo"]["DefaultVCpus"]),
        int(found["MemoryInfo"]["SizeInMiB"]),
        int(found.get("NetworkInfo", {}).get("MaximumNetworkInterfaces", 2)),
        "arm64" if "arm64" in architectures else "x86_64",
    )


def count_workers(ground: Ground, machine: Machine) -> int:
    """How many workers a machine holds. Raises `ConfigurationError` where it holds none."""
    size = choose_sizes(ground.spec, case_bytes=ground.facts.case_bytes)["worker"]
    # The system and the agent of ECS have their part; and each task its network interface.
    memory = int(machine.memory * 0.94) - 256
    count = min(machine.vcpus * 1024 // size.cpu, memory // size.memory, machine.interfaces - 1)
    if count < 1:
        raise ConfigurationError(
            f"a machine {machine.kind} ({machine.vcpus} vCPUs, {machine.memory} MiB) does not "
            f"hold a worker of {size.vcpus:g} vCPUs and {size.memory} MiB",
            remedy="Choose a larger type with --instances, or fewer --slots, --cpus or --memory.",
        )
    return count


def plan_machines(ground: Ground) -> list[Planned]:
    """All of it but the role of the machines. Facts have the machine."""
    names, spec, facts = ground.names, ground.spec, ground.facts
    assert facts.machine is not None
    most = max(spec.workers, spec.most)
    count = math.ceil(most / count_workers(ground, facts.machine))
    name, tags = names.cluster, ground.tag("worker", name=names.cluster)
    profile = Planned(
        "instance-profile",
        names.role("instance"),
        "worker",
        {
            "InstanceProfileName": names.role("instance"),
            "Path": PATH,
            "Tags": as_list(ground.tag("worker") | {REGION: facts.region}),
        },
        more=(
            (
                "add_role_to_instance_profile",
                {
                    "InstanceProfileName": names.role("instance"),
                    "RoleName": names.role("instance"),
                },
            ),
        ),
    )
    template = Planned(
        "launch-template",
        name,
        "worker",
        {
            "LaunchTemplateName": name,
            "LaunchTemplateData": _make_template(ground, facts.machine, tags),
            "TagSpecifications": specify("launch-template", tags),
        },
    )
    group = Planned(
        "auto-scaling-group",
        name,
        "worker",
        {
            "AutoScalingGroupName": name,
            "MinSize": 0,
            "MaxSize": count,
            "DesiredCapacity": 0,  # ECS has as many as the tasks need
            "VPCZoneIdentifier": ",".join(ground.subnets),
            "NewInstancesProtectedFromScaleIn": True,
            "CapacityRebalance": False,  # a second machine for each warning would be paid for, too
            "MixedInstancesPolicy": _mix(ground, template.reference),
            "Tags": [
                {
                    "Key": key,
                    "Value": value,
                    "PropagateAtLaunch": True,
                    "ResourceId": name,
                    "ResourceType": "auto-scaling-group",
                }
                for key, value in tags.items()
            ],
        },
        charges=(
            Charge(
                "ebs-gb-month",
                DISK / count_workers(ground, facts.machine),
                "worker",
                f"its share of {DISK} GB of disk of a machine",
            ),
        ),
    )
    provider = Planned(
        "capacity-provider",
        name,
        "worker",
        {
            "name": name,
            "autoScalingGroupProvider": {
                "autoScalingGroupArn": group.reference,
                "managedScaling": {
                    "status": "ENABLED",
                    "targetCapacity": 100,
                    "minimumScalingStepSize": 1,
                    "maximumScalingStepSize": 100,
                    "instanceWarmupPeriod": 60,
                },
                # No machine goes while a worker on it has a run.
                "managedTerminationProtection": "ENABLED",
                "managedDraining": "ENABLED",
            },
            "tags": as_list(ground.tag("worker"), key="key", value="value"),
        },
    )
    return [profile, template, group, provider]


def _mix(ground: Ground, template: str) -> dict[str, Any]:
    """Spot or not. `mixed:20`: twenty percent on demand."""
    kind, _, percent = ground.spec.place.amazon.capacity.partition(":")
    assert ground.facts.machine is not None
    return {
        "LaunchTemplate": {
            "LaunchTemplateSpecification": {"LaunchTemplateId": template, "Version": "$Latest"},
            "Overrides": [{"InstanceType": ground.facts.machine.kind}],
        },
        "InstancesDistribution": {
            "OnDemandBaseCapacity": 0,
            "OnDemandPercentageAboveBaseCapacity": {"spot": 0, "ondemand": 100}.get(
                kind, int(percent or 0)
            ),
            "SpotAllocationStrategy": "price-capacity-optimized",
        },
    }


def _make_template(ground: Ground, machine: Machine, tags: dict[str, str]) -> dict[str, Any]:
    names, network = ground.names, ground.facts.network
    return {
        "ImageId": _IMAGE.format("arm64/" if machine.architecture == "arm64" else ""),
        "InstanceType": machine.kind,
        "IamInstanceProfile": {"Name": names.role("instance")},
        "MetadataOptions": {
            "HttpTokens": "required",  # version 2 alone
            "HttpPutResponseHopLimit": 1,  # and not from containers
            "HttpEndpoint": "enabled",
        },
        "BlockDeviceMappings": [
            {
                "DeviceName": "/dev/xvda",
                "Ebs": {
                    "VolumeSize": DISK,
                    "VolumeType": "gp3",
                    "Encrypted": True,
                    "DeleteOnTermination": True,
                },
            }
        ],
        "NetworkInterfaces": [
            {
                "DeviceIndex": 0,
                "AssociatePublicIpAddress": network.public,
                "Groups": [refer("security-group", names.group("worker"))],
                "DeleteOnTermination": True,
            }
        ],
        "InstanceInitiatedShutdownBehavior": "terminate",
        "UserData": base64.b64encode(write_user_data(ground.cluster).encode()).decode(),
        "TagSpecifications": [
            {"ResourceType": kind, "Tags": as_list(tags)} for kind in ("instance", "volume")
        ],
    }


def write_user_data(cluster: str) -> str:
    """What a machine does at its start: the agent of ECS learns its cluster.

    A Spot warning drains it, so that tasks get SIGTERM at once (ECS developer guide, "Amazon ECS
    container agent configuration").
    """
    settings = {
        "ECS_CLUSTER": cluster,
        "ECS_ENABLE_SPOT_INSTANCE_DRAINING": "true",
        "ECS_CONTAINER_STOP_TIMEOUT": "120s",
        "ECS_AWSVPC_BLOCK_IMDS": "true",
    }
    lines = "".join(f"{name}={value}\n" for name, value in settings.items())
    return f"#!/bin/sh\ncat >> /etc/ecs/ecs.config <<'END'\n{lines}END\n"
