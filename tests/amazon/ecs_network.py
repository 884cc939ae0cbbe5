"""Network interfaces of tasks, and their names in Cloud Map."""

from __future__ import annotations

import random
from collections.abc import Iterator
from typing import Any

from ecs_state import Service, Task
from moto_server import Amazon


def choose_subnet(amazon: Amazon, service: Service) -> Any:
    network = (service.answer.get("networkConfiguration") or {}).get("awsvpcConfiguration")
    if not network:
        return None
    ec2 = amazon.backend("ec2", region=service.region)
    return ec2.get_subnet(random.choice(network["subnets"]))


def attach(amazon: Amazon, service: Service, task: Task, subnet: Any) -> dict[str, Any]:
    network = service.answer["networkConfiguration"]["awsvpcConfiguration"]
    ec2 = amazon.backend("ec2", region=service.region)
    groups = network.get("securityGroups") or [
        group.id for group in ec2.groups[subnet.vpc_id].values() if group.name == "default"
    ]
    eni = ec2.create_network_interface(subnet, "", group_ids=groups, description=f"arn:{task.arn}")
    eni.status = "in-use"
    if network.get("assignPublicIp") == "ENABLED":
        eni.public_ip = f"203.0.113.{random.randrange(1, 255)}"
    task.interface = eni.id
    details = {
        "subnetId": subnet.id,
        "networkInterfaceId": eni.id,
        "macAddress": eni.mac_address,
        "privateIPv4Address": eni.private_ip_address,
    }
    return {
        "id": eni.id.removeprefix("eni-"),
        "type": "ElasticNetworkInterface",
        "status": "ATTACHED",
        "details": [{"name": name, "value": value} for name, value in details.items()],
    }


def _find_address(task: Task) -> str:
    if task.machine is not None:
        return str(task.machine.address)
    for attachment in task.answer["attachments"]:
        for detail in attachment["details"]:
            if detail["name"] == "privateIPv4Address":
                return str(detail["value"])
    return ""


def register(amazon: Amazon, task: Task) -> None:
    """In Cloud Map, where the service has a registry."""
    task.registered = True
    for backend, registry in _find_registries(amazon, task):
        attributes = {"AWS_INSTANCE_IPV4": _find_address(task)}
        backend.register_instance(registry.id, task.id, "", attributes)


def deregister(amazon: Amazon, task: Task) -> None:
    if task.registered:
        task.registered = False
        for backend, registry in _find_registries(amazon, task):
            if any(one.instance_id == task.id for one in registry.instances):
                backend.deregister_instance(registry.id, task.id)


def _find_registries(amazon: Amazon, task: Task) -> Iterator[tuple[Any, Any]]:
    service = amazon.state.ecs.services.get((task.region, task.cluster, task.service))
    if service is None:
        return
    backend = amazon.backend("servicediscovery", region=task.region)
    known = {one.arn: one for one in backend.services.values()}
    for registry in service.answer["serviceRegistries"]:
        if registry["registryArn"] in known:
            yield backend, known[registry["registryArn"]]
