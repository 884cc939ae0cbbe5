"""A master on the user's machine with broker, tunnel and workers in a cluster."""

from __future__ import annotations

import json
import os
import shutil
import signal
import socket
import threading
import time
from pathlib import Path

import pytest

import pestfleet
from base_image import ensure_archive
from cases import make_case, write_sweep
from cluster_access import Cluster
from cluster_shell import ClusterShell
from compose_shell import count_runs, read_results, read_runs
from hosting import check_every_run_once, wait_for
from node_images import Image, push
from pestfleet.session import Session
from pestfleet.targets.kubernetes.access import connect
from pestfleet.targets.kubernetes.forward import Forward
from pestfleet.testing.engine_pair import write_programs

pytestmark = [pytest.mark.docker, pytest.mark.kubernetes]

EXAMPLE = "oude-korendijk"
HERE = ("--master", "here")
SWEEP = ("--engine", "sweep", *HERE)
PATIENCE = 300.0  # seconds
AWAY = 30.0  # seconds without the API server

# Debian's smallest Perl, as a server that sends back what it gets.
ECHO = """use IO::Socket::INET; $SIG{TERM} = sub { exit 0 }; $SIG{CHLD} = 'IGNORE';
my $server = IO::Socket::INET->new(LocalPort => 8080, Listen => 9, ReuseAddr => 1) or die;
while (my $client = $server->accept()) {
  if (!fork) { my $b; while (sysread($client, $b, 65536)) { print $client $b; $client->flush }
               exit 0 }
  close $client;
}"""
ECHO_POD = {
    "apiVersion": "v1",
    "kind": "Pod",
    "metadata": {"name": "echo"},
    "spec": {
        "restartPolicy": "Never",
        "terminationGracePeriodSeconds": 1,
        "securityContext": {
            "runAsNonRoot": True,
            "runAsUser": 10001,
            "seccompProfile": {"type": "RuntimeDefault"},
        },
        "containers": [
            {
                "name": "main",
                "command": ["perl", "-e", ECHO],
                "readinessProbe": {"tcpSocket": {"port": 8080}, "periodSeconds": 1},
                "securityContext": {
                    "allowPrivilegeEscalation": False,
                    "capabilities": {"drop": ["ALL"]},
                },
            }
        ],
    },
}
# An agent in the case's folder: Python finds the stand-in beside it.
AGENT = """#!/bin/sh
export PYTHONPATH="$(dirname "$0")/lib"
exec /opt/pestfleet/bin/python -m pestfleet.testing.engine_pair "$@"
"""


