"""Tar archives that come in pieces from a container, as files."""

from __future__ import annotations

import io
import tarfile
from collections.abc import Iterator
from pathlib import Path


class _Stream(io.RawIOBase):
    """The chunks of an answer as a file."""

    def __init__(self, chunks: Iterator[bytes]) -> None:
        self._chunks = chunks
        self._rest = b""

    def readable(self) -> bool:
        return True

    def readinto(self, buffer: bytearray | memoryview) -> int:  # type: ignore[override]
        while not self._rest:
            try:
                self._rest = next(self._chunks)
            except StopIteration:
                return 0
        taken = self._rest[: len(buffer)]
        self._rest = self._rest[len(taken) :]
        buffer[: len(taken)] = taken
        return len(taken)


def open_archive(chunks: Iterator[bytes]) -> tarfile.TarFile:
    """A tar archive, compressed or not, whose pieces come one after the other."""
    return tarfile.open(fileobj=io.BufferedReader(_Stream(chunks)), mode="r|*")


def unpack(chunks: Iterator[bytes], folder: Path) -> bool:
    """Copy an archive's files into `folder`; False when it has none.

    Links that lead out of the folder, devices and the like are refused by tarfile's filter.
    """
    with open_archive(chunks) as archive:
        found = False
        for entry in archive:
            archive.extract(entry, folder, filter="data")
            found = True
        return found
