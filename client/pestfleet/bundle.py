"""The files that a run of a case reads: which they are, their digest, and one archive of them.

Left out are what a run makes itself, what PEST and PEST++ write beside a control file, sessions,
version control, and what `.pestfleetignore` names: one pattern a line, `*` and `?` as in a shell,
`#` for a comment; a pattern with `/` is matched against the whole name from the case folder, one
without against every folder and file name.
"""

from __future__ import annotations

import fnmatch
import gzip
import hashlib
import os
import re
import tarfile
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path, PurePosixPath
from typing import BinaryIO

from pestfleet.checks.names import is_file, is_folder, to_posix
from pestfleet.control.model import ControlFile
from pestfleet_worker.errors import CaseError

IGNORE_FILE = ".pestfleetignore"
_LEFT_OUT_FOLDERS = frozenset({
    "pestfleet-sessions", ".git", ".hg", ".svn", ".bzr", "CVS",
    "__pycache__", ".ipynb_checkpoints",
})  # fmt: skip
_LEFT_OUT_FILES = frozenset({
    "pestfleet.toml", IGNORE_FILE, ".gitignore", ".gitattributes", ".DS_Store", "Thumbs.db",
    "desktop.ini",
})  # fmt: skip
# case.rec, case.par.3, case.0.obs.csv, case.post.cov …: PEST manual part I, chapter 5, and the
# tables of output files in the chapters of the PEST++ users' manual.
_PEST_OUTPUTS = re.compile(
    r"(\d+\.)?(rec|rei|res|sen|seo|isen|jco|jcb|jst|jac|rmr|rst|rns|rnu|rnj|rmu|rsr|rsd|prf|log|"
    r"par|bpa|bpr|fpr|drf|mtt|svd|cov|mat|pcs|ipar|iobj|obs|obs\+noise|weights|phi|upg|pdc|"
    r"post|par\.usum|pred\.usum|paf|fin|cnd|msn|mio)"
    r"(\.(\d+|actual|meas|composite|regul|group|lambda|base|reg|post|cov|summary))*"
    r"(\.(csv|jcb|bin|txt))?",
    re.IGNORECASE,
)
_EXECUTABLE_HEADS = (b"#!", b"\x7fELF")
_CHUNK = 1 << 20
# Larger files are data: a program that names its control file is found in smaller ones.
_SCANNED_BYTES = 1 << 20


@dataclass(frozen=True, slots=True)
class RunFile:
    """A file of a case: POSIX name relative to the case folder, bytes, and where it is."""

    name: str
    size: int
    path: Path


def list_run_files(control: ControlFile) -> list[RunFile]:
    """The files that a run may read, sorted by name. Links to files and folders are followed.

    Raises `CaseError` if a folder cannot be read.
    """
    root = control.path.parent
    made = {to_posix(pair.model) for pair in (*control.templates, *control.instructions)}
    patterns = _read_patterns(root)
    prefix = f"{control.name}.".casefold()

    def is_left_out(name: str, folder: bool) -> bool:
        last = PurePosixPath(name).name
        if folder:
            return _is_left_out_folder(last) or _is_ignored(name, patterns)
        if last in _LEFT_OUT_FILES or name in made or last.endswith("~"):
            return True
        if last.casefold().startswith(prefix) and _PEST_OUTPUTS.fullmatch(last[len(prefix) :]):
            return True
        return _is_ignored(name, patterns)

    found = []
    for name, entry in _walk(root, "", is_left_out, frozenset()):
        try:
            found.append(RunFile(name, entry.stat().st_size, entry))
        except OSError as error:
            raise CaseError(f"{entry}: cannot be read: {error.strerror}") from error
    return sorted(found, key=lambda file: _encode(file.name))


def compute_digest(control: ControlFile, interface: bytes) -> str:
    """sha256, as hex, over what a run depends on.

    `interface`: names, file pairs, commands and precision, as bytes; with these the control file
    (and its external tables) count by what a run sees of them, so that other weights or another
    NOPTMAX keep finished runs valid. Where any other file of the case mentions a control file or
    one of these tables, the model may read them: then their content counts like that of all
    other files. Names and contents count, times and permissions do not: the digest is the same
    on Windows and on Linux. Raises `CaseError` if a file cannot be read.
    """
    tables = {to_posix(file.pest) for file in control.external_files}
    own = tables | {control.path.name}
    words = [b".pst", *(_encode(PurePosixPath(name).name).lower() for name in sorted(tables))]
    digest = hashlib.sha256()
    digest.update(b"%d\0" % len(interface) + interface)
    kept: list[tuple[str, bytes]] = []
    mentioned = False
    for file in list_run_files(control):
        content = hashlib.sha256()
        scanned = file.size <= _SCANNED_BYTES and file.name not in own
        for chunk in _read_chunks(file.path):
            content.update(chunk)
            if scanned and not mentioned:
                lowered = chunk.lower()
                mentioned = any(word in lowered for word in words)
        kept.append((file.name, content.digest()))
    for name, content_digest in kept:
        if name in own and not mentioned:
            continue
        encoded = _encode(name)
        digest.update(b"%d\0" % len(encoded) + encoded + content_digest)
    return digest.hexdigest()


