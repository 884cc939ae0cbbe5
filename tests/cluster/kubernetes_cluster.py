"""A Kubernetes of the tests' own: one node that runs pods, and nothing of it on the machine.

Every process of it is in the namespaces that node_keeper.py makes, so a test session that is killed
leaves nothing running. This machine reaches the node, its pods and its services by their addresses;
the world is not reached from there. NetworkPolicy is taken by the API server, but not enforced.
"""

from __future__ import annotations

import json
import os
import shutil
import signal
import ssl
import subprocess
import sys
import tempfile
import time
import urllib.error
import urllib.request
from collections.abc import Callable
from pathlib import Path

import cluster_keys
import cluster_programs
import node_keeper
import node_programs
from docker_engine import find_free_network
from node_images import make_pause_image, write_archive
from node_programs import NODE, PAUSE, USERS, NodePrograms

VARIABLE = "PESTFLEET_TEST_KUBECONFIG"  # the kubeconfig of a cluster to use in place of our own
CACHE_VARIABLE = "KUBECACHEDIR"  # where kubectl, helm and skaffold keep what the API server has
START = 400.0  # seconds


def find_reason_against() -> str:
    """Why tests with Kubernetes cannot be run here; "" when they can."""
    if os.environ.get(VARIABLE):
        return ""
    if missing := node_programs.find_missing():
        return f"{missing} is not installed"
    if os.name != "posix" or os.geteuid() != 0:
        return f"only root can start a node; {VARIABLE}=FILE names a cluster's kubeconfig"
    return cluster_programs.find_reason_against()


