"""The programs of a test's Kubernetes node: their settings files and command lines.

All run in the node's own network namespace, so that every port is free there.
"""

from __future__ import annotations

import ipaddress
import json
import os
import shutil
from dataclasses import dataclass
from pathlib import Path

import cluster_programs
from node_keeper import list_addresses

NODE = "node"
PAUSE = "localhost/pause:1"
USERS = {
    "admin": ("admin", "system:masters"),
    "manager": ("system:kube-controller-manager", ""),
    "scheduler": ("system:kube-scheduler", ""),
    "proxy": ("system:kube-proxy", "system:node-proxier"),
    "kubelet": (f"system:node:{NODE}", "system:nodes"),
}
_PORT = 6443
_PLUGINS = Path("/usr/lib/cni")  # where Debian has them


def find_missing() -> str:
    """The first program of Debian's that is not installed; "" when all are."""
    for name, package in (
        ("etcd", "etcd-server"),
        ("containerd", "containerd"),
        ("ctr", "containerd"),
        ("runc", "runc"),
        ("nft", "nftables"),
        ("docker-registry", "docker-registry"),
        ("gcc", "gcc"),
    ):
        if find_program(name) is None:
            return package
    return "" if (_PLUGINS / "ptp").exists() else "containernetworking-plugins"


def find_program(name: str) -> str | None:
    return shutil.which(name, path=f"{os.environ.get('PATH', os.defpath)}:/usr/sbin:/sbin")


