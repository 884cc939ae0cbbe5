"""Renders the chart for tests. Helm is that of PATH, or of this Python's environment."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
from functools import cache
from pathlib import Path
from typing import Any

import pytest
import yaml

ROOT = Path(__file__).resolve().parents[2]
CHART = ROOT / "charts" / "pestfleet"
EVERYTHING = Path(__file__).parent / "everything-on.yaml"
KUBERNETES = "1.33.0"  # not what this Helm was built for
ENVIRONMENT = {
    **os.environ,
    "PATH": f"{os.environ.get('PATH', '')}{os.pathsep}{Path(sys.executable).parent}",
}

Object = dict[str, Any]

# What the chart is asked for in tests: the words for helm.
VARIANTS: dict[str, tuple[str, ...]] = {
    "defaults": (),
    "everything-on": ("--values", str(EVERYTHING)),
    **{
        path.parent.name: ("--values", str(path))
        for path in sorted((ROOT / "k8s" / "overlays").glob("*/values.yaml"))
    },
    "existing-secret": ("--set", "credentials.existingSecret=made-before"),
    "master-at-home": (
        "--set", "master.enabled=false,tunnel.enabled=true,tunnel.existingSecret=keys",
        "--set", "engine.mode=agent,engine.name=beopest",
    ),
    "existing-claim": ("--set", "master.volume.existingClaim=results"),
    "no-volumes": ("--set", "master.volume.enabled=false,broker.volume.enabled=false"),
}  # fmt: skip


def run_helm(*words: str) -> subprocess.CompletedProcess[str]:
    helm = shutil.which("helm", path=ENVIRONMENT["PATH"])
    if helm is None:
        pytest.skip("helm is not on PATH")
    if words[0] in ("lint", "template"):
        words = (*words, "--kube-version", KUBERNETES)
    return subprocess.run(
        [helm, *words], capture_output=True, text=True, check=False, env=ENVIRONMENT
    )


@cache
def render_text(*words: str, release: str = "fleet", namespace: str = "default") -> str:
    done = run_helm("template", release, str(CHART), "--namespace", namespace, *words)
    assert done.returncode == 0, done.stderr
    return done.stdout


def render(*words: str, release: str = "fleet", namespace: str = "default") -> list[Object]:
    """All objects that helm would make, the tests' too."""
    text = render_text(*words, release=release, namespace=namespace)
    return [item for item in yaml.safe_load_all(text) if item]


def find(objects: list[Object], kind: str, role: str = "") -> Object:
    """The only object of a kind and role."""
    found = [
        item
        for item in objects
        if item["kind"] == kind
        and (not role or item["metadata"]["labels"]["pestfleet.role"] == role)
    ]
    assert len(found) == 1, (kind, role, [item["metadata"]["name"] for item in found])
    return found[0]


def name_of(item: Object) -> str:
    return f"{item['kind']}/{item['metadata']['name']}"


def find_pods(objects: list[Object]) -> dict[str, Object]:
    """Metadata and spec of all pods, by the name of what makes them."""
    pods = {}
    for item in objects:
        if item["kind"] == "Pod":
            pods[name_of(item)] = item
        elif "template" in item.get("spec", {}):
            pods[name_of(item)] = item["spec"]["template"]
    return pods


def list_containers(pod: Object) -> list[Object]:
    return [*pod["spec"].get("initContainers", []), *pod["spec"]["containers"]]
