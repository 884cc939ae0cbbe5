"""Why is it not running: told from what a real cluster (version 1.33) said in each case.

The files in data/kubernetes are its answers, shortened; registry.test is where its registry was.
"""

from __future__ import annotations

import copy
import json
from pathlib import Path
from typing import Any

import pytest

from fake_cluster_access import ABSENT, FORBIDDEN, FakeAccess
from pestfleet.targets.kubernetes import diagnosis
from pestfleet.targets.kubernetes.causes import read_pull, read_refusal
from pestfleet.targets.kubernetes.diagnosis import explain, gather
from pestfleet.targets.kubernetes.surroundings import DWELL, HOPE, SLOW, read_time
from pestfleet.targets.troubles import Trouble, find_dead_end

Object = dict[str, Any]

DATA = Path(__file__).parent / "data" / "kubernetes"
LATER = HOPE + 1  # seconds after the last thing that was recorded

# Recorded case -> kind, is it hopeless, the whole sentence.
CASES: dict[str, tuple[str, bool, str]] = {
    "image-missing": (
        "image",
        True,
        "2 workers wait: the registry has no image registry.test:5000/not-there:1",
    ),
    "image-tag": (
        "image",
        True,
        "1 worker waits: the registry has no image registry.test:5000/debian:13",
    ),
    "image-name": ("image", True, "1 worker waits: UPPER/Case:1 is not the name of an image"),
    "image-never": (
        "image",
        True,
        "1 worker waits: the image never/there:1 is not on the node, and its pull policy is Never",
    ),
    "image-host": (
        "image",
        False,
        "1 worker waits: the nodes find no address of the registry of registry.invalid/thing:1",
    ),
    "image-refused": (
        "image",
        False,
        "1 worker waits: the nodes do not reach the registry of 127.0.0.1:9/thing:1",
    ),
    "too-much-cpu": (
        "size",
        True,
        "2 workers wait: each asks for 100 cores, and the largest node there has 2 cores",
    ),
    "too-much-memory": (
        "size",
        True,
        "2 workers wait: each asks for 900 GiB, and the largest node there has 23.4 GiB",
    ),
    "full": (
        "full",
        False,
        "3 workers wait: the nodes have no room left, and each asks for 1 core and 16 MiB",
    ),
    "selector": (
        "selector",
        True,
        "1 worker waits: no node has the label karpenter.sh/capacity-type=spot",
    ),
    "taint": (
        "taint",
        True,
        "2 workers wait: all nodes for them have the taint dedicated=gpu:NoSchedule",
    ),
    "cordon": (
        "away",
        False,
        "2 workers wait: the only node for them (node) is not ready, or closed for new pods",
    ),
    "quota": (
        "quota",
        True,
        "2 of 5 workers cannot be made: the quota small allows 0.03 cores (limits.cpu and "
        "requests.cpu), 0.03 cores of it in use, and each asks for 0.01 cores",
    ),
    "quota-zero": (
        "quota",
        True,
        "5 workers cannot be made: the quota none allows 0 pods, 0 pods of it in use, and each "
        "asks for 1 pod",
    ),
    "quota-unlimited": (
        "quota",
        True,
        "2 workers cannot be made: the quota strict wants them to say limits.memory",
    ),
    "limit-range": (
        "range",
        True,
        "3 workers cannot be made: the namespace allows a container memory of 8Mi at most, and "
        "each has 16Mi",
    ),
    "pod-security": (
        "security",
        True,
        "3 workers cannot be made: the namespace allows only pods of security level restricted: "
        'runAsNonRoot != true (pod or container "worker" must set '
        "securityContext.runAsNonRoot=true), seccompProfile (pod or container "
        '"worker" must set securityContext.seccompProfile.type to "RuntimeDefault" or '
        '"Localhost")',
    ),
    "no-account": (
        "admission",
        True,
        "1 worker cannot be made: the namespace has no service account nobody",
    ),
    "no-priority": (
        "admission",
        True,
        "1 worker cannot be made: the cluster has no priority class nothing",
    ),
    "secret": ("missing", True, "2 workers wait: the namespace has no secret gone"),
    "secret-key": (
        "missing",
        True,
        "1 worker waits: a secret to mount has no entry worker.broker-url",
    ),
    "configmap": ("missing", True, "1 worker waits: the namespace has no configmap gone"),
    "env-secret": ("missing", True, "1 worker waits: the namespace has no secret gone"),
    "claim-class": (
        "volume",
        True,
        "the master waits: the cluster has no storage class fast, which the volume kept names",
    ),
    "claim-none": (
        "volume",
        True,
        "the master waits: the volume kept names no storage class, and the cluster has no default",
    ),
    "claim-gone": (
        "missing",
        True,
        "the master waits: the namespace has no persistentvolumeclaim kept",
    ),
    "root": (
        "config",
        True,
        "1 worker waits: the image wants to run as root, which is not allowed there",
    ),
    "oom": (
        "memory",
        True,
        "3 workers ended: out of memory: more than the limit of 16 MiB; no more are started",
    ),
    "scratch": (
        "disk",
        True,
        "3 workers ended: the folder scratch had more in it than its limit of 4 MiB; no more are "
        "started",
    ),
    "exit-1": ("exit", True, "3 workers ended: exit code 1; no more are started"),
    "exit-10": ("refused", True, "1 worker ended: it refused the session (exit code 10)"),
    "no-program": (
        "start",
        True,
        "3 workers ended: the image has no program /no/such/program; no more are started",
    ),
    "deadline": ("deadline", True, "the workers ended: the session's limit of 3 s is over"),
    "crash": ("crash", False, "the broker waits: it ended with exit code 3, again and again"),
}


