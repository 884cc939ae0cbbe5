"""The programs of a Kubernetes for the tests, and helm and skaffold, built from Go modules.

`python tests/cluster/cluster_programs.py` builds all of them and says how long each took.
"""

from __future__ import annotations

import time
from collections.abc import Callable
from pathlib import Path

import go_programs
from base_image import CACHE
from go_programs import Go, ensure_programs

GO = (1, 26)  # what the newest of them needs
KUBERNETES = "1.33.13"  # the newest that has all its modules and runs on control groups v1, too
COREDNS = "1.14.7"
HELM_3, HELM_4 = "3.22.0", "4.3.1"
SKAFFOLD = "2.24.0"

_COMMANDS = (
    "kube-apiserver",
    "kube-controller-manager",
    "kube-proxy",
    "kube-scheduler",
    "kubectl",
    "kubelet",
)
# Modules of Kubernetes that live in its repository: their versions are 0.X.Y there.
_STAGING = [
    "api",
    "apiextensions-apiserver",
    "apimachinery",
    "apiserver",
    "cli-runtime",
    "client-go",
    "cloud-provider",
    "cluster-bootstrap",
    "code-generator",
    "component-base",
    "component-helpers",
    "controller-manager",
    "cri-api",
    "cri-client",
    "csi-translation-lib",
    "dynamic-resource-allocation",
    "endpointslice",
    "externaljwt",
    "kms",
    "kube-aggregator",
    "kube-controller-manager",
    "kube-proxy",
    "kube-scheduler",
    "kubectl",
    "kubelet",
    "metrics",
    "mount-utils",
    "pod-security-admission",
    "sample-apiserver",
    "sample-cli-plugin",
    "sample-controller",
]


def find_reason_against() -> str:
    """Why there are no programs for a cluster of the tests' own; "" when there are."""
    if all(folder.is_dir() for folder in _list_folders()):
        return ""
    return go_programs.find_reason_against(*GO)


def ensure_kubernetes() -> Path:
    """The folder with kube-apiserver, kubelet, kubectl and the others."""
    return ensure_programs(f"kubernetes-{KUBERNETES}", _build_kubernetes)


def ensure_coredns() -> Path:
    """The program coredns."""
    return _ensure_program("coredns", "github.com/coredns/coredns", COREDNS, ".")


def ensure_helm(version: str) -> Path:
    """The program helm, of version 3 or 4."""
    module = f"helm.sh/helm/v{version.partition('.')[0]}"
    return _ensure_program(
        "helm", module, version, "./cmd/helm", f"{module}/internal/version.version"
    )


def ensure_skaffold() -> Path:
    """The program skaffold."""
    module = "github.com/GoogleContainerTools/skaffold/v2"
    place = f"{module}/pkg/skaffold/version.version"
    return _ensure_program("skaffold", module, SKAFFOLD, "./cmd/skaffold", place)


def _ensure_program(
    name: str, module: str, version: str, package: str, version_variable: str = ""
) -> Path:
    """A program whose module builds by itself, from the module's own folder."""
    values = {version_variable: f"v{version}"} if version_variable else {}

    def build(go: Go, into: Path) -> None:
        go.build(package, source=go.download(module, version), into=into, values=values)

    return ensure_programs(f"{name}-{version}", build) / name


def _build_kubernetes(go: Go, into: Path) -> None:
    source = go.scratch / "source"
    source.mkdir()
    minor = KUBERNETES.removeprefix("1.")
    replaced = [f"k8s.io/{name} => k8s.io/{name} v0.{minor}" for name in _STAGING]
    lines = ["module cluster", "", "go 1.24", "", f"require k8s.io/kubernetes v{KUBERNETES}"]
    lines += ["replace (", *replaced, ")", ""]
    (source / "go.mod").write_text("\n".join(lines), encoding="utf-8")
    packages = [f"k8s.io/kubernetes/cmd/{name}" for name in _COMMANDS]
    imports = [f'import _ "{package}"' for package in packages]
    text = "\n".join(["//go:build tools", "", "package cluster", "", *imports, ""])
    (source / "tools.go").write_text(text, encoding="utf-8")
    go.run("mod", "tidy", folder=source)
    major, minor, _ = KUBERNETES.split(".")
    values = {"gitVersion": f"v{KUBERNETES}", "gitMajor": major, "gitMinor": minor}
    places = {
        f"k8s.io/{module}.{name}": value
        for module in ("component-base/version", "client-go/pkg/version")
        for name, value in values.items()
    }
    go.build(*packages, source=source, into=into, values=places)


def _list_folders() -> list[Path]:
    names = (
        f"kubernetes-{KUBERNETES}",
        f"coredns-{COREDNS}",
        f"helm-{HELM_3}",
        f"helm-{HELM_4}",
        f"skaffold-{SKAFFOLD}",
    )
    return [CACHE / name for name in names]


def main() -> None:
    for name, ensure in _ALL.items():
        began = time.monotonic()
        place = ensure()
        print(f"{name}: {time.monotonic() - began:.0f} s ({place})", flush=True)


_ALL: dict[str, Callable[[], Path]] = {
    f"Kubernetes {KUBERNETES}": ensure_kubernetes,
    f"CoreDNS {COREDNS}": ensure_coredns,
    f"helm {HELM_3}": lambda: ensure_helm(HELM_3),
    f"helm {HELM_4}": lambda: ensure_helm(HELM_4),
    f"skaffold {SKAFFOLD}": ensure_skaffold,
}

if __name__ == "__main__":
    main()
