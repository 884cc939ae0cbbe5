"""Kits of failed runs in a session's folder: kept by the master, found and unpacked for the user.

What is in a kit, see pestfleet_worker.kits. Workers send more of them than a folder should have:
here the first ones of each reason are kept.
"""

from __future__ import annotations

import logging
import os
import shutil
import tarfile
import threading
import zlib
from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from pestfleet.folder import SessionFolder
from pestfleet.journal import failure_of, read_journal
from pestfleet_worker.errors import SessionError
from pestfleet_worker.kits import KITS_A_REASON, TEXT
from pestfleet_worker.messages import Result

logger = logging.getLogger(__name__)

MOST, MOST_BYTES = 50, 50_000_000  # kits of a session, all together
SPARE = 200_000_000  # bytes of the disk that kits leave to journal and results
MOST_UNPACKED = 1_000_000_000  # bytes; a kit that claims more is no kit


@dataclass(frozen=True, slots=True)
class _Kept:
    run: int
    reason: str
    size: int


class KitFolder:
    """The kits of a session whose master we are."""

    def __init__(self, folder: SessionFolder, warn: Callable[[str], None]) -> None:
        """`warn` is told, once, that kits are not kept."""
        self._folder = folder
        self._warn = warn
        self._warned = False
        self._lock = threading.Lock()
        self._kept: list[_Kept] | None = None  # oldest first; read when the first kit comes

    def keep(self, run: int, result: Result) -> str:
        """Write the kit that came with the result, if one did.

        Returns why it is not kept, "" where nothing is to be said. Never raises.
        """
        if result.failure is None or not result.kit:
            return ""
        with self._lock:
            try:
                lost = self._keep(run, result.failure.reason, result.kit)
            except OSError as error:
                lost = f"it could not be written: {error.strerror or error}"
            if lost and not self._warned:
                self._warned = True
                try:
                    self._warn(f"run {run} failed and its kit is not kept: {lost}")
                except OSError as error:  # the journal's; who writes a run into it will notice
                    logger.error("a warning could not be written: %s", error)
        return lost

    def _keep(self, run: int, reason: str, kit: bytes) -> str:
        self._folder.kits.mkdir(exist_ok=True)
        if self._kept is None:
            self._kept = _read_kept(self._folder)
        if shutil.disk_usage(self._folder.kits).free < SPARE + len(kit):
            return f"the disk has less than {SPARE / 1e6:.0f} MB left"
        if not self._make_room(self._kept, reason, len(kit)):
            return (
                f"a session keeps {MOST} kits of at most {MOST_BYTES / 1e6:.0f} MB together, "
                "of each kind of failure the first ones"
            )
        path = self._folder.kit_of(run)
        draft = path.with_suffix(f".{os.getpid()}.draft")
        try:
            draft.write_bytes(kit)
            draft.replace(path)
        finally:
            draft.unlink(missing_ok=True)
        self._kept.append(_Kept(run, reason, len(kit)))
        return ""

    def _make_room(self, kept: list[_Kept], reason: str, size: int) -> bool:
        """Remove the last ones of the commonest reason, as long as this one has fewer kits."""
        while len(kept) >= MOST or sum(one.size for one in kept) + size > MOST_BYTES:
            counts = Counter(one.reason for one in kept)
            commonest, count = max(counts.items(), key=lambda item: item[1], default=("", 0))
            if count <= counts[reason] + 1:
                return False
            last = max(place for place, one in enumerate(kept) if one.reason == commonest)
            self._folder.kit_of(kept[last].run).unlink(missing_ok=True)
            del kept[last]
        return True


def list_kits(folder: SessionFolder) -> dict[int, int]:
    """Run id -> size in bytes of each kit in the session's folder."""
    found = {}
    for path in folder.kits.glob("run-*.tar.gz"):
        number = path.name.removeprefix("run-").removesuffix(".tar.gz")
        if number.isdecimal():
            found[int(number)] = path.stat().st_size
    return dict(sorted(found.items()))


def _read_kept(folder: SessionFolder) -> list[_Kept]:
    """What an earlier master of the session has kept."""
    sizes = list_kits(folder)
    if not sizes:
        return []
    reasons = {
        event["id"]: failure_of(event).reason
        for event in read_journal(folder.journal)
        if event["event"] == "run" and "failure" in event
    }
    return [_Kept(run, reasons.get(run, ""), size) for run, size in sizes.items()]


