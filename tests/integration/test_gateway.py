"""The gateway at real PEST++ masters, with a fleet that answers at once."""

from __future__ import annotations

import csv
import re
import shutil
import socket
import subprocess
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path

import pytest

from pestfleet.engines.gateway import Gateway, NamesError, connect_to
from pestfleet.testing.run_service import FakeRunService, make_spec
from pestfleet_worker.messages import Failure, unpack_vector

pytestmark = pytest.mark.pestpp

PARAMETERS = tuple(f"k{i}" for i in range(5))
OBSERVATIONS = tuple(f"h{i}" for i in range(7))
# The case has its names in another order than the master's control file.
SPEC = make_spec(PARAMETERS[::-1], OBSERVATIONS[2:] + OBSERVATIONS[:2])
OPTIONS = {
    "panther_master_timeout_milliseconds": "1",
    "panther_echo": "false",
    "overdue_giveup_fac": "1e30",
    "overdue_giveup_minutes": "1e30",
    "overdue_resched_fac": "1e30",
}

Model = Callable[[Sequence[float]], list[float] | Failure]


def compute(k: Sequence[float]) -> list[float]:
    """Observations in the control file's order, of parameters in that order."""
    return [
        sum(value * (1 + ((i * j) % 5)) for j, value in enumerate(k)) + k[i % 5] ** 2 / (3 + i)
        for i in range(len(OBSERVATIONS))
    ]


def model(parameters: Sequence[float]) -> list[float] | Failure:
    """The same in the orders of `SPEC`."""
    h = compute(parameters[::-1])
    return h[2:] + h[:2]


def write_case(folder: Path, **options: str) -> None:
    (folder / "in.tpl").write_text("ptf ~\n" + "".join(f"~{k:^24}~\n" for k in PARAMETERS))
    (folder / "out.ins").write_text("pif ~\n" + "".join(f"l1 !{h}!\n" for h in OBSERVATIONS))
    parameters = [
        f"{k} none relative {1 + i / 7!r} -20 20 g 1 0 1" for i, k in enumerate(PARAMETERS)
    ]
    measured = compute([1.5, 0.5, 2.0, 1.0, 0.25])
    observations = [
        f"{h} {value!r} 1.0 og" for h, value in zip(OBSERVATIONS, measured, strict=True)
    ]
    lines = [
        "pcf",
        "* control data",
        "restart estimation",
        f"{len(PARAMETERS)} {len(OBSERVATIONS)} 1 0 1",
        "1 1 double point 1 0 0",
        "10 2 0.3 0.01 10",
        "5 5 0.001",
        "0.1",
        "2 0.005 4 4 0.005 4",
        "1 1 1",
        "* parameter groups",
        "g relative 0.01 0.0 switch 2.0 parabolic",
        "* parameter data",
        *parameters,
        "* observation groups",
        "og",
        "* observation data",
        *observations,
        "* model command line",
        "./model",
        "* model input/output",
        "in.tpl in.dat",
        "out.ins out.dat",
        *(f"++ {name}({value})" for name, value in (OPTIONS | options).items()),
    ]
    (folder / "case.pst").write_text("\n".join(lines) + "\n")


@contextmanager
def run_master(program: str, folder: Path) -> Iterator[tuple[int, subprocess.Popen[bytes]]]:
    """A master on a free port, its output in stdout.txt."""
    path = shutil.which(program)
    assert path, f"{program} is not on PATH"
    with socket.socket() as unused:
        unused.bind(("127.0.0.1", 0))
        port = unused.getsockname()[1]
    with (folder / "stdout.txt").open("wb") as output:
        process = subprocess.Popen(
            [path, "case.pst", "/h", f":{port}"], cwd=folder, stdout=output, stderr=output
        )
        try:
            yield port, process
        finally:
            process.kill()
            process.wait()


def run_engine(
    program: str, folder: Path, service: FakeRunService, *, seconds: float = 60.0
) -> Gateway:
    """Run an engine to its end with the gateway's help; the gateway has ended too."""
    with run_master(program, folder) as (port, process):
        gateway = Gateway(service, connect=connect_to("127.0.0.1", port))
        gateway.start()
        try:
            assert process.wait(seconds) == 0, (folder / "stdout.txt").read_text()[-2000:]
            assert gateway.wait(120)
        finally:
            gateway.stop()
    gateway.check()
    return gateway


def write_sweep(folder: Path, rows: int) -> list[list[float]]:
    vectors = [[((row * 7 + i * 3) % 101) / 9.7 for i in range(5)] for row in range(rows)]
    with (folder / "sweep_in.csv").open("w", newline="") as file:
        writer = csv.writer(file)
        writer.writerow(["run_id", *PARAMETERS])
        writer.writerows([row, *vector] for row, vector in enumerate(vectors))
    return vectors


def read_sweep(folder: Path) -> list[dict[str, str]]:
    with (folder / "sweep_out.csv").open(newline="") as file:
        return [{k.lower(): v for k, v in row.items()} for row in csv.DictReader(file)]


