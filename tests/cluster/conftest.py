"""A Kubernetes for the tests with its registry, and the programs that talk to it."""

from __future__ import annotations

import dataclasses
import os
import shutil
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from uuid import uuid4

import docker
import pytest

import cluster_images as images
import cluster_programs
from cases import make_case, write_sweep
from chart_session import EXAMPLE, ROOT, Calibration, ChartSession, read_calibration
from cluster_access import Cluster
from cluster_images import ClusterImages, PushedImage
from cluster_shell import ClusterShell
from cluster_volumes import provision_volumes
from hosting import wait_for
from image_registry import run_registry
from kubernetes_cluster import CACHE_VARIABLE, VARIABLE, KubernetesCluster
from pestfleet.case import Case
from pestfleet.images.case import ensure_case_image
from pestfleet.settings import ImageSettings

REGISTRY_VARIABLE = "PESTFLEET_TEST_REGISTRY"  # HOST:PORT that this machine and that cluster know


@pytest.fixture(scope="session")
def cluster() -> Iterator[Cluster]:
    """A cluster for all tests, ours or that of PESTFLEET_TEST_KUBECONFIG."""
    given = os.environ.get(VARIABLE)
    if given:
        kubectl = shutil.which("kubectl")
        assert kubectl, f"{VARIABLE} is set, so kubectl must be on PATH"
        address = os.environ.get(REGISTRY_VARIABLE, "")
        assert address, f"with {VARIABLE}, {REGISTRY_VARIABLE}=HOST:PORT must name its registry"
        yield Cluster(Path(given), address, None, Path(kubectl))
        return
    own = KubernetesCluster()
    before = os.environ.get(CACHE_VARIABLE)
    os.environ[CACHE_VARIABLE] = str(own.cache)
    try:
        own.start()
        with (
            run_registry(own.folder) as registry,
            provision_volumes(own.kubeconfig, own.folder / "volumes"),
        ):
            # Once more on the node's loopback: images have the same names there.
            own.start_program("docker-registry", list(registry.command))
            kubectl_program = cluster_programs.ensure_kubernetes() / "kubectl"
            yield Cluster(own.kubeconfig, registry.address, own, kubectl_program)
    finally:
        del os.environ[CACHE_VARIABLE]
        if before is not None:
            os.environ[CACHE_VARIABLE] = before
        own.stop()


@pytest.fixture
def kubectl(cluster: Cluster) -> Callable[..., str]:
    """Runs kubectl as the cluster's administrator: `kubectl("get", "nodes")`."""
    return cluster.kubectl


@pytest.fixture
def namespace(cluster: Cluster) -> Iterator[str]:
    """A namespace of the test's own, in which pod security "restricted" is enforced."""
    name = f"pestfleet-test-{uuid4().hex[:8]}"
    cluster.kubectl("create", "namespace", name)
    enforced = "pod-security.kubernetes.io/enforce=restricted"
    cluster.kubectl("label", "namespace", name, enforced)
    # After an outage that a test made, Kubernetes takes a while for what each namespace has.
    account = ("get", "serviceaccount", "default", f"--namespace={name}")
    wait_for(lambda: cluster.try_kubectl(*account).returncode == 0, timeout=400, what=str(account))
    yield name
    cluster.kubectl("delete", "namespace", name, "--wait=false")


@pytest.fixture(scope="session")
def helm3() -> Path:
    """The program helm, version 3."""
    return cluster_programs.ensure_helm(cluster_programs.HELM_3)


@pytest.fixture(scope="session")
def helm4() -> Path:
    """The program helm, version 4."""
    return cluster_programs.ensure_helm(cluster_programs.HELM_4)


@pytest.fixture(scope="session")
def skaffold() -> Path:
    """The program skaffold."""
    return cluster_programs.ensure_skaffold()


