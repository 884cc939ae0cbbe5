"""What an account must be allowed to do in a namespace, so that a session can be launched there."""

from __future__ import annotations

import json
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Any

from pestfleet.targets.kubernetes.access import Access, Refused
from pestfleet.targets.kubernetes.naming import Object, name_plural, read_role
from pestfleet_worker.errors import TargetError

_REVIEWS = "/apis/authorization.k8s.io/v1"
# What is done with the kinds that a session has: made, looked at, removed by label.
_VERBS = ("create", "get", "list", "delete", "deletecollection")


@dataclass(frozen=True, slots=True)
class Permission:
    """Verbs on a resource, such as `pods/log` of group "". `optional`: only tells more."""

    group: str
    resource: str
    verbs: tuple[str, ...]
    optional: bool = False

    def __str__(self) -> str:
        where = f" ({self.group})" if self.group else ""
        more = "; not needed, but tells more" if self.optional else ""
        return f"{self.resource}{where}: {', '.join(self.verbs)}{more}"


def list_permissions(objects: Sequence[Object]) -> list[Permission]:
    """What a launch of these objects, and all that is done with the session, needs.

    The last ones, which are optional, are for all of a cluster; the others for the namespace.
    """
    wanted: dict[tuple[str, str], list[str]] = {}

    def want(group: str, resource: str, *verbs: str) -> None:
        known = wanted.setdefault((group, resource), [])
        known.extend(verb for verb in verbs if verb not in known)

    for one in objects:
        want(_find_group(one), name_plural(one["kind"]), *_VERBS)
    want("batch", "jobs", *_VERBS, "patch")
    want("", "secrets", *_VERBS)
    want("", "pods", "get", "list", "delete", "deletecollection")
    want("", "pods/log", "get")
    # A WebSocket is opened with GET; servers from 1.35 on want the right to create as well.
    want("", "pods/exec", "get", "create")
    if not _has_master(objects):
        want("", "pods/portforward", "get", "create")
    want("", "events", "list")
    want("", "resourcequotas", "list")
    for one in objects:  # nobody may give rights that they have not
        for rule in one.get("rules") or () if one["kind"] == "Role" else ():
            for group in rule["apiGroups"]:
                for resource in rule["resources"]:
                    want(group, resource, *rule["verbs"])
    needed = [Permission(*place, tuple(verbs)) for place, verbs in sorted(wanted.items())]
    optional = [
        Permission("", "nodes", ("list",), True),
        Permission("storage.k8s.io", "storageclasses", ("list",), True),
    ]
    return needed + optional


def check_permissions(access: Access, objects: Sequence[Object]) -> None:
    """Raises `TargetError` with all that is missing, and a Role that an administrator can apply."""
    needed = [one for one in list_permissions(objects) if not one.optional]
    missing = find_missing(access, needed)
    if not missing:
        return
    lines = "\n".join(f"    {one}" for one in missing)
    raise TargetError(
        f"your account may not do what a session needs in namespace {access.namespace}:\n{lines}",
        remedy="Have an administrator apply this, and bind it to you (kubectl create rolebinding "
        f"pestfleet --role=pestfleet --user=YOU -n {access.namespace}):\n"
        f"{write_role(needed, access.namespace)}",
    )


def find_missing(access: Access, needed: Sequence[Permission]) -> list[Permission]:
    """Which of these verbs the account has not. One request, and few more where that says little.

    Some authorizers cannot list what they allow, so what is not in the list is asked for by itself.
    """
    review = {"spec": {"namespace": access.namespace}}
    try:
        status = access.post(f"{_REVIEWS}/selfsubjectrulesreviews", review).get("status") or {}
    except Refused:
        status = {"incomplete": True}
    rules = status.get("resourceRules") or []
    missing = []
    for one in needed:
        verbs = [verb for verb in one.verbs if not any(_allows(rule, one, verb) for rule in rules)]
        if status.get("incomplete"):
            verbs = [verb for verb in verbs if not _may(access, one, verb)]
        if verbs:
            missing.append(Permission(one.group, one.resource, tuple(verbs), one.optional))
    return missing


def write_role(needed: Iterable[Permission], namespace: str, name: str = "pestfleet") -> str:
    """A Role with these permissions, as YAML."""
    lines = [
        "apiVersion: rbac.authorization.k8s.io/v1",
        "kind: Role",
        f"metadata: {{name: {name}, namespace: {namespace}}}",
        "rules:",
    ]
    for one in needed:
        groups, verbs = json.dumps([one.group]), ", ".join(one.verbs)
        lines.append(f"- {{apiGroups: {groups}, resources: [{one.resource}], verbs: [{verbs}]}}")
    return "\n".join(lines)


def _find_group(found: Object) -> str:
    group, slash, _ = str(found["apiVersion"]).partition("/")
    return group if slash else ""


def _has_master(objects: Sequence[Object]) -> bool:
    return any(one["kind"] == "Job" and read_role(one) == "master" for one in objects)


def _allows(rule: dict[str, Any], one: Permission, verb: str) -> bool:
    def has(name: str, value: str) -> bool:
        values = rule.get(name) or ()
        return "*" in values or value in values

    # A rule for objects of certain names is none for those that we make.
    return (
        not rule.get("resourceNames")
        and has("verbs", verb)
        and has("apiGroups", one.group)
        and (has("resources", one.resource) or _has_subresource(rule, one.resource))
    )


def _has_subresource(rule: dict[str, Any], resource: str) -> bool:
    _, slash, subresource = resource.partition("/")
    return bool(slash) and f"*/{subresource}" in (rule.get("resources") or ())


def _may(access: Access, one: Permission, verb: str) -> bool:
    resource, _, subresource = one.resource.partition("/")
    attributes = {
        "namespace": access.namespace,
        "verb": verb,
        "group": one.group,
        "resource": resource,
        "subresource": subresource,
    }
    review = {"spec": {"resourceAttributes": attributes}}
    answer = access.post(f"{_REVIEWS}/selfsubjectaccessreviews", review)
    return bool((answer.get("status") or {}).get("allowed"))
