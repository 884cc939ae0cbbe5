"""The numbers of lists: each machine or image keeps its own, so that none ever means another.

They are in a file of the user's, for each account and region apart. The first list that shows
something gives it the next number, and every later list shows it under that one. So a number that
somebody types is what was shown under it, whatever was started, ended or listed meanwhile.
"""

from __future__ import annotations

import json
import os
import re
import time
from collections.abc import Iterable, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any

from filelock import FileLock, Timeout

from pestfleet_worker.errors import ConfigurationError

if TYPE_CHECKING:
    from collections.abc import Iterator

    from pestfleet.targets.ecs.access import Cloud

_FORGOTTEN = 86_400.0  # seconds
_PATIENCE = 10.0  # seconds to wait for another process that numbers its list
_PART = re.compile(r"(\d+)(?:-(\d+))?")


class Numbers:
    """The numbers of one kind of thing (`machines`, `images`) in one account and region."""

    def __init__(self, cloud: Cloud, kind: str, *, path: Path | None = None) -> None:
        self._path = path or find_file()
        self._place = f"{cloud.account}/{cloud.region}/{kind}"
        self._list = f"pestfleet capacity {'images' if kind == 'images' else 'list'}"

    def assign(
        self, ids: Sequence[str], *, all_of_them: bool = False, now: float | None = None
    ) -> dict[str, int]:
        """Id -> number, for a list that shows these. `all_of_them`: there are no others.

        Numbers begin again at 1 when nothing is left that has one, and a day has passed since
        one of them was shown: nobody types a number from such a list.
        """
        time_now = time.time() if now is None else now
        with self._change() as entry:
            numbers: dict[str, int] = entry.setdefault("numbers", {})
            old = time_now - entry.get("shown", time_now) > _FORGOTTEN
            if all_of_them and old and not numbers.keys() & set(ids):
                numbers.clear()
            last = max(numbers.values(), default=0)
            for name in ids:
                if name not in numbers:
                    last += 1
                    numbers[name] = last
            if ids:
                entry["shown"] = time_now
            return {name: numbers[name] for name in ids}

    def find(self, number: int) -> str:
        """The id. Raises `ConfigurationError` when no list has shown that number."""
        for name, other in self._known().items():
            if other == number:
                return name
        raise ConfigurationError(
            f"no list of yours has shown a number {number}",
            remedy=f"See {self._list}, and take the numbers from there.",
        )

    def find_between(self, first: int, last: int) -> list[str]:
        """The ids with these numbers, which need not all be there. Raises as `find` does."""
        known = self._known().items()
        found = sorted((other, name) for name, other in known if first <= other <= last)
        if not found:
            self.find(first)
        return [name for _, name in found]

    def _known(self) -> dict[str, int]:
        numbers: dict[str, int] = self._read().get(self._place, {}).get("numbers", {})
        return numbers

    def _read(self) -> dict[str, Any]:
        try:
            content: dict[str, Any] = json.loads(self._path.read_text(encoding="utf-8"))
        except FileNotFoundError:
            return {}
        except (OSError, ValueError) as error:
            raise ConfigurationError(
                f"the numbers of your lists cannot be read: {self._path}: {error}",
                remedy="Remove that file, and list again: numbers begin anew.",
            ) from error
        return content

    @contextmanager
    def _change(self) -> Iterator[dict[str, Any]]:
        draft = self._path.with_suffix(f".{os.getpid()}.tmp")
        try:
            self._path.parent.mkdir(parents=True, exist_ok=True)
            with FileLock(self._path.with_suffix(".lock"), timeout=_PATIENCE):
                content = self._read()
                yield content.setdefault(self._place, {})
                draft.write_text(json.dumps(content), encoding="utf-8")
                draft.replace(self._path)
        except (OSError, Timeout) as error:
            draft.unlink(missing_ok=True)
            raise ConfigurationError(
                f"the numbers of the list cannot be kept: {self._path}: {error}",
                remedy="Make that folder writable, or set XDG_CACHE_HOME to another.",
            ) from error


def find_file() -> Path:
    """Where numbers are kept: beside the user's run cache."""
    from pestfleet.cache.places import find_default_place

    return find_default_place().with_name("capacity.json")


def parse_selection(words: Iterable[str]) -> list[str | tuple[int, int]]:
    """`1,3-5 i-0abc` as (1, 1), (3, 5), "i-0abc". Raises `ConfigurationError`."""
    chosen: list[str | tuple[int, int]] = []
    for part in (part for word in words for part in word.split(",") if part):
        match = _PART.fullmatch(part)
        if match:
            first, last = int(match[1]), int(match[2] or match[1])
            if first > last:
                raise ConfigurationError(
                    f"{part} is no range of numbers", remedy=f"Write {last}-{first}."
                )
            chosen.append((first, last))
        elif re.fullmatch(r"i-[0-9a-f]+", part):
            chosen.append(part)
        else:
            raise ConfigurationError(
                f"{part!r} is neither a number of pestfleet capacity list nor the id of a machine",
                remedy="Such as 1,3-5 or i-0123456789abcdef0.",
            )
    return chosen