def find_kit(folder: SessionFolder, run: str) -> Path:
    """The kit of a failed run; `run` is its id, or last.

    Raises `SessionError`: there is no such run, it did not fail, there is no kit of it.
    """
    event = _find_failed_run(folder, run)
    path = folder.kit_of(event["id"])
    if path.is_file():
        return path
    kits = list_kits(folder)
    shown = ", ".join(map(str, list(kits)[:10])) + (" and more" if len(kits) > 10 else "")
    raise SessionError(
        f"there is no kit of run {event['id']}: {_explain_missing(event, len(kits))}",
        remedy=f"Runs that have one: {shown}." if kits else "No run of this session has one.",
    )


def _find_failed_run(folder: SessionFolder, run: str) -> dict[str, Any]:
    if run != "last" and not run.isdecimal():
        raise SessionError(
            f"{run!r} is not the number of a run",
            remedy=f"See which runs failed: pestfleet runs {folder.words} --failed",
        )
    found: dict[str, Any] = {}
    for event in read_journal(folder.journal) if folder.journal.exists() else ():
        if event["event"] == "run" and (
            "failure" in event if run == "last" else event.get("id") == int(run)
        ):
            found = event
    if not found:
        what = "no run that failed" if run == "last" else f"no run {run} that is finished"
        raise SessionError(
            f"session {folder.name} has {what}",
            remedy=f"See which runs there are: pestfleet runs {folder.words}",
        )
    if "failure" not in found:
        raise SessionError(
            f"run {run} did not fail; only failed runs have a kit",
            remedy=f"See which ones failed: pestfleet runs {folder.words} --failed",
        )
    return found


def _explain_missing(event: dict[str, Any], kits: int) -> str:
    reason = failure_of(event).reason
    if event.get("kit_lost"):
        return str(event["kit_lost"])
    if reason == "killed-worker":
        return "its workers were killed before they could pack one"
    if kits >= MOST:
        return f"a session keeps {MOST} kits, of each kind of failure the first ones"
    return (
        f"its worker had sent {KITS_A_REASON} of other runs that failed alike ({reason}), "
        "or makes none: it is of an older version, or its limit is 0"
    )


def unpack_kit(path: Path, target: Path, *, force: bool = False) -> dict[str, int]:
    """Unpack a kit into the new folder `target`; returns name -> size in bytes of its files.

    `force`: replace the folder of a kit that is there. Raises `SessionError`.
    """
    if target.is_symlink() or (target.exists() and not target.is_dir()):
        raise SessionError(f"{target} is there and is not a folder", remedy="Name another: --to.")
    replaced = target.is_dir() and any(target.iterdir())
    if replaced and not force:
        raise SessionError(
            f"the folder {target} is there already",
            remedy="Name another with --to, or replace it with --force.",
        )
    if replaced and not (target / TEXT).is_file():
        raise SessionError(
            f"the folder {target} is not one of a kit and is not replaced",
            remedy="Name another with --to.",
        )
    draft = target.with_name(f".{target.name}.{os.getpid()}.draft")
    try:
        target.parent.mkdir(parents=True, exist_ok=True)
        files = _extract(path, draft)
        if target.is_dir():
            shutil.rmtree(target)
        draft.replace(target)
    except (tarfile.TarError, EOFError, zlib.error) as error:
        raise SessionError(
            f"{path} is damaged or not a kit: {error}",
            remedy="Nothing of it was unpacked; take the kit of another run.",
        ) from error
    except OSError as error:
        raise SessionError(
            f"{path} cannot be unpacked into {target}: {error.strerror or error}",
            remedy="Check the space and the permissions there, or name another with --to.",
        ) from error
    finally:
        shutil.rmtree(draft, ignore_errors=True)
    return files


def _extract(path: Path, target: Path) -> dict[str, int]:
    files: dict[str, int] = {}

    def accept(member: tarfile.TarInfo, folder: str) -> tarfile.TarInfo | None:
        # A worker may be anybody's: no links, no way out of the folder, no bomb.
        if not member.isreg():
            raise tarfile.TarError(f"{member.name!r} is not a plain file")
        files[member.name] = member.size
        if sum(files.values()) > MOST_UNPACKED:
            raise tarfile.TarError(f"its files have more than {MOST_UNPACKED:,} bytes")
        return tarfile.data_filter(member, folder)

    with tarfile.open(path, "r:gz") as archive:
        archive.extractall(target, filter=accept)
    return files
