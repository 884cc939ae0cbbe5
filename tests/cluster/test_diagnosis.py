"""Why is it not running, and what is wrong before a launch: asked of a real cluster."""

from __future__ import annotations

import base64
import json
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import kubernetes.client
import pytest
import yaml

from base_image import ensure_archive
from cluster_access import Cluster
from hosting import wait_for
from node_images import Image, push
from pestfleet.folder import SessionSpec
from pestfleet.placement import Placement
from pestfleet.targets.kubernetes.access import Access, connect
from pestfleet.targets.kubernetes.chart import render
from pestfleet.targets.kubernetes.checks import check_launch
from pestfleet.targets.kubernetes.diagnosis import gather
from pestfleet.targets.kubernetes.naming import name_release
from pestfleet.targets.kubernetes.values import Images, make_values
from pestfleet.targets.troubles import Trouble, find_dead_end
from pestfleet_worker.errors import TargetError

pytestmark = pytest.mark.kubernetes

Object = dict[str, Any]

SESSION = "wells"
PATIENCE = 400.0  # seconds
SMALL = {"cpu": "10m", "memory": "16Mi"}
NAME = "registry.test/wells:1"  # of an image that nobody pulls
REFUSAL = "this worker has another case: 1234, not 5678"


@pytest.fixture(scope="module")
def debian(cluster: Cluster) -> str:
    """The name of Debian's base image in the registry."""
    image = Image(ensure_archive().read_bytes(), ("/bin/sleep", "infinity"))
    return push(image, "debian:12", address=cluster.registry)


@pytest.fixture
def access(cluster: Cluster, namespace: str, monkeypatch: pytest.MonkeyPatch) -> Access:
    monkeypatch.setenv("KUBECONFIG", str(cluster.kubeconfig))
    return connect(namespace=namespace)


@pytest.fixture
def make(cluster: Cluster, namespace: str) -> Callable[..., None]:
    def make(*objects: Object) -> None:
        for one in objects:
            cluster.kubectl("create", "-n", namespace, "-f", "-", given=json.dumps(one))

    return make


def make_job(
    image: str, *command: str, workers: int = 1, size: Object = SMALL, **pod: Any
) -> Object:
    """Workers as the chart has them: "restricted", and refused for good by exit code 10."""
    mounts = [{"name": one["name"], "mountPath": "/x"} for one in pod.get("volumes", ())]
    container = {
        "name": "worker",
        "image": image,
        "command": list(command or ("sleep", "infinity")),
        "resources": {"requests": size, "limits": size},
        "securityContext": {
            "allowPrivilegeEscalation": False,
            "capabilities": {"drop": ["ALL"]},
        },
        "volumeMounts": mounts,
    }
    labels = {"pestfleet.session": SESSION, "pestfleet.role": "worker"}
    spec = {
        "restartPolicy": "Never",
        "terminationGracePeriodSeconds": 1,
        "securityContext": {
            "runAsNonRoot": True,
            "runAsUser": 10001,
            "seccompProfile": {"type": "RuntimeDefault"},
        },
        "containers": [container],
        **pod,
    }
    refused = {"containerName": "worker", "operator": "In", "values": [10]}
    return {
        "apiVersion": "batch/v1",
        "kind": "Job",
        "metadata": {"name": "workers", "labels": labels},
        "spec": {
            "parallelism": workers,
            "backoffLimit": 0,
            "podFailurePolicy": {"rules": [{"action": "FailJob", "onExitCodes": refused}]},
            "template": {"metadata": {"labels": labels}, "spec": spec},
        },
    }


def find_trouble(access: Access, kind: str, *, count: int = 1) -> Trouble:
    """The trouble of that kind, as soon as so many pods have it."""
    found: list[Trouble] = []

    def look() -> bool:
        troubles = gather(access, SESSION, dwell=1)
        found[:] = [one for one in troubles if one.kind == kind and one.count == count]
        return bool(found)

    wait_for(look, timeout=PATIENCE, what=f"trouble of kind {kind}")
    return found[0]


def await_quota(access: Access) -> None:
    """Until the namespace's only quota counts."""

    def has_begun() -> bool:
        (quota,) = access.find_all(access.find_path("v1", "resourcequotas"))
        return bool(quota.get("status", {}).get("hard"))

    wait_for(has_begun, timeout=PATIENCE, what="the quota")


# -- what does not run -----------------------------------------------------------------------------


def test_an_image_that_is_not_there(cluster: Cluster, access: Access, make: Any) -> None:
    image = f"{cluster.registry}/not-there:1"
    make(make_job(image, workers=2))
    trouble = find_trouble(access, "image", count=2)
    assert trouble.message == f"2 workers wait: the registry has no image {image}"
    assert trouble.hopeless


def test_more_cores_than_any_node_has(access: Access, make: Any, debian: str) -> None:
    make(make_job(debian, workers=2, size={"cpu": "9999", "memory": "16Mi"}))
    trouble = find_trouble(access, "size", count=2)
    assert "asks for 9999 cores, and the largest node there has" in trouble.message
    assert find_dead_end([trouble], wanted=2, least=1) is trouble


