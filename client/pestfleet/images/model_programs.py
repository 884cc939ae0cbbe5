"""Checks of the model's programs: they can run on Linux, in the image, with what it has.

Which programs a case uses is seen where it is easy to see: the model commands, and the files of
the case that scripts name which these start. The run after the build shows the rest.
"""

from __future__ import annotations

import re
import shlex
from collections.abc import Mapping
from pathlib import PurePosixPath

from pestfleet.bundle import RunFile
from pestfleet.checks.command import is_shell_word
from pestfleet.checks.names import is_outside, to_posix
from pestfleet.control.model import ControlFile, Place
from pestfleet.images.contents import ImageContents
from pestfleet.images.executables import name_kind, read_head
from pestfleet.images.inspection import Inspection, Use
from pestfleet.images.linking import check_binary
from pestfleet.images.packages import find_program_package

_SCANNED_BYTES = 1 << 20
_WORD = re.compile(r"[^\s\"'`,;:()<>|&=\[\]{}]+")
_SHELLS = frozenset({"sh", "bash", "dash", "ksh", "zsh"})
_SCRIPTS = frozenset({".py", ".sh", ".r", ".pl", ".jl", ".rb", ".js", ".m"})
_SYSTEMS = {"windows": "Windows", "macos": "macOS"}


def check_programs(control: ControlFile, inspection: Inspection) -> None:
    """Check every program that the model uses. Raises `CaseError` if a file cannot be read."""
    for use in _find_uses(control, inspection):
        if Place(use.file.path) in inspection.told:
            continue
        kind = name_kind(read_head(use.file.path))
        if kind in _SYSTEMS:
            inspection.report(
                use.place,
                f"'{use.file.name}' was built for {_SYSTEMS[kind]}, and an image runs Linux",
                "Put the model's build for Linux into the case folder, and name that.",
                sure=use.sure,
            )
        elif kind == "elf":
            check_binary(use, inspection)
        elif kind == "script" and inspection.contents is not None:
            _check_shebang(use, inspection, inspection.contents)


def _find_uses(control: ControlFile, inspection: Inspection) -> list[Use]:
    """The files that the commands start, and those that scripts among them name."""
    uses: dict[str, Use] = {}
    todo: list[tuple[str, Place, bool]] = []
    for command in control.commands:
        place = command.place or Place(control.path)
        words = _split(command.line)
        if words and "\\" in command.line:
            posix = command.line.replace("\\", "/")
            inspection.report(
                place,
                f"the model command '{command.line}' has a backslash, which Linux takes for a "
                "letter",
                f"Write '{posix}'.",
            )
            words = [word.replace("\\", "/") for word in words]
        if words and inspection.contents is not None:
            _check_command(words[0], place, inspection, inspection.contents)
        todo += [(word, place, True) for word in words]
    while todo:
        word, place, sure = todo.pop(0)
        name = to_posix(word)
        file = inspection.files.get(name)
        if file is None or (name in uses and (uses[name].sure or not sure)):
            continue
        uses[name] = Use(file, place, sure)
        todo += _list_mentions(file, inspection.files, sure=sure)
    return list(uses.values())


def _list_mentions(
    file: RunFile, files: Mapping[str, RunFile], *, sure: bool
) -> list[tuple[str, Place, bool]]:
    """Files of the case that a script names: (name, place, whether a command starts it)."""
    if file.size > _SCANNED_BYTES or not _is_script(file):
        return []
    lines = file.path.read_bytes().decode("utf-8", "replace").splitlines()
    interpreter = _read_interpreter(lines[0]) if lines and lines[0].startswith("#!") else ""
    shell = file.name.endswith(".sh") or PurePosixPath(interpreter).name in _SHELLS
    folder = str(PurePosixPath(file.name).parent)
    spaced = [other for other in files if " " in other and other != file.name]
    found = []
    for number, line in enumerate(lines, start=1):
        code = line.split("#", 1)[0]
        text = code.replace("\\ ", " ")
        for other in spaced:  # in quotes, or with a backslash before each space
            if other in text:
                started = sure and shell and text.lstrip(" \t\"'./").startswith(other)
                found.append((other, Place(file.path, number), started))
        for position, word in enumerate(_WORD.findall(code)):
            # A script's names are relative to the run's folder, some to its own.
            for name in (to_posix(word), to_posix(f"{folder}/{word}")):
                if name in files and name != file.name:
                    started = sure and shell and position == 0
                    found.append((name, Place(file.path, number), started))
                    break
    return found


def _is_script(file: RunFile) -> bool:
    head = read_head(file.path)
    suffix = PurePosixPath(file.name).suffix.lower()
    return (head.startswith(b"#!") or suffix in _SCRIPTS) and b"\0" not in head


def _check_command(
    program: str, place: Place, inspection: Inspection, contents: ImageContents
) -> None:
    """The first word of a model command is in the case or in the image."""
    if program.startswith("/") or is_outside(program):
        if not contents.has(program):
            inspection.report(
                place,
                f"the model command '{program}' is outside of the case folder, and the image "
                "has no such file",
                "Put the program into the case folder, and name it without a path.",
            )
        return
    known = to_posix(program) in inspection.files or is_shell_word(program)
    # A name with a folder that is not there is told by the checks of the case.
    if not known and "/" not in program and not contents.find_program(program):
        message = f"the model command '{program}' is neither in the case folder nor in the image"
        inspection.report_lack(place, message, find_program_package(program))


def _check_shebang(use: Use, inspection: Inspection, contents: ImageContents) -> None:
    with use.file.path.open("rb") as file:
        first = file.readline(4096).decode("utf-8", "replace")
    interpreter = _read_interpreter(first)
    if first.endswith("\r\n") and PurePosixPath(interpreter).name in _SHELLS:
        inspection.report(
            Place(use.file.path, 1),
            "the script has Windows line ends, which a shell on Linux cannot read",
            f"Convert it: sed -i 's/\\r$//' {shlex.quote(use.file.path.name)}",
            sure=use.sure,
        )
    absolute = interpreter.startswith("/")
    if not interpreter or (not absolute and to_posix(interpreter) in inspection.files):
        return
    if contents.has(interpreter) if absolute else contents.find_program(interpreter):
        return
    program = PurePosixPath(interpreter).name
    place = Place(use.file.path, 1)
    message = f"the image has no '{interpreter}', which this script asks for"
    there = contents.find_program(program)
    if there:
        remedy = f"It has {there}: write #!/usr/bin/env {program}"
        inspection.report(place, message, remedy, sure=use.sure)
    else:
        inspection.report_lack(place, message, find_program_package(program), sure=use.sure)


def _read_interpreter(first: str) -> str:
    """Of `#!/usr/bin/env -S python3 -u`: python3; of `#!/bin/sh`: /bin/sh."""
    words = first.removeprefix("#!").split()
    if words and PurePosixPath(words[0]).name == "env":
        rest = [word for word in words[1:] if not word.startswith("-") and "=" not in word]
        return rest[0] if rest else ""
    return words[0] if words else ""


def _split(line: str) -> list[str]:
    """The words of a command; [] where the shell must read it first."""
    try:
        words = shlex.split(line, posix="\\" not in line)
    except ValueError:
        return []  # told by the checks of the case
    words = [word.strip("\"'").rstrip(";&|") for word in words]
    return words if words and "=" not in words[0] else []
