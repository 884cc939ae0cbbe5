"""What the real services hold to and moto does not: limits, pages, roles, order of removal.

`refuse` sees each request before moto does. `HANDLERS` answer in moto's place, `COMPLETIONS`
complete what moto answers in JSON.
"""

from __future__ import annotations

import functools
import re
from collections import Counter
from collections.abc import Callable, Iterator, Mapping
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any
from unittest.mock import patch

import amazon_conflicts
import amazon_prices
import amazon_removals
import amazon_tags
import ecs_services
from amazon_refusal import Refusal, paginate
from amazon_requests import ApiCall, find_roles
from ecs_services import EcsState
from task_definition_rules import check_task_definition

if TYPE_CHECKING:
    from moto_server import Amazon

Handler = Callable[["Amazon", ApiCall], dict[str, Any]]

HANDLERS: dict[str, Handler] = {
    **ecs_services.HANDLERS,
    "tag:GetResources": amazon_tags.get_resources,
    **amazon_prices.HANDLERS,
}

# Most that a request may name at a time (API references of the services).
_MOST = {
    "ecs:DescribeClusters": ("clusters", 100),
    "ecs:DescribeCapacityProviders": ("capacityProviders", 100),
    "ecs:DescribeContainerInstances": ("containerInstances", 100),
    "ecs:DeleteTaskDefinitions": ("taskDefinitions", 10),
    "ecs:CreateService": ("capacityProviderStrategy", 20),
    "ecr:BatchDeleteImage": ("imageIds", 100),
    "ecr:DescribeRepositories": ("repositoryNames", 100),
    "tag:GetResources": ("ResourceARNList", 100),
    "tag:UntagResources": ("ResourceARNList", 20),
    "secretsmanager:BatchGetSecretValue": ("SecretIdList", 20),
}
# Letters of names: parameter, pattern.
_NAMES = {
    "ecs:CreateCluster": ("clusterName", r"[A-Za-z0-9_-]{1,255}"),
    "ecs:RegisterTaskDefinition": ("family", r"[A-Za-z0-9_-]{1,255}"),
    "ecs:CreateCapacityProvider": ("name", r"(?!(?i:aws|ecs|fargate))[A-Za-z0-9_-]{1,255}"),
    "scheduler:CreateScheduleGroup": ("Name", r"[0-9A-Za-z_.-]{1,64}"),
    "scheduler:CreateSchedule": ("Name", r"[0-9A-Za-z_.-]{1,64}"),
    "secretsmanager:CreateSecret": ("Name", r"[A-Za-z0-9/_+=.@-]{1,512}"),
    "logs:CreateLogGroup": ("logGroupName", r"[.\-_/#A-Za-z0-9]{1,512}"),
    "iam:CreateRole": ("RoleName", r"[\w+=,.@-]{1,64}"),
    "servicediscovery:CreatePrivateDnsNamespace": ("Name", r"[!-~]{1,253}"),
    "servicediscovery:CreateService": ("Name", r"_?[A-Za-z0-9.-]{1,127}"),
    "ec2:CreateSecurityGroup": ("GroupName", r"(?!sg-)[A-Za-z0-9 ._\-:/()#,@\[\]+=&;{}!$*]{1,255}"),
    "ec2:CreateLaunchTemplate": ("LaunchTemplateName", r"[a-zA-Z0-9().\-/_]{3,128}"),
}
_RETENTIONS = (1, 3, 5, 7, 14, 30, 60, 90, 120, 150, 180, 365, 400, 545, 731, 1096, 1827, 2192,
               2557, 2922, 3288, 3653)  # fmt: skip


@dataclass(slots=True)
class State:
    """What we keep beside moto."""

    ecs: EcsState = field(default_factory=EcsState)
    tries: Counter[str] = field(default_factory=Counter)  # of a role, by those who shall take it on
    later: list[tuple[float, Callable[[], None]]] = field(default_factory=list)  # time, what
    listings: dict[str, list[Any]] = field(default_factory=dict)  # of GetResources
    done: set[str] = field(default_factory=set)  # schedules, with the times that they had

    def list_names(self) -> Iterator[str]:
        yield from self.ecs.list_names()