@dataclass(frozen=True, slots=True)
class NodePrograms:
    """`folder`: has all their files. `name`: of the control group. `network`: a /16."""

    folder: Path
    name: str
    network: ipaddress.IPv4Network

    @property
    def address(self) -> str:
        return list_addresses(self.network)[1]

    @property
    def url(self) -> str:
        return f"https://{self.address}:{_PORT}"

    @property
    def pods(self) -> ipaddress.IPv4Network:
        return ipaddress.IPv4Network((int(self.network[0]) + 0x1000, 20))

    @property
    def services(self) -> ipaddress.IPv4Network:
        return ipaddress.IPv4Network((int(self.network[0]) + 0x8000, 17))

    @property
    def keys(self) -> Path:
        return self.folder / "keys"

    @property
    def socket(self) -> Path:
        """Of containerd."""
        return self.folder / "containerd.sock"

    def list_names(self) -> list[str]:
        """Names and addresses of the API server."""
        full = ["kubernetes", "default", "svc", "cluster", "local"]
        names = [".".join(full[:count]) for count in (1, 2, 3, 5)]
        return [*names, self.address, str(self.services[1])]

    def write_settings(self) -> None:
        """The files that `make_commands` names, without the keys."""
        (self.folder / "cni").mkdir()
        (self.folder / "resolv.conf").touch()  # only the cluster's own names are known
        for name, text in {
            "cni/10-pods.conflist": _to_json(self._list_plugins()),
            "containerd.toml": self._write_containerd(),
            "kubelet.json": _to_json(self._write_kubelet()),
            "proxy.json": _to_json(self._write_proxy()),
            "Corefile": self._write_corefile(),
        }.items():
            (self.folder / name).write_text(text, encoding="utf-8")

    def make_control_plane(self) -> dict[str, list[str]]:
        """Name -> command, in the order of their start."""
        folder, keys = self.folder, self.keys
        programs = cluster_programs.ensure_kubernetes()
        return {
            "etcd": [
                find_program("etcd") or "etcd",
                *("--data-dir", f"{folder}/etcd", "--unsafe-no-fsync"),
                "--quota-backend-bytes=4294967296",
            ],
            "kube-apiserver": [
                f"{programs}/kube-apiserver",
                "--etcd-servers=http://127.0.0.1:2379",
                f"--bind-address={self.address}",
                f"--advertise-address={self.address}",
                f"--secure-port={_PORT}",
                f"--tls-cert-file={keys}/server.pem",
                f"--tls-private-key-file={keys}/server.key",
                f"--token-auth-file={keys}/tokens.csv",
                f"--kubelet-client-certificate={keys}/kubelet-client.pem",
                f"--kubelet-client-key={keys}/kubelet-client.key",
                "--kubelet-preferred-address-types=InternalIP",
                "--authorization-mode=Node,RBAC",
                "--enable-admission-plugins=NodeRestriction,PodSecurity",
                f"--service-cluster-ip-range={self.services}",
                "--service-account-issuer=https://kubernetes.default.svc",
                f"--service-account-key-file={keys}/accounts.key",
                f"--service-account-signing-key-file={keys}/accounts.key",
            ],
            "kube-controller-manager": [
                f"{programs}/kube-controller-manager",
                f"--kubeconfig={keys}/manager.kubeconfig",
                f"--root-ca-file={keys}/ca.pem",
                f"--service-account-private-key-file={keys}/accounts.key",
                "--use-service-account-credentials",
                "--leader-elect=false",
                "--bind-address=127.0.0.1",
                *("--kube-api-qps=1000", "--kube-api-burst=2000"),
                "--concurrent-job-syncs=10",
            ],
            "kube-scheduler": [
                f"{programs}/kube-scheduler",
                f"--kubeconfig={keys}/scheduler.kubeconfig",
                "--leader-elect=false",
                "--bind-address=127.0.0.1",
                *("--kube-api-qps=1000", "--kube-api-burst=2000"),
            ],
        }

    def make_node(self) -> dict[str, list[str]]:
        """Name -> command, after containerd has its first image."""
        folder, keys = self.folder, self.keys
        programs = cluster_programs.ensure_kubernetes()
        return {
            "kubelet": [
                f"{programs}/kubelet",
                f"--config={folder}/kubelet.json",
                f"--kubeconfig={keys}/kubelet.kubeconfig",
                f"--root-dir={folder}/kubelet",
                f"--cert-dir={folder}/kubelet-keys",
                f"--hostname-override={NODE}",
                f"--node-ip={self.address}",
            ],
            "kube-proxy": [f"{programs}/kube-proxy", f"--config={folder}/proxy.json"],
            "coredns": [str(cluster_programs.ensure_coredns()), "-conf", f"{folder}/Corefile"],
        }

    def make_containerd(self) -> list[str]:
        return [find_program("containerd") or "containerd", "-c", f"{self.folder}/containerd.toml"]

    def _list_plugins(self) -> dict[str, object]:
        # A link for each pod and no bridge: all traffic passes the rules of kube-proxy.
        addresses = {
            "type": "host-local",
            "dataDir": f"{self.folder}/cni-addresses",
            "ranges": [[{"subnet": str(self.pods)}]],
            "routes": [{"dst": "0.0.0.0/0"}],
        }
        return {
            "cniVersion": "0.4.0",
            "name": "pods",
            "plugins": [{"type": "ptp", "ipMasq": False, "ipam": addresses}],
        }

    def _write_containerd(self) -> str:
        folder = self.folder
        runc = 'plugins."io.containerd.grpc.v1.cri".containerd.runtimes.runc'
        # Without CAP_SYS_RESOURCE nobody may set the -998 that a pod's first container wants.
        return f"""version = 2
root = "{folder}/containerd"
state = "{folder}/containerd-state"
[grpc]
address = "{self.socket}"
[plugins."io.containerd.internal.v1.opt"]
path = "{folder}/containerd-opt"
[plugins."io.containerd.grpc.v1.cri"]
sandbox_image = "{PAUSE}"
stream_server_address = "127.0.0.1"
disable_apparmor = true
restrict_oom_score_adj = true
[plugins."io.containerd.grpc.v1.cri".cni]
bin_dir = "{_PLUGINS}"
conf_dir = "{folder}/cni"
[{runc}]
runtime_type = "io.containerd.runc.v2"
[{runc}.options]
SystemdCgroup = false
"""

    def _write_kubelet(self) -> dict[str, object]:
        keys = self.keys
        return {
            "apiVersion": "kubelet.config.k8s.io/v1beta1",
            "kind": "KubeletConfiguration",
            "address": self.address,
            "containerRuntimeEndpoint": f"unix://{self.socket}",
            "cgroupDriver": "cgroupfs",
            "cgroupRoot": f"/{self.name}",
            "failSwapOn": False,
            "failCgroupV1": False,
            "makeIPTablesUtilChains": False,
            "imageGCHighThresholdPercent": 100,
            "imageGCLowThresholdPercent": 99,
            "evictionHard": {
                "memory.available": "100Mi",
                "nodefs.available": "1%",
                "imagefs.available": "1%",
                "nodefs.inodesFree": "0%",
            },
            "clusterDomain": "cluster.local",
            "clusterDNS": [self.address],
            "resolvConf": f"{self.folder}/resolv.conf",
            "podLogsDir": f"{self.folder}/pod-logs",
            "volumePluginDir": f"{self.folder}/volume-plugins",
            "maxPods": 240,
            "registryPullQPS": 0,
            "eventRecordQPS": 0,
            "kubeAPIQPS": 100,
            "kubeAPIBurst": 200,
            "authentication": {
                "anonymous": {"enabled": False},
                "webhook": {"enabled": True},
                "x509": {"clientCAFile": f"{keys}/kubelet-client.pem"},
            },
            "authorization": {"mode": "Webhook"},
        }

    def _write_proxy(self) -> dict[str, object]:
        return {
            "apiVersion": "kubeproxy.config.k8s.io/v1alpha1",
            "kind": "KubeProxyConfiguration",
            "mode": "nftables",
            "clientConnection": {"kubeconfig": f"{self.keys}/proxy.kubeconfig"},
            "hostnameOverride": NODE,
            "clusterCIDR": str(self.pods),
            "nftables": {"minSyncPeriod": "50ms"},  # else services answer up to 1 s late
            # The connection table's limits are the whole machine's: they stay.
            "conntrack": {
                "maxPerCore": 0,
                "min": 0,
                "tcpEstablishedTimeout": "0s",
                "tcpCloseWaitTimeout": "0s",
            },
        }

    def _write_corefile(self) -> str:
        return f""".:53 {{
  bind {self.address}
  errors
  ready 127.0.0.1:8181
  kubernetes cluster.local in-addr.arpa {{
    kubeconfig {self.keys}/admin.kubeconfig test
    pods insecure
    ttl 1
  }}
}}
"""


def _to_json(value: object) -> str:
    return json.dumps(value, indent=1)
