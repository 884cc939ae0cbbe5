"""What is asked of EC2 for a session's machines: the bodies of the requests, and nothing else."""

from __future__ import annotations

import base64
import ipaddress
import json
import math
import re
import time
from dataclasses import dataclass
from typing import Any

from pestfleet.capacity import user_data
from pestfleet.capacity.images import MachineImage
from pestfleet.capacity.machines import MACHINE, write_time
from pestfleet.capacity.site import MachineSite
from pestfleet.targets.ecs.naming import PATH, Names, as_list, make_tags
from pestfleet_worker.errors import ConfigurationError

JOINS = ("worker", "cluster", "none")
SSH_PORT = 22

Body = dict[str, Any]


@dataclass(frozen=True, slots=True)
class MachineRequest:
    """What a user asks for. `count` machines of type `kind`; `disk` in GB, 0: the image's.

    `join`: worker, the machines are workers of the session; cluster, ECS places tasks on them;
    none, they are their user's. `allow_from`: CIDR block for ssh, "" for no ssh at all.
    `slots`: of a worker, 0: as many as the machine has processors. `hours`: then a machine ends.
    """

    session: str
    count: int
    kind: str
    hours: float
    join: str = "worker"
    image: str = ""
    spot: bool = True
    disk: int = 0
    slots: int = 0
    allow_from: str = ""
    owner: str = ""

    def __post_init__(self) -> None:
        """Raises `ConfigurationError` for what cannot be."""
        for what, value, right in (
            ("the id of a session", self.session,
             re.fullmatch(r"[A-Za-z0-9][A-Za-z0-9._-]{0,59}", self.session)),
            ("a number of machines, 1 to 1000", self.count, 1 <= self.count <= 1000),
            ("a type of EC2 machines, such as c7i.4xlarge", self.kind,
             re.fullmatch(r"[a-z0-9-]+\.[a-z0-9-]+", self.kind)),
            ("a number of hours above 0", self.hours, 0 < self.hours < math.inf),
            ("worker, cluster or none", self.join, self.join in JOINS),
            ("a size in GB", self.disk, 0 <= self.disk <= 65_536),
            ("a number of slots", self.slots, self.slots >= 0),
        ):  # fmt: skip
            if not right:
                raise ConfigurationError(f"{value!r} is not {what}")
        if self.allow_from:
            _check_block(self.allow_from)

    @property
    def ssh(self) -> bool:
        return bool(self.allow_from)

    @property
    def names(self) -> Names:
        return Names(self.session)


def _check_block(block: str) -> None:
    try:
        network = ipaddress.ip_network(block)
    except ValueError:
        raise ConfigurationError(
            f"{block!r} is no CIDR block",
            remedy="Such as 203.0.113.7/32 for one address.",
        ) from None
    if network.prefixlen == 0:
        raise ConfigurationError(
            f"{block} is the whole world, which is not let in by ssh",
            remedy="Name the addresses that you come from, such as 203.0.113.7/32.",
        )


def make_machine_tags(request: MachineRequest, now: float | None = None) -> dict[str, str]:
    """Tags of all that is made for the machines."""
    end = (time.time() if now is None else now) + request.hours * 3600
    return make_tags(request.session, MACHINE, owner=request.owner, expires=write_time(end))


def make_role(request: MachineRequest, tags: dict[str, str]) -> Body:
    """Of iam:CreateRole. EC2 takes it for machines, and nobody else does."""
    trust = {
        "Version": "2012-10-17",
        "Statement": [
            {
                "Effect": "Allow",
                "Principal": {"Service": "ec2.amazonaws.com"},
                "Action": "sts:AssumeRole",
            }
        ],
    }
    return {
        "RoleName": request.names.role(MACHINE),
        "Path": PATH,
        "Description": f"Machines of the pestfleet session {request.session}",
        "AssumeRolePolicyDocument": json.dumps(trust),
        "Tags": as_list(tags),
    }


