"""Commands on sessions. Masters are stand-ins that start no worker."""

from __future__ import annotations

import json
import os
import re
import shutil
import signal
import subprocess
import sys
import threading
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from click.testing import CliRunner, Result

from pestfleet.cli.main import cli
from pestfleet.cli.tables import make_console, print_summary, print_tables, summarize_groups
from pestfleet.folder import SessionFolder
from pestfleet.master import Outcome
from pestfleet.session import Session
from pestfleet_worker.errors import Interrupted, PestfleetError, RunsFailedError
from pestfleet_worker.messages import Failure
from session_files import EXAMPLE, make_session, make_state, write_events, write_runs
from test_results import ITERATIONS, write_glm, write_ies, write_sweep


@pytest.fixture(autouse=True)
def root(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Where the commands look for sessions."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr("pestfleet.session.version", lambda _: "0")  # also when not installed
    return tmp_path / "pestfleet-sessions"


def call(*arguments: str | Path) -> Result:
    return CliRunner().invoke(cli, [str(argument) for argument in arguments])


class FakeMaster:
    """Does `act`, then ends with what that returns: an error, or None."""

    def __init__(
        self,
        session: Session,
        tell: Callable[[dict[str, Any]], None],
        act: Callable[[FakeMaster], PestfleetError | None],
    ) -> None:
        self.session = session
        self.tell = tell
        self.interrupted = threading.Event()
        self._act = act

    def interrupt(self) -> None:
        self.interrupted.set()

    def snapshot(self) -> dict[str, Any]:
        return make_state()

    def host(self) -> Outcome:
        self.tell({"time": 0.0, "event": "start", "session": self.session.name})
        self.tell({"time": 0.0, "event": "engine-started", "engine": "glm"})
        self.tell({"time": 0.0, "event": "iteration", "number": 0, "phi": 4.0})
        error = self._act(self)
        summary = {"phi": 0.2, "phi_initial": 4.0, "runs": 39, "failed_runs": 1}
        self.tell({"time": 0.0, "event": "end", "state": "finished", "summary": summary})
        return Outcome(self.session.folder, summary, error)


@pytest.fixture(autouse=True)
def _hangup_is_heard() -> Iterator[None]:
    """Under nohup it is ignored, and `pestfleet run` leaves it so."""
    before = signal.signal(signal.SIGHUP, signal.SIG_DFL)
    yield
    signal.signal(signal.SIGHUP, before)


@pytest.fixture
def masters(monkeypatch: pytest.MonkeyPatch) -> dict[str, Any]:
    """`act` is what masters do; `made` the masters, `urls` the brokers they got."""
    control: dict[str, Any] = {"act": lambda master: None, "made": [], "urls": []}

    def make_master(self: Session, *, broker_url: str, on_event: Any) -> FakeMaster:
        master = FakeMaster(self, on_event, lambda one: control["act"](one))
        control["made"].append(master)
        control["urls"].append(broker_url)
        return master

    monkeypatch.setattr(Session, "make_master", make_master)
    return control


def test_run_passes_its_choices_on(root: Path, masters: dict[str, Any]) -> None:
    result = call(
        "run", EXAMPLE, "--engine", "ies", "--workers", "3", "--slots", "2", "--session", "mine",
        "--option", "noptmax=4", "--option", "++Ies_Num_Reals=50", "--time-limit", "60",
        "--threads", "2", "--deliveries", "5", "--scratch", "fast", "--sessions", "else",
    )  # fmt: skip
    assert result.exit_code == 0, result.output
    spec = Session.open("mine", root=Path("else")).spec
    assert (spec.engine, spec.target, spec.workers, spec.slots) == ("ies", "local", 3, 2)
    assert (spec.seconds, spec.threads, spec.deliveries, spec.scratch) == (60.0, 2, 5, "fast")
    assert spec.options == {"noptmax": "4", "ies_num_reals": "50"}
    assert spec.own_broker
    assert masters["urls"] == [""]


def test_a_broker_of_ones_own_is_not_written_down(root: Path, masters: dict[str, Any]) -> None:
    url = "amqp://me:s3cret@host"
    result = call("run", EXAMPLE, "--session", "mine", "--broker", url)
    assert result.exit_code == 0
    assert masters["urls"] == [url]
    assert "s3cret" not in (root / "mine" / "session.json").read_text()
    assert not Session.open("mine", root=root).spec.own_broker
    assert "s3cret" not in result.output


def test_plain_lines_and_a_summary(root: Path, masters: dict[str, Any]) -> None:
    def act(master: FakeMaster) -> None:
        write_glm(_give_case(master.session.folder))

    masters["act"] = act
    result = call("run", EXAMPLE, "--session", "mine")
    assert result.exit_code == 0, result.output
    assert "session mine" in result.stdout
    assert "phi at first 4" in result.stdout
    assert "phi 0.2, 95 % less than at first" in result.stdout
    assert "transm" in result.stdout
    assert "95 % limits" in result.stdout
    assert "39 runs, 1 failed" in result.stdout
    assert str(Path("pestfleet-sessions", "mine", "results")) in result.stdout
    assert "pestfleet results mine" in result.stdout


def _give_case(folder: SessionFolder) -> SessionFolder:
    """As the master does, before the engine starts."""
    shutil.copytree(EXAMPLE, folder.case)
    return folder


def test_events_as_json_lines(masters: dict[str, Any]) -> None:
    result = call("run", EXAMPLE, "--json")
    events = [json.loads(line) for line in result.stdout.splitlines()]
    assert [event["event"] for event in events] == [
        "start", "engine-started", "iteration", "end",
    ]  # fmt: skip
    assert events[-1]["summary"]["phi"] == 0.2


def test_a_stopped_session_says_how_to_go_on(masters: dict[str, Any]) -> None:
    error = Interrupted("session mine was stopped", remedy="Go on with: pestfleet resume mine")
    masters["act"] = lambda master: error
    result = call("run", EXAMPLE, "--session", "mine")
    assert result.exit_code == 130
    assert "session mine was stopped\n  Go on with: pestfleet resume mine\n" in result.stderr
    assert "Parameters" not in result.stdout


def test_failed_runs_say_where_to_look(masters: dict[str, Any]) -> None:
    masters["act"] = lambda master: RunsFailedError("all failed")
    result = call("run", EXAMPLE, "--session", "mine")
    assert result.exit_code == 5
    assert "pestfleet runs mine --failed\nerror: all failed\n" in result.stderr


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM, signal.SIGHUP])
def test_the_first_signal_stops_clean(masters: dict[str, Any], number: signal.Signals) -> None:
    before = signal.getsignal(number)

    def act(master: FakeMaster) -> PestfleetError:
        assert not master.interrupted.is_set()
        signal.raise_signal(number)
        assert master.interrupted.is_set()
        return Interrupted("stopped")

    masters["act"] = act
    result = call("run", EXAMPLE)
    assert result.exit_code == 130
    assert "stopping" in result.stderr
    assert signal.getsignal(number) is before


