"""The images of pestfleet that an engine has: list, remove, push."""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any

from pestfleet.images.base import ROLE_LABEL
from pestfleet.images.case import CASE_LABEL, CASE_ROLE, DIGEST_LABEL, WORKER_LABEL
from pestfleet.images.engine import explain_errors, find_remedy
from pestfleet_worker.errors import ConfigurationError, TargetError

if TYPE_CHECKING:
    from docker import DockerClient

SESSION_LABEL = "pestfleet.session"
# What Docker's documents call a reference's domain: without one it is Docker Hub's.
_DOMAIN = re.compile(r"(localhost|[^/]*[.:][^/]*)/")
_REFUSED = re.compile(r"denied|unauthorized|authentication required|no basic auth", re.IGNORECASE)


@dataclass(frozen=True, slots=True)
class ImageEntry:
    """An image as `pestfleet images` shows it.

    `names`: its tags; `digests`: how a registry knows it (name@sha256:…); `created`: seconds
    since 1970; `size`: bytes, `added`: of these above the worker image, None where that is gone;
    `sessions`: of the containers that use it, "" for a container of no session.
    """

    id: str
    role: str
    names: tuple[str, ...]
    digests: tuple[str, ...]
    case: str
    digest: str
    created: float
    size: int
    added: int | None
    sessions: tuple[str, ...]

    def matches(self, word: str) -> bool:
        """Is it meant by this name, case, or beginning of a digest or id?"""
        return any(_is_called(tag, word) for tag in self.names) or self._matches_whole(word)

    def keep_names(self, words: Sequence[str]) -> ImageEntry:
        """With those of its names only that words are; with all where a word means the image."""
        if not words or any(map(self._matches_whole, words)):
            return self
        meant = (tag for tag in self.names if any(_is_called(tag, word) for word in words))
        return replace(self, names=tuple(meant))

    def _matches_whole(self, word: str) -> bool:
        if word in self.digests or (self.case and word == self.case):
            return True
        hexadecimal = word.removeprefix("sha256:")
        return len(hexadecimal) >= 6 and (
            self.digest.startswith(hexadecimal)
            or self.id.removeprefix("sha256:").startswith(hexadecimal)
        )


def list_images(engine: DockerClient, *, all_roles: bool = False) -> list[ImageEntry]:
    """Case images, and those they are built on with `all_roles`; the newest first."""
    label = ROLE_LABEL if all_roles else f"{ROLE_LABEL}={CASE_ROLE}"
    # The engine's own lists: the SDK's look at each image again, which may be gone by then.
    with explain_errors("the images cannot be listed"):
        images = engine.api.images(filters={"label": label})
        sizes = {image["Id"]: int(image["Size"]) for image in engine.api.images()}
        users: dict[str, set[str]] = {}
        for container in engine.api.containers(all=True):
            session = (container.get("Labels") or {}).get(SESSION_LABEL, "")
            users.setdefault(container.get("ImageID", ""), set()).add(session)
    entries = [_describe(image, sizes, users) for image in images]
    # What has no name is a step of a build, unless it is a case's.
    entries = [entry for entry in entries if entry.names or entry.role == CASE_ROLE]
    return sorted(entries, key=lambda entry: -entry.created)


def choose_images(
    entries: Sequence[ImageEntry], words: Sequence[str], *, created_before: float | None = None
) -> list[ImageEntry]:
    """The images that are meant by names, and older than a time. Raises `ConfigurationError`."""
    for word in words:
        if not any(entry.matches(word) for entry in entries):
            raise ConfigurationError(
                f"there is no image {word!r}",
                remedy="pestfleet images --all shows which there are.",
            )
    return [
        entry
        for entry in entries
        if (not words or any(entry.matches(word) for word in words))
        and (created_before is None or entry.created < created_before)
    ]