def read(name: str) -> Object:
    found: Object = json.loads((DATA / f"{name}.json").read_text(encoding="utf-8"))
    return found


def tell(
    recorded: Object, *, after: float = LATER, nodes: bool = True, **more: Any
) -> list[Trouble]:
    return explain(
        recorded["pods"],
        events=recorded["events"],
        jobs=recorded["jobs"],
        nodes=recorded["nodes"] if nodes else None,
        now=read_time(recorded["now"]) + after,
        **{"autoscaler": False, **more},
    )


@pytest.mark.parametrize("name", CASES)
def test_one_sentence_says_what_it_is(name: str) -> None:
    kind, hopeless, message = CASES[name]
    trouble = tell(read(name))[0]
    assert (trouble.kind, trouble.hopeless, trouble.message) == (kind, hopeless, message)
    assert trouble.remedy
    assert "{" not in trouble.remedy.replace("{NAME}", "") and "SESSION" not in trouble.remedy


def test_every_recorded_case_is_looked_at() -> None:
    assert {path.stem for path in DATA.glob("*.json")} == {*CASES, "unready"}


def test_pods_that_just_began_are_no_trouble() -> None:
    recorded = read("too-much-cpu")
    born = read_time(recorded["pods"][0]["metadata"]["creationTimestamp"])
    passed = read_time(recorded["now"]) - born
    assert tell(recorded, after=DWELL - 1 - passed) == []
    assert len(tell(recorded, after=DWELL + 1 - passed)) == 1


def test_a_thousand_pods_of_one_cause_are_one_line() -> None:
    recorded = read("too-much-cpu")
    pod = recorded["pods"][0]
    recorded["pods"] = [copy.deepcopy(pod) for _ in range(1000)]
    for number, one in enumerate(recorded["pods"]):
        one["metadata"] |= {"name": f"workers-{number}", "uid": str(number)}
    (trouble,) = tell(recorded)
    assert trouble.count == 1000
    assert trouble.message.startswith("1000 workers wait: each asks for 100 cores")
    assert trouble.pods[-1] == "workers-999"


def test_a_worker_that_runs_but_is_not_ready_is_told_later() -> None:
    recorded = read("unready")
    assert tell(recorded, after=0) == []
    (trouble,) = tell(recorded, after=SLOW)
    assert trouble.message == "2 workers run, but are not ready: they cannot reach the broker"


