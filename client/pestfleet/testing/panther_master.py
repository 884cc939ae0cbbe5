"""A PEST++ master without PEST++: scripted, in the caller's thread.

It does what `RunManagerPanther` (PEST++ 5.2.23) does on the wire, its two writes for each frame
included, and checks what agents send. A test drives it: agent by agent with `MasterEnd`, or a
whole set of runs with `FakeMaster.run_set`.
"""

from __future__ import annotations

import contextlib
import selectors
import socket
import time
from collections import deque
from collections.abc import Collection, Sequence
from dataclasses import dataclass
from types import TracebackType
from typing import Self

from pestfleet.engines.gateway.frames import (
    MAGIC,
    Frame,
    FrameReader,
    MessageType,
    encode_frame,
    pack_names,
)
from pestfleet_worker.messages import pack_vector, unpack_vector

SECONDS = 60.0  # longest wait for an agent
_MOST_DATA = 1 << 30

_ANSWERS = {
    MessageType.RUN_FINISHED: "finished",
    MessageType.RUN_FAILED: "failed",
    MessageType.RUN_KILLED: "killed",
}


class AgentMisbehaved(AssertionError):
    """An agent did what a PANTHER master does not expect."""


@dataclass(frozen=True, slots=True)
class Answer:
    """How a run ended. `outcome`: finished | failed | killed. Vectors in the master's order."""

    run: int
    outcome: str
    agent: str
    description: str
    parameters: tuple[float, ...] = ()
    observations: tuple[float, ...] = ()
    seconds: float = 0.0


class MasterEnd:
    """The master's end of one agent's connection."""

    def __init__(self, sock: socket.socket) -> None:
        self._socket = sock
        self._reader = FrameReader(lambda _: _MOST_DATA)
        self._frames: deque[Frame] = deque()
        self._ended = False
        self.directory = ""
        self.run: int | None = None  # in hand at this agent
        self.pings = 0  # not answered yet

    def fileno(self) -> int:
        return self._socket.fileno()

    def send(
        self,
        kind: MessageType,
        *,
        group: int = 0,
        run: int = 0,
        description: str = "",
        data: bytes = b"",
    ) -> None:
        """Send a frame in two writes, as PEST++ does."""
        frame = encode_frame(Frame(kind, group, run, description, data))
        self.send_bytes(frame[: len(MAGIC)])
        self.send_bytes(frame[len(MAGIC) :])

    def send_bytes(self, data: bytes) -> None:
        """Send any bytes, right or wrong."""
        self._socket.settimeout(SECONDS)
        self._socket.sendall(data)

    def receive(self, timeout: float = SECONDS) -> Frame | None:
        """The agent's next frame; None when it has closed the connection.

        Raises `TimeoutError` when nothing comes, `FrameError` for what is no frame.
        """
        try:
            while not self._frames and not self._ended:
                self._read(timeout)
        except TimeoutError as error:
            text = f"agent {self.directory!r} said nothing for {timeout} s"
            raise TimeoutError(text) from error
        return self._frames.popleft() if self._frames else None

    def expect(self, kind: MessageType, timeout: float = SECONDS) -> Frame:
        """The agent's next frame, which must be of this type."""
        frame = self.receive(timeout)
        if frame is None or frame.type is not kind:
            what = "closed the connection" if frame is None else f"sent {frame.type.name}"
            raise AgentMisbehaved(f"agent {self.directory!r} {what}, not {kind.name}")
        return frame

    def greet(self, parameters: Sequence[str], observations: Sequence[str]) -> None:
        """The dialogue that precedes an agent's first run."""
        self.send(MessageType.REQ_RUNDIR, data=b"\0")
        self.directory = self.expect(MessageType.RUNDIR).data.decode("ascii")
        self.send(MessageType.PAR_NAMES, data=pack_names(parameters))
        self.send(MessageType.OBS_NAMES, data=pack_names(observations))
        self.send(MessageType.REQ_LINPACK, data=b"\0")
        self.expect(MessageType.LINPACK)

    def start(
        self, run: int, parameters: Sequence[float], *, group: int = 1, description: str = ""
    ) -> None:
        """Start a run: values in the master's order."""
        self.run = run
        data = pack_vector(parameters)
        self.send(MessageType.START_RUN, group=group, run=run, description=description, data=data)

    def close(self) -> None:
        self._socket.close()

    def take_frames(self) -> list[Frame]:
        """Frames that are there, without waiting for more."""
        with contextlib.suppress(BlockingIOError):
            while not self._ended:
                self._read(0)
        frames, self._frames = list(self._frames), deque()
        return frames

    @property
    def ended(self) -> bool:
        """Whether the agent has closed the connection."""
        return self._ended

    def _read(self, timeout: float) -> None:
        self._socket.settimeout(timeout)
        try:
            data = self._socket.recv(1 << 20)
        except ConnectionError:
            data = b""
        self._ended = not data
        self._frames.extend(self._reader.feed(data))


