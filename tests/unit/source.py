"""The repository's own files, as tests look at them."""

from __future__ import annotations

import ast
import os
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]
CLIENT = ROOT / "client" / "pestfleet"
WORKER = ROOT / "worker" / "pestfleet_worker"

# Made by tools, not part of the repository. `list_files` leaves out all hidden folders but .ci.
_MADE = {"__pycache__", "build", "dist", "pestfleet-sessions"}


def list_files() -> list[Path]:
    """Every file of the repository; works in a checkout without git too."""
    found: list[Path] = []
    for folder, folders, files in os.walk(ROOT):
        folders[:] = sorted(
            name
            for name in folders
            if name not in _MADE
            and not name.endswith(".egg-info")
            and (name == ".ci" or not name.startswith("."))
        )
        found += [Path(folder, name) for name in sorted(files)]
    return found


def list_modules(package: Path) -> list[Path]:
    """The Python files of a package, as sorted paths."""
    return sorted(package.rglob("*.py"))


def name_module(path: Path) -> str:
    """`client/pestfleet/cli/main.py` -> `pestfleet.cli.main`."""
    parts = path.relative_to(ROOT).with_suffix("").parts[1:]
    return ".".join(parts[:-1] if parts[-1] == "__init__" else parts)


def name_path(path: Path) -> str:
    """The path as messages show it: relative to the top folder, with forward slashes."""
    return path.relative_to(ROOT).as_posix()


def find_imports(path: Path) -> Iterator[tuple[int, str]]:
    """(line, module) of each import in a file, those inside functions too."""
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        if isinstance(node, ast.Import):
            for alias in node.names:
                yield node.lineno, alias.name
        elif isinstance(node, ast.ImportFrom):
            package = "." * node.level + (node.module or "")
            # `from pestfleet import cli` imports pestfleet.cli.
            for alias in node.names:
                yield node.lineno, f"{package}.{alias.name}"


def run_python(script: str, *arguments: str) -> str:
    """What a script prints in a fresh Python that finds both packages; fails with its stderr."""
    path = os.pathsep.join([str(CLIENT.parent), str(WORKER.parent)])
    done = subprocess.run(
        [sys.executable, "-c", script, *arguments],
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
        env={**os.environ, "PYTHONPATH": path},
    )
    assert done.returncode == 0, done.stderr
    return done.stdout
