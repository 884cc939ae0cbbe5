"""ECR: a session's repository of images."""

from __future__ import annotations

from collections.abc import Iterator

from pestfleet.targets.ecs.naming import as_dict
from pestfleet.targets.ecs.resources.kinds import Found, Kind, Search, ask, use

_MISSING = ("RepositoryNotFound",)


def _find(search: Search) -> Iterator[Found]:
    cloud, name = search.cloud, search.names.repository
    answer = ask(cloud, "ecr", "describe_repositories", _MISSING, repositoryNames=[name])
    for one in (answer or {}).get("repositories", ()):
        arn = one["repositoryArn"]
        tags = cloud.call("ecr", "list_tags_for_resource", resourceArn=arn)
        yield Found("repository", name, arn, as_dict(tags.get("tags")), True, name)


def _remove(search: Search, found: Found) -> None:
    name = found.ident
    ask(search.cloud, "ecr", "delete_repository", _MISSING, repositoryName=name, force=True)


KINDS = (
    Kind(
        "repository",
        "ecr",
        "create_repository",
        use("repositoryName"),
        _find,
        _remove,
        exists=("RepositoryAlreadyExists",),
    ),
)
