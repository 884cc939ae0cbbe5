"""Images and containers: sizes, rebuilds, start, memory. Needs what `make integration` needs."""

from __future__ import annotations

import os
import shutil
import signal
import socket
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import docker
from docker.models.containers import Container
from tests.containers.base_image import CERTIFICATES, ensure_base
from tests.containers.docker_engine import run_engine

from benchmarks.figure import Figure
from pestfleet.case import Case
from pestfleet.images.base import ensure_image
from pestfleet.images.case import ensure_case_image
from pestfleet.settings import ImageSettings

ROOT = Path(__file__).resolve().parents[1]
EXAMPLE = ROOT / "examples" / "oude-korendijk"
BROKER = "pestfleet-test-broker"
TRIES = 3
LONG_RUN = 20  # seconds
MEGABYTE = 1e6


def measure() -> Iterator[Figure]:
    """Sizes, seconds and memory of images and containers, on a Docker engine of our own."""
    with run_engine() as client, tempfile.TemporaryDirectory() as name:
        settings = ImageSettings(
            base=ensure_base(client), network="host", ca=str(CERTIFICATES), broker=BROKER
        )
        worker = ensure_image("worker", settings, engine=client)
        master = ensure_image("master", settings, engine=client)
        broker = ensure_image("broker", settings, engine=client, folder=ROOT / "images" / "broker")
        client.images.get(broker).tag(BROKER)
        base = _size(client, settings.base)
        yield Figure("worker image above its base", _size(client, worker) - base, "MB", 150.0)
        yield Figure("master image above its base", _size(client, master) - base, "MB", 600.0)
        case = Path(name, "case")
        shutil.copytree(EXAMPLE, case)
        yield from _measure_rebuild(client, case, settings)
        yield from _measure_start(Path(name), settings)
        yield _measure_memory(client, Path(name), settings)


def make_environment(settings: ImageSettings) -> dict[str, str]:
    names = ("base", "network", "ca", "broker")
    return {
        **os.environ,
        **{f"PESTFLEET_IMAGE__{name.upper()}": getattr(settings, name) for name in names},
    }


def _size(client: docker.DockerClient, image: str) -> float:
    return float(client.images.get(image).attrs["Size"]) / MEGABYTE


def _measure_rebuild(
    client: docker.DockerClient, case: Path, settings: ImageSettings
) -> Iterator[Figure]:
    """Build again after an edit of the control file, and push to a registry that has the first."""
    (case / "big.dat").write_bytes(os.urandom(30_000_000))  # it must not travel again
    with _start_registry() as (registry, storage):
        image = settings.model_copy(update={"registry": ""})
        seconds, sent = [], []
        control = next(case.glob("*.pst"))
        for number in range(TRIES + 1):
            control.write_text(control.read_text() + f"# edit {number}\n")
            began = time.perf_counter()
            built = ensure_case_image(Case.read(case), image)
            seconds.append(time.perf_counter() - began)
            before = _measure_folder(storage)
            name = f"{registry}/case"
            client.images.get(built.reference).tag(name, str(number))
            for line in client.images.push(name, str(number), stream=True, decode=True):
                assert "error" not in line, line
            sent.append(_measure_folder(storage) - before)
    detail = {"all": [round(value, 2) for value in seconds[1:]]}
    yield Figure(
        "build after an edit of the control file", statistics.median(seconds[1:]), "s", 5.0,
        detail=detail,
    )  # fmt: skip
    changed = control.stat().st_size
    yield Figure(
        "what a registry gets of it, above the changed file",
        (statistics.median(sent[1:]) - changed) / MEGABYTE, "MB", 1.0,
        detail={"first_push": round(sent[0] / MEGABYTE, 1)},
    )  # fmt: skip


