"""Checks of a binary program: architecture, dynamic linker, libraries and their versions."""

from __future__ import annotations

import posixpath
import re
import shlex
from collections.abc import Mapping
from pathlib import PurePosixPath

from pestfleet.bundle import RunFile
from pestfleet.checks.names import to_posix
from pestfleet.images.contents import ImageContents
from pestfleet.images.executables import Binary, find_newest, read_binary
from pestfleet.images.inspection import Inspection, Use
from pestfleet.images.packages import find_library_package, is_of_intel
from pestfleet_worker.errors import CaseError

# A program of 32 bits runs where its linker is.
_OLDER = frozenset({("386", "amd64"), ("arm", "arm64")})
# libstdc++.so.6.0.30 has the symbols up to GLIBCXX_3.4.30 (its manual, "ABI policy").
_STDCXX = re.compile(r"libstdc\+\+\.so\.6\.0\.(\d+)")


def check_binary(use: Use, inspection: Inspection) -> None:
    """Check that an ELF file of the case can run in the image."""
    name, contents = use.file.name, inspection.contents
    try:
        binary = read_binary(use.file.path)
        if contents is None:
            return
        if _fits(use, binary, inspection, contents):
            _check_libraries(use, binary, inspection, contents)
    except CaseError as error:
        message = error.message.removeprefix(f"{use.file.path}: ")
        inspection.report(use.place, f"'{name}': {message}", error.remedy, sure=use.sure)


def _fits(use: Use, binary: Binary, inspection: Inspection, contents: ImageContents) -> bool:
    name = use.file.name
    linker_is_there = bool(binary.interpreter) and contents.has(binary.interpreter)
    older = linker_is_there and (binary.architecture, contents.architecture) in _OLDER
    if binary.architecture != contents.architecture and not older:
        inspection.report(
            use.place,
            f"'{name}' was built for {binary.architecture}, and the image is for "
            f"{contents.architecture}",
            f"Put the model's build for {contents.architecture} into the case folder.",
            sure=use.sure,
        )
        return False
    if binary.interpreter and not linker_is_there:
        inspection.report(
            use.place,
            f"'{name}' needs {binary.interpreter}, which the image does not have: it was built "
            "on another kind of Linux",
            "Build it on Debian, or link it statically.",
            sure=use.sure,
        )
        return False
    return True


def _check_libraries(
    use: Use, binary: Binary, inspection: Inspection, contents: ImageContents
) -> None:
    """Each library that the program needs, and those that the case's own libraries need."""
    todo = [(use.file.name, binary)]
    seen: set[str] = set()
    while todo:
        name, needing = todo.pop(0)
        who = f"'{name}'" if name == use.file.name else f"'{name}', which '{use.file.name}' loads,"
        _check_versions(who, needing, use, inspection, contents)
        for library in needing.libraries:
            if library in seen:
                continue
            seen.add(library)
            own = _find_own(library, name, needing, inspection.files)
            if own is not None:
                todo.append((own.name, read_binary(own.path)))
            elif not _is_in_image(library, needing, contents):
                _report_missing(library, who, name, use, inspection)


def _report_missing(library: str, who: str, name: str, use: Use, inspection: Inspection) -> None:
    message = f"{who} needs the library {library}, which the image does not have"
    beside = next((n for n in inspection.files if PurePosixPath(n).name == library), "")
    if beside:
        folder = posixpath.relpath(posixpath.dirname(beside) or ".", posixpath.dirname(name) or ".")
        origin = "$ORIGIN" if folder == "." else f"$ORIGIN/{folder}"
        inspection.report(
            use.place,
            f"{who} needs the library {library}, and does not look for it where it is: '{beside}'",
            f"Let it look there: patchelf --set-rpath '{origin}' {shlex.quote(name)}",
            sure=use.sure,
        )
    elif is_of_intel(library):
        remedy = "It comes with Intel's compiler: link with -static-intel, or add the file."
        inspection.report(use.place, message, remedy, sure=use.sure)
    else:
        inspection.report_lack(use.place, message, find_library_package(library), sure=use.sure)


def _is_in_image(library: str, needing: Binary, contents: ImageContents) -> bool:
    folders = (folder for folder in needing.search if folder.startswith("/"))
    return (
        (library.startswith("/") and contents.has(library))
        or bool(contents.find_library(library))
        or any(contents.has(f"{folder}/{library}") for folder in folders)
    )


def _find_own(
    library: str, name: str, needing: Binary, files: Mapping[str, RunFile]
) -> RunFile | None:
    """The case's own file of a library, where the dynamic linker looks for it."""
    if "/" in library:
        return None if library.startswith("/") else files.get(to_posix(library))
    origin = str(PurePosixPath(name).parent)
    for folder in needing.search:
        if folder.startswith("/"):
            continue
        # A folder without $ORIGIN is relative to where the model runs: the case folder.
        folder = folder.replace("${ORIGIN}", "$ORIGIN").replace("$ORIGIN", origin)
        path = posixpath.normpath(posixpath.join(folder, library))
        if path in files:
            return files[path]
    return None


def _check_versions(
    who: str, binary: Binary, use: Use, inspection: Inspection, contents: ImageContents
) -> None:
    """The image's C and C++ libraries are as new as those that the program was linked with."""
    needed = max(
        (find_newest(versions, "GLIBC") for versions in binary.versions.values()), default=()
    )
    if contents.glibc and needed > contents.glibc:
        inspection.report(
            use.place,
            f"{who} needs glibc {_join(needed)}, and the image has {_join(contents.glibc)}",
            "Build the model on an older Linux, or take a newer [image] base.",
            sure=use.sure,
        )
    needed = find_newest(binary.versions.get("libstdc++.so.6", ()), "GLIBCXX")
    there = [int(match[1]) for path in contents.files if (match := _STDCXX.search(path))]
    if there and needed > (3, 4, max(there)):
        inspection.report(
            use.place,
            f"{who} needs a libstdc++ with GLIBCXX_{_join(needed)}, and the image's has no newer "
            f"symbols than GLIBCXX_3.4.{max(there)}",
            "Build the model with an older compiler or -static-libstdc++, or take a newer base.",
            sure=use.sure,
        )


def _join(version: tuple[int, ...]) -> str:
    return ".".join(map(str, version))
