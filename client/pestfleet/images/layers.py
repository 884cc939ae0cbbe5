"""The files of a case in layers of an image, by how often they change.

A layer is an archive, to be unpacked in `/`, with times and owners 0 and sorted names: the same
files give the same bytes, and an engine and a registry find that they have that layer already.
Archives are streamed: a file of 20 GB is never in memory.
"""

from __future__ import annotations

import hashlib
import re
import tarfile
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path, PurePosixPath

from pestfleet.bundle import (
    RunFile,
    list_run_files,
    list_run_folders,
    make_file_entry,
    make_folder_entry,
)
from pestfleet.checks.names import is_file, is_outside, to_posix
from pestfleet.control.model import ControlFile
from pestfleet.images.executables import name_kind, read_head
from pestfleet_worker.errors import CaseError

LARGE = 1 << 20  # bytes; what is smaller is sent again in no time
LAYERS = ("programs", "large", "inputs", "control")
# An archive has the case's folder itself, and is unpacked in the one above: else the engine gives
# that folder the time of the build, and no two layers are alike.
_TOP = "case"
_BLOCK = 512
_CHUNK = 1 << 20
_END = b"\0" * (2 * _BLOCK)


@dataclass(frozen=True, slots=True)
class Layer:
    """Files that change together. `folders`: those that are made with them, parents first."""

    name: str
    files: tuple[RunFile, ...]
    folders: tuple[str, ...]

    @property
    def archive(self) -> str:
        """Its file in the context of a build."""
        return f"{self.name}.tar"

    @property
    def size(self) -> int:
        """Bytes of all files."""
        return sum(file.size for file in self.files)


def plan_layers(control: ControlFile, options: Mapping[str, str]) -> list[Layer]:
    """The case's files in layers, those that change most rarely first; empty layers are left out.

    With the files that a run reads go those that the control file's `++` options or the user's
    engine `options` name: the master of a session reads them from the image. Raises `CaseError`.
    """
    named = list_named_files(control, options)
    files = {file.name: file for file in (*list_run_files(control), *named)}
    often = _list_control_files(control)
    groups: dict[str, list[RunFile]] = {name: [] for name in LAYERS}
    for name in sorted(files, key=_encode):
        groups[_choose_layer(files[name], often)].append(files[name])
    folders = list_run_folders(control, files.values())
    layers = []
    for name in LAYERS:
        own = groups[name]
        # Folders of all files, and the empty ones, come with the other inputs.
        made = folders if name == "inputs" else _list_parents(own)
        if own or (name == "inputs" and made):
            layers.append(Layer(name, tuple(own), tuple(made)))
    return layers


def list_named_files(control: ControlFile, options: Mapping[str, str]) -> list[RunFile]:
    """The files in the case folder that options of the engine name, sorted by name."""
    root = control.path.parent
    names = {control.path.name}
    for text in (*control.options.values(), *options.values()):
        for word in (text, *re.split(r"[,\s]+", text)):
            name = to_posix(word.strip("\"' "))
            if name and not is_outside(word.strip("\"' ")) and is_file(root / name):
                names.add(name)
    return [
        RunFile(name, (root / name).stat().st_size, root / name)
        for name in sorted(names, key=_encode)
    ]


def hash_layer(layer: Layer) -> str:
    """sha256, as hex, of the layer's archive: of names, modes and contents."""
    digest = hashlib.sha256()
    for part in stream_layer(layer):
        digest.update(part)
    return digest.hexdigest()


def stream_layer(layer: Layer) -> Iterator[bytes]:
    """The layer's archive (PAX). Raises `CaseError` if a file cannot be read, or changes."""
    for name in _list_folders(layer):
        yield _write_entry(make_folder_entry(name))
    for file in layer.files:
        yield from _stream_file(file)
    yield _END


def measure_layer(layer: Layer) -> int:
    """Bytes of the layer's archive, without reading the files' contents."""
    size = sum(len(_write_entry(make_folder_entry(name))) for name in _list_folders(layer))
    for file in layer.files:
        entry = make_folder_entry(f"{_TOP}/{file.name}")
        entry.type, entry.size = tarfile.REGTYPE, file.size
        size += len(_write_entry(entry)) + _pad(file.size)
    return size + len(_END)


def stream_context(texts: Mapping[str, bytes], layers: Sequence[Layer]) -> Iterator[bytes]:
    """The context of a build as one archive: files with these contents, and the layers."""
    for name, content in texts.items():
        yield from _stream_member(name, len(content), iter((content,)))
    for layer in layers:
        yield from _stream_member(layer.archive, measure_layer(layer), stream_layer(layer))
    yield _END


def _list_folders(layer: Layer) -> list[str]:
    return [_TOP, *(f"{_TOP}/{name}" for name in layer.folders)]


def _choose_layer(file: RunFile, often: frozenset[str]) -> str:
    if file.name in often:
        # A table of 50 MB shall not go with each edit of the control file.
        return "control" if file.size < LARGE else "inputs"
    if name_kind(read_head(file.path)) in ("elf", "windows", "macos"):
        return "programs"
    return "inputs" if file.size < LARGE else "large"


def _list_control_files(control: ControlFile) -> frozenset[str]:
    pairs = (*control.templates, *control.instructions)
    named = [*(pair.pest for pair in pairs), *(file.pest for file in control.external_files)]
    return frozenset({control.path.name, *map(to_posix, named)})


def _list_parents(files: Iterable[RunFile]) -> list[str]:
    parents = {str(parent) for file in files for parent in PurePosixPath(file.name).parents} - {"."}
    return sorted(parents, key=_encode)


def _stream_member(name: str, size: int, content: Iterator[bytes]) -> Iterator[bytes]:
    entry = make_folder_entry(name)
    entry.type, entry.mode, entry.size = tarfile.REGTYPE, 0o644, size
    yield _write_entry(entry)
    yield from content
    yield b"\0" * (_pad(size) - size)


def _stream_file(file: RunFile) -> Iterator[bytes]:
    try:
        with file.path.open("rb") as content:
            entry = make_file_entry(f"{_TOP}/{file.name}", content)
            if entry.size != file.size:
                raise _make_changed(file.path)
            yield _write_entry(entry)
            left = entry.size
            while left:
                chunk = content.read(min(_CHUNK, left))
                if not chunk:
                    raise _make_changed(file.path)
                left -= len(chunk)
                yield chunk
    except OSError as error:
        raise CaseError(f"{file.path}: cannot be read: {error.strerror}") from error
    yield b"\0" * (_pad(file.size) - file.size)


def _make_changed(path: Path) -> CaseError:
    return CaseError(
        f"{path}: changed while it was read", remedy="Build again when nothing writes to the case."
    )


def _write_entry(entry: tarfile.TarInfo) -> bytes:
    return entry.tobuf(tarfile.PAX_FORMAT, "utf-8", "surrogateescape")


def _pad(size: int) -> int:
    return -(-size // _BLOCK) * _BLOCK


def _encode(name: str) -> bytes:
    return name.encode("utf-8", "surrogateescape")
