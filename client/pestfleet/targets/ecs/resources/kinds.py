"""What all kinds of resources have in common: how one is made, found and removed."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from dataclasses import dataclass, field
from typing import Any

from pestfleet.targets.ecs.access import Cloud, Refused
from pestfleet.targets.ecs.naming import CLUSTER, Names, as_dict

Body = dict[str, Any]


@dataclass(frozen=True, slots=True)
class Found:
    """A resource in the account. `ident`: what requests call it; `costs`: by the hour or month."""

    kind: str
    name: str
    arn: str
    tags: dict[str, str] = field(default_factory=dict, compare=False)
    costs: bool = False
    ident: str = ""

    def __str__(self) -> str:
        return f"{self.kind.replace('-', ' ')} {self.name}"


@dataclass(frozen=True, slots=True)
class Search:
    """A session in an account. `cluster`: of ECS, its own or shared with others."""

    cloud: Cloud
    session: str
    cluster: str

    @property
    def names(self) -> Names:
        return Names(self.session)

    @property
    def shared(self) -> bool:
        """Is the cluster one with others' services?"""
        return self.cluster != self.names.cluster

    def name_arn(self, service: str, tail: str) -> str:
        cloud = self.cloud
        region = "" if service == "iam" else cloud.region
        return f"arn:{cloud.partition}:{service}:{region}:{cloud.account}:{tail}"


@dataclass(frozen=True, slots=True)
class Kind:
    """How resources of a kind are made, found and removed.

    `operation` of `service` makes one; `identify` gives what requests call it, from its parameters
    and the answer. `find` lists those of a session, `remove` removes one, and is safe to repeat;
    None: it goes with another. `exists`: patterns of refusals that say that there is one already;
    `fine`: of refusals of later requests that say that they were made before. `renew` brings one
    that is there up to date. `ready` waits for all that were made. `prepare` is called before the
    first is removed; `settle` before they are searched for to be removed. `fresh`: a new one is
    made each time. `make`: all of it at once, safe to repeat.
    """

    name: str
    service: str
    operation: str
    identify: Callable[[Cloud, Body, Body], str]
    find: Callable[[Search], Iterable[Found]] = lambda search: ()
    remove: Callable[[Search, Found], None] | None = None
    exists: tuple[str, ...] = ()
    fine: tuple[str, ...] = ()
    renew: Callable[[Cloud, Body], None] | None = None
    ready: Callable[[Search, list[str]], None] = lambda search, idents: None
    prepare: Callable[[Search, list[Found]], None] = lambda search, found: None
    settle: Callable[[Search], None] = lambda search: None
    fresh: bool = False
    make: Callable[[Cloud, Body], str] | None = None


def open_search(cloud: Cloud, session: str) -> Search:
    """Where a session is: the tags of its lease, which is made first, say which cluster."""
    names = Names(session)
    own = Search(cloud, session, names.cluster)
    arn = own.name_arn("scheduler", f"schedule-group/{names.schedules}")
    tags = ask(cloud, "scheduler", "list_tags_for_resource", ("NotFound",), ResourceArn=arn)
    shared = as_dict((tags or {}).get("Tags")).get(CLUSTER, "")
    return Search(cloud, session, shared) if shared else own


def ask(
    cloud: Cloud, service: str, operation: str, missing: tuple[str, ...], /, **parameters: Any
) -> Body | None:
    """The answer; None where the error code has one of these words, so that there is no such."""
    try:
        return cloud.call(service, operation, **parameters)
    except Refused as error:
        if any(word in error.code for word in missing):
            return None
        raise


def take(*path: str) -> Callable[[Cloud, Body, Body], str]:
    """An `identify` that reads the answer."""

    def identify(cloud: Cloud, body: Body, answer: Body) -> str:
        value: Any = answer
        for key in path:
            value = value[key]
        return str(value)

    return identify


def use(key: str) -> Callable[[Cloud, Body, Body], str]:
    """An `identify` that reads the request."""
    return lambda cloud, body, answer: str(body[key])
