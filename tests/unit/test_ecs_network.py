"""The network of tasks: what is found in an account of moto's, and who may talk to whom."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import pytest

from amazon_account import MADE, make_facts, make_spec, open_account, plan_for
from pestfleet.placement import AmazonPlace
from pestfleet.targets.ecs.access import Cloud
from pestfleet.targets.ecs.network import find_network
from pestfleet.targets.ecs.plan import AmazonPlan
from pestfleet_worker.errors import ConfigurationError, TargetError

NEEDED = ("ecr.api", "ecr.dkr", "logs", "secretsmanager", "s3")


@pytest.fixture
def cloud(monkeypatch: pytest.MonkeyPatch) -> Iterator[Cloud]:
    for name in ("AWS_ACCESS_KEY_ID", "AWS_SECRET_ACCESS_KEY"):
        monkeypatch.setenv(name, "testing")
    monkeypatch.delenv("AWS_PROFILE", raising=False)
    with open_account() as account:
        yield account


def find_default(cloud: Cloud) -> tuple[str, list[str]]:
    """The default VPC and its subnets."""
    ec2 = cloud.client("ec2")
    (vpc,) = ec2.describe_vpcs(Filters=[{"Name": "is-default", "Values": ["true"]}])["Vpcs"]
    wanted = [{"Name": "vpc-id", "Values": [vpc["VpcId"]]}]
    subnets = ec2.describe_subnets(Filters=wanted)["Subnets"]
    return vpc["VpcId"], sorted(one["SubnetId"] for one in subnets)


def add_way(cloud: Cloud, vpc: str, subnets: list[str], way: str) -> None:
    """A route table for these subnets: igw (to the internet), nat, or none."""
    ec2 = cloud.client("ec2")
    table = ec2.create_route_table(VpcId=vpc)["RouteTable"]["RouteTableId"]
    target: dict[str, str] = {}
    if way == "igw":
        gateway = ec2.create_internet_gateway()["InternetGateway"]["InternetGatewayId"]
        ec2.attach_internet_gateway(InternetGatewayId=gateway, VpcId=vpc)
        target = {"GatewayId": gateway}
    elif way == "nat":
        address = ec2.allocate_address(Domain="vpc")["AllocationId"]
        made = ec2.create_nat_gateway(SubnetId=subnets[0], AllocationId=address)
        target = {"NatGatewayId": made["NatGateway"]["NatGatewayId"]}
    if target:
        ec2.create_route(RouteTableId=table, DestinationCidrBlock="0.0.0.0/0", **target)
    for subnet in subnets:
        ec2.associate_route_table(RouteTableId=table, SubnetId=subnet)


def test_private_subnets_with_a_gateway_are_taken(cloud: Cloud) -> None:
    vpc, (first, second, third) = find_default(cloud)
    add_way(cloud, vpc, [first], "igw")
    add_way(cloud, vpc, [second, third], "nat")

    network = find_network(cloud, AmazonPlace())

    assert (network.vpc, network.subnets) == (vpc, (second, third))
    assert not network.public
    assert network.blocks == ("172.31.0.0/16",)


def test_public_subnets_are_taken_only_where_asked_for(cloud: Cloud) -> None:
    vpc, subnets = find_default(cloud)
    add_way(cloud, vpc, subnets, "igw")

    with pytest.raises(TargetError, match="has public subnets only") as caught:
        find_network(cloud, AmazonPlace())
    network = find_network(cloud, AmazonPlace(public=True))

    assert subnets[0] in caught.value.message
    for way in ("amazon.public = true", "amazon.subnets", 'amazon.network = "make"'):
        assert way in caught.value.remedy
    assert (network.subnets, network.public) == (tuple(subnets), True)


def test_subnets_without_a_way_out_need_endpoints(cloud: Cloud) -> None:
    vpc, subnets = find_default(cloud)
    add_way(cloud, vpc, subnets, "none")

    with pytest.raises(TargetError, match=r"no endpoints for ecr\.api, ecr\.dkr, logs"):
        find_network(cloud, AmazonPlace())
    for service in NEEDED:
        kind = "Gateway" if service == "s3" else "Interface"
        name = f"com.amazonaws.{cloud.region}.{service}"
        cloud.client("ec2").create_vpc_endpoint(VpcId=vpc, ServiceName=name, VpcEndpointType=kind)

    assert find_network(cloud, AmazonPlace()).subnets == tuple(subnets)


def test_an_account_without_a_default_vpc_is_told_so(cloud: Cloud) -> None:
    ec2 = cloud.client("ec2")
    vpc, subnets = find_default(cloud)
    for subnet in subnets:
        ec2.delete_subnet(SubnetId=subnet)

    with pytest.raises(TargetError, match=f"the default VPC {vpc} in eu-central-1 has no subnets"):
        find_network(cloud, AmazonPlace())
    ec2.delete_vpc(VpcId=vpc)
    with pytest.raises(TargetError, match="no default VPC in eu-central-1"):
        find_network(cloud, AmazonPlace())


def test_subnets_that_are_given_are_looked_at(cloud: Cloud) -> None:
    vpc, (first, second, third) = find_default(cloud)
    add_way(cloud, vpc, [first], "igw")
    add_way(cloud, vpc, [second], "nat")

    assert find_network(cloud, AmazonPlace(subnets=(second,))).subnets == (second,)
    public = find_network(cloud, AmazonPlace(subnets=(first,), public=True))
    assert public.public
    for place, error, words in (
        (AmazonPlace(subnets=(first,)), TargetError, "public subnets"),
        (AmazonPlace(subnets=(first, second)), ConfigurationError, "and others are not"),
        (AmazonPlace(subnets=(second,), public=True), ConfigurationError, "are private"),
        (AmazonPlace(subnets=("subnet-0abc",)), ConfigurationError, "subnet-0abc"),
    ):
        with pytest.raises(error, match=words):
            find_network(cloud, place)
    assert third


def test_subnets_of_two_networks_are_refused(cloud: Cloud) -> None:
    _, (first, *_) = find_default(cloud)
    ec2 = cloud.client("ec2")
    vpc = ec2.create_vpc(CidrBlock="10.9.0.0/16")["Vpc"]["VpcId"]
    other = ec2.create_subnet(VpcId=vpc, CidrBlock="10.9.0.0/24")["Subnet"]["SubnetId"]

    with pytest.raises(ConfigurationError, match="not all in one VPC"):
        find_network(cloud, AmazonPlace(subnets=(first, other)))


def test_a_network_of_its_own_has_two_zones(cloud: Cloud) -> None:
    network = find_network(cloud, AmazonPlace(network="make"))

    assert network.made
    assert network.zones == ("eu-central-1a", "eu-central-1b")
    assert dict(cloud.calls) == {"ec2:DescribeAvailabilityZones": 1}


def list_permits(plan: AmazonPlan, way: str) -> set[tuple[str, int, str]]:
    """Who, port, whose or from where."""
    found = set()
    for one in plan.find(f"security-group-{way}"):
        for rule in one.body["IpPermissions"]:
            peers = [
                pair["GroupId"].rpartition("-")[2] for pair in rule.get("UserIdGroupPairs", ())
            ]
            peers += [block["CidrIp"] for block in rule.get("IpRanges", ())]
            peers += [block["CidrIpv6"] for block in rule.get("Ipv6Ranges", ())]
            found |= {(one.role, rule["FromPort"], peer) for peer in peers}
    return found


HOME = "192.0.2.7/32"


@pytest.mark.parametrize(
    ("spec", "inward"),
    [
        (make_spec(), {("broker", 5671, "worker"), ("broker", 5671, "master")}),
        (
            make_spec(mode="agent"),
            {
                ("broker", 5671, "worker"),
                ("broker", 5671, "master"),
                ("master", 4004, "worker"),
            },
        ),
        (
            make_spec(master="here", allow_from=HOME),
            {("broker", 5671, "worker"), ("broker", 5671, HOME)},
        ),
        (
            make_spec(master="here", tunnel=True, allow_from=HOME),
            {("tunnel", 4004, "worker"), ("tunnel", 2222, HOME)},
        ),
        (
            make_spec(master="here", tunnel=True, mode="agent", allow_from="2001:db8::/64"),
            {
                ("broker", 5671, "worker"),
                ("broker", 5671, "2001:db8::/64"),
                ("tunnel", 4004, "worker"),
                ("tunnel", 2222, "2001:db8::/64"),
            },
        ),
    ],
    ids=["queue", "agents", "home", "tunnel", "agents through the tunnel"],
)
def test_groups_let_in_who_needs_it(spec: Any, inward: set[tuple[str, int, str]]) -> None:
    plan = plan_for(spec)

    assert list_permits(plan, "ingress") == inward
    # Whoever is let in may go out to there, and all else goes to Amazon and to names.
    outward = {(peer, port, who) for who, port, peer in inward if "/" not in peer}
    rest = list_permits(plan, "egress") - outward
    assert {(port, where) for _, port, where in rest} == {(443, "0.0.0.0/0"), (53, "10.0.0.0/16")}
    assert outward <= list_permits(plan, "egress")


def test_a_broker_of_the_users_is_reached_at_its_port() -> None:
    plan = plan_for(make_spec(), make_facts(broker_port=5673), broker=False)

    outward = list_permits(plan, "egress")
    assert {("worker", 5673, "0.0.0.0/0"), ("master", 5673, "0.0.0.0/0")} <= outward
    assert list_permits(plan, "ingress") == set()


def test_endpoints_are_reached_from_the_network_alone() -> None:
    plan = plan_for(make_spec(network="make"), make_facts(MADE))

    assert ("endpoint", 443, "10.83.0.0/18") in list_permits(plan, "ingress")


def test_a_new_group_loses_the_right_to_go_anywhere() -> None:
    for group in plan_for(make_spec()).find("security-group"):
        blocks = []
        for operation, body in group.more:
            assert operation == "revoke_security_group_egress"
            (rule,) = body["IpPermissions"]
            assert rule["IpProtocol"] == "-1"
            blocks += rule.get("IpRanges", []) + rule.get("Ipv6Ranges", [])
        assert blocks == [{"CidrIp": "0.0.0.0/0"}, {"CidrIpv6": "::/0"}]
