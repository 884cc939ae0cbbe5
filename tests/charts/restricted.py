"""A checker of the standard "restricted" (kubernetes.io, "Pod Security Standards")."""

from __future__ import annotations

from typing import Any

Object = dict[str, Any]

VOLUMES = {
    "configMap", "csi", "downwardAPI", "emptyDir", "ephemeral", "persistentVolumeClaim",
    "projected", "secret",
}  # fmt: skip
SECCOMP = ("RuntimeDefault", "Localhost")
SELINUX = (None, "", "container_t", "container_init_t", "container_kvm_t", "container_engine_t")


def find_faults(pod: Object) -> list[str]:
    """What the API server would refuse a pod for in a namespace that enforces the standard."""
    spec = pod["spec"]
    faults = [word for word in ("hostNetwork", "hostPID", "hostIPC") if spec.get(word)]
    for volume in spec.get("volumes", ()):
        faults += [f"volume {volume['name']}: {kind}" for kind in {*volume} - {"name"} - VOLUMES]
    common = spec.get("securityContext", {})
    if common.get("sysctls"):
        faults.append("sysctls")
    faults += _check_context("pod", common)
    containers = [
        *spec.get("initContainers", ()), *spec["containers"], *spec.get("ephemeralContainers", ())
    ]  # fmt: skip
    for container in containers:
        faults += _check_container(container, common)
    return faults


def _check_container(container: Object, common: Object) -> list[str]:
    name, own = container["name"], container.get("securityContext", {})
    faults = _check_context(name, own)
    if own.get("privileged"):
        faults.append(f"{name}: privileged")
    if own.get("allowPrivilegeEscalation") is not False:
        faults.append(f"{name}: allowPrivilegeEscalation")
    if own.get("runAsNonRoot", common.get("runAsNonRoot")) is not True:
        faults.append(f"{name}: runAsNonRoot")
    seccomp = own.get("seccompProfile", common.get("seccompProfile", {}))
    if seccomp.get("type") not in SECCOMP:
        faults.append(f"{name}: seccompProfile")
    capabilities = own.get("capabilities", {})
    if "ALL" not in capabilities.get("drop", ()):
        faults.append(f"{name}: capabilities are kept")
    if {*capabilities.get("add", ())} - {"NET_BIND_SERVICE"}:
        faults.append(f"{name}: capabilities are added")
    if own.get("procMount", "Default") != "Default":
        faults.append(f"{name}: procMount")
    faults += [f"{name}: hostPort" for port in container.get("ports", ()) if port.get("hostPort")]
    return faults


def _check_context(name: str, context: Object) -> list[str]:
    faults = []
    if context.get("runAsUser") == 0:
        faults.append(f"{name}: runAsUser 0")
    if context.get("runAsNonRoot") is False:
        faults.append(f"{name}: runAsNonRoot")
    if context.get("windowsOptions", {}).get("hostProcess"):
        faults.append(f"{name}: hostProcess")
    selinux = context.get("seLinuxOptions", {})
    if selinux.get("type") not in SELINUX or selinux.get("user") or selinux.get("role"):
        faults.append(f"{name}: seLinuxOptions")
    if context.get("appArmorProfile", {}).get("type", "RuntimeDefault") not in SECCOMP:
        faults.append(f"{name}: appArmorProfile")
    if "seccompProfile" in context and context["seccompProfile"].get("type") not in SECCOMP:
        faults.append(f"{name}: seccompProfile")
    return faults