@pytest.fixture(scope="session")
def cluster_images(
    cluster: Cluster, docker_engine: docker.DockerClient, ensure: Callable[[str], str]
) -> Iterator[ClusterImages]:
    """The images of worker, master, tunnel and broker in the cluster's registry."""
    before = images.list_tags(docker_engine, cluster.registry)
    pushed = {
        role: images.push(docker_engine, ensure(role), cluster.registry) for role in images.ROLES
    }
    yield ClusterImages(registry=cluster.registry, **pushed)
    # What the tests have pushed by commands.
    for tag in images.list_tags(docker_engine, cluster.registry) - before:
        docker_engine.images.remove(tag)


@pytest.fixture(scope="session")
def case_image(
    cluster: Cluster,
    docker_engine: docker.DockerClient,
    image_settings: ImageSettings,
    tmp_path_factory: pytest.TempPathFactory,
) -> PushedImage:
    """The image of the example Oude Korendijk in the cluster's registry."""
    folder = tmp_path_factory.mktemp("case") / EXAMPLE
    shutil.copytree(ROOT / "examples" / EXAMPLE, folder)
    built = ensure_case_image(Case.read(folder), image_settings, engine=docker_engine)
    return images.push(docker_engine, built.reference, cluster.registry)


@pytest.fixture
def cluster_environment(
    cluster: Cluster,
    cluster_images: ClusterImages,
    image_environment: None,
    helm3: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """pestfleet's commands, kubectl and helm find the cluster and its registry."""
    monkeypatch.setenv("KUBECONFIG", str(cluster.kubeconfig))
    monkeypatch.setenv("PESTFLEET_IMAGE__REGISTRY", cluster.registry)
    monkeypatch.setenv("PESTFLEET_IMAGE__BROKER", cluster_images.broker.reference)
    programs = (str(helm3.parent), str(cluster.kubectl_program.parent), os.environ["PATH"])
    monkeypatch.setenv("PATH", os.pathsep.join(programs))


@pytest.fixture
def shell(
    tmp_path: Path,
    cluster: Cluster,
    namespace: str,
    cluster_environment: None,
    monkeypatch: pytest.MonkeyPatch,
) -> Iterator[ClusterShell]:
    """The command line of pestfleet, with a namespace of the test's own."""
    monkeypatch.setenv("PESTFLEET_NAMESPACE", namespace)
    made = ClusterShell(tmp_path, cluster, namespace)
    try:
        yield made
    finally:
        made.close()


@pytest.fixture(scope="session")
def local_calibration(tmp_path_factory: pytest.TempPathFactory) -> Calibration:
    """What the example gives with the engine glm and two workers on this machine."""
    folder = tmp_path_factory.mktemp("local")
    shutil.copytree(ROOT / "examples" / EXAMPLE, folder / "example")
    words = ["--on", "local", "--workers", "2", "--no-cache", "--session", "here"]
    command = [sys.executable, "-m", "pestfleet", "run", "example", "--engine", "glm", *words]
    subprocess.run(command, cwd=folder, check=True, capture_output=True)
    return read_calibration(folder / "pestfleet-sessions" / "here")


@pytest.fixture
def chart_session(
    cluster: Cluster,
    namespace: str,
    cluster_images: ClusterImages,
    case_image: PushedImage,
    tmp_path: Path,
) -> ChartSession:
    """The example in a namespace of the test's own, by the chart alone."""
    return ChartSession(ClusterShell(tmp_path, cluster, namespace), cluster_images, case_image)


@pytest.fixture
def slow_session(
    chart_session: ChartSession,
    docker_engine: docker.DockerClient,
    image_settings: ImageSettings,
) -> ChartSession:
    """A sweep of 90 runs of half a second each; `CASE/sweep_in.csv` has their values."""
    control = make_case(chart_session.shell.folder / "case", seconds=0.5, name="slow")
    write_sweep(control.parent, runs=90)
    built = ensure_case_image(Case.read(control), image_settings, engine=docker_engine)
    image = images.push(docker_engine, built.reference, chart_session.images.registry)
    return dataclasses.replace(chart_session, case=image)