def remove_images(
    engine: DockerClient, entries: Sequence[ImageEntry]
) -> Iterator[tuple[ImageEntry, str]]:
    """Remove images; of each why it was kept, "" where it is gone. Containers keep theirs."""
    from docker.errors import APIError, ImageNotFound

    # A case image before the worker image that it is built on.
    for entry in sorted(entries, key=lambda entry: entry.role != CASE_ROLE):
        reason = ""
        if entry.sessions:
            names = ", ".join(sorted(filter(None, entry.sessions))) or "a container"
            yield entry, f"{names} uses it"
            continue
        for name in entry.names or (entry.id,):
            try:
                with explain_errors(f"image {name} cannot be removed"):
                    engine.images.remove(name)
            except TargetError as error:
                cause = error.__cause__
                if isinstance(cause, ImageNotFound):
                    continue
                if not isinstance(cause, APIError) or cause.status_code != 409:
                    raise
                reason = str(cause.explanation)
        yield entry, reason


def push_image(
    engine: DockerClient,
    reference: str,
    on_line: Callable[[str], None] = lambda line: None,
    *,
    login: Mapping[str, str] | None = None,
) -> str:
    """Push an image and return how its registry knows it: name@sha256:….

    `login`: username and password, where they are not in Docker's own configuration. Raises
    `ConfigurationError` for a name without a registry, `TargetError` where it fails.
    """
    check_pushable(reference)
    name, _, tag = reference.rpartition(":")
    digest, states = "", dict[str, str]()
    with explain_errors(f"image {reference} cannot be pushed"):
        answers: Any = engine.images.push(
            name, tag=tag, stream=True, decode=True, auth_config=dict(login) if login else None
        )
        for answer in answers:
            if "error" in answer:
                raise _explain_push(reference, str(answer["error"]))
            digest = answer.get("aux", {}).get("Digest", digest)
            layer, state = answer.get("id", ""), answer.get("status", "")
            # A layer's progress comes many times a second: its changes of state are enough.
            if layer and states.get(layer) != state:
                states[layer] = state
                on_line(f"{layer}: {state.lower()}")
    if not digest:
        raise TargetError(f"the registry did not say the digest of {reference}")
    return f"{name}@{digest}"


def check_pushable(reference: str) -> None:
    """Raises `ConfigurationError` unless the name says which registry."""
    if not _DOMAIN.match(reference):
        raise ConfigurationError(
            f"{reference} names no registry to push to",
            remedy="Give one: --tag registry.example.com/team/my-case, or [image] registry in "
            "pestfleet.toml; Docker Hub is docker.io/USER/my-case.",
        )


def _explain_push(reference: str, error: str) -> TargetError:
    registry = reference.partition("/")[0]
    remedy = find_remedy(error)
    if _REFUSED.search(error):
        remedy = (
            f"Log in with an account that may write there: docker login {registry}; some "
            "registries want the repository to be made before."
        )
    elif re.search(r"connection refused|no such host|i/o timeout", error):
        remedy = f"Nothing answers the engine at {registry}: is the name right, does it run?"
    elif "server gave HTTP response to HTTPS client" in error:
        remedy = f"{registry} has no TLS: name it in the engine's insecure-registries, or give it."
    return TargetError(f"image {reference} cannot be pushed: {error}", remedy=remedy)


def _describe(
    image: Mapping[str, Any], sizes: Mapping[str, int], users: Mapping[str, set[str]]
) -> ImageEntry:
    """An image as the engine lists it: Docker Engine API, "List images"."""
    labels = image.get("Labels") or {}
    size, worker = int(image["Size"]), sizes.get(labels.get(WORKER_LABEL, ""))
    return ImageEntry(
        id=image["Id"],
        role=labels.get(ROLE_LABEL, ""),
        names=_list_names(image.get("RepoTags")),
        digests=_list_names(image.get("RepoDigests")),
        case=labels.get(CASE_LABEL, ""),
        digest=labels.get(DIGEST_LABEL, ""),
        created=float(image["Created"]),
        size=size,
        added=size - worker if worker is not None else None,
        sessions=tuple(sorted(users.get(image["Id"], ()))),
    )


def _is_called(tag: str, word: str) -> bool:
    """Is a word this tag, with or without registry and version?"""
    names = {tag, tag.rpartition(":")[0]}
    return word in names | {name.rpartition("/")[2] for name in names}


def _list_names(names: Sequence[str] | None) -> tuple[str, ...]:
    return tuple(name for name in names or () if not name.startswith("<none>"))