def test_where_nodes_are_added_they_are_waited_for(
    cluster: Cluster, access: Access, make: Any, debian: str
) -> None:
    """An autoscaler tells what it does in a place that it has."""
    place = ("configmap", "cluster-autoscaler-status", "--namespace=kube-system")
    cluster.kubectl("create", *place)
    try:
        make(make_job(debian, nodeSelector={"pestfleet.test/none": "1"}))
        trouble = find_trouble(access, "selector")
    finally:
        cluster.kubectl("delete", *place)
    assert trouble.message == "1 worker waits: no node has the label pestfleet.test/none=1"
    assert not trouble.hopeless


def test_a_quota_that_allows_3_of_5(access: Access, make: Any, debian: str) -> None:
    quota = {"apiVersion": "v1", "kind": "ResourceQuota", "metadata": {"name": "small"}}
    make({**quota, "spec": {"hard": {"limits.memory": "48Mi"}}})
    await_quota(access)
    make(make_job(debian, workers=5))
    trouble = find_trouble(access, "quota", count=2)
    assert trouble.message == (
        "2 of 5 workers cannot be made: the quota small allows 48 MiB (limits.memory), 48 MiB of "
        "it in use, and each asks for 16 MiB"
    )
    assert find_dead_end([trouble], wanted=5, least=3) is None
    assert find_dead_end([trouble], wanted=5, least=4) is trouble


def test_a_secret_that_is_not_there(access: Access, make: Any, debian: str) -> None:
    make(make_job(debian, volumes=[{"name": "x", "secret": {"secretName": "gone"}}]))
    trouble = find_trouble(access, "missing")
    assert trouble.message == "1 worker waits: the namespace has no secret gone"


def test_a_volume_of_a_class_that_is_not_there(access: Access, make: Any, debian: str) -> None:
    claim = {
        "apiVersion": "v1",
        "kind": "PersistentVolumeClaim",
        "metadata": {"name": "kept"},
        "spec": {
            "storageClassName": "not-there",
            "accessModes": ["ReadWriteOnce"],
            "resources": {"requests": {"storage": "1Gi"}},
        },
    }
    volume = {"name": "x", "persistentVolumeClaim": {"claimName": "kept"}}
    make(claim, make_job(debian, volumes=[volume]))

    def find_message() -> str:
        return find_trouble(access, "volume").message

    says = "1 worker waits: the cluster has no storage class not-there, which the volume kept names"
    wait_for(lambda: find_message() == says, timeout=PATIENCE, what=says)


def test_more_memory_than_the_limit(access: Access, make: Any, debian: str) -> None:
    make(make_job(debian, "perl", "-e", "my $x = 'a' x 200000000; sleep 60"))
    trouble = find_trouble(access, "memory")
    assert "1 worker ended: out of memory: more than the limit of 16 MiB" in trouble.message
    assert trouble.remedy.endswith("--memory 32m")


def test_a_worker_that_refuses(access: Access, make: Any, debian: str) -> None:
    make(make_job(debian, "sh", "-c", f"exec >&2; echo starting; echo {REFUSAL}; exit 10"))
    trouble = find_trouble(access, "refused")
    assert trouble.message == (
        "1 worker ended: it refused the session (exit code 10); its log ends with: " + REFUSAL
    )
    assert trouble.tail == ("starting", REFUSAL)
    assert trouble.hopeless


def test_a_broker_that_ends_again_and_again(access: Access, make: Any, debian: str) -> None:
    job = make_job(debian, "sh", "-c", "echo no such file: rabbitmq.conf; exit 3")
    template = job["spec"]["template"]
    del template["spec"]["restartPolicy"]
    labels = {"pestfleet.session": SESSION, "pestfleet.role": "broker"}
    template["spec"]["containers"][0]["name"] = "broker"
    template["metadata"]["labels"] = labels
    spec = {"serviceName": "broker", "selector": {"matchLabels": labels}, "template": template}
    metadata = {"name": "broker", "labels": labels}
    make({"apiVersion": "apps/v1", "kind": "StatefulSet", "metadata": metadata, "spec": spec})
    trouble = find_trouble(access, "crash")
    assert trouble.message == (
        "the broker waits: it ended with exit code 3, again and again; its log ends with: no such "
        "file: rabbitmq.conf"
    )


def test_pods_that_the_namespace_forbids(access: Access, make: Any, debian: str) -> None:
    make(make_job(debian, workers=3, hostNetwork=True))
    trouble = find_trouble(access, "security", count=3)
    assert trouble.message.startswith(
        "3 workers cannot be made: the namespace allows only pods of security level restricted: "
    )


