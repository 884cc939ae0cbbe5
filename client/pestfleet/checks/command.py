"""Checks of the model command: the program is there and can be run here."""

from __future__ import annotations

import os
import re
import shlex
import shutil
from pathlib import Path

from pestfleet.checks.files import check_exists
from pestfleet.checks.names import Folder, is_file, is_outside
from pestfleet.checks.problem import Problems
from pestfleet.control.model import Command, ControlFile, Place

_WINDOWS_PROGRAMS = (".exe", ".bat", ".cmd", ".com", ".ps1")
_INTERPRETER = re.compile(
    r"(python|pythonw|pypy)[\d.]*|py|bash|sh|dash|ksh|zsh|rscript|perl|julia|ruby|node|octave"
)
# A line with one of these is handed to the shell, which knows more than is checked here.
_SHELL_SIGNS = frozenset("|&;<>()$`*?[]{}~#!=")
_SHELL_WORDS = frozenset({
    "cd", "echo", "eval", "exec", "exit", "export", "false", "for", "if", "set",
    "source", "test", "time", "true", "ulimit", "umask", "unset", "while", ".", ":",
})  # fmt: skip
_HEAD_BYTES = 65536


def check_commands(
    control: ControlFile,
    folder: Folder,
    problems: Problems,
    *,
    local: bool = True,
    windows: bool = os.name == "nt",
) -> None:
    """Check every model command.

    `local`: the model runs on this machine, so that programs outside of the case folder must be
    found here; `windows`: it runs on Windows.
    """
    for command in control.commands:
        _check_command(command, control, folder, problems, local=local, windows=windows)
    count = control.control_data.get("numcom")
    used = {parameter.command for parameter in control.parameters}
    if len(control.commands) > 1 and len(used) > 1 and isinstance(count, int) and count > 1:
        problems.warning(
            control.commands[0].place or Place(control.path),
            f"DERCOM names different model commands, but every run executes all "
            f"{len(control.commands)}, one after the other",
            "Write one command if a run must not execute them all.",
        )


def is_shell_word(word: str) -> bool:
    """Is this first word of a command the shell's own, or in its language?"""
    return word in _SHELL_WORDS or bool(_SHELL_SIGNS.intersection(word))


def _check_command(
    command: Command,
    control: ControlFile,
    folder: Folder,
    problems: Problems,
    *,
    local: bool,
    windows: bool,
) -> None:
    place = command.place or Place(control.path)
    words = _split(command.line, windows, place, problems)
    if not words:
        return
    program = words[0].rstrip(";&|")
    if not program or is_shell_word(program):
        return
    if "\\" in command.line and not windows:
        problems.error(
            place,
            f"the model command '{command.line}' has a backslash, which Linux takes for a letter",
            f"Write '{command.line.replace(chr(92), '/')}'.",
        )
        return
    if program.lower().endswith(_WINDOWS_PROGRAMS) and not windows:
        problems.error(
            place,
            f"the model command '{program}' is a Windows program, and the model runs on Linux here",
            "Name a program for Linux, such as ./model or python3 model.py.",
        )
        return
    if is_outside(program) and local and not _is_program(Path(program), windows):
        message = f"the model command '{program}' does not exist, or is not executable"
        problems.error(place, message, "Correct the command, or put the program into the case.")
        return
    if not is_outside(program) and not _find_program(
        program, place, folder, problems, local=local, windows=windows
    ):
        return
    _check_script(words, place, folder, problems, windows=windows)


def _split(line: str, windows: bool, place: Place, problems: Problems) -> list[str]:
    try:
        words = shlex.split(line, posix=not (windows or "\\" in line))
    except ValueError:
        message = f"a quote in the model command '{line}' is not closed"
        problems.error(place, message, "Close it.")
        return []
    words = [word.strip("\"'") for word in words]
    if not words or not words[0]:
        problems.error(
            place, "the model command is empty", "Write the command that runs the model."
        )
        return []
    return words


