"""A master in a pod that scales the Job with its workers, against an API server played here."""

from __future__ import annotations

import json
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any
from urllib.parse import parse_qs, urlsplit

import pytest

from json_server import serve_json
from pestfleet.cluster_api import ClusterApi
from pestfleet.targets import scaling
from pestfleet.targets.base import FleetPlan
from pestfleet.targets.cluster_workers import ClusterWorkers
from pestfleet_worker.errors import ConfigurationError

JOB, PODS = "/apis/batch/v1/namespaces/here/jobs/workers", "/api/v1/namespaces/here/pods"


@dataclass
class FakeCluster:
    """A Job, and the pods of it that are ready. `answers`: error codes to give first."""

    parallelism: int = 4
    ready: int = 4
    ending: int = 0
    answers: list[int] = field(default_factory=list)
    asked: list[tuple[str, str]] = field(default_factory=list)
    patched: list[int] = field(default_factory=list)
    url: str = ""

    def answer(self, method: str, path: str, body: bytes) -> tuple[int, Any]:
        place = urlsplit(path)
        self.asked.append((method, place.path))
        if self.answers:
            return self.answers.pop(0), {}
        if place.path == PODS:
            query = parse_qs(place.query)
            assert query["labelSelector"] == ["job-name=workers"]
            return 200, {"items": [*self._pods(self.ready, "True"), *self._pods(3, "False")]}
        assert place.path == JOB
        if method == "PATCH":
            change = json.loads(body)
            assert change.keys() == {"spec"} and change["spec"].keys() == {"parallelism"}
            self.parallelism = change["spec"]["parallelism"]
            self.patched.append(self.parallelism)
        return 200, {"spec": {"parallelism": self.parallelism}}

    def _pods(self, count: int, ready: str) -> list[Any]:
        conditions = [{"type": "Ready", "status": ready}]
        ends = [{"deletionTimestamp": "2020-01-01T00:00:00Z"}] * self.ending
        return [
            {"metadata": metadata, "status": {"conditions": conditions}}
            for metadata in (*[{}] * count, *ends)
        ]


@pytest.fixture
def cluster() -> Iterator[FakeCluster]:
    cluster = FakeCluster()
    with serve_json(
        lambda request, body: cluster.answer(request.command, request.path, body)
    ) as url:
        cluster.url = url
        yield cluster


@pytest.fixture
def target(
    cluster: FakeCluster, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> Iterator[ClusterWorkers]:
    monkeypatch.setattr(scaling, "INTERVAL", 0.02)
    (tmp_path / "token").write_text("a-token")
    api = ClusterApi(cluster.url, "here", tmp_path / "token", None, patience=0.0)
    plan = FleetPlan("s", tmp_path, tmp_path, "amqp://h//", 4, 1, tmp_path)
    target = ClusterWorkers(plan, job="workers", api=api)
    target.launch()
    yield target
    target.teardown()


def wait_for(condition: Callable[[], object]) -> None:
    deadline = time.monotonic() + 60
    while not condition():
        assert time.monotonic() < deadline
        time.sleep(0.01)


def test_nothing_is_asked_of_the_server_before_there_is_a_reason(
    cluster: FakeCluster, target: ClusterWorkers
) -> None:
    target.teardown()
    assert cluster.asked == []


def test_more_workers_come_at_once(cluster: FakeCluster, target: ClusterWorkers) -> None:
    target.scale(30)
    wait_for(lambda: cluster.patched)
    assert cluster.patched == [30]
    assert ("GET", PODS) not in cluster.asked


def test_fewer_wait_until_the_drained_pods_are_not_ready(
    cluster: FakeCluster, target: ClusterWorkers
) -> None:
    target.scale(1, ["a", "b", "c"])
    wait_for(lambda: cluster.asked.count(("GET", PODS)) >= 3)
    assert cluster.patched == []
    cluster.ready = 3
    wait_for(lambda: cluster.patched)
    cluster.ready = 1
    wait_for(lambda: cluster.parallelism == 1)
    assert cluster.patched[0] == 3, "no pod that is ready is ended"
    done = len(cluster.asked)
    target.scale(1)
    time.sleep(0.1)
    assert len(cluster.asked) == done


def test_pods_that_end_anyway_do_not_count(cluster: FakeCluster, target: ClusterWorkers) -> None:
    cluster.ready, cluster.ending = 1, 3
    target.scale(1)
    wait_for(lambda: cluster.patched)
    assert cluster.patched == [1]


def test_more_that_are_wanted_meanwhile_win(cluster: FakeCluster, target: ClusterWorkers) -> None:
    target.scale(1)
    wait_for(lambda: ("GET", PODS) in cluster.asked)
    target.scale(9)
    wait_for(lambda: cluster.patched)
    cluster.ready = 0
    time.sleep(0.1)
    assert cluster.patched == [9]


def test_trouble_with_the_server_is_met_with_patience(
    cluster: FakeCluster, target: ClusterWorkers, caplog: pytest.LogCaptureFixture
) -> None:
    cluster.answers = [403, 500, 404]
    target.scale(6)
    wait_for(lambda: cluster.patched)
    assert cluster.patched == [6]
    assert "Job workers cannot be scaled, trying again: HTTP Error 403" in caplog.text
    target.check()


def test_outside_of_a_pod_it_says_so(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("pestfleet.cluster_api.ACCOUNT", tmp_path)
    plan = FleetPlan("s", tmp_path, tmp_path, "amqp://h//", 4, 1, tmp_path)
    with pytest.raises(ConfigurationError, match="no pod with a service account"):
        ClusterWorkers(plan, job="workers")
