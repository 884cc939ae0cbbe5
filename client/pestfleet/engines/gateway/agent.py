"""One agent as the master sees it: the PANTHER protocol without a socket.

What an agent answers, and in which order, is that of PEST++ 5.2.23's own (`PANTHERAgent`), but
for these: a PING is answered at once whatever the run in hand does, the run's result goes out at
once, and nothing is polled.

**What the master is told of a run.** RUN_FAILED counts against the run (`max_run_fail`; 1 in
pestpp-ies, -da, -mou and -sqp: the realization is dropped), so it is sent only for what the
model did:

- bad-input, model-failed, time-limit, output-missing, instruction-failed, non-finite, and
  killed-worker, which the channel gives after it has handed the run out several times and each
  time the worker died under it: RUN_FAILED, with the failure's text.
- worker-error and disk-full are a worker's trouble: the run is asked for again, in all `ATTEMPTS`
  times, then RUN_FAILED, as nobody else can make it.
- cancelled, but not by the master: the connection says farewell. The master then gives the run
  to another agent; it does not count it as failed.

A lost worker is not seen here at all: the channel hands its runs to others.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

from pestfleet.engines.base import RunService
from pestfleet.engines.gateway.frames import Frame, FrameError, MessageType, encode_frame
from pestfleet.engines.gateway.names import Interface, NamesError, Order
from pestfleet_worker.errors import PestfleetError
from pestfleet_worker.messages import Failure, Result, pack_vector

ATTEMPTS = 3
SMALL = 65536  # bytes of data that any other frame may have
NO_CYCLE = "-9999"
_ECHOED = 400  # characters of a run's description that are said again; the rest is for the reason

_ASK_AGAIN = frozenset(("worker-error", "disk-full"))
_READY = encode_frame(Frame(MessageType.READY))
_PING = encode_frame(Frame(MessageType.PING))
_LINPACK = encode_frame(Frame(MessageType.LINPACK))
# Never sent by a 5.2.23 master, or of no meaning to an agent without files.
_IGNORED = frozenset(
    (
        MessageType.UNKN,
        MessageType.OK,
        MessageType.CONFIRM_OK,
        MessageType.DEBUG_LOOP,
        MessageType.DEBUG_FAIL_FREEZE,
        MessageType.START_FILE_WRKR2MSTR,
        MessageType.CONT_FILE_WRKR2MSTR,
        MessageType.FINISH_FILE_WRKR2MSTR,
    )
)


@dataclass(slots=True)
class Counters:
    """What went through a gateway since its start.

    `connections`: agents that the master has now. The rest counts START_RUN frames and how they
    ended; `asked_again`: times that a run was asked for once more after a worker's trouble;
    `lost`: runs whose connection ended before they did.
    """

    connections: int = 0
    requested: int = 0
    finished: int = 0
    failed: int = 0
    killed: int = 0
    lost: int = 0
    asked_again: int = 0


@dataclass(slots=True, eq=False)
class _RunInHand:
    """A run of the master's: what it said, and our request for it."""

    frame: Frame
    vector: bytes
    observations: Order
    request: int | None = None
    attempts: int = 0

    def __str__(self) -> str:
        return f"run {self.frame.run} of group {self.frame.group}"


