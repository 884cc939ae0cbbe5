"""What a session makes in an account, as data: the requests, in their order, and what they cost."""

from __future__ import annotations

import json
import math
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from typing import Any

from pestfleet.costs.charges import Charge
from pestfleet.folder import SessionSpec
from pestfleet.targets.ecs.naming import CLUSTER, PATH, Names, make_tags
from pestfleet.targets.ecs.tasks import Images

POLICY = "pestfleet"  # the name of each role's one policy
LEASE_MINUTES = 60.0  # of a launch: pushing images can take long; the master renews it


@dataclass(frozen=True, slots=True)
class Planned:
    """One resource. `body`: the parameters of the request that makes it, without secrets.

    A text "@kind/name" in it stands for the id of a resource that is made before it. `more`:
    requests after that one, each an operation of the same service and its parameters, and safe to
    repeat. `actions`: of IAM, to make, find and remove it.
    """

    kind: str
    name: str
    role: str
    body: dict[str, Any]
    actions: tuple[str, ...] = ()
    charges: tuple[Charge, ...] = ()
    more: tuple[tuple[str, dict[str, Any]], ...] = ()

    @property
    def reference(self) -> str:
        """What stands for its id in others."""
        return refer(self.kind, self.name)


def refer(kind: str, name: str) -> str:
    return f"@{kind}/{name}"


@dataclass(frozen=True, slots=True)
class Network:
    """Where tasks go. `blocks`: CIDR blocks of the VPC; `public`: tasks get public addresses.

    `made`: by the session, in these `zones`; then there are no `vpc` and `subnets` yet.
    """

    vpc: str
    subnets: tuple[str, ...]
    public: bool = False
    made: bool = False
    blocks: tuple[str, ...] = ()
    zones: tuple[str, ...] = ()


@dataclass(frozen=True, slots=True)
class Machine:
    """A type of EC2 machines: cores as Amazon counts them, MiB, network interfaces."""

    kind: str
    vcpus: int
    memory: int
    interfaces: int = 2
    architecture: str = "x86_64"  # or arm64


@dataclass(frozen=True, slots=True)
class Facts:
    """What a plan depends on beside the session: the account, and what is there.

    `caller`: the ARN of who launches; `launched`: seconds since 1970; `folder`: of the session on
    this machine; `broker_port`: of a broker of the user's, 0 for one of the session's own;
    `case_bytes`: size of the case; `launch`: name of this launch.
    """

    account: str
    region: str
    partition: str
    network: Network
    caller: str = ""
    launched: float = 0.0
    folder: str = ""
    broker_port: int = 0
    case_bytes: int = 0
    launch: str = "1"
    machine: Machine | None = None

    @property
    def owner(self) -> str:
        return self.caller.rsplit("/", 1)[-1].rsplit(":", 1)[-1]

    @property
    def suffix(self) -> str:
        """Of the names of Amazon's servers."""
        return "amazonaws.com.cn" if self.partition == "aws-cn" else "amazonaws.com"

    def name_arn(self, service: str, tail: str, *, everywhere: bool = False) -> str:
        """`everywhere`: of a service without regions, such as IAM."""
        region = "" if everywhere else self.region
        return f"arn:{self.partition}:{service}:{region}:{self.account}:{tail}"


