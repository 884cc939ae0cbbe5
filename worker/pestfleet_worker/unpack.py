"""The program `python -m pestfleet_worker.unpack FOLDER`: writes secrets from a variable to files.

PESTFLEET_SECRET_FILES has a JSON object, file name -> text. It is how Amazon ECS hands a secret to
a container: one that only unpacks it, so that those with models never have it in their environment.
"""

from __future__ import annotations

import argparse
import json
import os
import re
import sys
from collections.abc import Mapping
from pathlib import Path

from pestfleet_worker.errors import ConfigurationError, PestfleetError

VARIABLE = "PESTFLEET_SECRET_FILES"
MODE = 0o400

_NAME = re.compile(r"[A-Za-z0-9_][A-Za-z0-9._-]{0,99}")


def main(words: list[str] | None = None) -> int:
    """The exit code: 0, or that of the error, which stderr has. It never shows a secret."""
    parser = argparse.ArgumentParser(
        prog="python -m pestfleet_worker.unpack",
        description=f"Write the files that the variable {VARIABLE} has into FOLDER.",
    )
    parser.add_argument("folder", type=Path, metavar="FOLDER")
    folder: Path = parser.parse_args(words).folder
    try:
        files = take_files()
        write_files(folder, files)
    except PestfleetError as error:
        print(f"pestfleet-unpack: {error}", file=sys.stderr)
        return error.exit_code
    print(f"{len(files)} files in {folder}: {', '.join(sorted(files))}", file=sys.stderr)
    return 0


def take_files(variable: str = VARIABLE) -> dict[str, str]:
    """File name -> text, from the variable, which is gone then. Raises `ConfigurationError`."""
    text = os.environ.pop(variable, "")
    if not text:
        raise ConfigurationError(
            f"{variable} is not set: there are no secrets to write",
            remedy="The task definition names the secret that it comes from.",
        )
    try:
        files = json.loads(text)
    except ValueError as error:
        # What is wrong may be quoted: the position alone says enough.
        place = f", character {error.pos}" if isinstance(error, json.JSONDecodeError) else ""
        raise ConfigurationError(f"{variable} is not JSON{place}") from None
    if not isinstance(files, dict) or not files:
        raise ConfigurationError(f"{variable} is not a JSON object with files")
    for name, content in files.items():
        if not _NAME.fullmatch(name):
            raise ConfigurationError(
                f"{name!r} in {variable} is not the name of a file",
                remedy="A name has letters, digits, dots, hyphens and underscores, no folder, and "
                "begins with none of the dots and hyphens.",
            )
        if not isinstance(content, str):
            raise ConfigurationError(f"the file {name} in {variable} is not text")
    return files


def write_files(folder: Path, files: Mapping[str, str], *, mode: int = MODE) -> None:
    """Write the files, each whole or not at all. Raises `ConfigurationError`."""
    for name, text in files.items():
        try:
            write_secret(folder / name, text, mode=mode)
        except OSError as error:
            raise ConfigurationError(
                f"{folder / name} cannot be written: {error.strerror or error}",
                remedy=f"{folder} must be there, and user {os.getuid()} must be allowed to write "
                "to it.",
            ) from error


def write_secret(path: Path, text: str, *, mode: int) -> None:
    """For its owner alone, from the first moment on; whole or not at all. Raises `OSError`."""
    draft = path.with_name(f".{path.name}.new")
    draft.unlink(missing_ok=True)
    descriptor = os.open(draft, os.O_WRONLY | os.O_CREAT | os.O_EXCL, mode)
    with os.fdopen(descriptor, "w", encoding="utf-8", newline="\n") as file:
        file.write(text)
        file.flush()
        os.fsync(file.fileno())
    draft.replace(path)


if __name__ == "__main__":
    sys.exit(main())
