"""The cluster that the tests of Kubernetes use: it does what they need, and leaves nothing."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import time
import urllib.request
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

import cluster_programs
import node_keeper
from base_image import ensure_archive
from cluster_access import Cluster
from fake_nodes import SECONDS, SELECTOR, TOLERATION, run_fake_nodes
from kubernetes_cluster import VARIABLE, KubernetesCluster
from machine_state import read_machine_state
from node_images import Image, push
from node_programs import PAUSE

pytestmark = pytest.mark.kubernetes

PATIENCE = 400.0  # seconds
GREETING = "a page for whoever asks"
# Debian's smallest Perl answers every connection with a page.
SERVER = f"""use IO::Socket::INET; $SIG{{TERM}} = sub {{ exit 0 }};
my $server = IO::Socket::INET->new(LocalPort => 8080, Listen => 9, ReuseAddr => 1) or die;
while (my $client = $server->accept()) {{
  while (<$client>) {{ last if /^\\r?\\n$/ }}
  print $client "HTTP/1.0 200 OK\\r\\n\\r\\n{GREETING}";
  close $client;
}}"""
CLIENT = """use IO::Socket::INET;
my $to = IO::Socket::INET->new("$ARGV[0]:80") or die "$ARGV[0]: $@";
print $to "GET / HTTP/1.0\\r\\n\\r\\n";
print <$to>;"""

# Starts a cluster with a pod in it, and stops it when it is told to.
SESSION = f"""from kubernetes_cluster import KubernetesCluster
own = KubernetesCluster()
own.start()
own.kubectl("run", "pod", "--image={PAUSE}")
own.kubectl("wait", "pod/pod", "--for=condition=Ready", "--timeout=300s")
print(own.name, own.folder, flush=True)
input()
own.stop()
"""


@pytest.fixture(scope="session")
def debian(cluster: Cluster) -> str:
    """The name of Debian's base image in the registry."""
    image = Image(ensure_archive().read_bytes(), ("/bin/sleep", "infinity"))
    return push(image, "debian:12", address=cluster.registry)


def make_pod(name: str, image: str, *command: str, **spec: object) -> dict[str, Any]:
    """A pod that pod security "restricted" lets in."""
    container = {
        "name": "main",
        "image": image,
        **({"command": list(command)} if command else {}),
        "securityContext": {
            "allowPrivilegeEscalation": False,
            "capabilities": {"drop": ["ALL"]},
        },
    }
    security = {
        "runAsNonRoot": True,
        "runAsUser": 10001,
        "seccompProfile": {"type": "RuntimeDefault"},
    }
    return {
        "apiVersion": "v1",
        "kind": "Pod",
        "metadata": {"name": name, "labels": {"app": name}},
        "spec": {
            "containers": [container],
            "securityContext": security,
            "restartPolicy": "Never",
            "terminationGracePeriodSeconds": 1,
            **spec,
        },
    }


def make_job(pod: dict[str, Any], *, count: int) -> dict[str, Any]:
    """A Job of that many pods at the same time."""
    template = {"metadata": pod["metadata"], "spec": pod["spec"]}
    return {
        "apiVersion": "batch/v1",
        "kind": "Job",
        "metadata": {"name": "many"},
        "spec": {"parallelism": count, "completions": count, "template": template},
    }


def run_pod(cluster: Cluster, namespace: str, pod: dict[str, Any]) -> str:
    """What the pod wrote, after it has succeeded."""
    name = pod["metadata"]["name"]
    create(cluster, namespace, pod)
    wait_for(lambda: read_phase(cluster, namespace, name) in ("Succeeded", "Failed"), name)
    output = cluster.kubectl("logs", name, "-n", namespace)
    assert read_phase(cluster, namespace, name) == "Succeeded", output
    return output


def create(cluster: Cluster, namespace: str, *objects: dict[str, Any]) -> None:
    given = json.dumps({"apiVersion": "v1", "kind": "List", "items": objects})
    cluster.kubectl("create", "-n", namespace, "-f", "-", given=given)


def read_phase(cluster: Cluster, namespace: str, name: str) -> str:
    return cluster.kubectl("get", "pod", name, "-n", namespace, "-o", "jsonpath={.status.phase}")


def wait_for(condition: Callable[[], bool], what: str) -> None:
    deadline = time.monotonic() + PATIENCE
    while not condition():
        assert time.monotonic() < deadline, f"{what}: not after {PATIENCE:.0f} s"
        time.sleep(0.1)


