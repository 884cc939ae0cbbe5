"""How a session's objects are made, and what is said when they are not."""

from __future__ import annotations

from typing import Any

import pytest

from fake_cluster_access import FakeAccess
from pestfleet.targets.base import Taken
from pestfleet.targets.kubernetes.access import Refused
from pestfleet.targets.kubernetes.fleet import KubernetesFleet
from pestfleet_worker.errors import SessionError, TargetError

ROLE = "pestfleet.role"
EXISTS = Refused(409, "AlreadyExists", "it is there")


class Recorder(FakeAccess):
    """Takes changes, too."""

    def __init__(self, answers: dict[str, Any]) -> None:
        super().__init__(answers)
        self.patched: list[tuple[str, dict[str, Any]]] = []

    def patch(self, path: str, body: dict[str, Any], **query: object) -> dict[str, Any]:
        self.asked.append(f"PATCH {path}")
        self.patched.append((path, body))
        return body


def make_object(version: str, kind: str, role: str, **spec: Any) -> dict[str, Any]:
    name = f"{role}-{kind.lower()}"
    metadata = {"name": name, "labels": {ROLE: role}}
    return {"apiVersion": version, "kind": kind, "metadata": metadata, "spec": spec}


OBJECTS = [
    make_object("batch/v1", "Job", "worker", parallelism=3),
    make_object("v1", "Secret", "credentials"),
    make_object("batch/v1", "Job", "master"),
    make_object("v1", "PersistentVolumeClaim", "master"),
    make_object("apps/v1", "StatefulSet", "broker"),
]
JOB = {"metadata": {"name": "master-job", "uid": "u1"}}
ANSWERS: dict[str, Any] = {
    "/jobs": JOB,
    "/secrets": {},
    "/persistentvolumeclaims": {},
    "/statefulsets": {},
}


def make_fleet(**changed: Any) -> tuple[KubernetesFleet, Recorder]:
    access = Recorder({**ANSWERS, **{f"/{plural}": answer for plural, answer in changed.items()}})
    return KubernetesFleet(access, "first"), access  # type: ignore[arg-type]


def test_the_owner_has_pods_when_all_is_there_that_they_mount() -> None:
    fleet, access = make_fleet()
    fleet.apply(OBJECTS, owner="master")
    kinds = [body["kind"] for _, body, _ in access.posted]
    assert kinds == ["Job", "PersistentVolumeClaim", "Secret", "StatefulSet", "Job"]
    first, claim, *others = (body for _, body, _ in access.posted)
    assert first["metadata"]["name"] == "master-job" and first["spec"]["parallelism"] == 0
    assert "ownerReferences" not in claim["metadata"]
    assert [o["metadata"]["ownerReferences"][0]["uid"] for o in others] == ["u1"] * 3
    assert others[-1]["spec"]["parallelism"] == 0
    assert [asked.split()[0] for asked in access.asked] == ["POST"] * 5 + ["PATCH"] * 2
    assert access.patched == [
        ("/batch/v1/wells/jobs/master-job", {"spec": {"parallelism": 1}}),
        ("/batch/v1/wells/jobs/worker-job", {"spec": {"parallelism": 3}}),
    ]


def test_workers_that_own_all_are_as_many_as_asked_for() -> None:
    fleet, access = make_fleet()
    fleet.apply(
        [one for one in OBJECTS if one["metadata"]["labels"][ROLE] != "master"], owner="worker"
    )
    assert access.patched[-1][1] == {"spec": {"parallelism": 3}}


@pytest.mark.parametrize(
    ("status", "remedy"), [(403, "Ask for it."), (422, "--dry-run"), (500, "Try again")]
)
def test_a_refusal_names_the_object(status: int, remedy: str) -> None:
    given = remedy if status == 403 else ""
    fleet, access = make_fleet(secrets=Refused(status, "No", "it says no", remedy=given))
    with pytest.raises(Refused) as caught:
        fleet.apply(OBJECTS, owner="master")
    message = "the cluster does not make secret credentials-secret: it says no"
    assert caught.value.message == message and remedy in caught.value.remedy
    assert not access.patched


def test_the_claim_of_a_session_that_resumes_is_used_again() -> None:
    fleet, access = make_fleet(persistentvolumeclaims=EXISTS)
    access.answers["/master-persistentvolumeclaim"] = {}
    fleet.apply(OBJECTS, owner="master")
    assert access.patched


def test_another_session_s_object_is_not_used() -> None:
    fleet, _ = make_fleet(secrets=EXISTS)
    with pytest.raises(SessionError, match="has a secret credentials-secret in namespace wells"):
        fleet.apply(OBJECTS, owner="master")


def make_pod(name: str, role: str, made: str, phase: str, *, leaving: bool = False) -> Any:
    metadata = {"name": name, "creationTimestamp": made, "labels": {ROLE: role}}
    if leaving:
        metadata["deletionTimestamp"] = made
    return {"metadata": metadata, "status": {"phase": phase}}


def test_servers_are_those_that_run_or_the_newest() -> None:
    pods = [
        make_pod("m3", "master", "3", "Pending"),
        make_pod("m2", "master", "2", "Running"),
        make_pod("m1", "master", "1", "Running", leaving=True),
        make_pod("b2", "broker", "2", "Pending"),
        make_pod("b1", "broker", "1", "Failed"),
    ]
    fleet, _ = make_fleet(pods=pods)
    assert {role: pod.name for role, pod in fleet.find_servers().items()} == {
        "master": "m2",
        "broker": "b2",
    }


def test_an_id_that_another_machine_took_meanwhile_is_told_apart() -> None:
    fleet, _ = make_fleet(jobs=EXISTS)
    with pytest.raises(Taken, match="already"):
        fleet.apply(OBJECTS, owner="master")


def test_a_master_that_has_not_started_is_not_said_to_have_stopped() -> None:
    job: dict[str, Any] = {"metadata": {"name": "master-job"}, "spec": {}, "status": {}}
    fleet, _ = make_fleet(pods=[make_pod("m1", "master", "1", "Pending")], jobs=[job])
    with pytest.raises(TargetError, match="does not run just now"):
        fleet.stop_master()
