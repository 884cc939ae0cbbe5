"""What ECS asks of a service before it makes or changes one."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

from amazon_refusal import Refusal
from amazon_requests import ApiCall

if TYPE_CHECKING:
    from moto_server import Amazon

FARGATE = ("FARGATE", "FARGATE_SPOT")  # capacity providers that each account has


def find_cluster(amazon: Amazon, call: ApiCall) -> Any:
    """moto's cluster. Raises `Refusal` for one that is not there or inactive."""
    name = str(call.parameters.get("cluster") or "default").rsplit("/", 1)[-1]
    cluster = amazon.backend("ecs", region=call.region).clusters.get(name)
    if cluster is None:
        raise Refusal("ClusterNotFoundException", "Cluster not found.")
    if cluster.status != "ACTIVE":
        raise Refusal("ClusterNotFoundException", "The referenced cluster was inactive.")
    return cluster


def find_definition(amazon: Amazon, region: str, name: str) -> Any:
    """moto's task definition, of ARN, FAMILY:REVISION or FAMILY."""
    family, _, revision = name.rsplit("/", 1)[-1].partition(":")
    known = amazon.backend("ecs", region=region).task_definitions.get(family, {})
    active = [number for number, one in known.items() if one.status == "ACTIVE"]
    number = int(revision) if revision else max(active, default=0)
    if number not in known or known[number].status != "ACTIVE":
        raise Refusal("ClientException", "TaskDefinition is inactive or not found.")
    return known[number]


def is_fargate(answer: Mapping[str, Any]) -> bool:
    strategy = answer.get("capacityProviderStrategy") or ()
    names = [one["capacityProvider"] for one in strategy]
    return answer.get("launchType") == "FARGATE" or bool(set(names) & set(FARGATE))


def check_capacity(amazon: Amazon, call: ApiCall, cluster: Any, given: Mapping[str, Any]) -> None:
    strategy = given.get("capacityProviderStrategy") or ()
    if strategy and given.get("launchType"):
        said = "Specifying both a launch type and capacity provider strategy is not supported."
        raise Refusal("InvalidParameterException", said)
    names = [one["capacityProvider"] for one in strategy]
    if set(names) & set(FARGATE) and set(names) - set(FARGATE):
        said = "A capacity provider strategy cannot contain a mix of capacity providers."
        raise Refusal("InvalidParameterException", said)
    if sum(one.get("base", 0) > 0 for one in strategy) > 1:
        raise Refusal("InvalidParameterException", "Only one provider can have a base.")
    if strategy and not any(one.get("weight", 0) for one in strategy):
        raise Refusal("InvalidParameterException", "At least one weight must be above zero.")
    known = amazon.backend("ecs", region=call.region).capacity_providers
    for name in names:
        if name not in FARGATE and name not in known:
            raise Refusal("ClientException", "The specified capacity provider was not found.")
        if name not in (cluster.capacity_providers or ()):
            said = ("The specified capacity provider strategy contains a capacity provider that is "
                    f"not associated with the cluster: {name}")  # fmt: skip
            raise Refusal("InvalidParameterException", said)


def check_network(amazon: Amazon, call: ApiCall, given: Mapping[str, Any], definition: Any) -> None:
    if definition.network_mode != "awsvpc":
        return
    network = (given.get("networkConfiguration") or {}).get("awsvpcConfiguration") or {}
    if not network.get("subnets"):
        said = "Network Configuration must be provided when networkMode 'awsvpc' is specified."
        raise Refusal("InvalidParameterException", said)
    if len(network["subnets"]) > 16 or len(network.get("securityGroups") or ()) > 5:
        raise Refusal("InvalidParameterException", "At most 16 subnets and 5 security groups.")
    ec2 = amazon.backend("ec2", region=call.region)
    known = {name: one for zone in ec2.subnets.values() for name, one in zone.items()}
    for name in network["subnets"]:
        if name not in known:
            said = f"Error retrieving subnet information for [{name}]"
            raise Refusal("InvalidParameterException", said)
    vpcs = {known[name].vpc_id for name in network["subnets"]}
    for name in network.get("securityGroups") or ():
        group = ec2.get_security_group_from_id(name)
        if group is None:
            said = f"Error retrieving security group information for [{name}]"
            raise Refusal("InvalidParameterException", said)
        vpcs.add(group.vpc_id)
    if len(vpcs) > 1:
        said = "Subnets and security groups must be of one VPC."
        raise Refusal("InvalidParameterException", said)


def check_new_roles(amazon: Amazon, definition: Any) -> None:
    """A role that was just made may be unknown to ECS for some seconds."""
    for arn in (
        getattr(definition, "task_role_arn", None),
        getattr(definition, "execution_role_arn", None),
    ):
        if arn:
            amazon.state.tries[f"service {arn}"] += 1
            if amazon.state.tries[f"service {arn}"] <= amazon.role_delay:
                said = (
                    "ECS was unable to assume the role. Please verify that it has the proper trust"
                )
                raise Refusal("InvalidParameterException", f"{said}: {arn}")


def check_registry(amazon: Amazon, call: ApiCall, registry: Mapping[str, Any]) -> None:
    known = amazon.backend("servicediscovery", region=call.region).services.values()
    if registry.get("registryArn") not in {one.arn for one in known}:
        raise Refusal("InvalidParameterException", "The service registry was not found.")
