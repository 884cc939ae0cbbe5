"""The Docker engine, by the docker SDK: connect, build, and say in plain words what went wrong.

Which engine: DOCKER_HOST, otherwise the current context of the docker command, as that has it.
"""

from __future__ import annotations

import errno
import io
import os
import re
from collections import deque
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any, cast
from urllib.parse import urlsplit

from pestfleet_worker.errors import TargetError

if TYPE_CHECKING:
    from docker import DockerClient

# A build that fails is told with so many of its last lines.
_LAST_LINES = 15
_COLOUR = re.compile(r"\x1b\[[0-9;]*m")

LOOPBACK = "127.0.0.1"

# What an engine's message means for the user: first match counts.
_REMEDIES = (
    (
        r"pull access denied|manifest unknown|manifest for .* not found|failed to resolve"
        r"|Get \"https?://[^\"]*/v2/|no basic auth credentials|no matching manifest",
        "The image that it starts FROM is not on this engine and cannot be pulled. Name one "
        "that can be had: [image] base (PESTFLEET_IMAGE__BASE).",
    ),
    (
        r"CERTIFICATE_VERIFY_FAILED|certificate verify failed|self.signed certificate",
        "Something on the way to the packages has a certificate of its own. Name the file with "
        "the certificates to trust: [image] ca (PESTFLEET_IMAGE__CA).",
    ),
    (
        r"[Tt]emporary failure (in name resolution|resolving)|Could not resolve|Name or service "
        r"not known|Network is unreachable|Connection timed out|Failed to establish a new "
        r"connection|Unable to connect|Could not connect to",
        "The build has no way to the packages. If this machine has one, try [image] network = "
        '"host" (PESTFLEET_IMAGE__NETWORK=host); [image] index names another package index; a '
        "proxy belongs into ~/.docker/config.json.",
    ),
    (
        r"No matching distribution found|Could not find a version that satisfies"
        r"|ResolutionImpossible",
        "The package index does not have it. [image] index (PESTFLEET_IMAGE__INDEX) names "
        "another one.",
    ),
    (
        r"network \S+ not found",
        "[image] network (PESTFLEET_IMAGE__NETWORK) names one of the engine's networks: docker "
        "network ls lists them.",
    ),
    (
        r"Unable to locate package",
        "The base image's Debian does not have this package: see [image] apt and base.",
    ),
    (
        r"no space left on device",
        "Free some space where the engine keeps its images (docker system df shows what it has).",
    ),
)


def connect_engine() -> DockerClient:
    """A client of the user's Docker engine. Raises `TargetError` when there is none.

    Close it after use; it is a context manager's object for `contextlib.closing`.
    """
    import docker
    from docker.errors import DockerException

    try:
        engine = docker.from_env(use_ssh_client=True)  # as the docker command does
    except (DockerException, OSError) as error:
        raise _explain_no_engine(error) from error
    try:
        engine.ping()
    except (DockerException, OSError) as error:
        engine.close()
        raise _explain_no_engine(error) from error
    return engine


def find_engine_host() -> str:
    """The machine that the engine publishes ports on: loopback, unless its address names one."""
    from docker.context import ContextAPI

    address = os.environ.get("DOCKER_HOST", "")
    if not address:
        address = ContextAPI.kwargs_from_context().get("base_url", "")
    url = urlsplit(address)
    remote = url.scheme in ("tcp", "ssh", "http", "https")
    return (url.hostname or LOOPBACK) if remote else LOOPBACK


@contextmanager
def explain_errors(doing: str) -> Iterator[None]:
    """Turn the SDK's errors into a `TargetError` that begins with what was being done."""
    from docker.errors import APIError, DockerException
    from requests.exceptions import RequestException

    try:
        yield
    except APIError as error:
        text = str(error.explanation or error)
        raise TargetError(f"{doing}: {text}", remedy=find_remedy(text)) from error
    except (DockerException, RequestException) as error:
        raise TargetError(
            f"{doing}: {error}", remedy="Does the engine still run? `docker info` tells."
        ) from error


def build_image(
    engine: DockerClient,
    context: bytes | Iterator[bytes],
    *,
    tag: str,
    target: str = "",
    build_args: Mapping[str, str] | None = None,
    labels: Mapping[str, str] | None = None,
    network: str = "",
    on_line: Callable[[str], None] = lambda line: None,
) -> str:
    """Build an image from a context (a tar archive with a Dockerfile) and return its id.

    `target`: the stage to build, without a tag; "" for the last one, which gets `tag`.
    `network`: of the build's steps, "" for the engine's default. `on_line` gets each line of
    the build's output. Raises `TargetError` with the last lines of it and a remedy.
    """
    last: deque[str] = deque(maxlen=_LAST_LINES)
    image = ""
    with explain_errors(f"image {tag} cannot be built"):
        # No limit of time: a step may be silent for long.
        messages: Iterator[dict[str, Any]] = engine.api.build(
            fileobj=io.BytesIO(context) if isinstance(context, bytes) else cast(Any, context),
            custom_context=True,
            tag=None if target else tag,
            target=target or None,
            buildargs=dict(build_args or {}),
            labels=dict(labels or {}),
            network_mode=network or None,
            rm=True,
            forcerm=True,
            decode=True,
            timeout=None,
        )
        for message in messages:
            if "error" in message:
                raise _explain_build(tag, str(message["error"]), list(last))
            image = message.get("aux", {}).get("ID", image)
            for line in re.split(r"[\r\n]+", _COLOUR.sub("", message.get("stream", ""))):
                if line.strip():
                    last.append(line.rstrip())
                    on_line(line.rstrip())
    return image


def find_remedy(text: str) -> str:
    """What to do about an engine's message; "" when it is none that we know."""
    return next((remedy for pattern, remedy in _REMEDIES if re.search(pattern, text)), "")


def _explain_build(tag: str, error: str, last: list[str]) -> TargetError:
    output = "".join(f"\n    {line}" for line in last)
    remedy = find_remedy(error) or find_remedy("\n".join(last))
    return TargetError(
        f"image {tag} cannot be built: {error.strip()}"
        + (f"\n  last lines of the build:{output}" if last else ""),
        remedy=remedy or "See the last lines of the build; its Dockerfile says what it did.",
    )


def _explain_no_engine(error: Exception) -> TargetError:
    numbers = {cause.errno for cause in _list_causes(error) if isinstance(cause, OSError)}
    if errno.EACCES in numbers or errno.EPERM in numbers:
        return TargetError(
            "the Docker engine's socket may not be opened by this user",
            remedy="Join the group docker (sudo usermod -aG docker $USER, then log in again), or "
            "use rootless Docker.",
        )
    if numbers & {errno.ENOENT, errno.ECONNREFUSED}:
        named = os.environ.get("DOCKER_HOST", "")
        return TargetError(
            "no Docker engine runs here" + (f" (DOCKER_HOST is {named})" if named else ""),
            remedy="Start it (Docker Desktop, or sudo systemctl start docker), or say where it "
            "is: DOCKER_HOST=…, or docker context use NAME.",
        )
    return TargetError(
        f"the Docker engine cannot be reached: {error}",
        remedy="`docker info` must work first. DOCKER_HOST says which engine is meant.",
    )


def _list_causes(error: BaseException | None) -> list[BaseException]:
    """The error, what caused it, and the errors that these carry as arguments."""
    found: list[BaseException] = []
    todo = [error]
    while todo:
        one = todo.pop()
        if one is None or one in found:
            continue
        found.append(one)
        todo += [one.__cause__, one.__context__]
        todo += [argument for argument in one.args if isinstance(argument, BaseException)]
    return found
