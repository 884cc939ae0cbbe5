"""Which master has a session: an object that is written by conditional writes only.

Two masters may be started for one session, for a machine that was given up may still run. The one
that finds the claim fresh waits, or gives up; the one that finds that its claim was taken ends.
Ages are of the server's clock, so that those of the machines do not matter.
"""

from __future__ import annotations

import json
import logging
import secrets
import time
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from pestfleet.store.errors import Changed, ClaimHeld, ClaimLost
from pestfleet.store.objects import Objects

logger = logging.getLogger(__name__)

STALE = 60.0  # seconds without renewal after which another master may take the session
STEP = 2.0  # seconds between two looks at a claim that another has


@dataclass(frozen=True, slots=True)
class ClaimState:
    """A claim as it was read. `age`: seconds since it was renewed; `free`: given back."""

    holder: str
    age: float
    free: bool
    etag: str
    word: str  # of that very write


class Claim:
    """One session's claim, from the side of one master."""

    def __init__(self, store: Objects, key: str, session: str) -> None:
        self._store = store
        self._key = key
        self._session = session
        self._holder = ""
        self._etag = ""  # of what we wrote last; "": we do not have it
        self._words: set[str] = set()  # of writes since then, of which we do not know the end

    @property
    def held(self) -> bool:
        """Do we have it, as far as we know?"""
        return bool(self._etag)

    def read(self) -> ClaimState | None:
        """None where nobody ever had one."""
        content = self._store.read(self._key)
        if content is None:
            return None
        try:
            values: dict[str, Any] = json.loads(content.data)
            holder, word, free = values["holder"], values["word"], bool(values["free"])
        except (ValueError, KeyError, TypeError) as error:
            logger.warning("%s says nothing: %s", self._store.name(self._key), error)
            holder, word, free = "somebody", "", False
        head = content.head
        return ClaimState(str(holder), head.age, free, head.etag, str(word))

    def take(
        self,
        holder: str,
        *,
        patience: float = 0.0,
        stale: float = STALE,
        wait: Callable[[float], object] = time.sleep,
    ) -> None:
        """Become the session's master. `holder`: what others are told of us; who has the same name
        may take our claim at once, so no two masters should.

        Waits up to `patience` seconds for another master's end. Raises `ClaimHeld`.
        """
        self._holder = holder
        deadline = time.monotonic() + patience
        while True:
            state = self.read()
            may = state is None or state.free or state.holder == holder or state.age > stale
            if may and self._try(state.etag if state else "", absent=state is None):
                return
            if not may and state is not None and time.monotonic() >= deadline:
                raise ClaimHeld(
                    f"session {self._session} has a master: {state.holder}, which gave a sign of "
                    f"life {state.age:.0f} s ago",
                    remedy=f"See pestfleet status {self._session}; where that master is dead, try "
                    f"again in {stale:.0f} s.",
                )
            wait(STEP if not may else 0.0)

    def renew(self) -> None:
        """Say that we live. Raises `ClaimLost` where another has taken the session over."""
        if not self._etag:
            raise ClaimLost(f"this process has no claim on session {self._session}")
        if not self._try(self._etag):
            self._etag = ""
            raise self._make_lost()

    def release(self) -> None:
        """Let the next master have it at once. Nothing where we do not have it."""
        if self._etag:
            etag, self._etag = self._etag, ""
            if not self._try(etag, free=True):
                logger.info("the claim on session %s was taken before", self._session)
            self._etag = ""

    def _try(self, etag: str, *, absent: bool = False, free: bool = False) -> bool:
        word = secrets.token_hex(8)
        self._words.add(word)
        body = json.dumps({"holder": self._holder, "word": word, "free": free}).encode()
        try:
            self._etag = self._store.write(self._key, body, if_absent=absent, if_match=etag)
        except Changed:
            # Perhaps by ourselves: the answer was lost, and we, or the SDK, asked again.
            state = self.read()
            if state is None or state.word not in self._words:
                return False
            self._etag = state.etag
            if state.free != free:
                return self._try(state.etag, free=free)
        self._words.clear()
        return True

    def _make_lost(self) -> ClaimLost:
        state = self.read()
        if state is None:
            return ClaimLost(f"session {self._session} was removed from the store")
        return ClaimLost(
            f"another master has taken session {self._session} over: {state.holder}",
            remedy=f"See pestfleet status {self._session}.",
        )