def refuse(amazon: Amazon, call: ApiCall) -> None:
    """Raises `Refusal` where the real service does."""
    named = _MOST.get(call.action)
    if named and len(call.parameters.get(named[0]) or ()) > named[1]:
        raise Refusal("InvalidParameterException", f"{named[0]} cannot have more than {named[1]}")
    pattern = _NAMES.get(call.action)
    if pattern and not re.fullmatch(pattern[1], str(call.parameters.get(pattern[0], ""))):
        value = call.parameters.get(pattern[0])
        raise Refusal(
            "ValidationException", f"{pattern[0]} {value!r} has not the form {pattern[1]}"
        )
    _check_tags(call)
    check = _CHECKS.get(call.action)
    if check is not None:
        check(amazon, call)


def _check_tags(call: ApiCall) -> None:
    """AWS general reference, "Tag naming limits and requirements"."""
    for name in ("tags", "Tags"):
        given = call.parameters.get(name) or ()
        pairs = given.items() if isinstance(given, Mapping) else map(_read_tag, given)
        for key, value in pairs:
            fits = re.fullmatch(r"[\w\s+=.:/@-]{1,128}", key) and re.fullmatch(
                r"[\w\s+=.:/@-]{0,256}", value
            )
            if not fits or key.lower().startswith("aws:"):
                raise Refusal("InvalidParameterException", f"a tag cannot be {key!r}: {value!r}")


def _read_tag(tag: Any) -> tuple[str, str]:
    if isinstance(tag, str):
        return tag, ""
    small = {name.lower(): text for name, text in tag.items()}
    return str(small.get("key", small.get("tagkey", ""))), str(small.get("value") or "")


# ---- roles


def _check_role(amazon: Amazon, call: ApiCall, service: str, code: str, said: str) -> None:
    """A role must be there, trust the service, and have been there for a while."""
    roles = {role.arn: role for role in amazon.backend("iam", region="aws").roles.values()}
    for arn in find_roles(call.parameters):
        role = roles.get(arn)
        amazon.state.tries[f"{service} {arn}"] += 1
        new = amazon.state.tries[f"{service} {arn}"] <= amazon.role_delay
        if role is None or new or service not in str(role.assume_role_policy_document):
            raise Refusal(code, said.format(role=arn))


def _check_definition(amazon: Amazon, call: ApiCall) -> None:
    _check_role(amazon, call, "ecs-tasks.amazonaws.com", "ClientException", "Role is not valid")
    check_task_definition(call.parameters)


def _check_schedule(amazon: Amazon, call: ApiCall) -> None:
    group = call.parameters.get("GroupName") or "default"
    if group not in amazon.backend("scheduler", region=call.region).schedule_groups:
        raise Refusal("ResourceNotFoundException", f"Schedule group {group} does not exist.", 404)
    said = "The execution role you provide must allow AWS EventBridge Scheduler to assume the role."
    _check_role(amazon, call, "scheduler.amazonaws.com", "ValidationException", said)
    expression = call.parameters.get("ScheduleExpression", "")
    forms = r"at\(\d{4}-\d\d-\d\dT\d\d:\d\d:\d\d\)|rate\(\d+ (minute|hour|day)s?\)|cron\(.+\)"
    if not re.fullmatch(forms, expression):
        raise Refusal("ValidationException", f"Invalid Schedule Expression {expression}.")
    if (call.parameters.get("FlexibleTimeWindow") or {}).get("Mode") not in ("OFF", "FLEXIBLE"):
        raise Refusal("ValidationException", "FlexibleTimeWindow must have a Mode.")


def _check_profile(amazon: Amazon, call: ApiCall) -> None:
    iam = amazon.backend("iam", region="aws")
    known = {text for one in iam.instance_profiles.values() for text in (one.name, one.arn)}
    for name in find_roles(call.parameters):
        amazon.state.tries[f"ec2 {name}"] += 1
        if name not in known or amazon.state.tries[f"ec2 {name}"] <= amazon.role_delay:
            raise Refusal(
                "InvalidParameterValue",
                f"Value ({name}) for parameter iamInstanceProfile.name is invalid. "
                "Invalid IAM Instance Profile name",
            )


def _check_retention(amazon: Amazon, call: ApiCall) -> None:
    if call.parameters.get("retentionInDays") not in _RETENTIONS:
        raise Refusal("InvalidParameterException", f"retentionInDays must be one of {_RETENTIONS}")


