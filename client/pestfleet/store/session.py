"""One session in a store: its case, its files, requests to its master, and who that is."""

from __future__ import annotations

import json
import logging
from collections.abc import Callable, Collection, Iterable
from contextlib import suppress
from dataclasses import replace
from pathlib import Path
from typing import Any

from pestfleet.folder import SessionFolder
from pestfleet.store.case_files import (
    Manifest,
    fetch_case,
    read_manifest,
    remove_contents,
    send_case,
)
from pestfleet.store.claim import Claim, ClaimState
from pestfleet.store.client import parse_address
from pestfleet.store.errors import (
    Changed,
    Damaged,
    NoPermission,
    NotStored,
    NotSupported,
)
from pestfleet.store.files import OnProgress, Store
from pestfleet.store.folder_files import FolderFiles
from pestfleet.store.names import (
    ENDED,
    REQUESTS,
    SESSIONS,
    STATE,
    make_prefix,
)
from pestfleet.store.objects import in_threads
from pestfleet_worker.errors import SessionError

logger = logging.getLogger(__name__)

Deliver = Callable[[str, str], None]


class SessionStore:
    """A session's objects, in one store. Its verbs raise `StoreError`, and `OSError` for files.

    What a master's role needs: s3:GetObject, s3:PutObject and s3:DeleteObject on sessions/ID/*,
    s3:AbortMultipartUpload there, s3:GetObject on blobs/*, and s3:ListBucket with the condition
    s3:prefix sessions/ID/*. A launching user also needs s3:PutObject on blobs/* and s3:ListBucket
    on blobs/*; for `remove`, s3:DeleteObject on blobs/*, s3:GetObject on sessions/*/case.json,
    s3:ListBucket on sessions/*, and s3:ListBucketMultipartUploads, without which the bucket's
    rules remove unfinished uploads a week later.
    """

    def __init__(self, store: Store, session: str) -> None:
        """`store`: of the bucket, or of a prefix in it that all sessions share."""
        self.store = store
        self.session = session
        self.prefix = make_prefix(session)
        self._folder_prefix = f"{self.prefix}files/"
        self._requests = f"{self.prefix}requests/"
        self._manifest = f"{self.prefix}case.json"
        self._files = FolderFiles(store, self._folder_prefix)
        self._claim = Claim(store, f"{self.prefix}claim", session)
        self._taken: set[tuple[str, str]] = set()

    def exists(self) -> bool:
        """Is there anything of this session?"""
        return any(True for _ in self.store.find(self.prefix, most=1))

    # -- the case --------------------------------------------------------------------------------

    def put_case(
        self, folder: SessionFolder | Path, on_progress: OnProgress | None = None
    ) -> Manifest:
        """Send the session's case (`folder.case`, or a case folder); only what is not there yet.

        `on_progress` gets bytes, in this thread. Raises `FileChanged`.
        """
        source = folder.case if isinstance(folder, SessionFolder) else folder
        if not source.is_dir():
            raise SessionError(f"there is no case in {source}")
        return send_case(self.store, source, self._manifest, on_progress=on_progress)

    def get_case(
        self, folder: SessionFolder | Path, on_progress: OnProgress | None = None
    ) -> Manifest:
        """Fetch the case, checked, with modes and times; gone on with where that was cut.

        A case folder that is there already stays as it is. Raises `NotStored`.
        """
        manifest = read_manifest(self.store, self._manifest)
        if manifest is None:
            place = self.store.name(self._manifest)
            raise NotStored(
                f"session {self.session} has no case in the store: there is no {place}",
                place=place,
                remedy="Send it, from the machine that has the session: pestfleet resume.",
            )
        target = folder.case if isinstance(folder, SessionFolder) else folder
        if not target.exists():
            draft = target.with_name(f"{target.name}.draft")  # half of it must not be taken
            fetch_case(self.store, manifest, draft, on_progress=on_progress)
            draft.replace(target)
        return manifest

    # -- the files of its folder -----------------------------------------------------------------

    def push(
        self,
        folder: SessionFolder,
        names: Collection[str] | None = None,
        on_progress: OnProgress | None = None,
    ) -> list[str]:
        """Send what has changed of the session's files. See `FolderFiles.push`."""
        return self._files.push(folder, names, on_progress)

    def pull(
        self,
        folder: SessionFolder,
        names: Collection[str] | None = None,
        on_progress: OnProgress | None = None,
    ) -> list[str]:
        """Fetch those that are not the same here. See `FolderFiles.pull`."""
        return self._files.pull(folder, names, on_progress)

    def has_changed(self, folder: SessionFolder, name: str) -> bool:
        """Is a file another than when it was sent or fetched last?"""
        return self._files.has_changed(folder, name)

    # -- how far it is ---------------------------------------------------------------------------

    def read_state(self) -> dict[str, Any]:
        """The last state that the master sent; {} when there is none."""
        content = self.store.read(self._folder_prefix + STATE)
        try:
            state = json.loads(content.data) if content else {}
        except ValueError:
            return {}
        return state if isinstance(state, dict) else {}

    def read_ended(self) -> str:
        """What the master wrote at its end: its launch, and an exit code; "" before."""
        content = self.store.read(self._folder_prefix + ENDED)
        return content.data.decode(errors="replace").strip() if content else ""

    # -- requests --------------------------------------------------------------------------------

    def request(self, name: str, text: str = "") -> None:
        """Ask the master for something: its file `stop` or `scale` (`pestfleet.folder`)."""
        if name not in REQUESTS:
            raise ValueError(f"{name!r} is no request")
        self.store.write(self._requests + name, text.encode())

    def request_stop(self) -> None:
        """Ask the master to end the session."""
        self.request("stop")

    def request_workers(self, workers: int) -> None:
        """Ask the master for that many workers."""
        self.request("scale", json.dumps({"workers": workers}))

    def take_requests(self, deliver: Deliver | None = None) -> dict[str, str]:
        """The requests that are there, each once: they are removed from the store.

        `deliver` gets name and text of each before it is removed, so that none is lost where this
        process dies.
        """
        taken: dict[str, str] = {}
        for found in list(self.store.find(self._requests)):
            name = found.key.removeprefix(self._requests)
            content = self.store.read(found.key)
            if name not in REQUESTS or content is None:
                continue
            mark = (name, f"{content.head.etag} {content.head.modified}")
            if mark not in self._taken:  # else it only could not be removed
                taken[name] = content.data.decode(errors="replace")
                if deliver is not None:
                    deliver(name, taken[name])
                self._taken.add(mark)
            with suppress(Changed):  # there is a newer one, for the next time
                self.store.delete(found.key, if_match=content.head.etag)
        return taken

    def clear_requests(self) -> None:
        """Remove requests that were meant for a master before."""
        self.store.delete_all([found.key for found in self.store.find(self._requests)])

    # -- whose it is -----------------------------------------------------------------------------

    def claim(self, holder: str, *, patience: float = 0.0) -> None:
        """Become its master; `holder` tells others who that is. See `Claim.take`.

        Raises `ClaimHeld` where after `patience` seconds there is still another one that lives.
        """
        self._claim.take(holder, patience=patience)

    def renew(self) -> None:
        """Say that this master lives. Raises `ClaimLost` where another has its place."""
        self._claim.renew()

    def release(self) -> None:
        """Give the claim back, so that the next master need not wait."""
        self._claim.release()

    def read_claim(self) -> ClaimState | None:
        """Who is its master, and since when nobody has heard of it."""
        return self._claim.read()

    # -- the end ---------------------------------------------------------------------------------

    def remove(self) -> int:
        """Remove all of it, and content of its case that no other session has.

        Safe to repeat where it was cut. The answer is how many objects went.
        """
        try:
            self.store.abort_uploads(self.prefix)
        except (NoPermission, NotSupported) as error:
            logger.info("the bucket's rules remove unfinished uploads: %s", error.message)
        try:
            manifest = read_manifest(self.store, self._manifest)
        except Damaged as error:
            logger.warning("content of its case may be left: %s", error.message)
            manifest = None
        removed = 0
        if manifest is not None:
            removed += remove_contents(self.store, manifest, self._read_others())
        own = [found.key for found in self.store.find(self.prefix)]
        # Last, for it tells which content is to be removed.
        removed += self.store.delete_all(key for key in own if key != self._manifest)
        removed += self.store.delete_all(key for key in own if key == self._manifest)
        self._files.forget()
        return removed

    def _read_others(self) -> Iterable[Manifest]:
        keys = [
            f"{make_prefix(name)}case.json"
            for name in list_sessions(self.store)
            if name != self.session
        ]
        found = in_threads(lambda key: read_manifest(self.store, key), keys)
        return [manifest for manifest in found if manifest is not None]


def open_session(place: str, session: str, *, client: Any = None, owner: str = "") -> SessionStore:
    """A session in the store at `s3://bucket/prefix` or, the same, `s3://bucket/prefix/sessions`.

    `client`, `owner`: see `Store`. Raises `ConfigurationError`.
    """
    address = parse_address(place)
    folders = address.prefix.split("/")
    if folders[-1] == SESSIONS.rstrip("/"):
        address = replace(address, prefix="/".join(folders[:-1]))
    return SessionStore(Store(address, client=client, owner=owner), session)


def list_sessions(store: Store) -> list[str]:
    """The ids of the sessions in a store, sorted."""
    return list(store.find_folders(SESSIONS))