def write_bundle(control: ControlFile, path: Path) -> Path:
    """Write the run files as one archive (.tar.gz) and return its path.

    The same files give the same bytes, whenever and by whomever it is written: names sorted,
    times and owners 0, modes 0644 and 0755. Folders are in it too, also those that are empty,
    since a model may write into them. Raises `CaseError` if a file cannot be read.
    """
    target = path.resolve()
    files = [file for file in list_run_files(control) if file.path.resolve() != target]
    folders = list_run_folders(control, files)
    partial = target.with_name(f"{target.name}.part")
    try:
        with (
            partial.open("wb") as raw,
            gzip.GzipFile(filename="", mode="wb", fileobj=raw, compresslevel=6, mtime=0) as packed,
            tarfile.open(fileobj=packed, mode="w", format=tarfile.PAX_FORMAT) as archive,
        ):
            for name in folders:
                archive.addfile(make_folder_entry(name))
            for file in files:
                with file.path.open("rb") as content:
                    archive.addfile(make_file_entry(file.name, content), content)
        partial.replace(target)
    except OSError as error:
        raise CaseError(f"{path}: the bundle cannot be written: {error.strerror}") from error
    finally:
        partial.unlink(missing_ok=True)
    return path


def list_run_folders(control: ControlFile, files: Iterable[RunFile]) -> list[str]:
    """The folders of these files and of what a run writes, and those that are empty; sorted."""
    names = (
        *(file.name for file in files),
        *(to_posix(pair.model) for pair in (*control.templates, *control.instructions)),
    )
    empty = _list_empty_folders(control.path.parent)
    folders = empty | {
        str(parent)
        for name in (*names, *empty)
        for parent in PurePosixPath(name).parents
        if str(parent) != "." and ".." not in parent.parts and not parent.is_absolute()
    }
    return sorted(folders, key=_encode)


def make_folder_entry(name: str) -> tarfile.TarInfo:
    """A folder in an archive: mode 0755, time and owner 0."""
    return _make_entry(name, tarfile.DIRTYPE, 0o755)


def make_file_entry(name: str, content: BinaryIO) -> tarfile.TarInfo:
    """A file in an archive: mode 0755 for a program, else 0644; time and owner 0.

    `content`: the open file on disk, at its start, where it is left.
    """
    head = content.read(4)
    content.seek(0)
    status = os.fstat(content.fileno())
    # Windows has no executable bit, so a program is known by its first bytes there.
    marked = os.name == "posix" and bool(status.st_mode & 0o100)
    mode = 0o755 if marked or head.startswith(_EXECUTABLE_HEADS) else 0o644
    return _make_entry(name, tarfile.REGTYPE, mode, status.st_size)


def _is_left_out_folder(name: str) -> bool:
    return name in _LEFT_OUT_FOLDERS or name.endswith(".pestfleet")


def _make_entry(name: str, kind: bytes, mode: int, size: int = 0) -> tarfile.TarInfo:
    entry = tarfile.TarInfo(name)
    entry.type, entry.mode, entry.size, entry.mtime = kind, mode, size, 0
    return entry


def _list_empty_folders(root: Path) -> set[str]:
    empty = set()
    for folder, inner, files in os.walk(root):
        inner[:] = [name for name in inner if not _is_left_out_folder(name)]
        if not inner and not files and folder != str(root):
            empty.add(Path(folder).relative_to(root).as_posix())
    return empty


def _read_chunks(path: Path) -> Iterator[bytes]:
    try:
        with path.open("rb") as file:
            while chunk := file.read(_CHUNK):
                yield chunk
    except OSError as error:
        raise CaseError(
            f"{path}: cannot be read: {error.strerror}",
            remedy=f"Make the file readable, or name it in {IGNORE_FILE}.",
        ) from error


def _walk(
    root: Path, folder: str, is_left_out: Callable[[str, bool], bool], above: frozenset[str]
) -> Iterator[tuple[str, Path]]:
    """Names and paths of the files under `folder`. `above`: real paths, to leave link loops."""
    here = root / folder
    real = os.path.realpath(here)
    if real in above:
        return
    try:
        with os.scandir(here) as entries:
            found = sorted(entries, key=lambda entry: entry.name)
    except OSError as error:
        raise CaseError(
            f"{here}: the folder cannot be read: {error.strerror}",
            remedy=f"Make it readable, or name it in {IGNORE_FILE}.",
        ) from error
    for entry in found:
        name = f"{folder}/{entry.name}" if folder else entry.name
        if is_folder(root / name):
            if not is_left_out(name, True):
                yield from _walk(root, name, is_left_out, above | {real})
        elif is_file(root / name) and not is_left_out(name, False):
            yield name, root / name


def _read_patterns(root: Path) -> list[str]:
    try:
        text = (root / IGNORE_FILE).read_text("utf-8", errors="replace")
    except FileNotFoundError:
        return []
    except OSError as error:
        raise CaseError(f"{root / IGNORE_FILE}: cannot be read: {error.strerror}") from error
    lines = (line.strip().replace("\\", "/").rstrip("/") for line in text.splitlines())
    return [line for line in lines if line and not line.startswith("#")]


def _is_ignored(name: str, patterns: list[str]) -> bool:
    last = PurePosixPath(name).name
    return any(
        fnmatch.fnmatchcase(name, pattern.lstrip("/"))
        if "/" in pattern
        else fnmatch.fnmatchcase(last, pattern)
        for pattern in patterns
    )


def _encode(name: str) -> bytes:
    return name.encode("utf-8", "surrogateescape")