def make_policy(request: MachineRequest, site: MachineSite, *, region: str, account: str,
                partition: str) -> Body:  # fmt: skip
    """Of iam:PutRolePolicy: what a machine may do, which is as little as it does."""
    place = f"{region}:{account}"
    statements: list[Body] = []
    if request.join == "worker" and site.worker is not None:
        worker = site.worker
        # A valueFrom can go on after the ARN: ":KEY:STAGE:VERSION".
        secret = ":".join(worker.unpacking.secret.split(":")[:7])
        statements.append(_allow("secretsmanager:GetSecretValue", secret))
        registry, _, rest = worker.image.partition("/")
        if user_data.is_amazon_registry(registry):
            repository = rest.partition("@")[0].partition(":")[0]
            owner, home = registry.split(".")[0], registry.split(".")[3]
            statements += [
                _allow("ecr:GetAuthorizationToken", "*"),
                _allow(
                    ["ecr:BatchGetImage", "ecr:GetDownloadUrlForLayer"],
                    f"arn:{partition}:ecr:{home}:{owner}:repository/{repository}",
                ),
            ]
        group = worker.logs.get("awslogs-group")
        if group:
            arn = f"arn:{partition}:logs:{place}:log-group:{group}:log-stream:*"
            statements.append(_allow(["logs:CreateLogStream", "logs:PutLogEvents"], arn))
    elif request.join == "cluster":
        cluster = f"arn:{partition}:ecs:{place}:cluster/{site.cluster}"
        stem = f"arn:{partition}:ecs:{place}"
        # "Amazon ECS container instance IAM role", Amazon ECS developer guide.
        statements += [
            _allow("ecs:DiscoverPollEndpoint", "*"),
            _allow(["ecs:RegisterContainerInstance", "ecs:DeregisterContainerInstance",
                    "ecs:SubmitContainerStateChange", "ecs:SubmitTaskStateChange",
                    "ecs:SubmitAttachmentStateChanges"], cluster),
            _allow(["ecs:Poll", "ecs:StartTelemetrySession", "ecs:UpdateContainerInstancesState"],
                   f"{stem}:container-instance/{site.cluster}/*"),
            _allow("ecs:DescribeServices", f"{stem}:service/{site.cluster}/{site.service}"),
        ]  # fmt: skip
    return {
        "RoleName": request.names.role(MACHINE),
        "PolicyName": request.join,
        "PolicyDocument": json.dumps({"Version": "2012-10-17", "Statement": statements}),
    }


def _allow(action: str | list[str], resource: str) -> Body:
    return {"Effect": "Allow", "Action": action, "Resource": resource}


def make_profile(request: MachineRequest, tags: dict[str, str]) -> Body:
    """Of iam:CreateInstanceProfile."""
    name = request.names.role(MACHINE)
    return {"InstanceProfileName": name, "Path": PATH, "Tags": as_list(tags)}


def make_group(request: MachineRequest, site: MachineSite, tags: dict[str, str]) -> Body:
    """Of ec2:CreateSecurityGroup: nothing comes in."""
    return {
        "GroupName": request.names.group(MACHINE),
        "Description": f"Machines of the pestfleet session {request.session}",
        "VpcId": site.network,
        "TagSpecifications": [_tag("security-group", tags)],
    }


def make_ingress(request: MachineRequest, group: str) -> Body:
    """Of ec2:AuthorizeSecurityGroupIngress: ssh, from one block of addresses."""
    block = ipaddress.ip_network(request.allow_from)
    source = {"Description": "ssh, by pestfleet"}
    ranges = (
        {"IpRanges": [{"CidrIp": str(block)} | source]}
        if block.version == 4
        else {"Ipv6Ranges": [{"CidrIpv6": str(block)} | source]}
    )
    permission = {"IpProtocol": "tcp", "FromPort": SSH_PORT, "ToPort": SSH_PORT} | ranges
    return {"GroupId": group, "IpPermissions": [permission]}


def make_key(request: MachineRequest, public: str, tags: dict[str, str]) -> Body:
    """Of ec2:ImportKeyPair: EC2 gets the public half only."""
    return {
        "KeyName": request.names.group(MACHINE),
        "PublicKeyMaterial": public.encode(),
        "TagSpecifications": [_tag("key-pair", tags)],
    }


