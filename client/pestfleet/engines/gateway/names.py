"""The master's order of parameters and observations, against the case's."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

from pestfleet.engines.gateway.frames import unpack_names
from pestfleet_worker.errors import CaseError
from pestfleet_worker.messages import CaseSpec

_SHOWN = 5  # names in a message


class NamesError(CaseError):
    """The master runs another case than the fleet."""


class Order:
    """Moves values between the master's order of names and the case's.

    Values are moved as 8-byte patterns, never computed with: every bit stays, those of a NaN too.
    """

    def __init__(self, there: Sequence[str], here: Sequence[str]) -> None:
        """`there`: names in the master's order; `here`: the same names in the case's order."""
        places = {name: place for place, name in enumerate(there)}
        taken = np.array([places[name] for name in here], dtype=np.intp)
        self.size = 8 * len(taken)
        self._same = bool((taken == np.arange(len(taken))).all())
        self._to_case = taken
        self._from_case = np.argsort(taken)

    def to_case(self, values: bytes) -> bytes:
        """Values in the master's order -> in the case's."""
        return values if self._same else _take(values, self._to_case)

    def from_case(self, values: bytes) -> bytes:
        """Values in the case's order -> in the master's."""
        return values if self._same else _take(values, self._from_case)


def _take(values: bytes, places: NDArray[np.intp]) -> bytes:
    return np.frombuffer(values, dtype="<u8")[places].tobytes()


class Names:
    """Orders for one kind of names (`what`: "parameter" or "observation") of the case.

    All connections get the same list from one master, so the latest is kept.
    """

    def __init__(self, what: str, names: Sequence[str]) -> None:
        self._what = what
        self._names = tuple(name.lower() for name in names)
        # A master with another case has other names; it gets room to say them.
        self.most_bytes = 2 * sum(len(name) + 1 for name in self._names) + 65536
        self._latest: tuple[bytes, Order] = (b"", Order((), ()))
        self._sorted: Order | None = None

    def match(self, data: bytes) -> Order:
        """The order for a PAR_NAMES or OBS_NAMES frame's data.

        Raises `FrameError` where the data are no names, `NamesError` where they are not the case's.
        """
        if not data or data != self._latest[0]:
            there = [name.lower() for name in unpack_names(data)]
            self._compare(there)
            self._latest = (data, Order(there, self._names))
        return self._latest[1]

    @property
    def sorted(self) -> Order:
        """The order of pestpp-da in a cycle: names in upper case, sorted by their bytes."""
        if self._sorted is None:
            self._sorted = Order(sorted(self._names, key=str.upper), self._names)
        return self._sorted

    def _compare(self, there: Sequence[str]) -> None:
        unknown = sorted(set(there) - set(self._names))
        missing = sorted(set(self._names) - set(there))
        twice = len(there) - len(set(there))
        if not (unknown or missing or twice):
            return
        parts = [
            f"{count} {text}{_show(names)}"
            for count, text, names in (
                (len(unknown), "that the fleet's case does not have", unknown),
                (len(missing), "of the fleet's case missing", missing),
                (twice, "given twice", []),
            )
            if count
        ]
        raise NamesError(
            f"the master's {self._what} names are not the case's: {'; '.join(parts)}",
            remedy="Start the engine with the control file that the session was launched with.",
        )


def _show(names: Sequence[str]) -> str:
    if not names:
        return ""
    more = ", …" if len(names) > _SHOWN else ""
    return f" ({', '.join(names[:_SHOWN])}{more})"


class Interface:
    """Names and sizes of a case, shared by all connections.

    `whole_cycles`: every name is in every cycle of pestpp-da. The frames do not say which
    observations a cycle has, so without this promise its runs are refused.
    """

    def __init__(self, spec: CaseSpec, *, whole_cycles: bool = False) -> None:
        self.whole_cycles = whole_cycles
        self.parameters = Names("parameter", spec.parameters)
        self.observations = Names("observation", spec.observations)
        self.parameter_bytes = 8 * len(spec.parameters)
        self.observation_bytes = 8 * len(spec.observations)