def test_a_worker_on_a_node_that_went_away_is_lost() -> None:
    recorded = read("unready")
    for condition in recorded["nodes"][0]["status"]["conditions"]:
        if condition["type"] == "Ready":
            condition["status"] = "Unknown"
    assert tell(recorded)[0].message == "2 workers are lost: node node does not answer"


def test_a_pod_that_is_being_removed_is_no_trouble_unless_its_node_is_away() -> None:
    recorded = read("unready")
    recorded["pods"] = recorded["pods"][:1]
    recorded["pods"][0]["metadata"]["deletionTimestamp"] = recorded["now"]
    assert tell(recorded, after=20) == []
    assert tell(recorded, after=40)[0].message == "1 worker is lost: node node does not answer"


def test_what_all_depend_on_is_told_before_the_workers() -> None:
    recorded, broker = read("unready"), read("crash")
    recorded["pods"] += broker["pods"]
    first, second = tell(recorded, after=SLOW + 300)
    assert first.message.startswith("the broker waits: ")
    assert second.message == "2 workers run, but are not ready: they cannot reach the broker"


def test_pods_that_are_replaced_when_they_have_gone_are_not_missing() -> None:
    recorded = read("quota")
    assert tell(recorded)[0].count == 2
    recorded["jobs"][0]["status"]["terminating"] = 2
    assert tell(recorded) == []


# -- nodes that may not be listed, and clusters that grow ----------------------------------------


@pytest.mark.parametrize(
    ("name", "message"),
    [
        (
            "too-much-cpu",
            "2 workers wait: no node has that much free, and each asks for 100 cores and 16 MiB",
        ),
        ("selector", CASES["selector"][2]),
        ("taint", "2 workers wait: all nodes for them have a taint {dedicated: gpu}"),
    ],
)
def test_less_is_said_where_nodes_may_not_be_listed(name: str, message: str) -> None:
    assert tell(read(name), nodes=False)[0].message == message


def test_a_node_that_may_still_be_added_is_waited_for() -> None:
    recorded = read("too-much-cpu")
    assert tell(recorded, after=DWELL + 1, autoscaler=False)[0].hopeless
    assert not tell(recorded, autoscaler=True)[0].hopeless
    changed = recorded["pods"][0]["status"]["conditions"][0]["lastTransitionTime"]
    passed = read_time(recorded["now"]) - read_time(changed)
    assert not tell(recorded, after=HOPE - 1 - passed, autoscaler=None)[0].hopeless
    assert tell(recorded, after=HOPE + 1 - passed, autoscaler=None)[0].hopeless


def add_event(recorded: Object, reason: str, message: str, component: str) -> None:
    for pod in recorded["pods"]:
        metadata = pod["metadata"]
        recorded["events"].append(
            {
                "metadata": {"creationTimestamp": recorded["now"]},
                "involvedObject": {"name": metadata["name"], "uid": metadata["uid"]},
                "reason": reason,
                "message": message,
                "source": {"component": component},
            }
        )


def test_what_the_autoscaler_says_counts() -> None:
    coming = read("too-much-cpu")
    add_event(coming, "TriggeredScaleUp", "pod triggered scale-up", "cluster-autoscaler")
    (trouble,) = tell(coming, autoscaler=True)
    assert trouble.message == "2 workers wait: the cluster's autoscaler is adding nodes for them"
    assert not trouble.hopeless
    refused = read("too-much-cpu")
    add_event(refused, "FailedScheduling", "incompatible with nodepool default", "karpenter")
    (trouble,) = tell(refused, autoscaler=True)
    assert trouble.message.endswith("; the cluster's autoscaler has none to add for them")
    assert trouble.hopeless


def test_the_scheduler_s_own_event_is_not_the_autoscaler_s() -> None:
    recorded = read("too-much-cpu")
    add_event(recorded, "FailedScheduling", "0/1 nodes are available", "default-scheduler")
    assert not tell(recorded, autoscaler=True)[0].hopeless


# -- ends ----------------------------------------------------------------------------------------


