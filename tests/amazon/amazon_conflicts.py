"""What is there already, and cannot be made once more; what is not, and cannot be removed."""

from __future__ import annotations

from typing import TYPE_CHECKING

from amazon_refusal import Refusal
from amazon_requests import ApiCall

if TYPE_CHECKING:
    from moto_server import Amazon


def check_cluster(amazon: Amazon, call: ApiCall) -> None:
    """CreateCluster gives the cluster that is there, if it is the same."""
    name = call.parameters.get("clusterName", "default")
    cluster = amazon.backend("ecs", region=call.region).clusters.get(name)
    if cluster is None or cluster.status != "ACTIVE":
        return
    wanted = call.parameters.get("tags") or [], call.parameters.get("capacityProviders") or []
    if wanted != (cluster.tags or [], cluster.capacity_providers or []):
        said = ("Arguments on this idempotent request are inconsistent with arguments used in "
                "previous request(s).")  # fmt: skip
        raise Refusal("InvalidParameterException", said)


def check_provider(amazon: Amazon, call: ApiCall) -> None:
    name = call.parameters["name"]
    if name in amazon.backend("ecs", region=call.region).capacity_providers:
        raise Refusal("ClientException", "The specified capacity provider already exists.")


def check_provider_removal(amazon: Amazon, call: ApiCall) -> None:
    name = str(call.parameters["capacityProvider"]).rsplit("/", 1)[-1]
    ecs = amazon.backend("ecs", region=call.region)
    if name not in ecs.capacity_providers:
        raise Refusal("ClientException", "The specified capacity provider was not found.")
    clusters = [one for one in ecs.clusters.values() if one.status == "ACTIVE"]
    if any(name in (one.capacity_providers or ()) for one in clusters):
        said = "The specified capacity provider is in use and cannot be removed."
        raise Refusal("ResourceInUseException", said)


def check_schedule_group(amazon: Amazon, call: ApiCall) -> None:
    name = call.parameters["Name"]
    if name in amazon.backend("scheduler", region=call.region).schedule_groups:
        raise Refusal("ConflictException", f"Schedule group {name} already exists.", 409)


def check_namespace(amazon: Amazon, call: ApiCall) -> None:
    given = call.parameters
    for one in amazon.backend("servicediscovery", region=call.region).namespaces.values():
        if (one.name, one.vpc) == (given["Name"], given["Vpc"]):
            said = f"Namespace with name {one.name} already exists: {one.id}"
            raise Refusal("NamespaceAlreadyExists", said)


def check_cloud_map_service(amazon: Amazon, call: ApiCall) -> None:
    given, backend = call.parameters, amazon.backend("servicediscovery", region=call.region)
    home = given.get("NamespaceId") or (given.get("DnsConfig") or {}).get("NamespaceId")
    if home not in backend.namespaces:
        raise Refusal("NamespaceNotFound", f"Namespace {home} not found.")
    for one in backend.services.values():
        if (one.name, one.namespace_id) == (given["Name"], home):
            raise Refusal("ServiceAlreadyExists", f"Service already exists: {one.id}")
