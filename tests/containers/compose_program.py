"""docker compose version 2 for the tests, built once for a machine from its Go module.

Debian 12 has no package of it; docker-compose 1.29 is Debian's.
"""

from __future__ import annotations

from pathlib import Path

import go_programs
from base_image import CACHE
from go_programs import Go, ensure_programs

VERSION = "2.40.3"
GO = (1, 24, 9)  # what it needs at least
_MODULE = "github.com/docker/compose/v2"
_FOLDER = f"compose-{VERSION}"


def find_reason_against() -> str:
    """Why there is no docker compose version 2 for the tests; "" when there is."""
    return "" if (CACHE / _FOLDER).is_dir() else go_programs.find_reason_against(*GO)


def ensure_compose() -> Path:
    """A folder for DOCKER_CONFIG that has docker compose version 2 as a plugin.

    Building it takes two minutes of two processors, and the network.
    """
    return ensure_programs(_FOLDER, _build)


def _build(go: Go, into: Path) -> None:
    source = go.download(_MODULE, VERSION)
    values = {f"{_MODULE}/internal.Version": f"v{VERSION}"}
    go.build("./cmd", source=source, into=into / "cli-plugins", values=values)
    (into / "cli-plugins" / "cmd").rename(into / "cli-plugins" / "docker-compose")