def test_a_terminal_that_closes_may_say_so_twice(masters: dict[str, Any]) -> None:
    def act(master: FakeMaster) -> PestfleetError:
        signal.raise_signal(signal.SIGHUP)
        signal.raise_signal(signal.SIGHUP)  # would end this process, were it the second Ctrl-C
        assert master.interrupted.is_set()
        return Interrupted("stopped")

    masters["act"] = act
    assert call("run", EXAMPLE).exit_code == 130


def test_nohup_keeps_a_session_beyond_the_terminal(masters: dict[str, Any]) -> None:
    def act(master: FakeMaster) -> None:
        signal.raise_signal(signal.SIGHUP)
        assert not master.interrupted.is_set()
        write_glm(_give_case(master.session.folder))

    masters["act"] = act
    before = signal.signal(signal.SIGHUP, signal.SIG_IGN)
    try:
        assert call("run", EXAMPLE).exit_code == 0
    finally:
        signal.signal(signal.SIGHUP, before)


def test_the_second_signal_ends_at_once(
    masters: dict[str, Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    class Ended(Exception):
        pass

    def end(code: int) -> None:
        raise Ended(code)

    def act(master: FakeMaster) -> None:
        signal.raise_signal(signal.SIGINT)
        with pytest.raises(Ended, match="130"):
            signal.raise_signal(signal.SIGINT)

    monkeypatch.setattr(os, "_exit", end)
    masters["act"] = act
    assert "pestfleet resume mine" in call("run", EXAMPLE, "--session", "mine").stderr
    folder = Session.open("mine", root=Path("pestfleet-sessions")).folder
    folder.write_state(make_state(session="mine"))
    assert "was asked to stop, and was ended before it had" in call("status", "mine").stdout


# A master that tells more than a pipe holds, and a note of how the command ended.
LOUD = """
import sys
from pathlib import Path
from pestfleet.cli.main import cli
from pestfleet.folder import SessionFolder
from pestfleet.master import Outcome
from pestfleet.session import Session

class Master:
    def __init__(self, session, on_event):
        self.session, self.on_event = session, on_event
    def snapshot(self):
        return {}
    def interrupt(self):
        pass
    def host(self):
        for number in range(5000):
            self.on_event({"event": "note", "text": "x" * 100, "time": 0.0})
        Path("ended").touch()
        return Outcome(self.session.folder, {"phi": 1.0, "runs": 3}, None)

Session.make_master = lambda self, *, broker_url, on_event: Master(self, on_event)
cli(sys.argv[1:], prog_name="pestfleet")
"""


@pytest.mark.parametrize("more", [[], ["--json"]])
@pytest.mark.parametrize("both", [False, True])
def test_a_closed_pipe_does_no_harm(root: Path, more: list[str], both: bool) -> None:
    command = [sys.executable, "-c", LOUD, "run", str(EXAMPLE), "--workers", "1", *more]
    with (
        Path("errors").open("w+") as errors,
        subprocess.Popen(
            command, stdout=subprocess.PIPE, stderr=subprocess.STDOUT if both else errors
        ) as process,
    ):
        assert process.stdout is not None
        assert process.stdout.readline()
        process.stdout.close()
        assert process.wait(timeout=30) == 0
    assert Path("ended").exists()
    assert Path("errors").read_text() == ""


def test_a_reader_that_has_seen_enough_is_no_failure(root: Path) -> None:
    folder = make_session(root)
    write_runs(folder, [None] * 3000, purpose="Jacobian")
    command = [sys.executable, "-m", "pestfleet", "runs", "--json"]
    with (
        Path("errors").open("w+") as errors,
        subprocess.Popen(command, stdout=subprocess.PIPE, stderr=errors) as process,
    ):
        assert process.stdout is not None
        assert process.stdout.read(1)
        process.stdout.close()
        assert process.wait(timeout=30) == 0
    assert Path("errors").read_text() == ""


def test_two_sessions_cannot_have_one_id(masters: dict[str, Any]) -> None:
    assert call("run", EXAMPLE, "--session", "mine").exit_code == 0
    result = call("run", EXAMPLE, "--session", "mine")
    assert result.exit_code == 8
    assert "there is a session mine already" in result.stderr


def test_resume_goes_on_with_the_newest(
    root: Path, masters: dict[str, Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    for age, name in enumerate(("old", "new")):
        folder = make_session(root, name)
        os.utime(folder.path / "session.json", (1000 + age, 1000 + age))
    # The session has a broker of its own: that of the environment is for others.
    monkeypatch.setenv("PESTFLEET_BROKER", "amqp://host")
    assert call("resume").exit_code == 0
    assert call("resume", "old").exit_code == 0
    assert [master.session.name for master in masters["made"]] == ["new", "old"]
    assert masters["urls"] == ["", ""]


def test_resume_takes_the_broker_from_the_environment(
    root: Path, masters: dict[str, Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    make_session(root, own_broker=False)
    monkeypatch.setenv("PESTFLEET_BROKER", "amqp://host")
    assert call("resume").exit_code == 0
    assert masters["urls"] == ["amqp://host"]


@pytest.mark.parametrize("name", ["resume", "status", "results", "runs", "stop", "logs"])
def test_no_session(name: str) -> None:
    result = call(name)
    assert result.exit_code == 8
    assert "there is no session in" in result.stderr
    assert call(name, "nosuch").exit_code == 8


def test_status_of_a_running_session_shows_each_slot(root: Path) -> None:
    folder = make_session(root)
    folder.acquire()
    try:
        folder.write_state(make_state())
        result = call("status")
        status = json.loads(call("status", "--json").stdout)
    finally:
        folder.release()
    assert "12/20 runs  1 failed" in result.stdout
    assert "run 41, 2.5 s" in result.stdout
    assert "idle" in result.stdout
    assert status["state"] == "running"
    assert len(status["workers"]) == 2


def test_status_of_a_session_that_died(root: Path) -> None:
    make_session(root).write_state(make_state())
    result = call("status", "s1", "--watch")  # ends, for there is nothing to wait for
    assert result.exit_code == 0
    assert "died" in result.stdout
    assert "pestfleet resume s1" in result.stdout
    assert "local-1" not in result.stdout
    assert json.loads(call("status", "--json").stdout)["state"] == "died"


def test_status_before_there_is_any(root: Path) -> None:
    make_session(root)
    assert "died before its first run" in call("status").stdout


def test_sessions_newest_first(root: Path) -> None:
    assert "there is no session in pestfleet-sessions" in call("sessions").stdout
    for age, name in enumerate(("old", "new")):
        folder = make_session(root, name)
        folder.write_state(make_state(state="finished"))
        os.utime(folder.path / "session.json", (1000 + age, 1000 + age))
    rows = json.loads(call("sessions", "--json").stdout)
    assert [row["path"] for row in rows] == [
        str(Path("pestfleet-sessions", name)) for name in ("new", "old")
    ]
    assert {row["state"] for row in rows} == {"finished"}
    lines = call("sessions").stdout.splitlines()
    assert [line.split()[:4] for line in lines if "finished" in line] == [
        ["new", "finished", "glm", "local"],
        ["old", "finished", "glm", "local"],
    ]


def test_results_as_tables_files_and_picture(root: Path, tmp_path: Path) -> None:
    folder = make_session(root)
    write_glm(folder)
    write_events(folder, *ITERATIONS)
    result = call("results", "--csv", tmp_path / "csv")
    assert result.exit_code == 0, result.output
    for part in ("transm", "piezo_30m", "Iterations", "fit.png"):
        assert part in result.stdout
    assert (folder.results / "fit.png").exists()
    written = sorted(path.name for path in (tmp_path / "csv").iterdir())
    assert written == ["iterations.csv", "observations.csv", "parameters.csv"]
    assert len((tmp_path / "csv" / "observations.csv").read_text().splitlines()) == 70


def test_a_folder_for_tables_that_cannot_be_made(root: Path, tmp_path: Path) -> None:
    write_glm(make_session(root))
    (tmp_path / "taken").touch()
    result = call("results", "--csv", tmp_path / "taken" / "csv")
    assert result.exit_code == 4
    assert f"error: --csv {tmp_path / 'taken' / 'csv'} cannot be written" in result.stderr
    assert "defect" not in result.stderr


def test_what_a_table_leaves_out_is_said(capsys: pytest.CaptureFixture[str]) -> None:
    import pandas

    columns = ["name", "transform", "initial", "value", "lower95", "upper95", "lower_bound",
               "upper_bound"]  # fmt: skip
    rows = [(f"p{n}", kind, 1.0, 2.0, None, None, 0.0, 9.0)
            for n, kind in enumerate(["none", "log", "none", "fixed", "tied"])]  # fmt: skip
    observations = pandas.DataFrame(
        {"group": ["up"] * 3, "residual": [1.0, 2.0, 9.0], "weight": [1.0, 1.0, 0.0]}
    )
    tables = {"parameters": pandas.DataFrame(rows, columns=columns), "observations": observations}
    print_tables(make_console(), tables, rows=2)
    shown = capsys.readouterr().out
    assert "and 1 more parameters; pestfleet results --csv FOLDER writes all" in shown
    assert "and 2 tied or fixed; pestfleet results --csv FOLDER writes all" in shown
    assert re.search(r"observations +without weight +phi", shown)
    assert re.search(r"up +2 +1 +5 ", shown)
    assert "medians" not in shown
    assert "without_weight" not in summarize_groups(observations[:2]).columns


def test_tables_of_an_ensemble_say_what_their_phi_is(root: Path) -> None:
    folder = make_session(root, engine="ies")
    write_ies(folder)
    write_events(folder, *ITERATIONS)
    shown = call("results").stdout
    observations, _, iterations = shown.partition("Iterations")
    assert "phi and residual: of the medians of the last ensemble" in observations
    assert "phi: mean of the realizations" in iterations


def test_the_summary_of_regularization_names_both_phi(
    root: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    folder = make_session(root)
    write_glm(folder)
    summary = {"phi": 16.632, "phi_initial": 4e4, "phi_regularization": 0.0857, "runs": 3}
    print_summary(make_console(), Session(folder), summary)
    shown = capsys.readouterr().out
    assert "measurement phi 16.632, 100 % less than at first; regularization phi 0.0857" in shown


def test_columns_of_the_environment_count_in_a_pipe(
    root: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    folder = make_session(root)
    write_runs(folder, [Failure("model-failed", "so many words " * 9)], purpose="Jacobian")
    assert max(map(len, call("runs").stdout.splitlines())) > 100
    monkeypatch.setenv("COLUMNS", "60")
    assert max(map(len, call("runs").stdout.splitlines())) <= 60


def test_results_as_json(root: Path) -> None:
    folder = make_session(root)
    write_glm(folder)
    write_events(folder, *ITERATIONS)
    report = json.loads(call("results", "--json").stdout)
    assert [row["name"] for row in report["parameters"]] == ["transm", "storage"]
    assert report["iterations"][0] == {"number": 0, "phi": 4.0, "damping": None}
    assert Path(report["picture"]).exists()


def test_results_of_a_sweep_are_sorted_by_phi(root: Path) -> None:
    write_sweep(make_session(root, engine="sweep"))
    lines = call("results", "--rows", "2").stdout.splitlines()
    assert [line.split()[0] for line in lines if line.startswith("  r")] == ["run", "r1", "r2"]
    assert any(line.startswith("and 1 more rows") for line in lines)


def test_runs_and_why_they_failed(root: Path) -> None:
    folder = make_session(root)
    failure = Failure(
        "instruction-failed", "no [such] marker", file="a.ins", line=3, log="x\nboom\n"
    )
    write_runs(folder, [None, failure], purpose="Jacobian")
    listed = call("runs").stdout
    assert "2 runs, 1 failed" in listed
    assert "boom" not in listed
    failed = call("runs", "--failed").stdout
    assert "instruction-failed: a.ins:3: no [such] marker" in failed
    assert "boom" in failed
    (row,) = json.loads(call("runs", "--failed", "--json").stdout)
    assert (row["id"], row["reason"], row["purpose"]) == (2, "instruction-failed", "Jacobian")
    assert len(json.loads(call("runs", "--json").stdout)) == 2


def test_stop_asks_the_master(root: Path) -> None:
    folder = make_session(root)
    running, over = threading.Event(), threading.Event()

    def host() -> None:
        folder.acquire()  # a lock belongs to the thread that took it
        running.set()
        while not folder.stop_requested and not over.wait(0.01):
            pass
        folder.release()

    master = threading.Thread(target=host)
    master.start()
    running.wait()
    try:
        result = call("stop", "--timeout", "10")
    finally:
        over.set()
        master.join()
    assert result.exit_code == 0
    assert "session s1 has stopped; go on with: pestfleet resume s1" in result.stdout


def test_stop_of_a_master_that_does_not_listen(root: Path) -> None:
    folder = make_session(root)
    folder.acquire()
    try:
        result = call("stop", "--timeout", "0")
    finally:
        folder.release()
    assert result.exit_code == 8
    assert "has been asked to stop, and is not over yet" in result.stderr


def test_stop_of_a_session_that_does_not_run(root: Path) -> None:
    folder = make_session(root)
    folder.write_state(make_state(state="finished"))
    result = call("stop")
    assert result.exit_code == 0
    assert result.stdout == "session s1 is not running: finished\n"
    assert not folder.stop_requested


def test_logs_of_master_and_workers(root: Path) -> None:
    folder = make_session(root)
    assert call("logs").exit_code == 8
    folder.log.write_text("".join(f"line {n}\n" for n in range(100)))
    (folder.path / "logs").mkdir()
    (folder.path / "logs" / "local-1.log").write_text("hello\n")
    assert call("logs", "--lines", "2").stdout == "line 98\nline 99\n"
    assert call("logs", "s1", "local-1").stdout == "hello\n"
    assert call("logs", "s1", "local-1.2").stdout == "hello\n"  # its successor has the same log
    missing = call("logs", "s1", "local-9")
    assert missing.exit_code == 8
    assert "Logs there: local-1." in missing.stderr
