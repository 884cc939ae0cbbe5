"""The kit of a failed run: what one needs to see why it failed, and to make it again by hand.

A kit is a .tar.gz with these members:

    failure.txt   what failed, how to make the run again, what is not whole, parameter values
    model.log     what the model wrote to stdout and stderr
    inputs/       model inputs, as the run wrote them from the templates
    outputs/      model outputs, as far as there are any
    others/       other files that have changed in the slot since it was prepared

Each member is a gzip stream of its own (RFC 1952 allows several in a file), so that sizes add up
and what fits the limit does not depend on chance.
"""

from __future__ import annotations

import errno
import gzip
import os
import shlex
import stat
import tarfile
import threading
from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from itertools import islice
from pathlib import Path

from pestfleet_worker.messages import CaseSpec, Failure, Limits
from pestfleet_worker.slots import MARKER

TEXT, LOG, INPUTS, OUTPUTS, OTHERS = "failure.txt", "model.log", "inputs/", "outputs/", "others/"
AGAIN = "To make the run again"  # begins the line in TEXT after which the commands come, indented

KITS_A_REASON = 5  # a worker sends; then the master has enough

_RAW = 8  # bytes that are looked at for each byte of the limit: what text may shrink to
_LEAST = 400  # bytes, packed; what is left of a file in less says nothing
_TEXT_LEAST = 2000
_LOOKED_AT = 20_000  # files in a slot
_OTHERS = 500  # files
_NOTES = 40  # lines
_END = gzip.compress(bytes(2 * tarfile.BLOCKSIZE), mtime=0)


class KitQuota:
    """How many kits a worker has packed for each reason. For all of its slots' threads."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._packed: Counter[str] = Counter()

    def take(self, reason: str) -> bool:
        """Shall there be one more kit of a run that failed for this reason?"""
        with self._lock:
            self._packed[reason] += 1
            return self._packed[reason] <= KITS_A_REASON


@dataclass(frozen=True, slots=True)
class Scene:
    """A slot in which a run has just failed. `values`: what the model got, in the spec's order."""

    run: int
    failure: Failure
    values: Sequence[float]
    spec: CaseSpec
    limits: Limits
    source: Path
    directory: Path
    log: Path


