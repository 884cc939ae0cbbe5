"""One run with the initial values in an image, and how its result differs from another."""

from __future__ import annotations

import math
import re
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from pestfleet.case import Case
from pestfleet.images.base import ROLE_LABEL
from pestfleet.images.engine import explain_errors
from pestfleet.images.packages import find_library_package
from pestfleet.initial_run import pack_initial_values
from pestfleet_worker.errors import TargetError
from pestfleet_worker.messages import CaseSpec, Failure, Limits, Result, Run, unpack_vector

if TYPE_CHECKING:
    from docker import DockerClient
    from docker.models.containers import Container

PYTHON = "/opt/pestfleet/bin/python"  # of the worker image
_ANYBODY = "54321:54321"
# A case up to this size is copied in memory, a larger one on the engine's disk.
_IN_MEMORY = 256 * 2**20
_MODULE = re.compile(r"ModuleNotFoundError: No module named '(\w+)")
_LIBRARY = re.compile(r"error while loading shared libraries: ([^\s:]+)")


@dataclass(frozen=True, slots=True)
class Difference:
    """How two results differ: how many values do, the largest relative difference and where.

    `names`: observations that differ, the most different first; 0 values: the same bits.
    """

    values: int
    relative: float
    names: tuple[str, ...]


def run_in_image(
    engine: DockerClient, image: str, case: Case, *, limits: Limits | None = None
) -> Result:
    """Make one run in a container as a worker would have it in the worst of cases.

    It has no network, no rights, a read-only root and a user that the image does not know.
    Raises `TargetError` when there is no result at all.
    """
    from pestfleet_worker.trial import read_lines, write_lines

    request = b"".join(
        write_lines([case.spec, limits or Limits(), Run(1, pack_initial_values(case))])
    )
    with explain_errors(f"no run can be made in image {image}"):
        container = _create(engine, image, case)
        try:
            code = _feed(container, request)
            output = container.logs(stdout=True, stderr=False)
            errors = container.logs(stdout=False, stderr=True).decode("utf-8", "replace").strip()
        finally:
            container.remove(force=True, v=True)
    lines = output.splitlines()
    if code != 0 or not lines:
        raise TargetError(
            f"the run in image {image} gave no result (exit code {code}): {errors or 'no output'}",
            remedy="Does the image begin FROM the worker image, and keep its /opt/pestfleet?",
        )
    result: Result = next(iter(read_lines(lines[-1:])))
    return result


def compare(spec: CaseSpec, one: bytes, other: bytes) -> Difference:
    """Compare packed observations of two runs, in the order of `spec`."""
    found: list[tuple[float, str]] = []
    for name, a, b in zip(spec.observations, unpack_vector(one), unpack_vector(other), strict=True):
        if a != b or math.copysign(1.0, a) != math.copysign(1.0, b):
            found.append((abs(a - b) / max(abs(a), abs(b), 5e-324), name))
    found.sort(key=lambda item: -item[0])
    return Difference(len(found), found[0][0] if found else 0.0, tuple(name for _, name in found))


def advise(failure: Failure) -> str:
    """What to do about a run that failed in an image and not outside of it; "" if unknown."""
    missing = _MODULE.search(failure.log)
    if missing:
        return (
            f"The image's Python has no {missing[1]}: name what pip installs for it in "
            f'pestfleet.toml, [image] pip = ["{missing[1]}"].'
        )
    library = _LIBRARY.search(failure.log)
    if library:
        package = find_library_package(library[1])
        return (
            f"The image has no {library[1]}: name the Debian package that has it in "
            f'pestfleet.toml, [image] apt = ["{package or "…"}"].'
        )
    if "read-only file system" in failure.log.lower():
        return "The model writes outside of its own folder, which a container does not allow."
    if failure.exit_code == 126:
        return "A program that the model starts is not executable: chmod +x."
    if "permission denied" in failure.log.lower():
        return "The model asks for what a user without rights may not do in a container."
    return ""


def _create(engine: DockerClient, image: str, case: Case) -> Container:
    from docker.types import LogConfig

    size = sum(file.size for file in case.files())
    scratch: dict[str, Any] = (
        {"tmpfs": {"/scratch": "rw,exec,mode=1777", "/tmp": "rw,exec,mode=1777"}}
        if size < _IN_MEMORY
        else {"volumes": ["/scratch"], "tmpfs": {"/tmp": "rw,exec,mode=1777"}}
    )
    return engine.containers.create(
        image,
        entrypoint=["tini", "--", PYTHON, "-m", "pestfleet_worker.trial"],
        command=["--case", "/case", "--scratch", "/scratch"],
        user=_ANYBODY,
        network_mode="none",
        read_only=True,
        cap_drop=["ALL"],
        security_opt=["no-new-privileges"],
        stdin_open=True,
        # Whatever the engine's default is: the log is what is read.
        log_config=LogConfig(type=LogConfig.types.JSON),
        healthcheck={"test": ["NONE"]},
        labels={ROLE_LABEL: "trial"},
        **scratch,
    )


def _feed(container: Container, request: bytes) -> int:
    """Start the container, give it the request, wait for its end; its exit code."""
    socket: Any = container.attach_socket(params={"stdin": 1, "stream": 1})
    try:
        container.start()
        # Over a Unix socket or TCP there is a reader's object around the socket itself.
        getattr(socket, "_sock", socket).sendall(request)
        return int(container.wait(timeout=None)["StatusCode"])
    finally:
        socket.close()