class EchoSite:
    """A pod that sends back what it gets, and a forward to it."""

    def __init__(self, cluster: Cluster, namespace: str) -> None:
        self.cluster = cluster
        self.place = f"--namespace={namespace}"
        image = Image(ensure_archive().read_bytes(), ("/bin/sleep", "infinity"))
        self.image = push(image, "debian:12", address=cluster.registry)
        self.forward = Forward(lambda: "echo", connect("", namespace), 8080)

    def start(self) -> None:
        pod = json.loads(json.dumps(ECHO_POD))
        pod["spec"]["containers"][0]["image"] = self.image
        self.cluster.kubectl(self.place, "create", "-f", "-", given=json.dumps(pod))
        ready = ("--for=condition=Ready", "--timeout=300s")
        self.cluster.kubectl(self.place, "wait", "pod/echo", *ready)

    def remove(self) -> None:
        self.cluster.kubectl(self.place, "delete", "pod/echo", "--timeout=300s")

    def connect(self) -> socket.socket:
        return socket.create_connection(self.forward.address, timeout=PATIENCE)

    def exchange(self, client: socket.socket, size: int = 5) -> bool:
        sent = bytes(range(256)) * (size // 256) + b"." * (size % 256)
        threading.Thread(target=client.sendall, args=(sent,), daemon=True).start()
        got = b""
        while len(got) < size and (data := client.recv(65536)):
            got += data
        return got == sent

    def answers(self) -> bool:
        try:
            with self.connect() as client:
                return self.exchange(client)
        except ConnectionError:
            return False


def test_a_forward_heals(cluster: Cluster, namespace: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("KUBECONFIG", str(cluster.kubeconfig))
    site = EchoSite(cluster, namespace)
    try:
        assert not site.answers(), "there is no pod"
        site.start()
        with site.connect() as client:
            assert site.exchange(client, 3_000_000)
            site.remove()
            assert client.recv(1) == b"", "its process has closed the connection"
        assert not site.answers(), "there is no pod"
        site.start()
        assert site.answers()
        if cluster.own is not None:
            with site.connect() as client:
                assert site.exchange(client)
                cluster.own.end_program("kube-apiserver")
                with pytest.raises(ConnectionResetError):
                    client.recv(1)
            assert not site.answers()
            cluster.own.start_program("kube-apiserver")
            cluster.own.wait_for(cluster.own.is_answering, "kube-apiserver")
            wait_for(site.answers, timeout=PATIENCE, what="an answer through the new API server")
        with site.connect() as idle:
            assert site.exchange(idle)
    finally:
        site.forward.close()
    wait_for(
        lambda: not [t for t in threading.enumerate() if t.name.startswith("forward")],
        timeout=PATIENCE,
        what="the end of the forward's threads",
    )


def test_a_master_here_gives_the_same_bits_as_local(shell: ClusterShell, root: Path) -> None:
    case = shell.folder / "example"
    shutil.copytree(root / "examples" / EXAMPLE, case)
    words = ("--engine", "glm", "--workers", "2")
    shell.run("run", str(case), *words, "--no-cache", "--on", "local", "--session", "local")
    shell.run(*shell.list_words(case, "pf-home1", *words, *HERE))
    local, home = (shell.folder / "pestfleet-sessions" / name for name in ("local", "pf-home1"))
    assert read_results(home, EXAMPLE) == read_results(local, EXAMPLE)
    runs = read_runs(home)
    assert runs == read_runs(local) and len(runs) > 20
    assert len(list((home / "logs").iterdir())) == 2
    shell.check_nothing_left("pf-home1")
    assert "finished" in shell.run("status", "pf-home1")


def test_a_session_outlives_its_broker_s_pod_a_worker_and_the_api_server(
    shell: ClusterShell, cluster: Cluster
) -> None:
    case = make_case(shell.folder / "case", seconds=0.3)
    rows = write_sweep(case.parent, runs=500)
    running = shell.launch(case, "pf-home2", *SWEEP, "--workers", "2", runs=6)
    folder = shell.open_folder("pf-home2")

    def go_on(what: str) -> None:
        done = count_runs(folder)
        running.wait_for(lambda: count_runs(folder) > done + 6, f"runs after {what}")

    for role in ("broker", "worker"):
        name = shell.list_pods("pf-home2", role)[0]["metadata"]["name"]
        shell.kubectl("delete", "pod", name)
        go_on(f"the end of a pod of the {role}")
    if cluster.own is not None:
        away = time.monotonic()
        cluster.own.end_program("kube-apiserver")
        running.wait_for(lambda: "does not answer" in running.notes(), "word of the API server")
        wait_for(lambda: time.monotonic() - away > AWAY, timeout=2 * AWAY)
        cluster.own.start_program("kube-apiserver")
        cluster.own.wait_for(cluster.own.is_answering, "kube-apiserver")
        running.wait_for(lambda: "API server answers again" in running.notes(), "better word")
        go_on("the end of the API server")
    assert count_runs(folder) < len(rows), "it was over before the last harm"
    running.wait()
    check_every_run_once(Session(folder), rows)
    shell.check_nothing_left("pf-home2")


def test_ctrl_c_leaves_nothing(shell: ClusterShell) -> None:
    case = make_case(shell.folder / "case", seconds=0.3)
    rows = write_sweep(case.parent, runs=150)
    running = shell.launch(case, "pf-home3", *SWEEP, "--workers", "2", runs=4)
    running.send(signal.SIGINT)
    assert "pestfleet resume pf-home3" in running.wait(130)
    shell.check_nothing_left("pf-home3")
    resumed = shell.start("resume", "pf-home3", "--json")
    resumed.wait()
    assert resumed.events("start")[-1]["known_runs"] >= 4
    check_every_run_once(Session(shell.open_folder("pf-home3")), rows)
    shell.check_nothing_left("pf-home3")


def test_another_shell_removes_what_a_killed_command_left(
    shell: ClusterShell, tmp_path: Path
) -> None:
    case = make_case(shell.folder / "case", seconds=0.3)
    write_sweep(case.parent, runs=1000)
    shell.launch(case, "pf-home4", *SWEEP, "--workers", "2", runs=4).kill()
    elsewhere = tmp_path / "elsewhere"
    elsewhere.mkdir()
    on = ("--on", "kubernetes", "--namespace", shell.namespace)
    said = shell.run("down", "pf-home4", *on, folder=elsewhere)
    assert "removed job" in said
    shell.check_nothing_left("pf-home4")


@pytest.fixture
def short_lease(shell: ClusterShell, monkeypatch: pytest.MonkeyPatch) -> None:
    """Commands have a lease that is over soon after they have died."""
    site = shell.folder / "site"
    site.mkdir()
    (site / "sitecustomize.py").write_text(
        "import pestfleet.targets.kubernetes.lease as lease\nlease.GRACE = 25.0\n"
    )
    monkeypatch.setenv("PYTHONPATH", str(site), prepend=os.pathsep)


def test_what_a_killed_command_left_goes_by_itself(shell: ClusterShell, short_lease: None) -> None:
    """No worker ends here: they have not heard of the master's end yet."""
    case = make_case(shell.folder / "case", seconds=0.3)
    write_sweep(case.parent, runs=2000)
    more = ("--workers", "2", "--set", "session.keepSeconds=1")
    running = shell.launch(case, "pf-home5", *SWEEP, *more, runs=4)
    # As long as the command lives, it stays: for longer than one lease.
    began = time.monotonic()
    running.wait_for(lambda: time.monotonic() - began > 30.0, "time to pass")
    assert shell.list_pods("pf-home5", "worker")
    running.kill()
    shell.check_nothing_left("pf-home5", patience=300)


def test_agents_reach_a_master_here_through_the_tunnel(
    shell: ClusterShell, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    engines = tmp_path / "engines"
    write_programs(engines)
    monkeypatch.setenv("PESTFLEET_ENGINES", str(engines))
    case = make_case(shell.folder / "case")
    (case.parent / "beopest").write_text(AGENT)
    (case.parent / "beopest").chmod(0o755)
    package = Path(pestfleet.__file__).parent
    shutil.copytree(package, case.parent / "lib" / "pestfleet", ignore=lambda *_: ["__pycache__"])
    words = ("--engine", "beopest", "--workers", "2", *HERE, "--tunnel")
    running = shell.start(*shell.list_words(case, "pf-home6", *words), "--json")
    running.wait()
    assert "the tunnel is connected" in running.notes()
    results = shell.open_folder("pf-home6").results
    assert list(results.glob("*.par")), sorted(results.iterdir())
    shell.check_nothing_left("pf-home6")


def test_runs_come_through_the_tunnel_to_a_broker_here(shell: ClusterShell) -> None:
    case = make_case(shell.folder / "case", seconds=0.1)
    rows = write_sweep(case.parent, runs=500)
    running = shell.launch(case, "pf-home7", *SWEEP, "--workers", "2", "--tunnel", runs=6)
    assert not shell.list_pods("pf-home7", "broker")
    folder = shell.open_folder("pf-home7")
    name = shell.list_pods("pf-home7", "tunnel")[0]["metadata"]["name"]
    shell.kubectl("delete", "pod", name)
    done = count_runs(folder)
    running.wait_for(lambda: count_runs(folder) > done + 6, "runs through another tunnel")
    running.wait()
    check_every_run_once(Session(folder), rows)
    shell.check_nothing_left("pf-home7")
