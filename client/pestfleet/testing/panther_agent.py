"""A PANTHER agent without PEST++: a Python function in place of the model.

For tests of what stands between agents and masters, and of masters.
"""

from __future__ import annotations

import contextlib
import socket
import time
from collections.abc import Callable, Iterator, Sequence

from pestfleet.engines.gateway.frames import (
    Frame,
    FrameReader,
    MessageType,
    encode_frame,
    unpack_names,
)
from pestfleet.engines.gateway.sockets import acknowledge_quickly, send_at_once
from pestfleet_worker.messages import pack_vector, unpack_vector

Model = Callable[[Sequence[float]], Sequence[float]]


class ModelFailed(Exception):
    """Raised by a model function: the run has failed."""


class FakeAgent:
    """One agent. `serve` talks to the master in the calling thread.

    `model` gets parameters and gives observations, both in the master's order. `most_runs`: the
    connection is cut in the middle of the run after that many, without a word.
    """

    def __init__(
        self, sock: socket.socket, model: Model, *, name: str = "fake", most_runs: int | None = None
    ) -> None:
        self._socket = sock
        self._model = model
        self._name = name
        self._most_runs = most_runs
        self.parameters: tuple[str, ...] = ()
        self.observations: tuple[str, ...] = ()
        self.runs = 0

    def serve(self) -> None:
        """Answer the master until it ends or closes the connection."""
        with self._socket, contextlib.suppress(ConnectionError):
            for frame in self._read():
                if frame.type is MessageType.TERMINATE:
                    return
                if frame.type is MessageType.START_RUN and self.runs == self._most_runs:
                    return
                self._answer(frame)

    def _read(self) -> Iterator[Frame]:
        reader = FrameReader(lambda _: 1 << 30)
        send_at_once(self._socket)
        acknowledge_quickly(self._socket)
        while data := self._socket.recv(1 << 20):
            yield from reader.feed(data)
            acknowledge_quickly(self._socket)

    def _answer(self, frame: Frame) -> None:
        if frame.type is MessageType.REQ_RUNDIR:
            self._send(Frame(MessageType.RUNDIR, data=self._name.encode("ascii")))
        elif frame.type is MessageType.PAR_NAMES:
            self.parameters = unpack_names(frame.data)
        elif frame.type is MessageType.OBS_NAMES:
            self.observations = unpack_names(frame.data)
        elif frame.type is MessageType.REQ_LINPACK:
            self._send(Frame(MessageType.LINPACK))
        elif frame.type is MessageType.PING:
            self._send(Frame(MessageType.PING))
        elif frame.type is MessageType.START_RUN:
            self._make_run(frame)

    def _make_run(self, frame: Frame) -> None:
        began = time.monotonic()
        self.runs += 1
        try:
            observations = self._model(unpack_vector(frame.data))
        except ModelFailed as error:
            self._send(Frame(MessageType.RUN_FAILED, frame.group, frame.run, str(error)))
        else:
            data = frame.data + pack_vector(observations) + pack_vector([time.monotonic() - began])
            self._send(
                Frame(MessageType.RUN_FINISHED, frame.group, frame.run, frame.description, data)
            )
        self._send(Frame(MessageType.READY))

    def _send(self, frame: Frame) -> None:
        self._socket.sendall(encode_frame(frame))
