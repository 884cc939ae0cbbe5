"""What a role of the account may do, by its own policies (IAM user guide, evaluation logic)."""

from __future__ import annotations

import json
import re
from collections.abc import Iterable, Iterator, Mapping
from typing import TYPE_CHECKING, Any
from urllib.parse import unquote

from amazon_refusal import Refusal
from amazon_requests import ApiCall, find_roles

if TYPE_CHECKING:
    from moto_server import Amazon

_CODES = {"s3": "AccessDenied", "iam": "AccessDenied", "ec2": "UnauthorizedOperation"}
_FOR_ALL = ("sts:GetCallerIdentity",)  # needs no permission


def is_allowed(
    amazon: Amazon,
    role: str,
    action: str,
    resource: str = "",
    context: Mapping[str, str] | None = None,
) -> bool:
    """May a role (its ARN) do that? `resource`: an ARN; "" where it does not matter.

    A condition whose key is not in `context` counts as met.
    """
    return _decide(list_statements(amazon, role), action, resource, context or {})


def _decide(
    statements: Iterable[Mapping[str, Any]], action: str, resource: str, context: Mapping[str, str]
) -> bool:
    allowed = False
    for statement in statements:
        if not _meets(statement, action, resource, context):
            continue
        if statement["Effect"] == "Deny":
            return False
        allowed = True
    return allowed


def check(amazon: Amazon, call: ApiCall) -> None:
    """Raises `Refusal` where who asks may not: a task's role, or with `Amazon.policy` any other."""
    if not call.caller and amazon.policy is None:
        return
    if call.action in _FOR_ALL:
        return
    statements = (
        list(list_statements(amazon, call.caller))
        if call.caller
        else _as_list((amazon.policy or {})["Statement"])
    )
    for action in call.actions:
        for resource in find_resources(amazon, call, action):
            if not _decide(statements, action, resource, _find_context(amazon, call)):
                who = call.caller or "arn:aws:iam::user/test"
                said = f"User: {who} is not authorized to perform: {action} on {resource or '*'}"
                code = _CODES.get(call.service, "AccessDeniedException")
                raise Refusal(code, said, 403 if call.service in _CODES else 400)


def find_resources(amazon: Amazon, call: ApiCall, action: str) -> list[str]:
    """ARNs that a request is about, where they are easily told; [""]: not told."""
    given, stem = call.parameters, f"{call.region}:{amazon.account}"
    if action == "iam:PassRole":
        return find_roles(given)
    if call.service == "s3" and given.get("Bucket"):
        of_key = action.endswith("Object") and given.get("Key")
        return [f"arn:aws:s3:::{given['Bucket']}" + (f"/{given['Key']}" if of_key else "")]
    if call.service == "scheduler" and given.get("Name") and action.endswith("Schedule"):
        group = given.get("GroupName") or "default"
        return [f"arn:aws:scheduler:{stem}:schedule/{group}/{given['Name']}"]
    if call.service == "ecs" and action != "ecs:TagResource":
        cluster = str(given.get("cluster") or "").rsplit("/", 1)[-1]
        names = [given["service"]] if given.get("service") else given.get("services") or []
        names += [given["serviceName"]] if action == "ecs:CreateService" else []
        if names:
            stems = f"arn:aws:ecs:{stem}:service/{cluster}"
            return [f"{stems}/{str(name).rsplit('/', 1)[-1]}" for name in names]
    if call.service == "iam" and given.get("RoleName"):
        roles = amazon.backend("iam", region="aws").roles.values()
        path = given.get("Path") or next(
            (one.path for one in roles if one.name == given["RoleName"]), "/"
        )
        return [f"arn:aws:iam::{amazon.account}:role{path}{given['RoleName']}"]
    return [""]


def _find_context(amazon: Amazon, call: ApiCall) -> dict[str, str]:
    cluster = str(call.parameters.get("cluster") or "").rsplit("/", 1)[-1]
    if call.service != "ecs" or not cluster:
        return {}
    return {"ecs:cluster": f"arn:aws:ecs:{call.region}:{amazon.account}:cluster/{cluster}"}


def list_statements(amazon: Amazon, role: str) -> Iterator[dict[str, Any]]:
    """Of all policies of a role."""
    found = find_role(amazon, role)
    if found is None:
        return
    documents = [*found.policies.values()]
    documents += [policy.document for policy in found.managed_policies.values()]
    for document in documents:
        policy = document if isinstance(document, dict) else json.loads(unquote(document))
        yield from _as_list(policy["Statement"])


def find_role(amazon: Amazon, arn: str) -> Any:
    """moto's role, or None."""
    roles = amazon.backend("iam", region="aws").roles.values()
    return next((one for one in roles if one.arn == arn), None)


def trusts(amazon: Amazon, arn: str, service: str) -> bool:
    """Is the role there, and may the service take it on?"""
    role = find_role(amazon, arn)
    return role is not None and service in str(role.assume_role_policy_document)


def _meets(
    statement: Mapping[str, Any], action: str, resource: str, context: Mapping[str, str]
) -> bool:
    actions = _as_list(statement.get("Action", ()))
    if not any(_fits(one.lower(), action.lower()) for one in actions):
        return False
    resources = _as_list(statement.get("Resource", "*"))
    if resource and not any(_fits(one, resource) for one in resources):
        return False
    return all(
        key not in context
        or any(_fits(value, context[key]) for value in _as_list(values)) != ("Not" in operator)
        for operator, pairs in (statement.get("Condition") or {}).items()
        for key, values in pairs.items()
    )


def _as_list(value: Any) -> list[Any]:
    return list(value) if isinstance(value, list | tuple) else [value]


def _fits(pattern: str, text: str) -> bool:
    """`*` is any text, `?` any letter."""
    form = re.escape(pattern).replace(r"\*", ".*").replace(r"\?", ".")
    return re.fullmatch(form, text, re.DOTALL) is not None
