"""Sessions by the chart or the manifests alone, as who does not use our command has them."""

from __future__ import annotations

import io
import json
import os
import subprocess
import tarfile
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from cluster_images import ClusterImages, PushedImage
from cluster_shell import ClusterShell
from compose_shell import read_results, read_runs

ROOT = Path(__file__).resolve().parents[2]
CHART = ROOT / "charts" / "pestfleet"
EXAMPLE = "oude-korendijk"
RELEASE, NAME = "fleet", "fleet-pestfleet"  # of the release, and of its objects and its session
CLAIM = f"{NAME}-session"
PATIENCE = 900.0  # seconds; the first pods pull their images, on a machine that may be busy
SMALL = {
    "requests": {"cpu": "50m", "memory": "128Mi"},
    "limits": {"cpu": "2", "memory": "512Mi"},
}

Object = dict[str, Any]
# The files of results that have no date in them, and each run's bits.
Calibration = tuple[dict[str, bytes], dict[str, str]]


def read_calibration(session: Path) -> Calibration:
    return read_results(session, EXAMPLE), read_runs(session)


@dataclass(frozen=True, slots=True)
class ChartSession:
    """What is in the namespace of a shell. `case`: the case's image."""

    shell: ClusterShell
    images: ClusterImages
    case: PushedImage

    # -- with helm -----------------------------------------------------------------------------

    def write_values(self, **more: Object) -> Path:
        """A file with the chart's values for small pods; `more` has values of parts."""
        values: Object = {
            "image": {"registry": self.images.registry},
            "case": {"image": _name(self.case)},
            "credentials": {"resources": SMALL},
            "broker": {"image": _name(self.images.broker, whole=True), "resources": SMALL},
            "master": {"image": _name(self.images.master), "resources": SMALL},
            "workers": {"count": 2, "resources": SMALL, "terminationGracePeriodSeconds": 5},
        }
        path = self.shell.folder / "values.json"
        path.write_text(json.dumps(_merge(values, more)))
        return path

    def helm(self, program: Path, *words: str) -> str:
        """What helm writes, when it succeeds."""
        done = subprocess.run(
            [str(program), *words, f"--namespace={self.shell.namespace}"],
            capture_output=True,
            text=True,
            check=False,
            env={**os.environ, "KUBECONFIG": str(self.shell.cluster.kubeconfig)},
        )
        assert done.returncode == 0, f"helm {' '.join(words)}: {done.stderr}\n{self.explain()}"
        return done.stdout

    def install(self, program: Path, **more: Object) -> str:
        return self.helm(
            program, "install", RELEASE, str(CHART), f"--values={self.write_values(**more)}"
        )

    # -- what is there -------------------------------------------------------------------------

    def list(self, kind: str, role: str = "") -> list[Object]:
        """Objects of a kind that are not on their way out."""
        selector = [f"--selector=pestfleet.role={role}"] if role else []
        text = self.shell.kubectl("get", kind, "--output=json", *selector)
        return [
            item
            for item in json.loads(text)["items"]
            if "deletionTimestamp" not in item["metadata"]
        ]

    def find_job(self, role: str) -> Object:
        """The only Job of a role."""
        jobs = self.list("jobs", role)
        assert len(jobs) == 1, [job["metadata"]["name"] for job in jobs]
        return jobs[0]

    def scale(self, workers: int) -> None:
        job = self.find_job("worker")["metadata"]["name"]
        self.shell.kubectl("patch", "job", job, f'--patch={{"spec": {{"parallelism": {workers}}}}}')

    def count_runs(self) -> int:
        """Finished runs, as the state of the master tells them."""
        script = f"cat /session/{self.find_session()}/state.json"
        pods = [pod for pod in self.list("pods", "master") if _is_running(pod)]
        if not pods:
            return 0
        done = self.shell.cluster.try_kubectl(
            f"--namespace={self.shell.namespace}",
            *("exec", pods[-1]["metadata"]["name"], "--container=master", "--"),
            *("sh", "-c", script),
        )
        if done.returncode:
            return 0  # it has none yet, or has just ended
        runs: int = json.loads(done.stdout).get("batch", {}).get("done", 0)
        return runs

    def find_session(self) -> str:
        """Its id."""
        session: str = self.list("configmaps", "session")[0]["metadata"]["labels"][
            "pestfleet.session"
        ]
        return session

    def wait_for(self, condition: Callable[[], Any], what: str) -> None:
        deadline = time.monotonic() + PATIENCE
        while not condition():
            assert time.monotonic() < deadline, f"{what}: not in time\n{self.explain()}"
            time.sleep(0.3)

    def wait_for_runs(self, count: int) -> None:
        self.wait_for(lambda: self.count_runs() >= count, f"{count} runs")

    def wait_until_complete(self) -> None:
        """The master's Job has succeeded."""

        def look() -> bool:
            conditions = [
                condition["type"]
                for job in self.list("jobs", "master")
                for condition in job["status"].get("conditions", ())
                if condition["status"] == "True"
            ]
            assert "Failed" not in conditions, self.explain()
            return "Complete" in conditions

        self.wait_for(look, "the session's end")

    def explain(self) -> str:
        """What is there, what happened to it, and what it has written."""
        texts = [
            self.shell.kubectl("get", "pods,jobs", "--output=wide"),
            self.shell.kubectl("get", "events", "--sort-by=.lastTimestamp"),
        ]
        for pod in self.list("pods"):
            name = pod["metadata"]["name"]
            words = (f"--namespace={self.shell.namespace}", "logs", name, "--tail=30")
            texts.append(f"== {name}\n{self.shell.cluster.try_kubectl(*words).stdout}")
        return "\n".join(texts)

    # -- results -------------------------------------------------------------------------------

    def fetch(self, claim: str, session: str) -> Path:
        """The session's folder, by a pod that reads the claim."""
        pod = self._make_reader("reader", claim)
        self.shell.kubectl("create", "--filename=-", given=json.dumps(pod))
        ready = ("--for=condition=Ready", f"--timeout={PATIENCE:.0f}s")
        self.shell.kubectl("wait", "pod/reader", *ready)
        cluster = self.shell.cluster
        command = [str(cluster.kubectl_program), f"--kubeconfig={cluster.kubeconfig}"]
        command += [f"--namespace={self.shell.namespace}", "exec", "reader", "--"]
        command += ["tar", "-cf", "-", "-C", "/volume/sessions", session]
        done = subprocess.run(command, capture_output=True, check=True)
        self.shell.kubectl("delete", "pod", "reader", "--now")
        with tarfile.open(fileobj=io.BytesIO(done.stdout)) as archive:
            archive.extractall(self.shell.folder / "fetched", filter="data")
        return self.shell.folder / "fetched" / session

    def _make_reader(self, name: str, claim: str) -> Object:
        container = {
            "name": name,
            "image": self.images.master.exact,
            "command": ["tini", "--", "sleep", "infinity"],
            "securityContext": {
                "allowPrivilegeEscalation": False,
                "capabilities": {"drop": ["ALL"]},
            },
            "volumeMounts": [{"name": "volume", "mountPath": "/volume"}],
        }
        security = {
            "runAsNonRoot": True,
            "runAsUser": 10001,
            "fsGroup": 10001,
            "seccompProfile": {"type": "RuntimeDefault"},
        }
        volume = {"name": "volume", "persistentVolumeClaim": {"claimName": claim}}
        spec = {"containers": [container], "securityContext": security, "volumes": [volume]}
        return {"apiVersion": "v1", "kind": "Pod", "metadata": {"name": name}, "spec": spec}


def _merge(values: Object, more: Object) -> Object:
    """A copy of the first with the second in it, at all depths."""
    merged = dict(values)
    for name, value in more.items():
        own = merged.get(name)
        both = isinstance(own, dict) and isinstance(value, dict)
        merged[name] = _merge(own, value) if both else value
    return merged


def _name(image: PushedImage, *, whole: bool = False) -> Object:
    """As the chart wants it; `whole`: with the registry, for one that is none of ours."""
    return {"repository": image.name if whole else image.repository, "digest": image.digest}


def _is_running(pod: Object) -> bool:
    return bool(pod["status"]["phase"] == "Running")
