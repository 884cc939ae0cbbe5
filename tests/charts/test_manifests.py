"""The plain manifests are what the chart renders."""

from __future__ import annotations

import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import yaml

from chart import ENVIRONMENT, ROOT, find_pods, name_of, render, run_helm
from restricted import find_faults

K8S = ROOT / "k8s"
OVERLAYS = sorted(path.parent.name for path in (K8S / "overlays").glob("*/values.yaml"))
HELM_LABELS = ("helm.sh/chart", "app.kubernetes.io/managed-by")

Object = dict[str, Any]


def read_folder(folder: Path) -> dict[str, str]:
    return {
        path.relative_to(folder).as_posix(): path.read_text(encoding="utf-8")
        for path in folder.rglob("*.yaml")
        if path.name != "values.yaml"
    }


def kustomize(folder: Path) -> dict[str, Object]:
    if shutil.which("kubectl") is None:
        pytest.skip("kubectl is not on PATH")
    done = subprocess.run(
        ["kubectl", "kustomize", str(folder)], capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stderr
    return {name_of(item): item for item in yaml.safe_load_all(done.stdout)}


def test_the_manifests_are_those_of_the_chart(tmp_path: Path) -> None:
    run_helm("version")
    subprocess.run(
        [sys.executable, str(ROOT / "scripts/manifests"), str(tmp_path)],
        check=True,
        env=ENVIRONMENT,
    )
    made, kept = read_folder(tmp_path), read_folder(K8S)
    assert set(made) == set(kept)
    assert [name for name in made if made[name] != kept[name]] == [], "run: make manifests"


@pytest.mark.parametrize("overlay", OVERLAYS)
def test_an_overlay_is_what_helm_makes_of_its_values(overlay: str) -> None:
    found = kustomize(K8S / "overlays" / overlay)
    namespace = found.pop("Namespace/pestfleet")
    words = [
        word
        for path in (K8S / "base/values.yaml", K8S / "overlays" / overlay / "values.yaml")
        for word in ("--values", str(path))
    ]
    wanted = {}
    for item in render(*words, "--skip-tests", release="pestfleet", namespace="pestfleet"):
        item["metadata"]["namespace"] = "pestfleet"
        for label in HELM_LABELS:
            item["metadata"]["labels"].pop(label)
        wanted[name_of(item)] = item
    assert found == wanted
    enforced = namespace["metadata"]["labels"]["pod-security.kubernetes.io/enforce"]
    assert enforced == "restricted"


@pytest.mark.parametrize("folder", ["base", *(f"overlays/{name}" for name in OVERLAYS)])
def test_manifests_are_restricted_and_have_no_secret(folder: str) -> None:
    found = kustomize(K8S / folder)
    for name, pod in find_pods(list(found.values())).items():
        assert find_faults(pod) == [], name
    for item in found.values():
        if item["kind"] == "Secret":
            assert not {"data", "stringData"} & set(item)
    names = [name for name in found if name.startswith("Job/")]
    assert {"Job/pestfleet-master", "Job/pestfleet-workers"} <= set(names)


def test_the_images_can_be_named_in_one_place(tmp_path: Path) -> None:
    shutil.copytree(K8S, tmp_path / "k8s")
    own = {
        "apiVersion": "kustomize.config.k8s.io/v1beta1",
        "kind": "Kustomization",
        "resources": ["k8s/overlays/minimal"],
        "images": [{"name": "pestfleet-case", "newName": "registry.example.org/my-case",
                    "newTag": "1"}],
    }  # fmt: skip
    (tmp_path / "kustomization.yaml").write_text(yaml.safe_dump(own), encoding="utf-8")
    found = kustomize(tmp_path)
    worker = found["Job/pestfleet-workers"]["spec"]["template"]["spec"]
    master = found["Job/pestfleet-master"]["spec"]["template"]["spec"]
    assert worker["containers"][0]["image"] == "registry.example.org/my-case:1"
    assert master["initContainers"][0]["image"] == "registry.example.org/my-case:1"
