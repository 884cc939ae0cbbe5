"""Keys of a session's objects, and the names of its files.

sessions/ID/files/NAME        files of the session's folder (pestfleet.folder)
sessions/ID/requests/NAME     stop, scale: what a user asks of the master
sessions/ID/claim             which master has the session
sessions/ID/case.json         the case: names, and the hashes of their content
blobs/AB/ABCD…                content of case files, by SHA-256, shared by sessions
"""

from __future__ import annotations

import os
from collections.abc import Iterator
from pathlib import Path

SESSIONS, BLOBS = "sessions/", "blobs/"
# Files and folders of a session's folder that are kept in the store.
STATE, ENDED = "state.json", "ended"
FILES = ("session.json", "journal.jsonl", "master.log", "launched", STATE, ENDED)
FOLDERS = ("results", "kits", "logs")
REQUESTS = ("stop", "scale")


def make_prefix(session: str) -> str:
    """Of all objects of a session."""
    return f"{SESSIONS}{session}/"


def make_blob_key(sha256: str) -> str:
    return f"{BLOBS}{sha256[:2]}/{sha256}"


def is_safe(name: str) -> bool:
    """Is this a name below a folder, on every system? Names in a store may be anybody's."""
    parts = name.split("/")
    return bool(name) and not any(
        part in ("", ".", "..") or "\\" in part or "\0" in part or (os.name == "nt" and ":" in part)
        for part in parts
    )


def is_kept(name: str) -> bool:
    """Is it one of a session's files that are kept in the store?"""
    top, slash, _ = name.partition("/")
    return name in FILES or bool(slash and top in FOLDERS and is_safe(name))


def is_partial(name: str) -> bool:
    """Is it the beginning of a file that was not fetched to its end?"""
    return name.endswith((".part", ".part-of"))


def list_kept(folder: Path) -> Iterator[str]:
    """The files of a session's folder that are kept, by name: those of its folders come first."""
    for top in FOLDERS:
        for path, inner, files in os.walk(folder / top):
            inner.sort()
            for name in sorted(files):
                whole = (Path(path) / name).relative_to(folder).as_posix()
                if not is_partial(whole):
                    yield whole
    for name in FILES:
        if (folder / name).is_file():
            yield name
