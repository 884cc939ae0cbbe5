"""Who of a session may talk to whom: the rules of its security groups, as data."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from pestfleet.targets.ecs.naming import Names, as_list
from pestfleet.targets.ecs.planned import Ground, Planned, refer
from pestfleet.targets.ecs.tasks import BROKER_PORT, RELAY_PORT, TUNNEL_PORT


@dataclass(frozen=True, slots=True)
class Rule:
    """A rule of the security group of a role. `peer`: a role, or a CIDR block."""

    role: str
    inward: bool
    port: int
    peer: str
    protocol: str = "tcp"
    why: str = ""


def list_rules(ground: Ground) -> list[Rule]:
    """Of the session's security groups: what each needs, and nothing else.

    Groups of security do not filter Amazon's own resolver; port 53 is for a VPC with others.
    """
    spec, network, roles = ground.spec, ground.facts.network, ground.roles
    outside = spec.place.amazon.allow_from
    pairs: list[tuple[str, int, str]] = []  # who, port, whose
    if "broker" in roles:
        pairs += [(role, BROKER_PORT, "broker") for role in roles if role in ("worker", "master")]
    if "tunnel" in roles:
        pairs.append(("worker", RELAY_PORT, "tunnel"))
    elif spec.mode == "agent" and "master" in roles:
        pairs.append(("worker", RELAY_PORT, "master"))
    rules = []
    for who, port, whose in pairs:
        rules += [
            Rule(whose, True, port, who, why=f"{who} to {whose}"),
            Rule(who, False, port, whose, why=f"{who} to {whose}"),
        ]
    if outside and "master" not in roles:
        # A master at home comes by the tunnel, or to the broker.
        for role, port in (("tunnel", TUNNEL_PORT), ("broker", BROKER_PORT)):
            if role in roles:
                rules.append(Rule(role, True, port, outside, why="the master at home"))
    for role in roles:
        rules.append(Rule(role, False, 443, "0.0.0.0/0", why="services of Amazon"))
        for block in network.blocks:
            rules += [Rule(role, False, 53, block, way, "names") for way in ("udp", "tcp")]
    port = ground.facts.broker_port
    if port and port != 443:
        users = [role for role in roles if role in ("worker", "master")]
        rules += [Rule(role, False, port, "0.0.0.0/0", why="the broker") for role in users]
    if network.made:
        rules += [
            Rule("endpoint", True, 443, block, why="tasks to Amazon") for block in network.blocks
        ]
    return rules


def plan_groups(ground: Ground) -> list[Planned]:
    """Security groups, each of a role, then their rules."""
    names, network = ground.names, ground.facts.network
    roles = [*ground.roles, *(["endpoint"] if network.made else [])]
    rules = list_rules(ground)
    groups = [
        Planned(
            "security-group",
            names.group(role),
            role,
            {
                "GroupName": names.group(role),
                "Description": f"pestfleet {ground.spec.session} {role}",
                "VpcId": ground.vpc,
                "TagSpecifications": specify(
                    "security-group", ground.tag(role, name=names.group(role))
                ),
            },
            # What a new group has: all may go out. The second is there in networks with IPv6.
            more=tuple(
                (
                    "revoke_security_group_egress",
                    {
                        "GroupId": refer("security-group", names.group(role)),
                        "IpPermissions": [{"IpProtocol": "-1", **blocks}],
                    },
                )
                for blocks in (
                    {"IpRanges": [{"CidrIp": "0.0.0.0/0"}]},
                    {"Ipv6Ranges": [{"CidrIpv6": "::/0"}]},
                )
            ),
        )
        for role in roles
    ]
    return groups + [
        _plan_rules(names, role, inward, [r for r in rules if (r.role, r.inward) == (role, inward)])
        for role in roles
        for inward in (True, False)
        if any((rule.role, rule.inward) == (role, inward) for rule in rules)
    ]


def _plan_rules(names: Names, role: str, inward: bool, rules: list[Rule]) -> Planned:
    body = {
        "GroupId": refer("security-group", names.group(role)),
        "IpPermissions": [_permit(names, rule) for rule in rules],
    }
    way = "ingress" if inward else "egress"
    return Planned(f"security-group-{way}", f"{names.group(role)}/{way}", role, body)


def _permit(names: Names, rule: Rule) -> dict[str, Any]:
    allowed: dict[str, Any] = {
        "IpProtocol": rule.protocol,
        "FromPort": rule.port,
        "ToPort": rule.port,
    }
    if "/" not in rule.peer:
        group = refer("security-group", names.group(rule.peer))
        return allowed | {"UserIdGroupPairs": [{"GroupId": group, "Description": rule.why}]}
    if ":" in rule.peer:
        return allowed | {"Ipv6Ranges": [{"CidrIpv6": rule.peer, "Description": rule.why}]}
    return allowed | {"IpRanges": [{"CidrIp": rule.peer, "Description": rule.why}]}


def specify(kind: str, tags: dict[str, str]) -> list[Any]:
    """Tags as EC2 takes them with a request that makes something."""
    return [{"ResourceType": kind, "Tags": as_list(tags)}]
