"""EC2: security groups, and a network of the session's own, found by their tags."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any

from pestfleet.targets.ecs.access import Refused
from pestfleet.targets.ecs.naming import SESSION, as_dict
from pestfleet.targets.ecs.resources.kinds import Body, Found, Kind, Search, ask, take
from pestfleet.targets.ecs.resources.waiting import has_code, insist, wait_until

_MISSING = ("NotFound", "Malformed")
_IN_USE = has_code("DependencyViolation", "InUse")
_READY_SECONDS = 300.0


def describe(search: Search, what: str, key: str) -> Iterator[Any]:
    """What EC2 lists of the session, by its tag."""
    wanted = [{"Name": f"tag:{SESSION}", "Values": [search.session]}]
    return search.cloud.find_all("ec2", f"describe_{what}", key, Filters=wanted)


def find_by_tag(
    kind: str, what: str, key: str, ident: str, *, costs: bool = False, gone: tuple[str, ...] = ()
) -> Callable[[Search], Iterator[Found]]:
    """A `find`. `gone`: states of what is no more, or soon."""

    def find(search: Search) -> Iterator[Found]:
        for one in describe(search, what, key):
            state = one.get("State", "")
            name = state.get("Name", "") if isinstance(state, dict) else state
            if str(name).lower() not in gone:
                tags, number = as_dict(one.get("Tags")), one[ident]
                arn = search.name_arn("ec2", f"{kind}/{number}")
                yield Found(kind, tags.get("Name", number), arn, tags, costs, number)

    return find


def remove_when_free(operation: str, key: str) -> Callable[[Search, Found], None]:
    """A `remove` that waits until nothing uses it any more."""

    def remove(search: Search, found: Found) -> None:
        insist(
            lambda: ask(search.cloud, "ec2", operation, _MISSING, **{key: found.ident}),
            when=_IN_USE,
        )

    return remove


def _clear_groups(search: Search, found: list[Found]) -> None:
    """Groups that name each other in their rules cannot go."""
    ours = {one.ident for one in found}
    for group in list(describe(search, "security_groups", "SecurityGroups")):
        if group["GroupId"] in ours:
            for way, key in (("ingress", "IpPermissions"), ("egress", "IpPermissionsEgress")):
                if rules := group.get(key):
                    ask(
                        search.cloud,
                        "ec2",
                        f"revoke_security_group_{way}",
                        _MISSING,
                        GroupId=group["GroupId"],
                        IpPermissions=[_trim(rule) for rule in rules],
                    )


def _part_tables(search: Search, found: list[Found]) -> None:
    """From the subnets that they are for."""
    for table in list(describe(search, "route_tables", "RouteTables")):
        for link in table.get("Associations", ()):
            if not link.get("Main"):
                ident = link["RouteTableAssociationId"]
                ask(search.cloud, "ec2", "disassociate_route_table", _MISSING, AssociationId=ident)


def _trim(rule: Body) -> Body:
    """Without what is empty, which requests do not take."""
    return {key: value for key, value in rule.items() if value != []}


def _remove_endpoint(search: Search, found: Found) -> None:
    answer = search.cloud.call("ec2", "delete_vpc_endpoints", VpcEndpointIds=[found.ident])
    for one in answer.get("Unsuccessful", ()):
        if "NotFound" not in one.get("Error", {}).get("Code", ""):
            error = one.get("Error", {})
            said = f"{found}: {error.get('Message', '')}"
            raise Refused("ec2:DeleteVpcEndpoints", str(error.get("Code", "")), said)


def _wait_endpoints(search: Search, idents: list[str]) -> None:
    def is_ready() -> bool:
        states = [
            str(one.get("State", "")).lower()
            for one in describe(search, "vpc_endpoints", "VpcEndpoints")
            if one["VpcEndpointId"] in idents
        ]
        return "pending" not in states

    wait_until(is_ready, "making the endpoints of the network", seconds=_READY_SECONDS)


_RULES = tuple(
    Kind(
        f"security-group-{way}",
        "ec2",
        f"authorize_security_group_{way}",
        lambda cloud, body, answer: str(body["GroupId"]),
        exists=(r"^InvalidPermission\.Duplicate",),
        fresh=True,
    )
    for way in ("ingress", "egress")
)

KINDS = (
    Kind(
        "security-group",
        "ec2",
        "create_security_group",
        take("GroupId"),
        find_by_tag("security-group", "security_groups", "SecurityGroups", "GroupId"),
        remove_when_free("delete_security_group", "GroupId"),
        exists=(r"^InvalidGroup\.Duplicate",),
        fine=(r"^InvalidPermission\.NotFound",),
        prepare=_clear_groups,
    ),
    *_RULES,
    Kind(
        "vpc",
        "ec2",
        "create_vpc",
        take("Vpc", "VpcId"),
        find_by_tag("vpc", "vpcs", "Vpcs", "VpcId"),
        remove_when_free("delete_vpc", "VpcId"),
    ),
    Kind(
        "subnet",
        "ec2",
        "create_subnet",
        take("Subnet", "SubnetId"),
        find_by_tag("subnet", "subnets", "Subnets", "SubnetId"),
        remove_when_free("delete_subnet", "SubnetId"),
        exists=(r"^InvalidSubnet\.Conflict",),
    ),
    Kind(
        "route-table",
        "ec2",
        "create_route_table",
        take("RouteTable", "RouteTableId"),
        find_by_tag("route-table", "route_tables", "RouteTables", "RouteTableId"),
        remove_when_free("delete_route_table", "RouteTableId"),
        fine=(r"^Resource\.AlreadyAssociated",),
        prepare=_part_tables,
    ),
    Kind(
        "vpc-endpoint",
        "ec2",
        "create_vpc_endpoint",
        take("VpcEndpoint", "VpcEndpointId"),
        find_by_tag(
            "vpc-endpoint",
            "vpc_endpoints",
            "VpcEndpoints",
            "VpcEndpointId",
            costs=True,
            gone=("deleting", "deleted", "failed"),
        ),
        _remove_endpoint,
        exists=(r"already exists",),
        ready=_wait_endpoints,
    ),
)