def make_template(
    request: MachineRequest, image: MachineImage, script: str, tags: dict[str, str]
) -> Body:
    """Of ec2:CreateLaunchTemplate. Where a machine goes, and how it is paid for, is not in it."""
    data: Body = {
        "ImageId": image.id,
        "InstanceType": request.kind,
        "InstanceInitiatedShutdownBehavior": "terminate",
        # A container of a bridge is one hop further: it reaches neither the machine's role nor its
        # user data. The container engine and the agent of ECS are on the machine itself.
        "MetadataOptions": {
            "HttpEndpoint": "enabled",
            "HttpTokens": "required",
            "HttpPutResponseHopLimit": 1,
        },
        "BlockDeviceMappings": _make_disks(request, image),
        "UserData": base64.b64encode(script.encode()).decode("ascii"),
        "TagSpecifications": [
            _tag(kind, tags | {"Name": request.names.group(MACHINE)})
            for kind in ("instance", "volume", "network-interface")
        ],
    }
    if request.join != "none":
        data["IamInstanceProfile"] = {"Name": request.names.role(MACHINE)}
    if request.ssh:
        data["KeyName"] = request.names.group(MACHINE)
    return {
        "LaunchTemplateName": request.names.group(MACHINE),
        "LaunchTemplateData": data,
        "TagSpecifications": [_tag("launch-template", tags)],
    }


def _make_disks(request: MachineRequest, image: MachineImage) -> list[Body]:
    sizes = dict(image.disks)
    if request.disk and not image.root:
        raise ConfigurationError(
            f"the image {image.id} does not say what its disk is", remedy="Leave --disk out."
        )
    if request.disk:
        least = image.disks.get(image.root, 0)
        if request.disk < least:
            raise ConfigurationError(
                f"a disk of {request.disk} GB is smaller than the image {image.id}, which has "
                f"{least} GB",
                remedy="Ask for more, or leave --disk out.",
            )
        sizes[image.root] = request.disk
    return [
        {
            "DeviceName": device,
            "Ebs": {"VolumeType": "gp3", "Encrypted": True, "DeleteOnTermination": True}
            | ({"VolumeSize": size} if size else {}),
        }
        for device, size in sizes.items()
    ]


def make_run(
    request: MachineRequest, *, template: str, version: str, subnet: str, groups: list[str],
    public: bool, least: int, most: int, token: str,
) -> Body:  # fmt: skip
    """Of ec2:RunInstances, for one zone. `token`: the same for the same request repeated."""
    body: Body = {
        "LaunchTemplate": {"LaunchTemplateId": template, "Version": version},
        "MinCount": least,
        "MaxCount": most,
        "ClientToken": token,
        "NetworkInterfaces": [
            {
                "DeviceIndex": 0,
                "SubnetId": subnet,
                "Groups": groups,
                "AssociatePublicIpAddress": public,
                "DeleteOnTermination": True,
            }
        ],
    }
    if request.spot:
        body["InstanceMarketOptions"] = {
            "MarketType": "spot",
            "SpotOptions": {
                "SpotInstanceType": "one-time",
                "InstanceInterruptionBehavior": "terminate",
            },
        }
    return body


def write_script(request: MachineRequest, site: MachineSite, *, region: str, slots: int) -> str:
    """The machines' user data. Raises `ConfigurationError`."""
    if request.join == "none":
        return user_data.write_plain(hours=request.hours)
    if request.join == "cluster":
        return user_data.write_member(
            site.cluster, site.service, region=region, hours=request.hours
        )
    if site.worker is None:
        raise ConfigurationError(
            f"the workers of session {request.session} are not such as pestfleet registers them",
            remedy="Let the machines join the cluster: --join cluster.",
        )
    return user_data.write_worker(site.worker, slots=slots, region=region, hours=request.hours)


def _tag(kind: str, tags: dict[str, str]) -> Body:
    return {"ResourceType": kind, "Tags": as_list(tags)}
