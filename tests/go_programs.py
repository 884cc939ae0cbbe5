"""Programs for the tests that Debian has not, built once for a machine from their Go modules.

What Go downloads and compiles, some gigabytes, is kept until the program is there: a build that was
interrupted goes on where it was.
"""

from __future__ import annotations

import json
import os
import re
import shutil
import subprocess
import tempfile
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path

from base_image import CACHE

_BUILDS = CACHE / "go"
_FLAGS = "-s -w"


def find_reason_against(*needed: int) -> str:
    """Why programs that need this version of Go cannot be built here; "" when they can."""
    if find_version() >= needed:
        return ""
    return f"Go {'.'.join(map(str, needed))} is not installed, which its programs are built with"


def find_version() -> tuple[int, ...]:
    """The version of Go; (0,) without."""
    if shutil.which("go") is None:
        return (0,)
    # What is installed, not what it would download for a newer module.
    done = _run(["go", "env", "GOVERSION"], Path("/"), {**os.environ, "GOTOOLCHAIN": "local"})
    return tuple(map(int, re.findall(r"\d+", done)[:3]))


class Go:
    """The go command with caches of its own. `scratch`: a folder that goes after the build."""

    def __init__(self, scratch: Path) -> None:
        self.scratch = scratch
        self._environment = {
            **os.environ,
            "CGO_ENABLED": "0",
            "GOMODCACHE": str(_BUILDS / "modules"),
            "GOCACHE": str(_BUILDS / "cache"),
            "GOFLAGS": "-modcacherw -buildvcs=false -trimpath",
            "GOTOOLCHAIN": "local",
        }

    def download(self, module: str, version: str) -> Path:
        """The folder with a module's source."""
        answer = self.run("mod", "download", "-json", f"{module}@v{version}")
        return Path(json.loads(answer)["Dir"])

    def build(
        self, *packages: str, source: Path, into: Path, values: Mapping[str, str] | None = None
    ) -> None:
        """Build commands into a folder. `values`: strings that the linker sets."""
        set_values = [f"-X {name}={value}" for name, value in (values or {}).items()]
        flags = " ".join([_FLAGS, *set_values])
        self.run("build", "-ldflags", flags, "-o", f"{into}/", *packages, folder=source)

    def run(self, *words: str, folder: Path | None = None) -> str:
        return _run(["go", *words], folder or self.scratch, self._environment)


def ensure_programs(folder_name: str, build: Callable[[Go, Path], None]) -> Path:
    """A folder below the cache, that `build(go, folder)` fills when it is not there."""
    folder = CACHE / folder_name
    if folder.is_dir():
        return folder
    with _lock():
        if not folder.is_dir():  # another process may have made it in the meantime
            assert find_version() != (0,), f"to build {folder_name}, install Go (go is not on PATH)"
            with tempfile.TemporaryDirectory(prefix=f".{folder_name}-", dir=CACHE) as scratch:
                made = Path(scratch, "made")
                made.mkdir()
                build(Go(Path(scratch)), made)
                made.rename(folder)
            shutil.rmtree(_BUILDS, ignore_errors=True)
    return folder


@contextmanager
def _lock() -> Iterator[None]:
    """One build at a time on this machine."""
    import fcntl  # Windows has none, and builds nothing

    CACHE.mkdir(parents=True, exist_ok=True)
    with (CACHE / ".go.lock").open("w") as file:
        fcntl.flock(file, fcntl.LOCK_EX)  # free again when this process ends, however
        yield


def _run(command: list[str], folder: Path, environment: Mapping[str, str]) -> str:
    done = subprocess.run(
        command, cwd=folder, env=environment, capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, f"{' '.join(command)}: {done.stderr[-4000:]}"
    return done.stdout