class KubernetesCluster:
    """Between `start` and `stop`, `kubeconfig` is that of its administrator.

    `cache`: a folder for CACHE_VARIABLE, which goes with the cluster.
    """

    def __init__(self) -> None:
        cluster_programs.ensure_kubernetes()  # minutes the first time: before anything is made
        cluster_programs.ensure_coredns()
        self.name = f"pfk{os.getpid()}"
        self.folder = Path(tempfile.mkdtemp(prefix="pestfleet-cluster-"))
        self.programs = NodePrograms(self.folder, self.name, find_free_network())
        self.kubeconfig = self.programs.keys / "admin.kubeconfig"
        self.cache = self.folder / "cache"
        self._commands: dict[str, list[str]] = {}
        self._stopped: set[str] = set()
        self._keeper: subprocess.Popen[bytes] | None = None

    def start(self) -> None:
        """Start it and wait until its node takes pods."""
        programs = self.programs
        control_plane, node = programs.make_control_plane(), programs.make_node()
        cluster_keys.write_keys(programs.keys, names=programs.list_names(), users=USERS)
        cluster_keys.write_kubeconfigs(programs.keys, url=programs.url, users=USERS)
        programs.write_settings()
        write_archive(make_pause_image(), PAUSE, self.folder / "pause.tar")
        self._start_keeper()
        self.start_program("containerd", programs.make_containerd())
        for name, command in control_plane.items():
            self.start_program(name, command)
        images = ("ctr", "--address", str(programs.socket), "--namespace", "k8s.io", "images")
        self.wait_for(lambda: _succeeds(*images, "list", "--quiet"), "containerd")
        _run(*images, "import", str(self.folder / "pause.tar"))
        self.wait_for(self.is_answering, "kube-apiserver")
        for name, command in node.items():
            self.start_program(name, command)
        account = ("get", "serviceaccount/default", "--namespace=default")
        self.wait_for(lambda: not self._try_kubectl(*account).returncode, "an account for pods")
        self.wait_for(self._has_ready_node, "a node that is ready")

    def stop(self) -> None:
        """End it with all that it has, and wait until nothing of it is left."""
        if self._keeper is None:  # it was never started
            shutil.rmtree(self.folder)
            return
        assert self._keeper.stdin is not None
        self._keeper.stdin.close()
        code = self._keeper.wait(10 * node_keeper.PATIENCE)
        self._keeper = None
        assert code == 0, "the node's keeper could not clean up; its errors are above"

    def kubectl(self, *words: str, given: str = "") -> str:
        """What kubectl writes, when it succeeds."""
        done = self._try_kubectl(*words, given=given)
        assert done.returncode == 0, f"kubectl {' '.join(words)}: {done.stderr[-4000:]}"
        return done.stdout

    def start_program(self, name: str, command: list[str] | None = None) -> None:
        """Start a program of the node; without a command, one that was started before."""
        self._commands[name] = command or self._commands[name]
        self._stopped.discard(name)
        (self.folder / node_keeper.ENDED / name).unlink(missing_ok=True)
        self._order({"start": name, "command": self._commands[name]})

    def end_program(self, name: str, *, by: signal.Signals = signal.SIGKILL) -> None:
        """End, for instance, the kube-apiserver, until `start_program`."""
        self._stopped.add(name)
        self._order({"signal": name, "number": int(by)})
        self.wait_for((self.folder / node_keeper.ENDED / name).exists, f"the end of {name}")

    def is_answering(self) -> bool:
        """Whether the API server is ready."""
        trusted = ssl.create_default_context(cafile=str(self.programs.keys / "ca.pem"))
        try:
            with urllib.request.urlopen(
                f"{self.programs.url}/readyz", context=trusted, timeout=5
            ) as answer:
                return bool(answer.status == 200)
        except (OSError, urllib.error.URLError):
            return False

    def wait_for(self, condition: Callable[[], bool], what: str) -> None:
        """Wait until the condition holds, while all programs run that should."""
        deadline = time.monotonic() + START
        while not condition():
            for path in (self.folder / node_keeper.ENDED).iterdir():
                code = "" if path.name in self._stopped else path.read_text()
                assert not code, f"{path.name} ended ({code}):\n{self.read_log(path.name)}"
            logs = "" if time.monotonic() < deadline else self._read_logs()
            assert not logs, f"{what}: not after {START:.0f} s\n{logs}"
            time.sleep(0.05)

    def read_log(self, name: str) -> str:
        """The last of what a program wrote."""
        path = self.folder / "log" / name
        return path.read_text(errors="replace")[-2000:] if path.exists() else ""

    def _start_keeper(self) -> None:
        self._keeper = subprocess.Popen(
            [
                *(sys.executable, node_keeper.__file__),
                *(str(self.folder), self.name, str(self.programs.network)),
            ],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            start_new_session=True,
        )
        assert self._keeper.stdout is not None
        line = self._keeper.stdout.readline().decode().strip()
        assert line == node_keeper.READY, "the node's keeper did not start; its errors are above"

    def _order(self, order: dict[str, object]) -> None:
        assert self._keeper is not None and self._keeper.stdin is not None
        self._keeper.stdin.write(json.dumps(order).encode() + b"\n")
        self._keeper.stdin.flush()

    def _read_logs(self) -> str:
        return "\n".join(f"== {name}\n{self.read_log(name)}" for name in self._commands)

    def _try_kubectl(self, *words: str, given: str = "") -> subprocess.CompletedProcess[str]:
        kubectl = str(cluster_programs.ensure_kubernetes() / "kubectl")
        return subprocess.run(
            [kubectl, f"--kubeconfig={self.kubeconfig}", *words],
            input=given,
            capture_output=True,
            text=True,
            check=False,
            env={**os.environ, CACHE_VARIABLE: str(self.cache)},
        )

    def _has_ready_node(self) -> bool:
        path = '{.items[*].status.conditions[?(@.type=="Ready")].status}'
        selector = f"--field-selector=metadata.name={NODE}"
        return self.kubectl("get", "nodes", selector, f"--output=jsonpath={path}") == "True"


def _succeeds(*command: str) -> bool:
    return subprocess.run(command, capture_output=True, check=False).returncode == 0


def _run(*command: str) -> None:
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert done.returncode == 0, f"{' '.join(command)}: {done.stderr[-4000:]}"