def test_a_node_is_ready(cluster: Cluster) -> None:
    path = 'jsonpath={.items[*].status.conditions[?(@.type=="Ready")].status}'
    assert "True" in cluster.kubectl("get", "nodes", "-o", path).split()


def test_a_pod_pulls_its_image_from_the_registry(
    cluster: Cluster, namespace: str, debian: str
) -> None:
    pod = make_pod("pulls", debian, "id", "-u")
    pod["spec"]["containers"][0]["imagePullPolicy"] = "Always"

    assert run_pod(cluster, namespace, pod) == "10001\n"

    reasons = "jsonpath={.items[*].reason}"
    named = "--field-selector=involvedObject.name=pulls"
    assert "Pulled" in cluster.kubectl("get", "events", "-n", namespace, named, "-o", reasons)


def test_a_service_answers_by_its_name(cluster: Cluster, namespace: str, debian: str) -> None:
    server = make_pod("web", debian, "perl", "-e", SERVER)
    ready = {"tcpSocket": {"port": 8080}, "periodSeconds": 1}
    server["spec"]["containers"][0]["readinessProbe"] = ready
    ports = [{"port": 80, "targetPort": 8080}]
    service = {
        "apiVersion": "v1",
        "kind": "Service",
        "metadata": {"name": "web"},
        "spec": {"selector": {"app": "web"}, "ports": ports},
    }
    create(cluster, namespace, server, service)
    cluster.kubectl("wait", "pod/web", "-n", namespace, "--for=condition=Ready", "--timeout=300s")
    whole_name = f"web.{namespace}.svc.cluster.local"

    for number, name in enumerate(("web", whole_name)):
        answer = run_pod(
            cluster, namespace, make_pod(f"asks-{number}", debian, "perl", "-e", CLIENT, name)
        )
        assert answer.endswith(GREETING)
    if cluster.own:  # this machine reaches services and pods, too
        path = "jsonpath={.spec.clusterIP}"
        address = cluster.kubectl("get", "service", "web", "-n", namespace, "-o", path)
        with urllib.request.urlopen(f"http://{address}/", timeout=60) as page:
            assert page.read().decode() == GREETING


def test_restricted_pod_security_refuses_root(cluster: Cluster, namespace: str) -> None:
    pod = make_pod("root", PAUSE)
    pod["spec"]["securityContext"].update({"runAsNonRoot": False, "runAsUser": 0})

    given = json.dumps(pod)
    refused = cluster.try_kubectl("create", "-n", namespace, "-f", "-", given=given)

    assert refused.returncode != 0
    assert 'violates PodSecurity "restricted' in refused.stderr


def test_a_volume_belongs_to_the_group_of_the_pod(
    cluster: Cluster, namespace: str, debian: str
) -> None:
    claim = {
        "apiVersion": "v1",
        "kind": "PersistentVolumeClaim",
        "metadata": {"name": "kept"},
        "spec": {
            "accessModes": ["ReadWriteOnce"],
            "resources": {"requests": {"storage": "1Gi"}},
        },
    }
    create(cluster, namespace, claim)
    volume = {"name": "kept", "persistentVolumeClaim": {"claimName": "kept"}}

    def make(name: str, script: str) -> dict[str, Any]:
        pod = make_pod(name, debian, "sh", "-c", script, volumes=[volume])
        pod["spec"]["containers"][0]["volumeMounts"] = [{"name": "kept", "mountPath": "/kept"}]
        pod["spec"]["securityContext"]["fsGroup"] = 10001
        return pod

    run_pod(cluster, namespace, make("writes", "echo kept >/kept/file"))
    assert run_pod(cluster, namespace, make("reads", "cat /kept/file")) == "kept\n"


def test_fake_nodes_run_200_pods(cluster: Cluster, namespace: str) -> None:
    pod = make_pod("fake", "not.there/at-all:1", nodeSelector=SELECTOR, tolerations=[TOLERATION])
    pod["metadata"]["annotations"] = {SECONDS: "1"}
    with run_fake_nodes(cluster.kubectl_program, cluster.kubeconfig, count=4) as nodes:
        create(cluster, namespace, make_job(pod, count=200))
        done = ("--for=condition=Complete", f"--timeout={PATIENCE:.0f}s")
        cluster.kubectl("wait", "job/many", "-n", namespace, *done)

        path = 'jsonpath={range .items[*]}{.status.phase} {.spec.nodeName}{"\\n"}{end}'
        rows = cluster.kubectl("get", "pods", "-n", namespace, "-o", path).splitlines()
        assert len(rows) == 200
        assert {row.split()[0] for row in rows} == {"Succeeded"}
        assert {row.split()[1] for row in rows} == set(nodes)


