"""Small ELF files for the tests of images; nothing of them can run."""

from __future__ import annotations

import struct
from collections.abc import Sequence

X86_64, AARCH64 = 62, 183
_BASE = 0x400000


def make_elf(
    *,
    machine: int = X86_64,
    interpreter: str = "/lib64/ld-linux-x86-64.so.2",
    needed: Sequence[str] = (),
    runpath: str = "",
) -> bytes:
    """A program of 64 bits that asks for this linker and these libraries (man 5 elf)."""
    strings = b"\0"
    entries = []
    for tag, text in [*((1, name) for name in needed), *([(29, runpath)] if runpath else [])]:
        entries.append((tag, len(strings)))
        strings += text.encode() + b"\0"
    linker = interpreter.encode() + b"\0"
    count = 3 if interpreter else 2
    start = 64 + 56 * count
    at_strings = start + len(linker)
    at_dynamic = -(-(at_strings + len(strings)) // 8) * 8
    entries += [(5, _BASE + at_strings), (10, len(strings)), (0, 0)]
    dynamic = b"".join(struct.pack("<QQ", *entry) for entry in entries)
    total = at_dynamic + len(dynamic)

    def segment(kind: int, offset: int, size: int) -> bytes:
        return struct.pack(
            "<IIQQQQQQ", kind, 4, offset, _BASE + offset, _BASE + offset, size, size, 8
        )

    header = b"\x7fELF\x02\x01\x01" + bytes(9)
    header += struct.pack("<HHIQQQIHHHHHH", 2, machine, 1, _BASE, 64, 0, 0, 64, 56, count, 64, 0, 0)
    segments = segment(1, 0, total)
    if interpreter:
        segments += segment(3, start, len(linker))
    segments += segment(2, at_dynamic, len(dynamic))
    body = (header + segments + linker + strings).ljust(at_dynamic, b"\0")
    return body + dynamic