class FakeMaster:
    """Listens on a free port of this machine, as a context manager."""

    def __init__(
        self, parameters: Sequence[str], observations: Sequence[str], *, host: str = "127.0.0.1"
    ) -> None:
        self.parameters = tuple(parameters)
        self.observations = tuple(observations)
        self._listener = socket.create_server((host, 0), backlog=1000)
        self.host, self.port = self._listener.getsockname()[:2]
        self.agents: list[MasterEnd] = []
        self._accepted: list[MasterEnd] = []
        self._group = 0

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self.close()

    def accept(self, timeout: float = SECONDS) -> MasterEnd:
        """The next connection, not greeted. Raises `TimeoutError` when none comes."""
        self._listener.settimeout(timeout)
        agent = MasterEnd(self._listener.accept()[0])
        self._accepted.append(agent)
        return agent

    def greet(self, count: int = 1, timeout: float = SECONDS) -> list[MasterEnd]:
        """Accept that many agents and greet them; they take part in the next `run_set`."""
        new = []
        for _ in range(count):
            agent = self.accept(timeout)
            agent.greet(self.parameters, self.observations)
            new.append(agent)
        self.agents += new
        return new

    def run_set(
        self,
        vectors: Sequence[Sequence[float]],
        *,
        ping: bool = False,
        kill: Collection[int] = (),
        most_failures: int = 1,
        timeout: float = SECONDS,
    ) -> list[Answer]:
        """Have the agents make runs, one for each row; the answers in the order of the rows.

        Agents that come meanwhile are greeted; the run of one that goes is given to another.
        `ping`: send a PING right after each start, and see that it is answered. `kill`: rows
        whose run is killed right after its start. A run is failed after `most_failures`
        failures. Raises `TimeoutError` when it takes longer than `timeout` seconds.
        """
        self._group += 1
        plan = _RunSet(self, self._group, vectors, ping, frozenset(kill), most_failures)
        return plan.make(time.monotonic() + timeout)

    def terminate(self) -> None:
        """End as a master does: TERMINATE to all agents, no new ones."""
        self._listener.close()
        for agent in self.agents:
            agent.send(MessageType.TERMINATE)
            agent.close()
        self.agents.clear()

    def close(self) -> None:
        """End as a killed master does; agents that were only accepted lose it too."""
        self._listener.close()
        for agent in self._accepted:
            agent.close()

    def fileno(self) -> int:
        return self._listener.fileno()