_CHECKS: dict[str, Callable[[Amazon, ApiCall], None]] = {
    "ecs:CreateCluster": amazon_conflicts.check_cluster,
    "ecs:CreateCapacityProvider": amazon_conflicts.check_provider,
    "ecs:DeleteCapacityProvider": amazon_conflicts.check_provider_removal,
    "scheduler:CreateScheduleGroup": amazon_conflicts.check_schedule_group,
    "servicediscovery:CreatePrivateDnsNamespace": amazon_conflicts.check_namespace,
    "servicediscovery:CreateService": amazon_conflicts.check_cloud_map_service,
    "ecs:RegisterTaskDefinition": _check_definition,
    "ecs:DeleteCluster": amazon_removals.check_cluster,
    "scheduler:CreateSchedule": _check_schedule,
    "scheduler:UpdateSchedule": _check_schedule,
    "scheduler:DeleteScheduleGroup": amazon_removals.check_schedule_group,
    "ec2:RunInstances": _check_profile,
    "ec2:DeleteSecurityGroup": amazon_removals.check_security_group,
    "ec2:DeleteSubnet": amazon_removals.check_subnet,
    "ec2:DeleteVpc": amazon_removals.check_vpc,
    "servicediscovery:DeleteService": amazon_removals.check_cloud_map_service,
    "servicediscovery:DeleteNamespace": amazon_removals.check_namespace,
    "logs:PutRetentionPolicy": _check_retention,
    "secretsmanager:DeleteSecret": amazon_removals.check_secret,
    "iam:DeleteRole": amazon_removals.check_role,
}


# ---- answers that moto leaves short


def _page(key: str, token: str, size: str, most: int, usual: int = 0) -> Any:
    def complete(amazon: Amazon, call: ApiCall, answer: dict[str, Any]) -> dict[str, Any]:
        return paginate(call.parameters, answer, key, token=token, size=size, most=most,
                        usual=usual)  # fmt: skip

    return complete


_ECS = {"token": "nextToken", "size": "maxResults", "most": 100}
_CLOUD_MAP = {"token": "NextToken", "size": "MaxResults", "most": 100}


def _list_namespaces(amazon: Amazon, call: ApiCall, answer: dict[str, Any]) -> dict[str, Any]:
    fields = {"NAME": "Name", "TYPE": "Type"}
    kept = [one for one in answer["Namespaces"] if _passes(call, one, fields)]
    return paginate(call.parameters, {**answer, "Namespaces": kept}, "Namespaces", **_CLOUD_MAP)


def _list_cloud_map_services(
    amazon: Amazon, call: ApiCall, answer: dict[str, Any]
) -> dict[str, Any]:
    known = amazon.backend("servicediscovery", region=call.region).services
    kept = [
        {name: value for name, value in one.items() if name != "NamespaceId"}
        for one in answer["Services"]
        if _passes(call, {"NamespaceId": known[one["Id"]].namespace_id},
                   {"NAMESPACE_ID": "NamespaceId"})
    ]  # fmt: skip
    return paginate(call.parameters, {**answer, "Services": kept}, "Services", **_CLOUD_MAP)


def _passes(call: ApiCall, one: Mapping[str, Any], fields: Mapping[str, str]) -> bool:
    filters = call.parameters.get("Filters") or ()
    return all(
        one.get(fields[each["Name"]]) in each["Values"]
        for each in filters
        if each["Name"] in fields and each.get("Condition", "EQ") in ("EQ", "IN")
    )


COMPLETIONS: dict[str, Callable[[Amazon, ApiCall, dict[str, Any]], dict[str, Any]]] = {
    "ecs:ListClusters": _page("clusterArns", **_ECS),
    "ecs:ListTaskDefinitions": _page("taskDefinitionArns", **_ECS),
    "ecs:ListTaskDefinitionFamilies": _page("families", **_ECS),
    "ecs:ListContainerInstances": _page("containerInstanceArns", **_ECS),
    "ecs:DescribeClusters": ecs_services.complete_clusters,
    "ecs:DescribeCapacityProviders": ecs_services.complete_providers,
    "servicediscovery:ListNamespaces": _list_namespaces,
    "servicediscovery:ListServices": _list_cloud_map_services,
    "servicediscovery:ListInstances": _page("Instances", **_CLOUD_MAP),
}


