"""ECS: a session's cluster, and the provider of its machines."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from functools import partial

from pestfleet.targets.ecs.naming import as_dict
from pestfleet.targets.ecs.resources.kinds import Body, Found, Kind, Search, ask, take, use
from pestfleet.targets.ecs.resources.waiting import has_code, insist

_MISSING = ("ClusterNotFound",)
_BUSY = has_code("UpdateInProgress", "ResourceInUse")


def _describe(search: Search, *include: str) -> Body:
    """The session's cluster, own or shared; {} where there is none."""
    answer = search.cloud.call(
        "ecs", "describe_clusters", clusters=[search.cluster], include=list(include)
    )
    found: list[Body] = [
        one for one in answer.get("clusters", ()) if one.get("status") not in ("INACTIVE", "")
    ]
    return found[0] if found else {}


def _find(search: Search) -> Iterator[Found]:
    if not search.shared and (one := _describe(search, "TAGS")):
        name, arn, tags = one["clusterName"], one["clusterArn"], as_dict(one.get("tags"))
        yield Found("cluster", name, arn, tags, ident=name)


def _remove(search: Search, found: Found) -> None:
    """When its services, tasks and machines have gone."""
    insist(
        lambda: ask(search.cloud, "ecs", "delete_cluster", _MISSING, cluster=found.ident),
        when=has_code("ClusterContains", "UpdateInProgress"),
    )


def _find_provider(search: Search) -> Iterator[Found]:
    name = search.names.cluster
    answer = search.cloud.call(
        "ecs", "describe_capacity_providers", capacityProviders=[name], include=["TAGS"]
    )
    for one in answer.get("capacityProviders", ()):
        if one.get("status") == "ACTIVE":
            arn, tags = one["capacityProviderArn"], as_dict(one.get("tags"))
            yield Found("capacity-provider", name, arn, tags, ident=name)


def _attach(search: Search, idents: list[str]) -> None:
    """The request names all providers of a cluster; a shared one keeps what it has."""
    _change(search, lambda names: [*names, *(one for one in idents if one not in names)])


def _change(search: Search, choose: Callable[[list[str]], list[str]]) -> None:
    def change() -> None:
        there = _describe(search)
        before: list[str] = there.get("capacityProviders", [])
        after = choose(before)
        if there and after != before:
            strategy = [
                one
                for one in there.get("defaultCapacityProviderStrategy", ())
                if one["capacityProvider"] in after
            ]
            search.cloud.call(
                "ecs",
                "put_cluster_capacity_providers",
                cluster=search.cluster,
                capacityProviders=after,
                defaultCapacityProviderStrategy=strategy,
            )

    insist(change, when=_BUSY)


def _remove_provider(search: Search, found: Found) -> None:
    cloud = search.cloud
    _release_machines(search)
    _change(search, lambda names: [name for name in names if name != found.ident])
    delete = partial(cloud.call, "ecs", "delete_capacity_provider", capacityProvider=found.ident)
    insist(delete, when=_BUSY)


def _release_machines(search: Search) -> None:
    """Machines that were ended without a word would be of the cluster for a while yet."""
    if search.shared or not _describe(search):
        return
    cloud, cluster = search.cloud, search.cluster
    for arn in list(
        cloud.find_all("ecs", "list_container_instances", "containerInstanceArns", cluster=cluster)
    ):
        ask(
            cloud,
            "ecs",
            "deregister_container_instance",
            ("ClientException", "InvalidParameter"),  # it has gone by now
            cluster=cluster,
            containerInstance=arn,
            force=True,
        )


KINDS = (
    Kind("cluster", "ecs", "create_cluster", take("cluster", "clusterName"), _find, _remove),
    Kind(
        "capacity-provider",
        "ecs",
        "create_capacity_provider",
        use("name"),
        _find_provider,
        _remove_provider,
        exists=("already exists",),
        ready=_attach,
    ),
)
