"""The network that tasks go to, found or planned, and who in it may talk to whom."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any

from pestfleet.costs.charges import Charge
from pestfleet.placement import AmazonPlace
from pestfleet.targets.ecs.access import Cloud, Refused
from pestfleet.targets.ecs.planned import Ground, Network, Planned, refer
from pestfleet.targets.ecs.rules import specify
from pestfleet_worker.errors import ConfigurationError, TargetError

# A network of the session's own: two zones, which hold 8000 tasks each.
BLOCK, PARTS = "10.83.0.0/18", ("10.83.0.0/19", "10.83.32.0/19")
# What tasks without a way to the internet reach Amazon through.
ENDPOINTS = ("ecr.api", "ecr.dkr", "logs", "secretsmanager", "ecs", "scheduler")
_NEEDED = ("ecr.api", "ecr.dkr", "logs", "secretsmanager", "s3")

_WAYS = (
    "Choose one: amazon.public = true gives tasks public addresses, and security groups let "
    'nothing in; amazon.subnets = ["subnet-…"] names subnets with a NAT gateway or endpoints; '
    'amazon.network = "make" makes a network of the session\'s own, whose endpoints cost by the '
    "hour."
)


@dataclass(frozen=True, slots=True)
class Subnet:
    """`way`: how it reaches the internet: public, nat (or another gateway), or none."""

    ident: str
    vpc: str
    zone: str
    table: str
    way: str

    def __str__(self) -> str:
        way = {"public": "public", "nat": "private, with a gateway", "none": "no way out"}[self.way]
        return f"{self.ident} ({self.zone}; route table {self.table or 'none'}: {way})"


def find_network(cloud: Cloud, amazon: AmazonPlace) -> Network:
    """Where the tasks of a session go. Only reading requests.

    Raises `TargetError` where no subnet will do, with what was found and the three ways out.
    """
    if amazon.network == "make":
        return _plan_network(cloud)
    subnets = _find_subnets(cloud, amazon)
    vpc = subnets[0].vpc
    blocks = _find_blocks(cloud, vpc)
    public = [one for one in subnets if one.way == "public"]
    private = [one for one in subnets if one.way == "nat"]
    if amazon.subnets:
        return _take_given(cloud, subnets, public, blocks, amazon)
    if amazon.public:
        if not public:
            raise TargetError(_tell("has no public subnet", vpc, subnets), remedy=_WAYS)
        return Network(vpc, _name(public), public=True, blocks=blocks)
    if private:
        return Network(vpc, _name(private), blocks=blocks)
    closed = [one for one in subnets if one.way == "none"]
    if closed and not (missing := _find_missing(cloud, closed)):
        return Network(vpc, _name(closed), blocks=blocks)
    what = "has public subnets only" if not closed else f"has no endpoints for {_join(missing)}"
    raise TargetError(_tell(what, vpc, subnets), remedy=_WAYS)


def _take_given(
    cloud: Cloud,
    subnets: list[Subnet],
    public: list[Subnet],
    blocks: tuple[str, ...],
    amazon: AmazonPlace,
) -> Network:
    vpc = subnets[0].vpc
    if len({one.vpc for one in subnets}) > 1:
        places = _join(f"{one.ident} in {one.vpc}" for one in subnets)
        raise ConfigurationError(
            f"amazon.subnets are not all in one VPC: {places}",
            remedy="Name subnets of one VPC.",
        )
    if public and len(public) < len(subnets):
        raise ConfigurationError(
            f"some of amazon.subnets are public, and others are not: {_join(map(str, subnets))}",
            remedy="Name subnets of one kind.",
        )
    if public and not amazon.public:
        raise TargetError(_tell("is given with public subnets", vpc, subnets), remedy=_WAYS)
    if amazon.public and not public:
        raise ConfigurationError(
            f"amazon.public is set, but amazon.subnets are private: {_join(map(str, subnets))}",
            remedy="Leave amazon.public out, or name public subnets.",
        )
    closed = [one for one in subnets if one.way == "none"]
    if closed and (missing := _find_missing(cloud, closed)):
        what = f"has no endpoints for {_join(missing)}"
        raise TargetError(_tell(what, vpc, subnets), remedy=_WAYS)
    return Network(vpc, _name(subnets), public=bool(public), blocks=blocks)


def _plan_network(cloud: Cloud) -> Network:
    zones = [
        zone["ZoneName"]
        for zone in cloud.call("ec2", "describe_availability_zones").get("AvailabilityZones", ())
        if zone.get("State") == "available" and zone.get("ZoneType", "availability-zone")
        == "availability-zone"
    ]  # fmt: skip
    return Network("", (), made=True, blocks=(BLOCK,), zones=tuple(sorted(zones)[: len(PARTS)]))


def _find_subnets(cloud: Cloud, amazon: AmazonPlace) -> list[Subnet]:
    if amazon.subnets:
        try:
            found = list(_describe(cloud, "subnets", "Subnets", SubnetIds=list(amazon.subnets)))
        except Refused as error:
            if not error.code.startswith("InvalidSubnet"):
                raise
            raise ConfigurationError(
                f"amazon.subnets of {cloud.region}: {error.said}",
                remedy="Look at the ids, and at the region.",
            ) from error
    else:
        vpcs = list(_describe(cloud, "vpcs", "Vpcs", filters={"is-default": ["true"]}))
        if not vpcs:
            raise TargetError(
                f"the account has no default VPC in {cloud.region}, and no subnets are named",
                remedy=_WAYS,
            )
        found = list(_describe(cloud, "subnets", "Subnets", filters={"vpc-id": [vpcs[0]["VpcId"]]}))
        if not found:
            raise TargetError(
                f"the default VPC {vpcs[0]['VpcId']} in {cloud.region} has no subnets",
                remedy=_WAYS,
            )
    ids = sorted({one["VpcId"] for one in found})
    tables = list(_describe(cloud, "route_tables", "RouteTables", filters={"vpc-id": ids}))
    return [_read_subnet(one, tables) for one in sorted(found, key=lambda o: str(o["SubnetId"]))]


def _read_subnet(subnet: Any, tables: list[Any]) -> Subnet:
    ident, vpc = subnet["SubnetId"], subnet["VpcId"]
    table = _find_table(ident, vpc, tables)
    way = "none"
    for route in table.get("Routes", ()):
        if route.get("DestinationCidrBlock") == "0.0.0.0/0" and route.get("State") != "blackhole":
            way = "public" if str(route.get("GatewayId", "")).startswith("igw-") else "nat"
    zone = subnet.get("AvailabilityZone", "")
    return Subnet(ident, vpc, zone, table.get("RouteTableId", ""), way)


def _find_table(subnet: str, vpc: str, tables: list[Any]) -> Any:
    """The route table of a subnet: its own, or the main one of its VPC."""
    links = [(one, link) for one in tables for link in one.get("Associations", ())]
    own = [table for table, link in links if link.get("SubnetId") == subnet]
    main = [table for table, link in links if link.get("Main") and table["VpcId"] == vpc]
    return next(iter([*own, *main]), {})


def _find_missing(cloud: Cloud, subnets: Sequence[Subnet]) -> list[str]:
    """The services of Amazon that subnets without a way out do not reach."""
    filters = {"vpc-id": [subnets[0].vpc]}
    found = _describe(cloud, "vpc_endpoints", "VpcEndpoints", filters=filters)
    there = {str(one["ServiceName"]).split(f".{cloud.region}.", 1)[-1] for one in found}
    return [name for name in _NEEDED if name not in there]


def _find_blocks(cloud: Cloud, vpc: str) -> tuple[str, ...]:
    found = list(_describe(cloud, "vpcs", "Vpcs", VpcIds=[vpc]))
    blocks = [
        block["CidrBlock"]
        for one in found
        for block in (one, *one.get("CidrBlockAssociationSet", ()))
    ]
    return tuple(dict.fromkeys(blocks))


def _describe(
    cloud: Cloud, what: str, key: str, *, filters: dict[str, list[str]] | None = None, **more: Any
) -> Iterator[Any]:
    if filters:
        more["Filters"] = [{"Name": name, "Values": values} for name, values in filters.items()]
    return cloud.find_all("ec2", f"describe_{what}", key, **more)


def _name(subnets: Sequence[Subnet]) -> tuple[str, ...]:
    return tuple(one.ident for one in subnets)


def _join(words: Iterable[str]) -> str:
    return ", ".join(words)


def _tell(what: str, vpc: str, subnets: Sequence[Subnet]) -> str:
    return f"the VPC {vpc} {what}: {_join(map(str, subnets))}"


def plan_own_network(ground: Ground) -> list[Planned]:
    """A VPC without a way to the internet, and endpoints through which tasks reach Amazon."""
    names, network = ground.names, ground.facts.network
    tags = ground.tag(name=names.cluster)
    vpc = Planned(
        "vpc",
        names.cluster,
        "",
        {"CidrBlock": BLOCK, "TagSpecifications": specify("vpc", tags)},
        # Endpoints have private names only where the VPC resolves names.
        more=(
            (
                "modify_vpc_attribute",
                {"VpcId": refer("vpc", names.cluster), "EnableDnsHostnames": {"Value": True}},
            ),
        ),
    )
    subnets = [
        Planned(
            "subnet",
            f"{names.cluster}-{zone}",
            "",
            {
                "VpcId": vpc.reference,
                "CidrBlock": part,
                "AvailabilityZone": zone,
                "TagSpecifications": specify("subnet", ground.tag(name=f"{names.cluster}-{zone}")),
            },
        )
        for zone, part in zip(network.zones, PARTS, strict=False)
    ]
    table = Planned(
        "route-table",
        names.cluster,
        "",
        {"VpcId": vpc.reference, "TagSpecifications": specify("route-table", tags)},
        more=tuple(
            (
                "associate_route_table",
                {"RouteTableId": refer("route-table", names.cluster), "SubnetId": one.reference},
            )
            for one in subnets
        ),
    )
    return [vpc, *subnets, table]


def plan_endpoints(ground: Ground) -> list[Planned]:
    """Of a network of the session's own; their security group is made before."""
    names, facts, subnets = ground.names, ground.facts, ground.subnets
    table = refer("route-table", names.cluster)
    # In China names of services begin with cn.
    prefix = "cn.com.amazonaws" if facts.partition == "aws-cn" else "com.amazonaws"
    planned = []
    for service in ("s3", *ENDPOINTS):
        name = f"{names.cluster}-{service}"
        body: dict[str, Any] = {
            "VpcId": ground.vpc,
            "ServiceName": f"com.amazonaws.{facts.region}.{service}"
            if service in ("s3", "logs", "secretsmanager", "scheduler")
            else f"{prefix}.{facts.region}.{service}",
            "TagSpecifications": specify("vpc-endpoint", ground.tag(name=name)),
        }
        charges: tuple[Charge, ...] = ()
        if service == "s3":
            body |= {"VpcEndpointType": "Gateway", "RouteTableIds": [table]}
        else:
            body |= {
                "VpcEndpointType": "Interface",
                "SubnetIds": subnets,
                "SecurityGroupIds": [refer("security-group", names.group("endpoint"))],
                "PrivateDnsEnabled": True,
            }
            why = f"the endpoint for {service} in {len(subnets)} zones"
            charges = (Charge("endpoint-hour", float(len(subnets)), "", why),)
        planned.append(Planned("vpc-endpoint", name, "", body, charges=charges))
    return planned
