"""The ssh key of a session's machines: its private half is in a file here, and nowhere else."""

from __future__ import annotations

import os
from pathlib import Path

from pestfleet_worker.errors import ConfigurationError


def find_key_file(name: str) -> Path:
    """Where the private key of the key pair of that name is, if it was made here."""
    return Path.home() / ".pestfleet" / "keys" / f"{name}.pem"


def make_key_file(name: str) -> str:
    """A new pair; the public key, as one line of OpenSSH.

    Raises `ConfigurationError` when the file cannot be written.
    """
    from pestfleet.tunnel.keys import make_pair

    private, public = make_pair(comment=name)
    path = find_key_file(name)
    try:
        path.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
        path.unlink(missing_ok=True)
        # Its owner's alone from the first moment on.
        descriptor = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600)
        with os.fdopen(descriptor, "w", encoding="ascii", newline="\n") as file:
            file.write(private)
    except OSError as error:
        raise ConfigurationError(f"the key cannot be kept: {path}: {error.strerror}") from error
    return public.strip()


def remove_key_file(name: str) -> bool:
    """Was there one?"""
    path = find_key_file(name)
    there = path.exists()
    path.unlink(missing_ok=True)
    return there
