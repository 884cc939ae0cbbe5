"""What a session becomes on Kubernetes: names, values of the chart, objects."""

from __future__ import annotations

import io
import json
import re
import tarfile
from pathlib import Path
from typing import Any

import pytest
import yaml

from pestfleet.folder import SessionSpec
from pestfleet.placement import Placement
from pestfleet.settings import ImageSettings
from pestfleet.targets.base import Where
from pestfleet.targets.choices import check_choices
from pestfleet.targets.kubernetes.chart import Overrides, find_helm, render
from pestfleet.targets.kubernetes.launch import describe
from pestfleet.targets.kubernetes.naming import MANAGER, SESSION, US, name_release
from pestfleet.targets.kubernetes.sessions import _describe as describe_session
from pestfleet.targets.kubernetes.values import Images, make_values, multiply, split_image
from pestfleet.targets.streams import unpack
from pestfleet_worker.errors import ConfigurationError, TargetError

IMAGES = Images("example.org/case@sha256:" + "a" * 64, "rabbitmq:3.13", "example.org/master:1")


def make_spec(**changes: Any) -> SessionSpec:
    values: dict[str, Any] = {
        "session": "My.case_1",
        "control_file": "/case/case.pst",
        "digest": "d" * 64,
        "engine": "glm",
        "target": "kubernetes",
        "workers": 3,
        "slots": 2,
        "place": Placement(master="there", memory="1.5g", cpus=0.5),
    }
    return SessionSpec(**{**values, **changes})


def test_release_names_are_labels_and_differ() -> None:
    sessions = ["a", "A", "a.b", "a-b", "a_b", "x" * 60, "x" * 59 + "y", "2024-11-21"]
    names = [name_release(session) for session in sessions]
    assert len(set(names)) == len(names)
    for name in names:
        assert re.fullmatch(r"[a-z]([-a-z0-9]*[a-z0-9])?", name) and len(name) <= 28


@pytest.mark.parametrize(
    ("reference", "parts"),
    [
        ("case", ("case", "latest", "")),
        ("case:2", ("case", "2", "")),
        ("localhost:5000/team/case", ("localhost:5000/team/case", "latest", "")),
        ("localhost:5000/case:2", ("localhost:5000/case", "2", "")),
        ("example.org/case@sha256:ab", ("example.org/case", "", "sha256:ab")),
        ("example.org/case:2@sha256:ab", ("example.org/case", "2", "sha256:ab")),
    ],
)
def test_references_of_images(reference: str, parts: tuple[str, str, str]) -> None:
    assert tuple(split_image(reference).values()) == parts


@pytest.mark.parametrize(
    ("size", "slots", "product"),
    [
        ("2g", 1, "2Gi"),
        ("2Gi", 3, "6Gi"),
        ("1.5g", 2, "3Gi"),
        ("512m", 2, "1024Mi"),
        ("100k", 1, "100Ki"),
        ("4096", 2, "8192"),
        ("0.5g", 1, "536870912"),
        ("300b", 1, "300"),
    ],
)
def test_sizes_of_workers(size: str, slots: int, product: str) -> None:
    assert multiply(size, slots) == product


def find(objects: list[dict[str, Any]], kind: str, role: str) -> dict[str, Any]:
    (found,) = [
        one
        for one in objects
        if one["kind"] == kind and one["metadata"]["labels"]["pestfleet.role"] == role
    ]
    return found


def render_spec(spec: SessionSpec, **overrides: Any) -> list[dict[str, Any]]:
    values = make_values(spec, IMAGES, broker=True)
    return render(
        values,
        release=name_release(spec.session),
        namespace="here",
        overrides=Overrides(**overrides),
    )


def test_the_chart_takes_our_values() -> None:
    spec = make_spec(options={"noptmax": "3"}, arguments=["-x", "a b"], seconds=2.5, max_hours=5.0)
    objects = render_spec(spec)
    workers = find(objects, "Job", "worker")
    assert workers["spec"]["parallelism"] == 3 and "completions" not in workers["spec"]
    (worker,) = workers["spec"]["template"]["spec"]["containers"]
    size = {"cpu": "1", "memory": "3Gi"}
    assert worker["resources"] == {"requests": size, "limits": size}
    assert worker["image"] == IMAGES.worker
    master = find(objects, "Job", "master")
    # The master ends in good order by itself, a little before.
    assert 5 * 3600 < master["spec"]["activeDeadlineSeconds"] < 6 * 3600
    assert master["spec"]["ttlSecondsAfterFinished"] <= 300
    words = master["spec"]["template"]["spec"]["containers"][0]["args"]
    assert words[words.index("--session") + 1] == spec.session
    assert "noptmax=3" in words and "--keep-workers" in words
    assert words[words.index("--engine-args") + 1] == "-x 'a b'"
    # Nothing but a master of an elastic fleet has an account.
    assert {"Role", "ServiceAccount"}.isdisjoint(one["kind"] for one in objects)
    assert {one["metadata"]["labels"][SESSION] for one in objects} == {spec.session}