@dataclass(frozen=True, slots=True)
class Ground:
    """What all parts of a plan know."""

    spec: SessionSpec
    images: Images
    facts: Facts
    tags: dict[str, str]

    @property
    def names(self) -> Names:
        return Names(self.spec.session)

    @property
    def cluster(self) -> str:
        return self.spec.place.amazon.cluster or self.names.cluster

    @property
    def bucket(self) -> str:
        return self.spec.place.amazon.bucket or name_bucket(self.facts.account, self.facts.region)

    @property
    def subnets(self) -> list[str]:
        """Ids, or references to those of the session's own."""
        network = self.facts.network
        made = [refer("subnet", f"{self.names.cluster}-{zone}") for zone in network.zones]
        return made if network.made else list(network.subnets)

    @property
    def vpc(self) -> str:
        network = self.facts.network
        return refer("vpc", self.names.cluster) if network.made else network.vpc

    @property
    def roles(self) -> tuple[str, ...]:
        """Whose services there are, in the order in which they start."""
        place = self.spec.place
        wanted = {
            "broker": bool(self.images.broker),
            "tunnel": place.tunnel,
            "master": place.master == "there",
            "worker": True,
        }
        return tuple(role for role, is_wanted in wanted.items() if is_wanted)

    def tag(self, role: str = "", *, name: str = "") -> dict[str, str]:
        """`name`: shown by the consoles of services that have no names."""
        tags = make_tags(self.spec.session, role)
        return {**self.tags, **tags, **({"Name": name} if name else {})}

    def name_role(self, role: str) -> str:
        """The ARN of a role of IAM."""
        return self.facts.name_arn("iam", f"role{PATH}{self.names.role(role)}", everywhere=True)

    def name_service(self, role: str) -> str:
        """The ARN of a service."""
        return self.facts.name_arn("ecs", f"service/{self.cluster}/{self.names.service(role)}")


@dataclass(frozen=True, slots=True)
class AmazonPlan:
    """What a session wants in an account. `resources`: in the order in which they are made.

    `policy`: what who launches must be allowed to do; `charges`: of all resources.
    """

    spec: SessionSpec
    region: str
    resources: list[Planned]
    policy: dict[str, Any] = field(default_factory=dict)
    charges: tuple[Charge, ...] = ()
    account: str = ""
    partition: str = "aws"
    bucket: str = ""
    cluster: str = ""
    network: Network = Network("", ())
    launched: float = 0.0

    @property
    def latest(self) -> float:
        """When it ends at the latest, in seconds since 1970."""
        hours = self.spec.max_hours
        return self.launched + 3600.0 * hours if hours else math.inf

    @property
    def names(self) -> Names:
        return Names(self.spec.session)

    def find(self, kind: str) -> Iterator[Planned]:
        """All resources of a kind."""
        return (one for one in self.resources if one.kind == kind)

    def to_json(self) -> dict[str, Any]:
        """What `run --dry-run` shows."""
        return {
            "session": self.spec.session,
            "account": self.account,
            "region": self.region,
            "bucket": self.bucket,
            "cluster": self.cluster,
            "resources": [_show(one) for one in self.resources],
            "policy": self.policy,
            "charges": [_show_charge(charge) for charge in self.charges],
        }


def name_bucket(account: str, region: str) -> str:
    """The bucket of all sessions of an account in a region, where no other is given."""
    return f"pestfleet-{account}-{region}"


def make_session_tags(spec: SessionSpec, facts: Facts) -> dict[str, str]:
    """The tags of all of a session's resources; with an end where it has a limit of time."""
    import time

    expires = ""
    if spec.max_hours:
        end = time.gmtime(facts.launched + 3600.0 * spec.max_hours)
        expires = time.strftime("%Y-%m-%dT%H:%M:%SZ", end)
    tags = make_tags(spec.session, owner=facts.owner, expires=expires, folder=facts.folder)
    shared = spec.place.amazon.cluster
    return tags | ({CLUSTER: shared} if shared else {})


def _show(one: Planned) -> dict[str, Any]:
    shown: dict[str, Any] = {"kind": one.kind, "name": one.name, "role": one.role}
    shown["request"] = _open(one.body)
    if one.more:
        shown["then"] = [{operation: _open(body)} for operation, body in one.more]
    shown["actions"] = list(one.actions)
    shown["charges"] = [_show_charge(charge) for charge in one.charges]
    return shown


def _show_charge(charge: Charge) -> dict[str, Any]:
    return {"item": charge.item, "amount": charge.amount, "role": charge.role, "why": charge.why}


def _open(value: Any, key: str = "") -> Any:
    """Policies are texts in requests; people read them as what they are."""
    if isinstance(value, Mapping):
        return {name: _open(part, name) for name, part in value.items()}
    if isinstance(value, list | tuple):
        return [_open(part) for part in value]
    if key in ("AssumeRolePolicyDocument", "PolicyDocument", "Policy", "Input"):
        return json.loads(value)
    return value
