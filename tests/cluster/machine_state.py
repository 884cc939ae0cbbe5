"""What a cluster could leave on a machine, as sets to compare."""

from __future__ import annotations

import re
import subprocess
from dataclasses import dataclass, fields
from pathlib import Path

# Their names, cut off as the kernel does.
_PROGRAMS = re.compile(
    r"\d+ (etcd|kube|coredns|docker-regis|containerd|runc|pause|unshare)|.*node_keeper"
)
# Settings that are counters, or of one link, or change by themselves.
_CHANGING = re.compile(
    r"kernel\.(random\.|ns_last_pid|pty\.nr|perf_event_max_sample|hung_task_detect)"
    r"|fs\.(file-nr|inode|dentry|aio-nr|quota)"
    r"|net\.netfilter\.nf_conntrack_count|net\.ipv[46]\.(conf|neigh)\.(?!all\.|default\.)"
)
_PLACES = ("/var/lib", "/var/log", "/run", "/var/lib/kubelet", "/var/lib/cni", "/run/netns")
_OF_USER = (".kube", ".kube/cache/discovery")


@dataclass(frozen=True, slots=True)
class MachineState:
    """`processes`: numbers and command lines of what a cluster starts. The others: one string each.

    `rules`: of packet filters, without their counters. `places`: entries of folders in which
    Kubernetes has files wherever its own folder is.
    """

    processes: frozenset[str]
    mounts: frozenset[str]
    links: frozenset[str]
    routes: frozenset[str]
    rules: frozenset[str]
    settings: frozenset[str]
    control_groups: frozenset[str]
    places: frozenset[str]

    def find_new(self, before: MachineState) -> dict[str, list[str]]:
        """What is there now and was not before; others on the machine may end things meanwhile."""
        new = {
            field.name: sorted(getattr(self, field.name) - getattr(before, field.name))
            for field in fields(self)
        }
        return {name: values for name, values in new.items() if values}


def read_machine_state() -> MachineState:
    groups = Path("/sys/fs/cgroup")
    return MachineState(
        processes=frozenset(_list_processes()),
        mounts=frozenset(Path("/proc/self/mounts").read_text().splitlines()),
        links=frozenset(path.name for path in Path("/sys/class/net").iterdir()),
        routes=_run("ip", "route", "show", "table", "all"),
        rules=_run("nft", "--stateless", "list", "ruleset"),
        settings=frozenset(
            line for line in _run("sysctl", "--all", "--ignore") if not _CHANGING.match(line)
        ),
        control_groups=frozenset(map(str, [*groups.glob("*"), *groups.glob("*/*")])),
        places=frozenset(
            str(path)
            for place in (*map(Path, _PLACES), *(Path.home() / name for name in _OF_USER))
            for path in place.glob("*")
        ),
    )


def _list_processes() -> list[str]:
    lines = [" ".join(line.split()) for line in _run("ps", "-eww", "-o", "pid=,comm=,args=")]
    return [line for line in lines if _PROGRAMS.match(line)]


def _run(*command: str) -> frozenset[str]:
    done = subprocess.run(command, capture_output=True, text=True, check=True)
    return frozenset(done.stdout.splitlines())
