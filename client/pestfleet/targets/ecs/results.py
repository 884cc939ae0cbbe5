"""Brings the files of a session from its store in S3 to a folder here, and workers' logs."""

from __future__ import annotations

import json
import logging
from pathlib import Path
from typing import TYPE_CHECKING

from pestfleet.costs.meter import keep_cost
from pestfleet.folder import SessionFolder
from pestfleet.targets.ecs.access import Cloud, Refused
from pestfleet_worker.errors import TargetError

if TYPE_CHECKING:
    from pestfleet.store import SessionStore
    from pestfleet.store.files import OnProgress
    from pestfleet.targets.ecs.fleet import EcsFleet

logger = logging.getLogger(__name__)

# As it was at launch: what is here is not written over.
_SPEC = "session.json"
_JOURNAL, _STATE, _ENDED = "journal.jsonl", "state.json", "ended"
_FILES = (_JOURNAL, "master.log", "launched", _ENDED, "results", "kits", "logs")
LOGS = 20  # workers whose logs are fetched: each takes a request or more


def open_store(cloud: Cloud, bucket: str, session: str) -> SessionStore:
    """The session's files in a bucket. No request is made, but who we are."""
    from pestfleet.store import Address, SessionStore, Store

    # A name that somebody else has taken must not get our files.
    address = Address(bucket, region=cloud.region)
    store = Store(address, client=cloud.client("s3"), owner=cloud.account)
    return SessionStore(store, session)


def has_begun(store: SessionStore) -> bool:
    """Has a master of the session begun, in this launch or an earlier one?"""
    from pestfleet.store.errors import NoBucket

    try:
        return store.store.head(f"{store.prefix}files/{_JOURNAL}") is not None
    except NoBucket:
        return False


def forget_end(store: SessionStore) -> None:
    """Of an earlier launch: how it ended, so that the next end is that of this launch."""
    kept = keep_cost(store.read_state())
    store.store.delete_all([f"{store.prefix}files/{name}" for name in (_STATE, _ENDED)])
    if kept:  # the next master counts on
        state = {"session": store.session, "state": "running", **kept}
        store.store.write(f"{store.prefix}files/{_STATE}", json.dumps(state).encode())


def fetch(fleet: EcsFleet, folder: Path, *, on_progress: OnProgress | None = None) -> bool:
    """Copy the session's files and workers' logs to `folder`; False when there are none.

    Safe to repeat: what was cut is gone on with. Raises `TargetError`.
    """
    store = fleet.store
    if not has_begun(store):
        return False
    folder.mkdir(parents=True, exist_ok=True)
    names = [*_FILES, _STATE, *([] if (folder / _SPEC).exists() else [_SPEC])]
    here = SessionFolder(folder)
    store.pull(here, names, on_progress)
    if not here.case.exists():
        store.get_case(here)
    fetch_logs(fleet, folder / "logs")
    return True


def fetch_logs(fleet: EcsFleet, folder: Path) -> None:
    """Logs of workers: first of those that failed, then of the others."""
    try:
        ended = fleet.tasks("worker", stopped=True, most=100)
        workers = [*ended[::-1], *fleet.tasks("worker", most=LOGS)]
    except TargetError as error:
        logger.info("no logs of workers: %s", error)
        return
    workers.sort(key=lambda task: not task.failed)
    for worker in workers[:LOGS]:
        try:
            lines = list(fleet.read_log(worker.stream))
        except Refused as error:
            logger.info("no log of %s: %s", worker.id, error)
            continue
        if lines:
            folder.mkdir(parents=True, exist_ok=True)
            path = folder / f"worker-{worker.id}.log"
            path.write_text("".join(f"{line}\n" for line in lines), encoding="utf-8")