def fail(**status: Any) -> Object:
    """A recorded session whose pods failed in this way."""
    recorded = read("unready")
    for pod in recorded["pods"]:
        pod["status"] = {"phase": "Failed", **status}
    return recorded


@pytest.mark.parametrize(
    ("reason", "kind"),
    [
        ("PreemptionByScheduler", "preempted"),
        ("DeletionByTaintManager", "lost"),
        ("EvictionByEvictionAPI", "drained"),
        ("TerminationByKubelet", "lost"),
    ],
)
def test_disruptions_are_told_apart(reason: str, kind: str) -> None:
    condition = {"type": "DisruptionTarget", "status": "True", "reason": reason}
    (trouble,) = tell(fail(conditions=[condition]))
    assert (trouble.kind, trouble.hopeless) == (kind, False)


@pytest.mark.parametrize(
    ("message", "says", "remedy"),
    [
        (
            "Pod ephemeral local storage usage exceeds the total limit of containers 1Gi. ",
            "they wrote more to disk than the limit of 1 GiB",
            "workers.resources.limits.ephemeral-storage=2Gi",
        ),
        (
            'Container worker exceeded its local ephemeral storage limit "512Mi". ',
            "they wrote more to disk than the limit of 512 MiB",
            "workers.resources.limits.ephemeral-storage=1Gi",
        ),
        (
            "The node was low on resource: ephemeral-storage. Threshold quantity: 1Gi, available: "
            "900Mi. ",
            "their node had too little disk space left, and put them out",
            "",
        ),
        (
            "The node was low on resource: memory. Threshold quantity: 100Mi, available: 90Mi. ",
            "their node had too little memory left, and put them out",
            "",
        ),
        (
            'Usage of EmptyDir volume "tmp" exceeds the limit "512Mi". ',
            "tmp",
            "workers.tmp.size=1Gi",
        ),
    ],
)
def test_evictions_name_the_limit(message: str, says: str, remedy: str) -> None:
    (trouble,) = tell(fail(reason="Evicted", message=message))
    assert says in trouble.message
    assert remedy in trouble.remedy


@pytest.mark.parametrize(
    ("role", "code", "says"),
    [
        ("worker", 0, ""),
        ("worker", 12, ""),
        ("worker", 11, "they heard nothing from the master (exit code 11)"),
        ("worker", 137, "killed by signal 9 (exit code 137)"),
        ("master", 130, ""),
        ("master", 3, "exit code 3 (the case)"),
    ],
)
def test_exit_codes(role: str, code: int, says: str) -> None:
    ended = {"terminated": {"exitCode": code, "reason": "Error"}}
    recorded = fail(containerStatuses=[{"name": role, "state": ended}])
    for pod in recorded["pods"]:
        pod["metadata"]["labels"]["pestfleet.role"] = role
    messages = [trouble.message for trouble in tell(recorded)]
    assert len(messages) == bool(says)
    assert all(says in message for message in messages)


def test_the_codes_of_an_init_container_are_not_ours(clock: Any) -> None:
    ended = {"terminated": {"exitCode": 3, "reason": "Error"}}
    recorded = fail(initContainerStatuses=[{"name": "case", "state": ended}])
    for pod in recorded["pods"]:
        pod["metadata"]["labels"]["pestfleet.role"] = "master"
    clock(recorded)
    access = serve(recorded)
    (trouble,) = gather(access, "s")  # type: ignore[arg-type]
    assert trouble.message == (
        "the master ended: exit code 3 (2 times); its log ends with: the last line"
    )
    assert access.queries[-1] == {"container": "case", "tailLines": 10, "previous": False}


def test_the_end_of_a_log_is_in_the_sentence() -> None:
    asked = []

    def read_tail(pod: Object) -> str:
        asked.append(pod["metadata"]["name"])
        return "Traceback\nanother case is in the image\n"

    (trouble,) = tell(read("exit-1"), read_tail=read_tail)
    assert trouble.message == (
        "3 workers ended: exit code 1; no more are started; its log ends with: another case is in "
        "the image"
    )
    assert trouble.tail == ("Traceback", "another case is in the image")
    assert len(asked) == 1