def test_an_elastic_fleet_has_an_account_for_its_job() -> None:
    objects = render_spec(make_spec(most=50))
    (role,) = [one for one in objects if one["kind"] == "Role"]
    job = find(objects, "Job", "worker")["metadata"]["name"]
    rights = {tuple(rule["resources"]): rule for rule in role["rules"]}
    assert rights["jobs",]["resourceNames"] == [job]
    words = find(objects, "Job", "master")["spec"]["template"]["spec"]["containers"][0]["args"]
    assert words[words.index("--most") + 1] == "50"
    assert words[words.index("--workers-job") + 1] == job


def test_what_the_user_sets_wins(tmp_path: Path) -> None:
    file = tmp_path / "mine.yaml"
    file.write_text("workers: {count: 7, spot: gke}\n", encoding="utf-8")
    objects = render_spec(make_spec(), files=(str(file),), sets=("workers.count=9",))
    workers = find(objects, "Job", "worker")
    assert workers["spec"]["parallelism"] == 9
    assert "cloud.google.com/gke-spot" in json.dumps(workers)
    with pytest.raises(ConfigurationError, match="wrokers"):
        render_spec(make_spec(), sets=("wrokers.count=9",))
    with pytest.raises(ConfigurationError, match=r"none\.yaml is not there"):
        render_spec(make_spec(), files=("none.yaml",))


def test_no_helm(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("PATH", str(tmp_path))
    monkeypatch.setattr("sys.executable", str(tmp_path / "python"))
    with pytest.raises(TargetError, match="helm is not installed") as caught:
        find_helm()
    assert "pestfleet[kubernetes]" in caught.value.remedy


def test_a_look_at_the_plan_asks_no_cluster(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("KUBECONFIG", "/none")
    text = describe(make_spec(), Path("there"), image=ImageSettings(), broker_url="")
    assert "pods/exec" in text.partition("apiVersion")[0]
    objects = [one for one in yaml.safe_load_all(text) if one]
    assert {"Job", "StatefulSet", "PersistentVolumeClaim"} <= {one["kind"] for one in objects}
    assert {one["metadata"]["labels"][MANAGER] for one in objects} == {US}


@pytest.mark.parametrize(
    ("place", "mode", "broker_url", "wrong"),
    [
        (Placement(master="there", tunnel=True), "queue", "", "a tunnel is for a master"),
        (Placement(master="there"), "queue", "amqp://localhost", "no pod reaches"),
        (Placement(master="here"), "agent", "", "do not reach a master"),
    ],
)
def test_placements_that_cannot_work(
    place: Placement, mode: str, broker_url: str, wrong: str
) -> None:
    with pytest.raises(ConfigurationError, match=wrong):
        check_choices(make_spec(place=place, mode=mode), broker_url, unit="pod")


def make_object(plural: str, role: str, **more: Any) -> dict[str, Any]:
    labels = {SESSION: "first", "pestfleet.role": role, MANAGER: US}
    metadata = {"name": role, "labels": labels, "creationTimestamp": "2026-01-01T00:00:00Z"}
    return {"plural": plural, "metadata": metadata, "spec": {}, "status": {}, **more}


ENDED = {"conditions": [{"type": "Complete", "status": "True"}]}


@pytest.mark.parametrize(
    ("objects", "state"),
    [
        ([make_object("jobs", "master"), make_object("jobs", "worker")], "running"),
        ([make_object("jobs", "worker")], "running"),  # its master is at home
        ([make_object("persistentvolumeclaims", "master")], "results kept"),
        (
            [
                make_object("jobs", "master", status=ENDED),
                make_object("persistentvolumeclaims", "master"),
            ],
            "results kept",
        ),
        ([make_object("jobs", "master", status=ENDED)], "ended, its objects are left"),
    ],
)
def test_states_of_sessions(objects: list[dict[str, Any]], state: str) -> None:
    info = describe_session("first", objects, Where("context", "space"))
    assert info.state == state and info.where.namespace == "space"
    assert len(info.parts) == len(objects)


def test_archives_come_in_pieces(tmp_path: Path) -> None:
    packed = io.BytesIO()
    with tarfile.open(fileobj=packed, mode="w:gz") as archive:
        entry = tarfile.TarInfo("results/a.par")
        entry.size = 3
        archive.addfile(entry, io.BytesIO(b"abc"))
    content = packed.getvalue()
    assert unpack((content[n : n + 7] for n in range(0, len(content), 7)), tmp_path)
    assert (tmp_path / "results" / "a.par").read_bytes() == b"abc"
