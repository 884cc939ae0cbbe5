"""Checks of the files that a control file names, and of the disk that they take."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import PurePosixPath
from typing import TYPE_CHECKING

from pestfleet.checks.names import Folder, is_file, is_folder, is_outside, to_posix
from pestfleet.checks.problem import Problems
from pestfleet.control.model import ControlFile, FilePair, Place

if TYPE_CHECKING:
    from pestfleet.bundle import RunFile

LARGE_FILE = 100 * 2**20  # bytes; a smaller file is copied in less than a second
LARGE_FLEET = 10 * 2**30  # bytes for all slots together
_BLOCK = 4096  # bytes: what even a small file or a folder takes on most file systems


def check_pairs(control: ControlFile, folder: Folder, problems: Problems) -> None:
    """Templates and instruction files are there; model inputs can be written."""
    with problems.limited("template files"):
        for pair in control.templates:
            _check_pair(pair, "template", "model input", control, folder, problems)
    with problems.limited("instruction files"):
        for pair in control.instructions:
            _check_pair(pair, "instruction file", "model output", control, folder, problems)
    _check_writers(control, problems)


def _check_pair(
    pair: FilePair,
    pest_kind: str,
    model_kind: str,
    control: ControlFile,
    folder: Folder,
    problems: Problems,
) -> None:
    place = pair.place or Place(control.path)
    for kind, name in ((pest_kind, pair.pest), (model_kind, pair.model)):
        if "\\" in name:
            problems.warning(
                place,
                f"the {kind} '{name}' is written with a backslash: pestfleet takes it for '/', "
                "but other programs on Linux take it for a letter",
                f"Write '{name.replace(chr(92), '/')}'; Windows understands that too.",
            )
        if is_outside(name):
            problems.error(
                place,
                f"the {kind} '{name}' is outside of the case folder",
                "Move it into the case folder, and write its name relative to it.",
            )
    if not is_outside(pair.pest):
        check_exists(pair.pest, pest_kind, place, folder, problems)
    if is_outside(pair.model):
        return
    model = to_posix(pair.model)
    if not model or is_folder(folder.root / model):
        message = f"the {model_kind} '{pair.model}' is a folder, not a file"
        problems.error(place, message, "Name a file.")
    parent = str(PurePosixPath(model).parent)
    if model_kind == "model input" and parent != "." and not folder.has(parent):
        similar = folder.find_similar(parent)
        if similar is None:
            message = f"the folder '{parent}' of the model input '{pair.model}' does not exist"
            problems.error(place, message, "Create it in the case folder.")
        else:
            message = f"the folder '{parent}' of the model input '{pair.model}' is called "
            problems.error(place, f"{message}'{similar}'", "Linux tells upper from lower case.")


def check_exists(name: str, kind: str, place: Place, folder: Folder, problems: Problems) -> bool:
    """Whether a file of the case is there under exactly this name; adds a problem if not."""
    path = folder.root / to_posix(name)
    if folder.has(name):
        if is_file(path):
            return True
        what = "is a folder, not a file" if is_folder(path) else "leads to nothing (a broken link)"
        problems.error(place, f"the {kind} '{name}' {what}", "Name a file.")
        return False
    similar = folder.find_similar(name)
    if similar is not None:
        message = f"the {kind} '{name}' is called '{similar}' on disk"
        problems.error(
            place, message, "Write the name as it is on disk: Linux tells upper from lower case."
        )
    else:
        message = f"the {kind} '{name}' does not exist"
        problems.error(place, message, "Correct the name, or add the file to the case folder.")
    return False


def _check_writers(control: ControlFile, problems: Problems) -> None:
    """No two templates write one file, and no template writes what is read as a result."""
    writers: dict[str, FilePair] = {}
    for pair in control.templates:
        place = pair.place or Place(control.path)
        model = to_posix(pair.model)
        earlier = writers.setdefault(model, pair)
        if earlier is not pair:
            message = f"two templates write '{model}': '{earlier.pest}' and '{pair.pest}'"
            problems.error(place, message, "Give each template a model input of its own.")
        if model == to_posix(pair.pest):
            message = f"the template '{pair.pest}' would be overwritten by its own model input"
            problems.error(place, message, "Give the model input another name.")
    for pair in control.instructions:
        model = to_posix(pair.model)
        if model in writers:
            problems.error(
                pair.place or Place(control.path),
                f"'{model}' is written by the template '{writers[model].pest}' and read as a "
                "model output: its values would be results without any model run",
                "Let the model write its results to another file.",
            )


def check_external(control: ControlFile, folder: Folder, problems: Problems) -> None:
    """Covariance matrices of observation groups are there. Tables are checked as they are read."""
    for group, name in control.observation_covariances.items():
        place = next(
            (f.place for f in control.external_files if f.pest == name.replace("\\", "/")), None
        )
        if not is_outside(name):
            kind = f"covariance file of group '{group}'"
            check_exists(name, kind, place or Place(control.path), folder, problems)


def check_sizes(
    control: ControlFile, files: Sequence[RunFile], slots: int, problems: Problems
) -> None:
    """Say what the slots take on disk if that is much, and which files it is."""
    total = sum(file.size for file in files)
    fleet = measure_slots(files, slots)
    large = sorted((f for f in files if f.size >= LARGE_FILE), key=lambda f: -f.size)
    if not large and fleet < LARGE_FLEET:
        return
    most = f", '{large[0].name}' alone {format_size(large[0].size)}" if large else ""
    problems.warning(
        Place(large[0].path if large else control.path.parent),
        f"the case has {format_size(total)}{most}: with {slots:,} slot{'s'[: slots > 1]} it takes "
        f"up to {format_size(fleet)} of disk",
        "Move what the model does not read out of the case folder. Slots share large files where "
        "the file system can."
        if total * 10 > LARGE_FILE
        else "Ask for fewer slots.",
    )


def measure_slots(files: Sequence[RunFile], slots: int) -> int:
    """Bytes of disk that the copies of so many slots take, if no file can be shared."""
    blocks = sum(-(-file.size // _BLOCK) for file in files)
    return (blocks + 1) * _BLOCK * slots


def check_alike(control: ControlFile, files: Sequence[RunFile], problems: Problems) -> None:
    """Two files of the case whose names differ in case only are one file on Windows."""
    seen: dict[str, RunFile] = {}
    with problems.limited("names that differ in case only"):
        for file in files:
            earlier = seen.setdefault(file.name.casefold(), file)
            if earlier is not file:
                problems.warning(
                    Place(file.path),
                    f"the names '{earlier.name}' and '{file.name}' differ in case only: on "
                    "Windows they are one file",
                    "Rename or remove one of them.",
                )


def format_size(size: int) -> str:
    """Bytes in a unit that reads well: 1.5 GB (1 GB: 1e9 bytes)."""
    value = float(size)
    for unit in ("bytes", "kB", "MB", "GB"):
        if value < 1000:
            return f"{value:.0f} {unit}" if unit == "bytes" else f"{value:.1f} {unit}"
        value /= 1000
    return f"{value:.1f} TB"