def test_a_message_that_the_container_left_saves_the_log() -> None:
    recorded = read("exit-1")
    for pod in recorded["pods"]:
        pod["status"]["containerStatuses"][0]["state"]["terminated"]["message"] = "no such user\n"
    (trouble,) = tell(recorded, read_tail=lambda pod: pytest.fail("the log was read"))
    assert trouble.message.endswith("no such user")


def test_memory_is_told_for_a_slot() -> None:
    recorded = read("oom")
    for pod in recorded["pods"]:
        container = pod["spec"]["containers"][0]
        container["args"] = ["--session", "s", "--slots", "4"]
        container["resources"]["limits"]["memory"] = "16Gi"
    trouble = tell(recorded)[0]
    assert "out of memory: more than the limit of 16 GiB;" in trouble.message
    assert trouble.remedy == "Allow more for a slot, such as --memory 8g"


# -- what nodes say of images --------------------------------------------------------------------


@pytest.mark.parametrize(
    ("message", "says", "hopeless"),
    [
        (
            'failed to authorize: failed to fetch oauth token: 401 Unauthorized for "x"',
            "it wants a login",
            True,
        ),
        (
            "pull access denied, repository does not exist or may require authorization",
            "it wants a login",
            True,
        ),
        ("no match for platform in manifest: not found", "processor", True),
        ("http: server gave HTTP response to HTTPS client", "https", True),
        ("tls: failed to verify certificate: x509: unknown authority", "certificate", True),
        ("toomanyrequests: You have reached your pull rate limit", "no more for now", False),
        ("dial tcp: lookup r.test: no such host", "find no address", False),
        ("dial tcp 10.0.0.1:443: i/o timeout", "do not reach", False),
        ("write /var/lib/x: no space left on device", "disk", False),
        ("one: two: something new", ": something new", False),
    ],
)
def test_what_nodes_say_of_images(message: str, says: str, hopeless: bool) -> None:
    cause = read_pull(message, "r.test/wells:1")
    assert says in cause.why
    assert "r.test/wells:1" in cause.why
    assert cause.hopeless == hopeless


def test_the_name_of_an_image_is_no_reason() -> None:
    cause = read_pull("dial tcp: i/o timeout (r.test/forbidden:401)", "r.test/forbidden:401")
    assert "do not reach" in cause.why


def test_events_of_an_older_pod_of_the_same_name_do_not_count() -> None:
    recorded = read("secret")
    assert tell(recorded)[0].kind == "missing"
    for pod in recorded["pods"]:
        pod["metadata"]["uid"] = "another"
    assert "missing" not in [trouble.kind for trouble in tell(recorded)]


def test_an_older_cluster_says_only_in_an_event_why_it_waits() -> None:
    recorded = read("image-missing")
    for pod in recorded["pods"]:
        image = pod["spec"]["containers"][0]["image"]
        waiting = pod["status"]["containerStatuses"][0]["state"]["waiting"]
        waiting["message"] = f'Back-off pulling image "{image}"'
    assert [trouble.message for trouble in tell(recorded)] == [CASES["image-missing"][2]]


# -- is there hope -------------------------------------------------------------------------------


def test_a_part_of_the_workers_may_do() -> None:
    troubles = tell(read("quota"))
    assert find_dead_end(troubles, wanted=5, least=3) is None
    found = find_dead_end(troubles, wanted=5, least=4)
    assert found is not None and found.kind == "quota"


def test_workers_of_a_job_that_failed_never_come() -> None:
    troubles = tell(read("oom"))
    assert find_dead_end(troubles, wanted=50, least=1) is troubles[0]
    recorded = read("oom")
    recorded["jobs"][0]["status"] = {"active": 1}
    troubles = tell(recorded)
    assert not troubles[0].hopeless
    assert find_dead_end(troubles, wanted=1, least=1) is None


def test_nothing_begins_without_a_master() -> None:
    troubles = tell(read("claim-none"))
    assert find_dead_end(troubles, wanted=5, least=1) is troubles[0]


