"""All resources of the account, to compare what was there before with what is there now."""

from __future__ import annotations

from collections.abc import Iterator
from typing import TYPE_CHECKING, Any

from moto.backends import get_backend

if TYPE_CHECKING:
    from moto_server import Amazon

_GONE = ("terminated", "shutting-down")


def list_resources(amazon: Amazon) -> Iterator[str]:
    """`service:region:kind/name` of each; hold the account's lock."""
    finders = {
        "ecs": _list_ecs,
        "ec2": _list_ec2,
        "iam": _list_iam,
        "logs": _list_logs,
        "secretsmanager": _list_secrets,
        "servicediscovery": _list_cloud_map,
        "ecr": _list_ecr,
        "s3": _list_s3,
        "scheduler": _list_schedules,
        "autoscaling": _list_groups,
        "route53": _list_zones,
        "events": _list_rules,
        "efs": _list_file_systems,
    }
    for service, find in finders.items():
        backends = get_backend(service)  # type: ignore[call-overload]
        if amazon.account not in backends:
            continue
        for region, backend in list(backends[amazon.account].items()):
            yield from (f"{service}:{region}:{name}" for name in find(backend))
    yield from (f"ecs:{name}" for name in amazon.state.list_names())


def _list_ecs(backend: Any) -> Iterator[str]:
    for cluster in backend.clusters.values():
        if cluster.status == "ACTIVE":
            yield f"cluster/{cluster.name}"
    for name, revisions in backend.task_definitions.items():
        for number, made in revisions.items():
            yield f"task-definition/{name}:{number} {made.status}"
    yield from (f"capacity-provider/{name}" for name in backend.capacity_providers)
    for instances in backend.container_instances.values():
        yield from (f"container-instance/{name}" for name in instances)


def _list_ec2(backend: Any) -> Iterator[str]:
    given = {vpc.id for vpc in backend.vpcs.values() if vpc.is_default}
    yield from (f"vpc/{name}" for name in backend.vpcs if name not in given)
    for zone in backend.subnets.values():
        for name, subnet in zone.items():
            if not (subnet.vpc_id in given and subnet.default_for_az):
                yield f"subnet/{name}"
    for vpc, groups in backend.groups.items():
        for group in groups.values():
            if group.name != "default" or vpc not in given:
                yield f"security-group/{group.id} {group.name}"
    for name, gateway in backend.internet_gateways.items():
        if gateway.vpc is None or gateway.vpc.id not in given:
            yield f"internet-gateway/{name}"
    for name, table in backend.route_tables.items():
        if table.vpc_id not in given or not table.main_association_id:
            yield f"route-table/{name}"
    for name, gateway in backend.nat_gateways.items():
        if gateway.state != "deleted":
            yield f"natgateway/{name}"
    for name, endpoint in backend.vpc_end_points.items():
        if endpoint.state != "deleted":
            yield f"vpc-endpoint/{name} {endpoint.service_name}"
    for reservation in backend.reservations.values():
        for instance in reservation.instances:
            if instance.state not in _GONE:
                yield f"instance/{instance.id}"
    for name, request in backend.spot_instance_requests.items():
        if request.state not in ("cancelled", "closed"):
            yield f"spot-instances-request/{name}"
    yield from (f"launch-template/{name}" for name in backend.launch_templates)
    yield from (f"key-pair/{name}" for name in backend.key_pairs)
    yield from (f"volume/{name}" for name in backend.volumes)
    yield from (f"network-interface/{name}" for name in backend.enis)
    yield from (f"elastic-ip/{address.allocation_id}" for address in backend.addresses)
    yield from (f"placement-group/{name}" for name in getattr(backend, "placement_groups", ()))


def _list_iam(backend: Any) -> Iterator[str]:
    yield from (f"role/{role.name}" for role in backend.roles.values())
    for role in backend.roles.values():
        yield from (f"role-policy/{role.name}/{name}" for name in role.policies)
    yield from (f"instance-profile/{one.name}" for one in backend.instance_profiles.values())
    for policy in backend.managed_policies.values():
        if policy.arn.split(":")[4] != "aws":
            yield f"policy/{policy.name}"
    yield from (f"user/{name}" for name in backend.users)


def _list_logs(backend: Any) -> Iterator[str]:
    yield from (f"log-group/{name}" for name in backend.groups)


def _list_secrets(backend: Any) -> Iterator[str]:
    for secret in backend.secrets.values():
        waits = " (deleted, still there)" if secret.is_deleted() else ""
        yield f"secret/{secret.name}{waits}"


def _list_cloud_map(backend: Any) -> Iterator[str]:
    yield from (f"namespace/{one.name}" for one in backend.namespaces.values())
    for service in backend.services.values():
        yield f"service/{service.id} {service.name}"
        yield from (f"instance/{service.name}/{one.instance_id}" for one in service.instances)


def _list_ecr(backend: Any) -> Iterator[str]:
    yield from (f"repository/{name}" for name in backend.repositories)


def _list_s3(backend: Any) -> Iterator[str]:
    for name, bucket in backend.buckets.items():
        yield f"bucket/{name}"
        yield from (f"object/{name}/{key}" for key in bucket.keys)
        yield from (f"upload/{name}/{upload.key_name}" for upload in bucket.multiparts.values())


def _list_schedules(backend: Any) -> Iterator[str]:
    for group in backend.schedule_groups.values():
        if group.name != "default":
            yield f"schedule-group/{group.name}"
        yield from (f"schedule/{group.name}/{name}" for name in group.schedules)


def _list_groups(backend: Any) -> Iterator[str]:
    yield from (f"auto-scaling-group/{name}" for name in backend.autoscaling_groups)
    yield from (f"launch-configuration/{name}" for name in backend.launch_configurations)


def _list_zones(backend: Any) -> Iterator[str]:
    yield from (f"hosted-zone/{zone.name}" for zone in backend.zones.values())


def _list_rules(backend: Any) -> Iterator[str]:
    for bus in backend.event_buses.values():
        yield from (f"rule/{name}" for name in bus.rules)


def _list_file_systems(backend: Any) -> Iterator[str]:
    yield from (f"file-system/{name}" for name in backend.file_systems_by_id)
