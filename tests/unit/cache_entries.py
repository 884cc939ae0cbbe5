"""Keys, runs and places that the tests of the run cache share."""

from __future__ import annotations

import struct
from collections.abc import Callable
from pathlib import Path

from pestfleet.cache import RunCache, RunKey, RunRecord
from pestfleet.cache.directory import DirectoryShelf
from pestfleet_worker.messages import CaseSpec, pack_vector

DIGEST = "ab" * 32
PLATFORM = "linux/x86_64"
SPEC = CaseSpec("case", DIGEST, ("a", "b"), ("x", "y", "z"), (), (), ("model in.dat",))


def make_key(number: int = 0, *, case: str = DIGEST) -> RunKey:
    return RunKey.of_run(
        case=case, commands=("model",), platform=PLATFORM, parameters=struct.pack("<q", number)
    )


def make_record(number: float = 0.0) -> RunRecord:
    return RunRecord(
        pack_vector([number, 1 / 3]),
        pack_vector([number, -0.0, 1e-300]),
        0.25,
        {"name": "case", "commands": ["model"], "platform": PLATFORM},
    )


def make_cache(
    folder: Path, *, warnings: list[str] | None = None, clock: Callable[[], float] | None = None
) -> RunCache:
    """A cache in a folder, whose warnings are collected."""
    told = [].append if warnings is None else warnings.append
    shelf = DirectoryShelf(folder)
    return RunCache(shelf, on_warning=told, **({"clock": clock} if clock else {}))


def list_entry_files(folder: Path) -> list[Path]:
    return sorted(path for path in folder.glob("v1/*/*/*") if path.suffix != ".tmp")


def find_entry_file(folder: Path, key: RunKey) -> Path:
    path = folder / "v1" / key.name
    assert path.is_file()
    return path