def _end_endpoint(ec2: Any, endpoint: Any, interfaces: list[str]) -> None:
    endpoint.state = "deleted"
    for name in interfaces:
        ec2.enis.pop(name, None)


@contextmanager
def complete_moto(amazon: Amazon) -> Iterator[None]:
    """moto's own code does in this block what it leaves out else."""
    from moto.ec2.models.instances import Instance
    from moto.ec2.models.vpcs import VPCBackend
    from moto.ecr.models import Repository
    from moto.ecr.responses import ECRResponse
    from moto.iam.access_control import PermissionResult
    from moto.s3.models import FakeBucket
    from moto.servicediscovery.models import ServiceDiscoveryBackend

    make_repository = Repository.__init__
    make_namespace = ServiceDiscoveryBackend.create_private_dns_namespace
    delete_namespace = ServiceDiscoveryBackend.delete_namespace
    get_token = ECRResponse.get_authorization_token
    make_default_vpc = VPCBackend.create_default_vpc
    terminate = Instance.terminate
    delete_endpoints = VPCBackend.delete_vpc_endpoints

    def with_registry(self: Any, *args: Any, **more: Any) -> None:
        make_repository(self, *args, **more)
        if amazon.registry:
            self.uri = f"{amazon.registry}/{self.name}"

    def of_any_name(self: Any, name: str, **more: Any) -> Any:
        """moto lets a VPC have one namespace; the real one, one of each name."""
        taken = [one for one in self.namespaces.values() if one.vpc == more["vpc"]]
        if any(one.name == name for one in taken):
            return make_namespace(self, name=name, **more)
        vpcs = {one.id: one.vpc for one in taken}
        for one in taken:
            one.vpc = ""
        try:
            return make_namespace(self, name=name, **more)
        finally:
            for one in taken:
                one.vpc = vpcs[one.id]

    def with_zone(self: Any, namespace_id: str) -> Any:
        namespace = self.namespaces.get(namespace_id)
        made = delete_namespace(self, namespace_id=namespace_id)
        zone = (namespace.dns_properties or {}).get("HostedZoneId") if namespace else None
        if zone:
            amazon.backend("route53", region="aws").zones.pop(zone.rsplit("/", 1)[-1], None)
        return made

    def with_address(self: Any) -> Any:
        made = get_token(self)
        if amazon.registry:
            for one in made.result["authorizationData"]:
                one["proxyEndpoint"] = f"http://{amazon.registry}"
        return made

    def with_gateway(self: Any) -> Any:
        """The default VPC is open to the Internet."""
        vpc = make_default_vpc(self)
        gateway = self.create_internet_gateway()
        self.attach_internet_gateway(gateway.id, vpc.id)
        table = next(one for one in self.route_tables.values() if one.vpc_id == vpc.id)
        self.create_route(table.id, "0.0.0.0/0", gateway_id=gateway.id)
        return vpc

    def with_delay(self: Any, vpce_ids: list[str] | None = None) -> None:
        """An endpoint's network interfaces stay for a while."""
        for one in (
            self.vpc_end_points[name] for name in vpce_ids or () if name in self.vpc_end_points
        ):
            kept = list(one.network_interface_ids)
            one.network_interface_ids = []
            delete_endpoints(self, [one.id])
            if kept:
                one.state = "deleting"
                amazon.do_later(functools.partial(_end_endpoint, self, one, kept))

    def with_interfaces(self: Any) -> Any:
        """What an instance was made with goes with it."""
        for interface in self.nics.values():
            interface.delete_on_termination = True
        return terminate(self)

    def with_conditions(self: Any, *args: Any, **more: Any) -> Any:
        """moto leaves out conditions, so a policy that asks for TLS would deny everything."""
        return PermissionResult.NEUTRAL

    with ExitStack() as stack:
        for owner, name, function in (
            (Repository, "__init__", with_registry),
            (ServiceDiscoveryBackend, "create_private_dns_namespace", of_any_name),
            (ServiceDiscoveryBackend, "delete_namespace", with_zone),
            (ECRResponse, "get_authorization_token", with_address),
            (VPCBackend, "create_default_vpc", with_gateway),
            (Instance, "terminate", with_interfaces),
            (FakeBucket, "get_permission", with_conditions),
            (VPCBackend, "delete_vpc_endpoints", with_delay),
        ):
            stack.enter_context(patch.object(owner, name, function))
        yield