class Agent:
    """One connection's side of the protocol. Used from one thread."""

    def __init__(
        self,
        name: str,
        *,
        service: RunService,
        interface: Interface,
        counters: Counters,
        send: Callable[[bytes], None],
        post: Callable[[Callable[[], None]], None],
    ) -> None:
        """`name` is shown in the master's .rmr file as the agent's directory.

        `send` writes bytes to the master. `post` has a function called later in this thread; it
        is itself called from any thread.
        """
        self._name = name
        self._service = service
        self._interface = interface
        self._counters = counters
        self._send = send
        self._post = post
        self._parameters: Order | None = None
        self._observations: Order | None = None
        self._cycle = False
        self._run: _RunInHand | None = None
        self.leaving = False  # goes after the run in hand
        self.ended = False  # nothing is sent any more, and nothing received counts
        self.terminated = False  # the master said that it ends

    @property
    def idle(self) -> bool:
        return self._run is None

    def most_data(self, kind: MessageType) -> int:
        """Bytes of data that a frame of that type may have: see `FrameReader`."""
        if kind is MessageType.START_RUN:
            return max(self._interface.parameter_bytes, SMALL)
        if kind is MessageType.PAR_NAMES:
            return self._interface.parameters.most_bytes
        if kind is MessageType.OBS_NAMES:
            return self._interface.observations.most_bytes
        return SMALL

    def receive(self, frame: Frame) -> None:
        """Answer a frame of the master's.

        Raises `FrameError` for what a master cannot mean, `NamesError` where it runs another
        case, and whatever the run service raises.
        """
        kind = frame.type
        if kind is MessageType.START_RUN:
            self._start(frame)
        elif kind is MessageType.PING:
            self._send(_PING)
        elif kind is MessageType.REQ_KILL:
            self._kill()
        elif kind is MessageType.REQ_RUNDIR:
            self._send(encode_frame(Frame(MessageType.RUNDIR, data=self._name.encode("ascii"))))
        elif kind is MessageType.PAR_NAMES:
            self._parameters = self._interface.parameters.match(frame.data)
        elif kind is MessageType.OBS_NAMES:
            self._observations = self._interface.observations.match(frame.data)
        elif kind is MessageType.REQ_LINPACK:
            # The master measures how long the answer takes: all agents are equally fast.
            self._send(_LINPACK)
        elif kind is MessageType.TERMINATE:
            self.terminated = True
            self.close()
        elif kind not in _IGNORED:
            raise FrameError(f"the master sent a {kind.name} frame, which only agents send")

    def leave(self) -> None:
        """Say farewell as soon as there is no run in hand."""
        self.leaving = True
        if self._run is None:
            self.say_farewell()

    def stay(self) -> None:
        """Take back `leave`."""
        self.leaving = False

    def say_farewell(self, reason: MessageType = MessageType.TERMINATE, text: str = "") -> None:
        """Tell the master that this agent goes, and why; a run in hand is cancelled.

        The master gives that run to another agent.
        """
        if not self.ended:
            self._send(encode_frame(Frame(reason, description=text)))
            self.close()

    def close(self) -> None:
        """The connection is over; a run in hand is cancelled."""
        self.ended = True
        if self._run is not None:
            self._counters.lost += 1
            self._cancel(self._run)
            self._run = None

    # -- runs ----------------------------------------------------------------------------------

    def _start(self, frame: Frame) -> None:
        if self._run is not None:
            raise FrameError(
                f"the master started run {frame.run} while {self._run} is not answered yet"
            )
        parameters, observations = self._find_orders(frame)
        if len(frame.data) != parameters.size:
            raise self._make_size_error(frame, parameters)
        self._counters.requested += 1
        self._run = _RunInHand(frame, parameters.to_case(frame.data), observations)
        self._ask(self._run)

    def _find_orders(self, frame: Frame) -> tuple[Order, Order]:
        """Orders of a run's vectors.

        In a cycle pestpp-da has its own: upper case names, sorted (`PANTHERAgent::start_impl`).
        """
        if self._parameters is None or self._observations is None:
            raise FrameError("the master started a run before it gave all names")
        cycle = _find_cycle(frame.description)
        if cycle not in ("", NO_CYCLE):
            if not self._interface.whole_cycles:
                raise _make_cycle_error(cycle)
            self._cycle = True
        if self._cycle:
            return self._interface.parameters.sorted, self._interface.observations.sorted
        return self._parameters, self._observations

    def _make_size_error(self, frame: Frame, parameters: Order) -> PestfleetError:
        if self._cycle:
            return _make_cycle_error(_find_cycle(frame.description))
        return FrameError(
            f"run {frame.run} came with {len(frame.data)} bytes of parameter values, "
            f"the case has {parameters.size}"
        )

    def _ask(self, run: _RunInHand) -> None:
        run.attempts += 1

        def take(result: Result) -> None:
            self._post(lambda: self._finish(run, result))

        run.request = self._service.request(run.vector, take)

    def _finish(self, run: _RunInHand, result: Result) -> None:
        if self._run is not run:
            return  # killed, or the connection has ended: nobody waits for this
        failure = result.failure or self._check(result)
        if failure is None:
            self._counters.finished += 1
            self._answer(MessageType.RUN_FINISHED, _describe(result), self._pack(run, result))
        elif failure.reason in _ASK_AGAIN and run.attempts < ATTEMPTS:
            self._counters.asked_again += 1
            self._ask(run)
        elif failure.reason == "cancelled":
            self.say_farewell(text=f"run_id:{run.frame.run} was cancelled on the fleet")
        else:
            self._counters.failed += 1
            self._answer(MessageType.RUN_FAILED, f"{failure.reason}: {failure}")

    def _check(self, result: Result) -> Failure | None:
        size = self._interface.observation_bytes
        if len(result.observations) == size:
            return None
        return Failure(
            "worker-error",
            f"{len(result.observations)} bytes of observations came, the case has {size}",
        )

    def _pack(self, run: _RunInHand, result: Result) -> bytes:
        """Parameters as the master sent them, observations in its order, seconds."""
        observations = run.observations.from_case(result.observations)
        return b"".join((run.frame.data, observations, pack_vector([result.seconds])))

    def _answer(self, kind: MessageType, text: str, data: bytes = b"") -> None:
        """Tell the master how the run in hand ended, then that there is room for the next."""
        assert self._run is not None
        frame = self._run.frame
        text = f"{frame.description[:_ECHOED]} {text}"
        if kind is not MessageType.RUN_FINISHED:
            text = f"group_id:{frame.group} run_id:{frame.run} {text}"
        self._run = None
        answer = encode_frame(Frame(kind, frame.group, frame.run, text, data))
        if self.leaving:
            self._send(answer)
            self.say_farewell()
        else:
            self._send(answer + _READY)

    def _kill(self) -> None:
        if self._run is None:
            return  # its answer is under way already
        self._counters.killed += 1
        self._cancel(self._run)
        self._answer(MessageType.RUN_KILLED, "killed on the master's request")

    def _cancel(self, run: _RunInHand) -> None:
        if run.request is not None:
            self._service.cancel([run.request])


def _find_cycle(description: str) -> str:
    """`17` of `... DA_CYCLE:17 ...`, in any case; "" where there is none."""
    _, found, rest = description.upper().partition("DA_CYCLE:")
    words = rest.split(maxsplit=1)
    return words[0] if found and words else ""


def _make_cycle_error(cycle: str) -> NamesError:
    return NamesError(
        f"pestpp-da asked for runs of cycle {cycle}: only where every parameter and every "
        "observation is in every cycle can its runs be made in queue mode",
        remedy="Run it with the engine's own agents: --mode agent.",
    )


def _describe(result: Result) -> str:
    """Where the run was made and how many minutes it took, for the master's .rmr file."""
    place = f"worker:{result.worker} slot:{result.slot} " if result.worker else ""
    return f"{place}worker_time:{result.seconds / 60:.6g}"
