"""docker compose version 2 for the tests, built once for a machine from its Go module.

Debian 12 has no package of it; docker-compose 1.29 is Debian's.
"""

from __future__ import annotations

import json
import os
import re
import shutil
import subprocess
import tempfile
from pathlib import Path

from base_image import CACHE

VERSION = "2.40.3"
GO = (1, 24, 9)  # what it needs at least
_MODULE = "github.com/docker/compose/v2"


def find_reason_against() -> str:
    """Why there is no docker compose version 2 for the tests; "" when there is."""
    if _find_folder().is_dir() or _read_go_version() >= GO:
        return ""
    return f"Go {'.'.join(map(str, GO))} is not installed, which it is built with"


def _read_go_version() -> tuple[int, ...]:
    if shutil.which("go") is None:
        return (0,)
    done = subprocess.run(["go", "env", "GOVERSION"], capture_output=True, text=True, check=True)
    return tuple(map(int, re.findall(r"\d+", done.stdout)[:3]))


def ensure_compose() -> Path:
    """A folder for DOCKER_CONFIG that has docker compose version 2 as a plugin.

    Building it takes two minutes of two processors, and the network.
    """
    folder = _find_folder()
    if not folder.is_dir():
        CACHE.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryDirectory(prefix="compose-", dir=CACHE) as scratch:
            _build(Path(scratch, "made", "cli-plugins", "docker-compose"), Path(scratch))
            Path(scratch, "made").rename(folder)
    return folder


def _find_folder() -> Path:
    return CACHE / f"compose-{VERSION}"


def _build(program: Path, scratch: Path) -> None:
    environment = {
        **os.environ,
        "CGO_ENABLED": "0",
        "GOMODCACHE": str(scratch / "modules"),
        "GOCACHE": str(scratch / "cache"),
        "GOFLAGS": "-modcacherw -buildvcs=false -trimpath",
    }

    def run(*command: str, folder: Path = scratch) -> str:
        done = subprocess.run(
            command, cwd=folder, env=environment, capture_output=True, text=True, check=False
        )
        assert done.returncode == 0, f"{command}: {done.stderr[-4000:]}"
        return done.stdout

    module = json.loads(run("go", "mod", "download", "-json", f"{_MODULE}@v{VERSION}"))
    program.parent.mkdir(parents=True)
    flags = f"-s -w -X {_MODULE}/internal.Version=v{VERSION}"
    run("go", "build", "-ldflags", flags, "-o", str(program), "./cmd", folder=Path(module["Dir"]))