def test_workers_that_run_are_no_trouble(
    cluster: Cluster, access: Access, namespace: str, make: Any, debian: str
) -> None:
    make(make_job(debian, workers=2))
    ready = ("--for=condition=Ready", "--timeout=300s")
    wait_for(lambda: len(access.find_all(access.find_path("v1", "pods"))) == 2, what="2 pods")
    cluster.kubectl("wait", "pod", "--all", "-n", namespace, *ready)
    before = access.calls
    assert gather(access, SESSION, dwell=0) == []
    assert access.calls - before == 2


# -- before a launch -------------------------------------------------------------------------------


def make_objects(access: Access, **values: Any) -> list[Object]:
    """The chart's objects, without volumes."""
    spec = SessionSpec(
        session=SESSION,
        digest="",
        control_file="wells.pst",
        engine="glm",
        options={},
        target="kubernetes",
        workers=2,
        slots=1,
        place=Placement(master="there"),
    )
    plan = make_values(spec, Images(worker=NAME, broker=NAME, master=NAME), broker=True)
    plan["master"]["volume"] = {"enabled": False}
    for part in ("master", "broker", "workers"):
        plan[part]["resources"] = {"requests": SMALL, "limits": SMALL}
    for name, more in values.items():
        plan[name] = {**plan[name], **more}
    release = name_release(SESSION)
    return render(plan, release=release, namespace=access.namespace)


def test_a_launch_that_can_work(access: Access) -> None:
    before = {kind: access.find_all(access.find_path("v1", kind)) for kind in ("pods", "secrets")}
    assert check_launch(access, make_objects(access)) == []
    after = {kind: access.find_all(access.find_path("v1", kind)) for kind in ("pods", "secrets")}
    assert before == after


@pytest.mark.parametrize(
    ("workers", "says"),
    [
        ({"nodeSelector": {"pestfleet.test/none": "1"}}, "no node has the label"),
        ({"priorityClassName": "nothing"}, "the cluster has no priority class nothing"),
        (
            {
                "volumes": [{"name": "disk", "hostPath": {"path": "/"}}],
            },
            "allows only pods of security level restricted: restricted volume types",
        ),
    ],
)
def test_a_launch_that_cannot_work(access: Access, workers: Object, says: str) -> None:
    with pytest.raises(TargetError, match=says):
        check_launch(access, make_objects(access, workers=workers))


def test_a_launch_into_a_full_namespace(access: Access, make: Any) -> None:
    quota = {"apiVersion": "v1", "kind": "ResourceQuota", "metadata": {"name": "small"}}
    make({**quota, "spec": {"hard": {"pods": "3"}}})

    await_quota(access)
    (warning,) = check_launch(access, make_objects(access))
    assert warning.startswith("the quota small leaves room for 1 of 2 workers: ")
    with pytest.raises(TargetError, match="leaves room for 1 of 2 workers"):
        check_launch(access, make_objects(access), least=2)


def test_a_namespace_that_is_not_there(access: Access) -> None:
    elsewhere = connect(namespace="not-there")
    with pytest.raises(TargetError, match="has no namespace not-there"):
        check_launch(elsewhere, make_objects(elsewhere))


@pytest.fixture
def modest(cluster: Cluster, namespace: str, tmp_path: Path) -> Iterator[Access]:
    """The access of an account that has no rights yet."""
    cluster.kubectl("create", "serviceaccount", "modest", "-n", namespace)
    token = cluster.kubectl("create", "token", "modest", "-n", namespace).strip()
    config = yaml.safe_load(cluster.kubectl("config", "view", "--raw", "--flatten"))
    server = config["clusters"][0]["cluster"]
    authority = tmp_path / "ca.pem"
    authority.write_bytes(base64.b64decode(server["certificate-authority-data"]))
    configuration = kubernetes.client.Configuration()
    configuration.host = server["server"]
    configuration.ssl_ca_cert = str(authority)
    configuration.api_key = {"authorization": f"Bearer {token}"}
    yield Access(configuration, namespace=namespace)


def test_the_role_that_is_named_is_enough(
    cluster: Cluster, namespace: str, modest: Access, make: Any
) -> None:
    objects = make_objects(modest)
    with pytest.raises(TargetError, match="your account may not") as caught:
        check_launch(modest, objects)
    assert "jobs (batch): create" in caught.value.message
    make(yaml.safe_load(caught.value.remedy.partition(":\n")[2]))
    account = f"--serviceaccount={namespace}:modest"
    cluster.kubectl("create", "rolebinding", "ours", "--role=pestfleet", account, "-n", namespace)

    def check() -> bool:
        try:
            return check_launch(modest, objects) == []
        except TargetError as error:
            assert "may not" in error.message  # the authorizer has not heard of it yet
            return False

    wait_for(check, timeout=PATIENCE, what="a launch that can work")
    # It sees why pods wait, though it may not list the nodes.
    make(make_job(NAME, nodeSelector={"pestfleet.test/none": "1"}))
    trouble = find_trouble(modest, "selector")
    assert trouble.message == "1 worker waits: no node has the label pestfleet.test/none=1"