def test_sweep(tmp_path: Path) -> None:
    write_case(tmp_path)
    vectors = write_sweep(tmp_path, 500)
    service = FakeRunService(SPEC, model, slots=8)
    gateway = run_engine("pestpp-swp", tmp_path, service)
    assert sorted(tuple(unpack_vector(v))[::-1] for v in service.requested) == sorted(
        map(tuple, vectors)
    )
    for row, vector in zip(read_sweep(tmp_path), vectors, strict=True):
        got = [float(row[h]) for h in OBSERVATIONS]
        assert got == pytest.approx(compute(vector), rel=1e-5)
    assert (gateway.counters.requested, gateway.counters.finished) == (500, 500)


def test_failed_runs_are_named_in_the_record(tmp_path: Path) -> None:
    def fail_some(parameters: Sequence[float]) -> list[float] | Failure:
        if parameters[-1] > 10:
            return Failure("instruction-failed", "no number: «*****»", "out.dat", 3)
        return model(parameters)

    write_case(tmp_path, max_run_fail="2")
    vectors = write_sweep(tmp_path, 60)
    wrong = {row for row, vector in enumerate(vectors) if vector[0] > 10}
    gateway = run_engine("pestpp-swp", tmp_path, FakeRunService(SPEC, fail_some, slots=4))
    failed = {n for n, row in enumerate(read_sweep(tmp_path)) if int(row["failed_flag"])}
    assert failed == wrong != set()
    assert gateway.counters.failed == 2 * len(wrong)
    record = (tmp_path / "case.rmr").read_text()
    assert "instruction-failed: out.dat:3: no number: ?*****?" in record


@pytest.mark.parametrize("program", ["pestpp-glm", "pestpp-ies", "pestpp-sen"])
def test_engines_run_to_their_end(tmp_path: Path, program: str) -> None:
    write_case(tmp_path, ies_num_reals="20", ies_no_noise="true", gsa_method="morris")
    gateway = run_engine(program, tmp_path, FakeRunService(SPEC, model, slots=10))
    counters = gateway.counters
    assert counters.finished == counters.requested > 20
    assert counters.failed == 0


def test_nine_hundred_connections(tmp_path: Path) -> None:
    write_case(tmp_path)
    vectors = write_sweep(tmp_path, 3000)
    service = FakeRunService(SPEC, model, slots=2000)
    with run_master("pestpp-swp", tmp_path) as (port, process):
        gateway = Gateway(service, connect=connect_to("127.0.0.1", port))
        gateway.start()
        most = 0
        while process.poll() is None and not gateway.wait(0.01):
            most = max(most, gateway.counters.connections)
        assert process.wait(120) == 0
        gateway.stop()
    gateway.check()
    assert len(read_sweep(tmp_path)) == len(vectors)
    assert most <= 900


def test_the_fleet_grows_and_shrinks_under_the_master(tmp_path: Path) -> None:
    write_case(tmp_path)
    write_sweep(tmp_path, 400)
    with (
        FakeRunService(SPEC, model, slots=0, seconds=0.05) as service,
        run_master("pestpp-swp", tmp_path) as (port, process),
    ):
        gateway = Gateway(service, connect=connect_to("127.0.0.1", port), poll=0.05)
        gateway.start()
        sizes = [6, 1, 9, 2, 5]
        deadline = time.monotonic() + 180
        while process.poll() is None and time.monotonic() < deadline:
            if sizes and gateway.counters.finished >= 60 * (5 - len(sizes)):
                service.slots = sizes.pop(0)
            gateway.wait(0.01)
        assert process.wait(60) == 0
        gateway.stop()
    gateway.check()
    assert sizes == []
    rows = read_sweep(tmp_path)
    assert len(rows) == 400
    assert not any(int(row["failed_flag"]) for row in rows)


def test_overdue_runs_that_the_master_kills_are_cancelled(tmp_path: Path) -> None:
    """One run never ends; the user's own overdue settings make the master give it up."""
    write_case(tmp_path, overdue_giveup_minutes="0.1", max_run_fail="1")
    write_sweep(tmp_path, 20)

    class Stuck(FakeRunService):
        def request(self, parameters: bytes, on_result: Callable[..., None]) -> int:
            if len(self.requested) == 5:
                self.requested.append(parameters)
                return 10**6
            return super().request(parameters, on_result)

    service = Stuck(SPEC, model, slots=3)
    gateway = run_engine("pestpp-swp", tmp_path, service)
    assert service.cancelled == [10**6]
    assert gateway.counters.killed == 1
    rows = read_sweep(tmp_path)
    assert sum(int(row["failed_flag"]) for row in rows) == 1


def test_another_case_is_noticed(tmp_path: Path) -> None:
    write_case(tmp_path)
    write_sweep(tmp_path, 3)
    other = make_spec((*PARAMETERS[:4], "x"), OBSERVATIONS)
    with run_master("pestpp-swp", tmp_path) as (port, process):
        gateway = Gateway(FakeRunService(other, model), connect=connect_to("127.0.0.1", port))
        gateway.start()
        assert gateway.wait(120)
        gateway.stop()
        assert process.poll() is None  # the master is left waiting: it is the caller's to end
        with pytest.raises(NamesError, match=re.escape("does not have (k4)")):
            gateway.check()