class _RunSet:
    """A set of runs under way."""

    def __init__(
        self,
        master: FakeMaster,
        group: int,
        vectors: Sequence[Sequence[float]],
        ping: bool,
        kill: frozenset[int],
        most_failures: int,
    ) -> None:
        self._master = master
        self._group = group
        self._vectors = vectors
        self._ping = ping
        self._kill = kill
        self._most_failures = most_failures
        self._failures = [0] * len(vectors)
        self._answers: dict[int, Answer] = {}
        self._waiting = deque(range(len(vectors)))
        self._ready = list(master.agents)

    def make(self, deadline: float) -> list[Answer]:
        with selectors.DefaultSelector() as selector:
            selector.register(self._master, selectors.EVENT_READ, None)
            for agent in self._master.agents:
                selector.register(agent, selectors.EVENT_READ, agent)
            while not self._is_over():
                while self._waiting and self._ready:
                    self._start(self._ready.pop(), self._waiting.popleft())
                left = deadline - time.monotonic()
                if left <= 0:
                    raise TimeoutError(f"{self._unanswered} runs had no answer")
                for key, _ in selector.select(left):
                    if key.data is None:
                        new = self._master.greet()
                        self._ready += new
                        selector.register(new[0], selectors.EVENT_READ, new[0])
                    elif not self._listen(key.data):
                        selector.unregister(key.data)
                        self._drop(key.data)
        return [self._answers[row] for row in range(len(self._vectors))]

    @property
    def _unanswered(self) -> int:
        return len(self._vectors) - len(self._answers)

    def _is_over(self) -> bool:
        """All answered, all agents ready for the next set."""
        agents = self._master.agents
        idle = len(self._ready) == len(agents) and not any(agent.pings for agent in agents)
        return idle and not self._unanswered

    def _start(self, agent: MasterEnd, row: int) -> None:
        agent.run = row
        with contextlib.suppress(ConnectionError):  # reading will notice that it has gone
            agent.start(row, self._vectors[row], group=self._group, description=f" RUN:{row} ")
            if self._ping:
                agent.send(MessageType.PING)
                agent.pings += 1
            if row in self._kill:
                agent.send(MessageType.REQ_KILL, data=b"\0")

    def _listen(self, agent: MasterEnd) -> bool:
        """Take what an agent sent; False when it goes."""
        for frame in agent.take_frames():
            if frame.type is MessageType.PING:
                agent.pings -= 1
            elif frame.type is MessageType.READY:
                if agent.run is not None:
                    raise AgentMisbehaved(f"an agent was ready before it had answered {agent.run}")
                self._ready.append(agent)
            elif frame.type in _ANSWERS:
                self._take(self._read_answer(agent, frame))
            elif frame.type in (MessageType.TERMINATE, MessageType.CORRUPT_MESG):
                return False
            else:
                raise AgentMisbehaved(f"an agent sent {frame.type.name}: {frame.description}")
        return not agent.ended

    def _take(self, answer: Answer) -> None:
        if answer.outcome == "failed":
            self._failures[answer.run] += 1
            if self._failures[answer.run] < self._most_failures:
                self._waiting.appendleft(answer.run)
                return
        self._answers[answer.run] = answer

    def _drop(self, agent: MasterEnd) -> None:
        self._master.agents.remove(agent)
        if agent in self._ready:
            self._ready.remove(agent)
        if agent.run is not None:
            self._waiting.appendleft(agent.run)
        agent.close()

    def _read_answer(self, agent: MasterEnd, frame: Frame) -> Answer:
        if (frame.group, frame.run) != (self._group, agent.run):
            raise AgentMisbehaved(
                f"an answer to run {frame.run} of group {frame.group}, but the agent "
                f"has run {agent.run} of group {self._group}"
            )
        agent.run = None
        outcome = _ANSWERS[frame.type]
        if outcome != "finished":
            return Answer(frame.run, outcome, agent.directory, frame.description)
        values = tuple(unpack_vector(frame.data))
        first = len(self._master.parameters)
        last = first + len(self._master.observations)
        if len(values) != last + 1:
            raise AgentMisbehaved(f"a result with {len(values)} values, not {last + 1}")
        return Answer(
            frame.run,
            outcome,
            agent.directory,
            frame.description,
            values[:first],
            values[first:last],
            values[last],
        )
