"""Keys of the run cache: what a run's result depends on, as one sha256."""

from __future__ import annotations

import hashlib
import re
from dataclasses import dataclass

from pestfleet_worker.errors import ConfigurationError
from pestfleet_worker.messages import CaseSpec

_DOMAIN = b"pestfleet run key 1\0"  # no other use of sha256 in pestfleet begins like this
_HEX = re.compile(r"[0-9a-f]{8,64}")
_HASH = re.compile(r"[0-9a-f]{64}")


@dataclass(frozen=True, slots=True)
class RunKey:
    """Names an entry. `case`: the case's digest, 8 to 64 hex digits; `hash`: 64 hex digits.

    Entries of one case lie together, so that they can be listed and removed by case.
    Raises `ConfigurationError` for anything else: both become names of files.
    """

    case: str
    hash: str

    def __post_init__(self) -> None:
        if not _HEX.fullmatch(self.case) or not _HASH.fullmatch(self.hash):
            raise ConfigurationError(f"{self.case!r}, {self.hash!r} is not a key of the run cache")

    @classmethod
    def of_run(
        cls, *, case: str, commands: tuple[str, ...], platform: str, parameters: bytes
    ) -> RunKey:
        """The key of a run.

        `case`: the case's digest; `commands`: its model commands; `platform`: of the worker,
        such as `linux/x86_64`; `parameters`: the packed vector that the model gets.
        """
        return KeyMaker(case, commands, platform).make(parameters)

    @property
    def name(self) -> str:
        """POSIX path of the entry in the cache; every part is a legal file name everywhere."""
        return f"{self.case}/{self.hash[:2]}/{self.hash}"


class KeyMaker:
    """Makes the keys of one case's runs: all but the parameters is hashed once."""

    def __init__(self, case: str, commands: tuple[str, ...], platform: str) -> None:
        # The digest covers the commands; they are here so that a key does not rest on that.
        self._case = case
        self._begun = hashlib.sha256(_DOMAIN)
        for part in (case, platform, str(len(commands)), *commands):
            data = part.encode("utf-8", "surrogateescape")
            # Lengths first: no two lists of parts run together into the same bytes.
            self._begun.update(len(data).to_bytes(8, "little") + data)

    @classmethod
    def for_spec(cls, spec: CaseSpec, platform: str) -> KeyMaker:
        return cls(spec.digest, spec.commands, platform)

    def make(self, parameters: bytes) -> RunKey:
        digest = self._begun.copy()
        digest.update(len(parameters).to_bytes(8, "little"))
        digest.update(parameters)
        return RunKey(self._case, digest.hexdigest())


def parse_name(name: str) -> RunKey | None:
    """The reverse of `RunKey.name`; None for what is not the name of an entry."""
    parts = name.split("/")
    if len(parts) != 3 or not _HEX.fullmatch(parts[0]) or not _HASH.fullmatch(parts[2]):
        return None
    return RunKey(parts[0], parts[2]) if parts[1] == parts[2][:2] else None