def _measure_start(folder: Path, settings: ImageSettings) -> Iterator[Figure]:
    """From the command to the first result of a run, and to its end, with the images there."""
    first, whole = [], []
    for number in range(TRIES + 1):  # the first one builds the image of the case
        began = time.time()
        words = ["run", str(EXAMPLE), "--on", "compose", "--workers", "2", "--no-cache"]
        done = subprocess.run(
            [sys.executable, "-m", "pestfleet", *words, "--session", f"start-{number}", "--json"],
            cwd=folder, env=make_environment(settings), check=True, capture_output=True, text=True,
        )  # fmt: skip
        whole.append(time.time() - began)
        journal = folder / "pestfleet-sessions" / f"start-{number}" / "journal.jsonl"
        first.append(find_first_run(journal) - began)
        assert '"event": "end"' in done.stdout
    yield Figure(
        "compose: from command to first run", statistics.median(first[1:]), "s", 10.0,
        detail={"all": [round(value, 2) for value in first[1:]]},
    )  # fmt: skip
    yield Figure(
        "compose: whole calibration, nothing left", statistics.median(whole[1:]), "s", 30.0,
        detail={"all": [round(value, 2) for value in whole[1:]]},
    )  # fmt: skip


def find_first_run(journal: Path) -> float:
    from pestfleet.journal import read_journal

    return next(float(event["time"]) for event in read_journal(journal) if event["event"] == "run")


def _measure_memory(client: docker.DockerClient, folder: Path, settings: ImageSettings) -> Figure:
    """Of two workers one makes the only run; the other is idle, but ready for runs."""
    case = folder / "slow"
    shutil.copytree(EXAMPLE, case)
    model = case / "model.py"
    model.write_text(f"import time\ntime.sleep({LONG_RUN})\n" + model.read_text())
    words = ["run", str(case), "--option", "noptmax=0", "--workers", "2", "--session", "idle"]
    with _run_session(folder, settings, words):
        deadline = time.monotonic() + 120
        while len(_list_workers(client)) < 2 or _count_joined(client) != 2:
            assert time.monotonic() < deadline, "the workers did not join"
            time.sleep(0.2)
        used = [_read_memory(container) for container in _list_workers(client)]
    detail = {"with_a_run": round(max(used), 1)}
    return Figure("memory of an idle worker's container", min(used), "MB", 90.0, detail=detail)


@contextmanager
def _run_session(folder: Path, settings: ImageSettings, words: list[str]) -> Iterator[None]:
    """A session on compose that is stopped at the end."""
    process = subprocess.Popen(
        [sys.executable, "-m", "pestfleet", *words, "--on", "compose", "--no-cache"],
        cwd=folder,
        env=make_environment(settings),
        stdout=subprocess.DEVNULL,
    )
    try:
        yield
    finally:
        process.send_signal(signal.SIGINT)
        process.wait()
        left = ["down", "--on", "compose", "--discard-results"]
        subprocess.run([sys.executable, "-m", "pestfleet", *left], cwd=folder, check=True)


def _list_workers(client: docker.DockerClient) -> list[Container]:
    return client.containers.list(filters={"label": ["pestfleet.role=worker"]})


def _count_joined(client: docker.DockerClient) -> int:
    masters = client.containers.list(filters={"label": ["pestfleet.role=master"]})
    return sum(master.logs().count(b'"worker-joined"') for master in masters)


def _read_memory(container: Container) -> float:
    """MB, without the page cache, as docker stats has it."""
    statistic = container.stats(stream=False)["memory_stats"]
    inactive: float = statistic["stats"].get("total_inactive_file", 0)
    return (float(statistic["usage"]) - inactive) / MEGABYTE


@contextmanager
def _start_registry() -> Iterator[tuple[str, Path]]:
    """Debian's docker-registry on loopback: its name, and the folder that it stores in."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        config = folder / "config.yml"
        config.write_text(
            "version: 0.1\nlog: {level: error}\n"
            f"storage: {{filesystem: {{rootdirectory: {folder / 'data'}}}}}\n"
            f"http: {{addr: 127.0.0.1:{port}}}\n"
        )
        (folder / "data").mkdir()
        process = subprocess.Popen(
            ["docker-registry", "serve", str(config)],
            stdout=subprocess.DEVNULL,
            stderr=subprocess.DEVNULL,
        )
        try:
            _await_port(port)
            yield f"127.0.0.1:{port}", folder / "data"
        finally:
            process.terminate()
            process.wait()


def _await_port(port: int) -> None:
    deadline = time.monotonic() + 20
    while True:
        try:
            socket.create_connection(("127.0.0.1", port), timeout=1).close()
            return
        except OSError:
            if time.monotonic() > deadline:
                raise
            time.sleep(0.05)


def _measure_folder(folder: Path) -> int:
    return sum(path.stat().st_size for path in folder.rglob("*") if path.is_file())