def test_what_may_pass_is_no_dead_end() -> None:
    assert find_dead_end(tell(read("full")), wanted=4, least=4) is None


# -- asking --------------------------------------------------------------------------------------


@pytest.fixture
def clock(monkeypatch: pytest.MonkeyPatch) -> Any:
    def stop_at(recorded: Object) -> None:
        now = read_time(recorded["now"]) + LATER
        monkeypatch.setattr(diagnosis.time, "time", lambda: now)

    return stop_at


def serve(recorded: Object, **more: Any) -> FakeAccess:
    return FakeAccess(
        {
            "/pods": recorded["pods"],
            "/jobs": [job for job in recorded["jobs"] if job["kind"] == "Job"],
            "/statefulsets": [job for job in recorded["jobs"] if job["kind"] != "Job"],
            "/events": recorded["events"],
            "/nodes": recorded["nodes"],
            "/apis": {"groups": [{"name": "apps"}]},
            "/log": "the last line",
            **more,
        }
    )


@pytest.mark.parametrize("name", ["too-much-cpu", "quota", "secret", "exit-1", "crash", "oom"])
def test_gathering_finds_the_same(name: str, clock: Any) -> None:
    recorded = read(name)
    clock(recorded)
    (trouble, *_) = gather(serve(recorded), "s")  # type: ignore[arg-type]
    assert trouble.message.removesuffix("; its log ends with: the last line") == CASES[name][2]
    assert trouble.hopeless == CASES[name][1]


def test_a_thousand_pods_cost_no_more_requests_than_one(clock: Any) -> None:
    recorded = read("exit-1")
    recorded["pods"] *= 300
    clock(recorded)
    access = serve(recorded)
    gather(access, "s")  # type: ignore[arg-type]
    assert [one.split()[0] for one in access.asked] == ["LIST", "LIST", "GET"]
    assert access.asked[-1].endswith("/log")


def test_when_all_is_well_little_is_asked(clock: Any) -> None:
    recorded = read("unready")
    clock(recorded)
    for pod in recorded["pods"]:
        for condition in pod["status"]["conditions"]:
            condition["status"] = "True"
    access = serve(recorded)
    assert gather(access, "s") == []  # type: ignore[arg-type]
    assert access.asked == ["LIST /v1/wells/pods", "LIST /batch/v1/wells/jobs"]


def test_an_account_that_may_see_only_pods_is_told_what_these_tell(clock: Any) -> None:
    recorded = read("too-much-cpu")
    clock(recorded)
    hidden = dict.fromkeys(
        ("/nodes", "/events", "/jobs", "/apis", "/cluster-autoscaler-status"), FORBIDDEN
    )
    (trouble,) = gather(serve(recorded, **hidden), "s")  # type: ignore[arg-type]
    assert "no node has that much free" in trouble.message


def test_a_cluster_with_an_autoscaler_is_given_time(clock: Any) -> None:
    recorded = read("too-much-cpu")
    clock(recorded)
    for more, hopeless in (
        ({"/cluster-autoscaler-status": ABSENT}, True),
        ({"/cluster-autoscaler-status": {"data": {}}}, False),
        ({"/apis": {"groups": [{"name": "karpenter.sh"}]}}, False),
    ):
        (trouble,) = gather(serve(recorded, **more), "s")  # type: ignore[arg-type]
        assert trouble.hopeless == hopeless


@pytest.mark.parametrize(("account", "hopeless"), [("default", False), ("nobody", True)])
def test_an_account_that_kubernetes_makes_itself_is_awaited(account: str, hopeless: bool) -> None:
    """A namespace has its default account a moment after it was made."""
    message = (
        'Error creating: pods "s1-broker-0" is forbidden: error looking up service account '
        f'ns/{account}: serviceaccount "{account}" not found'
    )
    cause = read_refusal(message, "broker")
    assert cause.why == f"the namespace has no service account {account}"
    assert cause.hopeless is hopeless and cause.remedy