@dataclass(slots=True)
class _Member:
    """A file on its way into the kit. `data` is its head and tail where it is longer than read."""

    name: str
    size: int
    data: bytes
    time: int
    packed: bytes = b""

    def pack(self, keep: int | None = None) -> bytes:
        """As a piece of the archive; with `keep`, only so many bytes of head and tail."""
        data = self.data if keep is None else self.data[: keep // 2] + self.data[-(keep // 2) :]
        if len(data) < self.size:
            head, tail = data[: len(data) // 2], data[len(data) // 2 :]
            # Whole lines, where there are some.
            head = head[: head.rfind(b"\n") + 1] or head
            tail = tail[tail.find(b"\n") + 1 :] or tail
            left_out = self.size - len(head) - len(tail)
            data = head + b"\n[... %d bytes are left out here ...]\n\n" % left_out + tail
        info = tarfile.TarInfo(self.name)
        info.size, info.mtime, info.mode = len(data), self.time, 0o644
        header = info.tobuf(tarfile.PAX_FORMAT, "utf-8", "surrogateescape")
        return gzip.compress(header + data + bytes(-len(data) % tarfile.BLOCKSIZE), 6, mtime=0)

    def fit(self, room: int) -> bool:
        """Pack it into so many bytes, cut if need be; False where that cannot be."""
        self.packed = self.packed or self.pack()
        binary = b"\0" in self.data
        if binary and len(self.data) < self.size:
            return False
        keep = len(self.data)
        while len(self.packed) > room:
            keep = int(keep * room / len(self.packed) * 0.9)
            if binary or keep < 2:
                return False
            self.packed = self.pack(keep)
        return True


def pack_kit(scene: Scene, limit: int) -> bytes:
    """The kit, at most `limit` bytes; b"" where not even the text fits in.

    Inputs, outputs and log come first, the biggest cut to head and tail so that all have a place;
    then whole other files, the smallest first. Files that cannot be read are named in the text.
    """
    notes: list[str] = []
    text_room = max(limit // 4, min(limit, _TEXT_LEAST)) - len(_END)
    room = limit - text_room - len(_END)
    packed = _pack_run_files(scene, room, limit * _RAW, notes)
    room -= sum(map(len, packed))
    packed += _pack_others(scene, room, limit * _RAW, notes)
    written = _write_text(scene, notes).encode()
    text = _Member(TEXT, len(written), written, _time_of(scene.log))
    if not text.fit(text_room):
        return b""
    return b"".join((text.packed, *packed, _END))


def _pack_run_files(scene: Scene, room: int, raw: int, notes: list[str]) -> list[bytes]:
    """Log, inputs and outputs, in so many bytes."""
    places = [(LOG, scene.log)]
    for prefix, pairs in ((INPUTS, scene.spec.templates), (OUTPUTS, scene.spec.instructions)):
        names = [Path(pair.model).as_posix() for pair in pairs]
        places += [(prefix + name, scene.directory / name) for name in names]
    members: list[_Member] = []
    for name, path in places:
        try:
            member = _read(name, path, max(raw // len(places), _LEAST))
        except FileNotFoundError:
            if not name.startswith(OUTPUTS):  # that outputs are missing is what the failure says
                notes.append(f"{_show(name)}: not there")
        except OSError as error:
            notes.append(f"{_show(name)}: cannot be read: {error.strerror or error}")
        else:
            member.packed = member.pack()
            members.append(member)
    if _find_share(members, room) < _LEAST:
        for member in members[max(room, 0) // _LEAST :]:
            notes.append(f"{_show(member.name)}: left out, {member.size:,} bytes")
        del members[max(room, 0) // _LEAST :]
    share = _find_share(members, room)
    packed: list[bytes] = []
    for member in members:
        whole = len(member.data) == member.size and len(member.packed) <= share
        if not member.fit(share):
            notes.append(f"{_show(member.name)}: left out, {member.size:,} bytes")
            continue
        if not whole:
            notes.append(f"{_show(member.name)}: cut to head and tail, of {member.size:,} bytes")
        packed.append(member.packed)
    return packed


def _find_share(members: Sequence[_Member], room: int) -> int:
    """The most that a member may have so that all have a place: big ones give way to small ones."""
    sizes = sorted(len(member.packed) for member in members)
    for place, size in enumerate(sizes):
        left = len(sizes) - place
        if size * left > room:
            return room // left
        room -= size
    return sizes[-1] if sizes else _LEAST


def _pack_others(scene: Scene, room: int, raw: int, notes: list[str]) -> list[bytes]:
    """Files that are not as in the case, whole, the smallest first, in so many bytes."""
    pairs = (*scene.spec.templates, *scene.spec.instructions)
    known = {MARKER, *(Path(pair.model).as_posix() for pair in pairs)}
    found = islice(_find_changed(scene.source, scene.directory), _LOOKED_AT)
    changed = sorted((size, name) for name, size in found if name not in known)
    packed: list[bytes] = []
    for number, (size, name) in enumerate(changed):
        if size > raw or number == _OTHERS:
            count = len(changed) - number
            notes.append(f"{OTHERS}: {count:,} more files are left out, from {size:,} bytes up")
            break
        raw -= size
        try:
            member = _read(OTHERS + name, scene.directory / name, size)
        except OSError as error:
            notes.append(f"{_show(OTHERS + name)}: cannot be read: {error.strerror or error}")
            continue
        piece = member.pack()
        if len(piece) > room or len(member.data) < member.size:
            notes.append(f"{_show(OTHERS + name)}: left out, {size:,} bytes")
            continue
        room -= len(piece)
        packed.append(piece)
    return packed


def _find_changed(source: Path, directory: Path, prefix: str = "") -> Iterator[tuple[str, int]]:
    """(POSIX name, size) of plain files in the slot that are not as in the case folder."""
    with os.scandir(directory / prefix) as entries:
        for entry in entries:
            name = prefix + entry.name
            if entry.is_dir(follow_symlinks=False):
                yield from _find_changed(source, directory, name + "/")
                continue
            status = entry.stat(follow_symlinks=False)
            if stat.S_ISREG(status.st_mode) and not _is_same(source / name, status):
                yield name, status.st_size


def _is_same(original: Path, status: os.stat_result) -> bool:
    # The slot's copy was given the time of the original; only a writer changes it.
    try:
        seen = original.stat()
    except OSError:
        return False
    return (seen.st_size, seen.st_mtime_ns) == (status.st_size, status.st_mtime_ns)


def _read(name: str, path: Path, most: int) -> _Member:
    """A plain file, no link; head and tail only where it has more than `most` bytes.

    Raises `OSError`.
    """
    if ".." in name.split("/") or "//" in name:
        raise OSError(errno.EINVAL, "outside of the slot")
    # O_NONBLOCK: a pipe without a writer would keep us for ever.
    descriptor = os.open(path, os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_CLOEXEC)
    with open(descriptor, "rb") as file:  # noqa: PTH123 (the descriptor is what was opened)
        status = os.fstat(descriptor)
        if not stat.S_ISREG(status.st_mode):
            raise OSError(errno.EINVAL, "not a plain file")
        size = status.st_size
        if size <= most:
            data = file.read(size)
            size = len(data)
        else:
            data = file.read(most // 2)
            file.seek(size - most // 2)
            data += file.read(most // 2)
        return _Member(name, size, data, int(status.st_mtime))


def _time_of(path: Path) -> int:
    try:
        return int(path.stat().st_mtime)
    except OSError:
        return 0


def _write_text(scene: Scene, notes: Sequence[str]) -> str:
    spec, limits = scene.spec, scene.limits
    shown = [*notes[:_NOTES], *([f"and {len(notes) - _NOTES} more"] if notes[_NOTES:] else [])]
    sections = [
        [
            f"Run {scene.run} of case {spec.name} failed: {scene.failure.reason}",
            str(scene.failure),
        ],
        [
            "What is here",
            f"  {TEXT}  this text",
            f"  {LOG}    what the model wrote to stdout and stderr",
            f"  {INPUTS}      model inputs, as the run wrote them from the templates",
            f"  {OUTPUTS}     model outputs, as far as there are any",
            f"  {OTHERS}      other files that have changed in the slot, by this run or one before",
        ],
        [
            f"{AGAIN}, from here, where CASE is the case's folder",
            *(f"  {line}" for line in write_recipe(spec, limits)),
        ],
    ]
    if limits.seconds > 0:
        sections[2].append(f"The worker ends a run after {limits.seconds:g} s.")
    if shown:
        sections.append(["Not whole", *(f"  {note}" for note in shown)])
    width = max(map(len, spec.parameters), default=0)
    sections.append(
        [
            f"Parameters ({len(spec.parameters):,}), as the model got them",
            *(
                f"  {name:<{width}}  {value!r}"
                for name, value in zip(spec.parameters, scene.values, strict=False)
            ),
        ]
    )
    return "\n\n".join("\n".join(section) for section in sections) + "\n"


def write_recipe(spec: CaseSpec, limits: Limits) -> list[str]:
    """Lines for a POSIX shell that make a run from a kit's inputs, in the kit's own folder."""
    outputs = shlex.join(pair.model for pair in spec.instructions)
    return [
        'cp -r "$CASE" again',
        "cd again",
        "cp -r ../inputs/. .",
        *([f"rm -f -- {outputs}"] if outputs else []),
        f'export PATH="$PWD:$PATH" OMP_NUM_THREADS={limits.threads}',
        *spec.commands,
    ]


def _show(name: str) -> str:
    """A file's name on one line."""
    return name if name.isprintable() else repr(name)