def _find_program(
    program: str, place: Place, folder: Folder, problems: Problems, *, local: bool, windows: bool
) -> bool:
    """Find the first word in the case folder, else on PATH."""
    suffixes = ("", *_WINDOWS_PROGRAMS) if windows else ("",)
    inside = next((program + s for s in suffixes if folder.has(program + s)), None)
    if inside is None:
        if "/" not in program and (shutil.which(program) is not None or not local):
            return True
        if "/" in program or folder.find_similar(program) is not None:
            return check_exists(program, "model command", place, folder, problems)
        problems.error(
            place,
            f"the model command '{program}' is neither in the case folder nor on the PATH",
            "Install the program, put it into the case folder, or correct the command.",
        )
        return False
    path = folder.root / inside
    if not check_exists(inside, "model command", place, folder, problems):
        return False
    if not windows and os.name == "posix" and not os.access(path, os.X_OK):
        problems.error(
            place,
            f"the model command '{program}' is not executable",
            f"Make it so: chmod +x {shlex.quote(inside)}",
        )
        return False
    return windows or _check_shebang(path, problems, local=local)


def _is_program(path: Path, windows: bool) -> bool:
    return is_file(path) and (windows or os.access(path, os.X_OK))


def _check_script(
    words: list[str], place: Place, folder: Folder, problems: Problems, *, windows: bool
) -> None:
    """Of `python3 -u model.py` the script must be there."""
    name = Path(words[0]).name.lower().removesuffix(".exe")
    if _INTERPRETER.fullmatch(name) is None:
        return
    for word in words[1:]:
        if word in ("-c", "-m", "-e", "-"):
            return
        if word.startswith("-"):
            continue
        if _SHELL_SIGNS.intersection(word) or is_outside(word):
            return
        kind = "script of the model command"
        found = check_exists(word, kind, place, folder, problems)
        if found and not windows and name in ("sh", "bash", "dash", "ksh", "zsh"):
            _check_line_ends(folder.root / word, problems)
        return


def _check_line_ends(path: Path, problems: Problems) -> bool:
    head = _read_head(path, problems)
    lines = head.split(b"\n")
    for number, line in enumerate(lines, 1):
        if line.endswith(b"\r"):
            problems.error(
                Place(path, number),
                "the script has Windows line ends, which a shell on Linux cannot read",
                f"Convert it: sed -i 's/\\r$//' {shlex.quote(path.name)}",
            )
            return False
    return True


def _check_shebang(path: Path, problems: Problems, *, local: bool) -> bool:
    """The interpreter that the first line of a script names must be there."""
    head = _read_head(path, problems)
    if head[:2] == b"MZ":
        message = "the program was built for Windows, and the model runs on Linux here"
        problems.error(Place(path), message, "Build or get it for Linux.")
        return False
    if head[:2] != b"#!":
        return True
    first = head.split(b"\n", 1)[0]
    if first.endswith(b"\r"):
        return _check_line_ends(path, problems)
    words = first[2:].decode("latin-1").split()
    if not words:
        problems.error(Place(path, 1), "'#!' names no interpreter", "Write for example #!/bin/sh")
        return False
    interpreter = words[0]
    if Path(interpreter).name == "env":
        rest = [word for word in words[1:] if not word.startswith("-") and "=" not in word]
        interpreter = rest[0] if rest else interpreter
    if local and shutil.which(interpreter) is None:
        message = f"the interpreter '{interpreter}' of this script is not there"
        problems.error(Place(path, 1), message, "Install it, or correct the first line.")
        return False
    return True


def _read_head(path: Path, problems: Problems) -> bytes:
    try:
        with path.open("rb") as file:
            return file.read(_HEAD_BYTES)
    except OSError as error:
        message = f"cannot be read: {error.strerror}"
        problems.error(Place(path), message, "Make the file readable.")
        return b""
