"""Programs and libraries by their first bytes, and what an ELF file needs to run.

Facts of the ELF format: man 5 elf; of the search for libraries: man 8 ld.so.
"""

from __future__ import annotations

import re
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

from pestfleet_worker.errors import CaseError

Kind = Literal["elf", "windows", "macos", "script", "other"]

ELF = b"\x7fELF"
WINDOWS = b"MZ"
# Mach-O of 32 and 64 bits in both byte orders. The one of several architectures in one file has
# the same first bytes as a Java class, and is told from it by its small number of architectures.
_MACHO = (
    b"\xfe\xed\xfa\xce", b"\xfe\xed\xfa\xcf", b"\xce\xfa\xed\xfe", b"\xcf\xfa\xed\xfe",
)  # fmt: skip
_MACHO_FAT = b"\xca\xfe\xba\xbe"
_HEAD_BYTES = 64

# Machine of an ELF header -> architecture as container engines call it.
_ARCHITECTURES = {
    "EM_X86_64": "amd64", "EM_386": "386", "EM_AARCH64": "arm64", "EM_ARM": "arm",
    "EM_PPC64": "ppc64le", "EM_S390": "s390x", "EM_RISCV": "riscv64",
}  # fmt: skip


@dataclass(frozen=True, slots=True)
class Binary:
    """What an ELF file needs.

    `architecture`: as container engines call it; `interpreter`: of a program that is linked
    dynamically; `libraries`: what it names itself (DT_NEEDED); `search`: folders that it names
    (DT_RPATH, DT_RUNPATH), with $ORIGIN as written; `versions`: library -> versions of its symbols.
    """

    architecture: str
    interpreter: str
    libraries: tuple[str, ...]
    search: tuple[str, ...]
    versions: dict[str, tuple[str, ...]]


def read_head(path: Path) -> bytes:
    """The first bytes of a file. Raises `CaseError` if it cannot be read."""
    try:
        with path.open("rb") as file:
            return file.read(_HEAD_BYTES)
    except OSError as error:
        raise CaseError(f"{path}: cannot be read: {error.strerror}") from error


def name_kind(head: bytes) -> Kind:
    """What kind of program begins like this."""
    if head.startswith(ELF):
        return "elf"
    if head.startswith(WINDOWS) and len(head) >= 64:
        return "windows"
    if head.startswith(_MACHO):
        return "macos"
    if head.startswith(_MACHO_FAT) and 0 < int.from_bytes(head[4:8], "big") < 40:
        return "macos"
    return "script" if head.startswith(b"#!") else "other"


def read_binary(path: Path) -> Binary:
    """What an ELF file needs. Raises `CaseError` if it is damaged."""
    from elftools.common.exceptions import ELFError
    from elftools.elf.dynamic import DynamicSegment
    from elftools.elf.elffile import ELFFile
    from elftools.elf.gnuversions import GNUVerNeedSection
    from elftools.elf.segments import InterpSegment

    libraries: list[str] = []
    search: list[str] = []
    interpreter = ""
    versions: dict[str, tuple[str, ...]] = {}
    try:
        with path.open("rb") as file:
            elf = ELFFile(file)
            machine = elf["e_machine"]
            for segment in elf.iter_segments():
                if isinstance(segment, InterpSegment):
                    interpreter = segment.get_interp_name()
                if isinstance(segment, DynamicSegment):
                    tag: Any  # what a tag has as text is an attribute of its own
                    for tag in segment.iter_tags():
                        if tag.entry.d_tag == "DT_NEEDED":
                            libraries.append(tag.needed)
                        elif tag.entry.d_tag == "DT_RPATH":
                            search += tag.rpath.split(":")
                        elif tag.entry.d_tag == "DT_RUNPATH":
                            search += tag.runpath.split(":")
            for section in elf.iter_sections():
                if isinstance(section, GNUVerNeedSection):
                    for needed, entries in section.iter_versions():
                        versions[str(needed.name)] = tuple(sorted(entry.name for entry in entries))
    except (ELFError, OSError, ValueError, KeyError, AttributeError, UnicodeDecodeError) as error:
        raise CaseError(
            f"{path}: a damaged program: {error}", remedy="Copy or build it again."
        ) from error
    architecture = _ARCHITECTURES.get(str(machine), str(machine).removeprefix("EM_").lower())
    return Binary(
        architecture, interpreter, tuple(libraries), tuple(filter(None, search)), versions
    )


def find_newest(versions: tuple[str, ...], prefix: str) -> tuple[int, ...]:
    """The highest of versions such as GLIBC_2.34, as numbers; () if there is none."""
    found = [
        tuple(map(int, match[1].split(".")))
        for version in versions
        if (match := re.fullmatch(rf"{prefix}_(\d+(?:\.\d+)*)", version))
    ]
    return max(found, default=())
