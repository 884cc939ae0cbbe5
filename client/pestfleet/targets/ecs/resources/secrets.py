"""Secrets Manager: a secret a role, with the files of that role as JSON."""

from __future__ import annotations

from collections.abc import Iterator

from pestfleet.targets.ecs.access import Cloud
from pestfleet.targets.ecs.naming import ROLES, as_dict
from pestfleet.targets.ecs.resources.kinds import Body, Found, Kind, Search, ask, take

_MISSING = ("ResourceNotFound",)


def _find(search: Search) -> Iterator[Found]:
    for role in ROLES:
        name = search.names.secret(role)
        found = ask(search.cloud, "secretsmanager", "describe_secret", _MISSING, SecretId=name)
        if found is not None and not found.get("DeletedDate"):
            arn = found["ARN"]
            yield Found("secret", name, arn, as_dict(found.get("Tags")), True, arn)


def _remove(search: Search, found: Found) -> None:
    ask(
        search.cloud,
        "secretsmanager",
        "delete_secret",
        _MISSING,
        SecretId=found.ident,
        ForceDeleteWithoutRecovery=True,
    )


def _renew(cloud: Cloud, body: Body) -> None:
    """Secrets of one launch belong together."""
    text = body["SecretString"]
    cloud.call("secretsmanager", "put_secret_value", SecretId=body["Name"], SecretString=text)


KINDS = (
    Kind(
        "secret",
        "secretsmanager",
        "create_secret",
        take("ARN"),
        _find,
        _remove,
        exists=("ResourceExists",),
        renew=_renew,
    ),
)