def test_a_pod_on_a_fake_node_runs_until_it_is_deleted(cluster: Cluster, namespace: str) -> None:
    pod = make_pod("fake", "not.there/at-all:1", nodeSelector=SELECTOR, tolerations=[TOLERATION])
    with run_fake_nodes(cluster.kubectl_program, cluster.kubeconfig, count=1):
        create(cluster, namespace, pod)
        ready = ("--for=condition=Ready", "--timeout=300s")
        cluster.kubectl("wait", "pod/fake", "-n", namespace, *ready)
        cluster.kubectl("delete", "pod", "fake", "-n", namespace, "--timeout=300s")
        assert cluster.kubectl("get", "pods", "-n", namespace, "-o", "name") == ""


def test_helm_and_skaffold_are_of_the_versions_we_name(
    helm3: Path, helm4: Path, skaffold: Path
) -> None:
    for command, version in (
        ((helm3, "version", "--short"), f"v{cluster_programs.HELM_3}"),
        ((helm4, "version", "--short"), f"v{cluster_programs.HELM_4}"),
        ((skaffold, "version"), f"v{cluster_programs.SKAFFOLD}"),
    ):
        done = subprocess.run(list(map(str, command)), capture_output=True, text=True, check=True)
        assert done.stdout.strip().startswith(version)


@pytest.fixture
def own(cluster: Cluster) -> KubernetesCluster:
    if cluster.own is None:
        pytest.xfail(f"{VARIABLE} names a cluster that is not the tests' own")
    return cluster.own


def test_the_api_server_can_be_away_for_a_while(
    cluster: Cluster, own: KubernetesCluster, namespace: str
) -> None:
    own.end_program("kube-apiserver")
    assert not own.is_answering()
    assert cluster.try_kubectl("get", "namespace", namespace).returncode != 0

    own.start_program("kube-apiserver")
    own.wait_for(own.is_answering, "kube-apiserver")
    cluster.kubectl("get", "namespace", namespace)


@pytest.mark.parametrize("end", ["stop", "kill"])
def test_a_cluster_leaves_nothing(own: KubernetesCluster, end: str) -> None:
    before = read_machine_state()
    # A cluster of its own test session, beside ours.
    with subprocess.Popen(
        [sys.executable, "-c", SESSION],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
        env={**os.environ, "PYTHONPATH": os.pathsep.join(sys.path)},
    ) as session:
        assert session.stdin is not None and session.stdout is not None
        name, folder = session.stdout.readline().split()
        during = read_machine_state()
        if end == "stop":
            session.stdin.write("stop\n")
        else:
            session.kill()
        session.stdin.close()
    assert name in during.links
    programs = (
        "kube-apiserver",
        "kubelet",
        "kube-proxy",
        "etcd",
        "coredns",
        "pause",
        "node_keeper",
    )
    started = during.find_new(before)["processes"]
    assert [name for name in programs if not any(name in row for row in started)] == []
    assert any(path.endswith(f"/{name}") for path in during.control_groups)
    assert during.settings == before.settings
    assert not any(folder in row for row in during.mounts)
    assert not any("kube" in row for row in during.rules)

    wait_for(lambda: not read_machine_state().find_new(before), f"nothing left of {name}")
    assert not Path(folder).exists()


def test_a_node_that_cannot_be_made_leaves_nothing(tmp_path: Path) -> None:
    before = read_machine_state()
    folder = tmp_path / "node"
    folder.mkdir()
    name = f"pestfleet-{os.getpid()}-too-long"  # for a link
    command = [sys.executable, node_keeper.__file__, str(folder), name, "10.255.0.0/16"]
    with subprocess.Popen(
        command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True
    ) as keeper:
        assert keeper.stdout is not None and keeper.stderr is not None
        assert keeper.stdout.readline() == ""
        assert name in keeper.stderr.read()
    assert keeper.returncode != 0
    assert not folder.exists()
    wait_for(lambda: not read_machine_state().find_new(before), f"nothing left of {name}")
