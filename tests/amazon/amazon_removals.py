"""What cannot be removed yet, for something else depends on it."""

from __future__ import annotations

from typing import TYPE_CHECKING

from amazon_refusal import Refusal
from amazon_requests import ApiCall

if TYPE_CHECKING:
    from moto_server import Amazon


def check_schedule_group(amazon: Amazon, call: ApiCall) -> None:
    name = call.parameters["Name"]
    if name not in amazon.backend("scheduler", region=call.region).schedule_groups:
        raise Refusal("ResourceNotFoundException", f"Schedule group {name} does not exist.", 404)


def check_cluster(amazon: Amazon, call: ApiCall) -> None:
    name = str(call.parameters.get("cluster", "default")).rsplit("/", 1)[-1]
    ecs = amazon.state.ecs
    if any(one.status != "INACTIVE" for one in ecs.list_services(call.region, name)):
        said = "The Cluster cannot be deleted while Services are active."
        raise Refusal("ClusterContainsServicesException", said)
    if any(task.last_status != "STOPPED" for task in ecs.list_tasks(call.region, name)):
        said = "The Cluster cannot be deleted while Tasks are active."
        raise Refusal("ClusterContainsTasksException", said)
    if amazon.backend("ecs", region=call.region).container_instances.get(name):
        said = "The Cluster cannot be deleted while Container Instances are active or draining."
        raise Refusal("ClusterContainsContainerInstancesException", said)


def check_security_group(amazon: Amazon, call: ApiCall) -> None:
    name = call.parameters.get("GroupId")
    ec2 = amazon.backend("ec2", region=call.region)
    used = any(name in {group.id for group in eni.group_set} for eni in ec2.enis.values())
    others = (group for vpc in ec2.groups.values() for group in vpc.values() if group.id != name)
    named = any(
        name == rule.source_group.get("GroupId")
        for group in others
        for rule in [*group.ingress_rules, *group.egress_rules]
    )
    ends = any(name in one.security_group_ids for one in ec2.vpc_end_points.values()
               if one.state != "deleted")  # fmt: skip
    if used or named or ends:
        raise Refusal("DependencyViolation", f"resource {name} has a dependent object")


def check_subnet(amazon: Amazon, call: ApiCall) -> None:
    name = call.parameters.get("SubnetId")
    ec2 = amazon.backend("ec2", region=call.region)
    if any(eni.subnet.id == name for eni in ec2.enis.values()):
        said = f"The subnet '{name}' has dependencies and cannot be deleted."
        raise Refusal("DependencyViolation", said)


def check_vpc(amazon: Amazon, call: ApiCall) -> None:
    name = call.parameters.get("VpcId")
    ec2 = amazon.backend("ec2", region=call.region)
    subnets = [one for zone in ec2.subnets.values() for one in zone.values()]
    ends = [one for one in ec2.vpc_end_points.values() if one.state != "deleted"]
    groups = [one for one in ec2.groups.get(name, {}).values() if one.name != "default"]
    if groups or any(one.vpc_id == name for one in [*subnets, *ends]):
        said = f"The vpc '{name}' has dependencies and cannot be deleted."
        raise Refusal("DependencyViolation", said)


def check_cloud_map_service(amazon: Amazon, call: ApiCall) -> None:
    service = amazon.backend("servicediscovery", region=call.region).services.get(
        call.parameters["Id"]
    )
    if service is None:
        raise Refusal("ServiceNotFound", f"Service {call.parameters['Id']} not found.")
    if service.instances:
        said = "Service contains registered instances; delete the instances before deleting it"
        raise Refusal("ResourceInUse", said)


def check_namespace(amazon: Amazon, call: ApiCall) -> None:
    name = call.parameters["Id"]
    services = amazon.backend("servicediscovery", region=call.region).services.values()
    if any(one.namespace_id == name for one in services):
        raise Refusal("ResourceInUse", "Namespace has associated services")


def check_secret(amazon: Amazon, call: ApiCall) -> None:
    if call.parameters.get("ForceDeleteWithoutRecovery") and call.parameters.get(
        "RecoveryWindowInDays"
    ):
        said = "You can't use ForceDeleteWithoutRecovery in conjunction with RecoveryWindowInDays."
        raise Refusal("InvalidParameterException", said)


def check_role(amazon: Amazon, call: ApiCall) -> None:
    name = call.parameters["RoleName"]
    iam = amazon.backend("iam", region="aws")
    role = next((one for one in iam.roles.values() if one.name == name), None)
    profiles = [one for one in iam.instance_profiles.values() if role in one.roles]
    if role is not None and (role.policies or role.managed_policies or profiles):
        said = "Cannot delete entity, must delete policies first."
        raise Refusal("DeleteConflict", said, 409)
