"""A session by `kubectl apply -k` alone."""

from __future__ import annotations

import dataclasses
import shutil
from collections.abc import Iterator
from pathlib import Path
from uuid import uuid4

import pytest
import yaml

from chart_session import ROOT, Calibration, ChartSession, read_calibration
from cluster_images import PushedImage
from cluster_shell import ClusterShell

pytestmark = [pytest.mark.docker, pytest.mark.kubernetes]

NAME = "pestfleet"  # of the manifests' session


@pytest.fixture
def plain_session(chart_session: ChartSession, tmp_path: Path) -> Iterator[ChartSession]:
    """For a namespace that the manifests make."""
    cluster = chart_session.shell.cluster
    name = f"pestfleet-test-{uuid4().hex[:8]}"
    yield dataclasses.replace(chart_session, shell=ClusterShell(tmp_path, cluster, name))
    cluster.kubectl("delete", "namespace", name, "--ignore-not-found", "--wait=false")


def write_overlay(session: ChartSession, overlay: str) -> Path:
    """What a user writes: the names of images, and where it all goes."""
    folder = session.shell.folder / "mine"
    shutil.copytree(ROOT / "k8s", folder / "k8s")
    images = session.images
    kustomization = {
        "namespace": session.shell.namespace,
        "resources": [f"k8s/overlays/{overlay}"],
        "images": [
            rename("pestfleet-case", session.case),
            rename("pestfleet-master", images.master),
            rename("rabbitmq", images.broker),
        ],
    }
    (folder / "kustomization.yaml").write_text(yaml.safe_dump(kustomization))
    return folder


def rename(name: str, image: PushedImage) -> dict[str, str]:
    return {"name": name, "newName": image.name, "digest": image.digest}


def test_manifests_alone_give_the_same_bits_as_local(
    plain_session: ChartSession, local_calibration: Calibration
) -> None:
    session = plain_session
    cluster = session.shell.cluster
    folder = write_overlay(session, "minimal")
    cluster.kubectl("apply", "-k", str(folder))
    session.wait_until_complete()
    assert read_calibration(session.fetch(f"{NAME}-session", NAME)) == local_calibration

    # It changes nothing, and the session that has ended is not run again.
    job = session.find_job("master")["metadata"]["uid"]
    cluster.kubectl("apply", "-k", str(folder))
    assert session.find_job("master")["metadata"]["uid"] == job

    cluster.kubectl("delete", "-k", str(folder), "--timeout=400s")
    found = cluster.try_kubectl("get", "namespace", session.shell.namespace)
    assert "not found" in found.stderr
