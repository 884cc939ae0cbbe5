"""The chart's pods: security, secrets, resources, and what their Jobs do when they fail."""

from __future__ import annotations

import re
from copy import deepcopy
from typing import Any

import pytest
import yaml

from chart import (
    EVERYTHING,
    VARIANTS,
    find,
    find_pods,
    list_containers,
    name_of,
    render,
    render_text,
)
from restricted import find_faults

every_variant = pytest.mark.parametrize("words", VARIANTS.values(), ids=VARIANTS)
Object = dict[str, Any]


@every_variant
def test_every_pod_is_restricted(words: tuple[str, ...]) -> None:
    pods = find_pods(render(*words))
    assert pods
    assert {name: find_faults(pod) for name, pod in pods.items() if find_faults(pod)} == {}
    for name, pod in pods.items():
        for container in list_containers(pod):
            assert container["securityContext"]["readOnlyRootFilesystem"] is True, name


@pytest.mark.parametrize(
    "harm",
    [
        lambda pod: pod["spec"].update(hostNetwork=True),
        lambda pod: pod["spec"]["volumes"].append({"name": "h", "hostPath": {"path": "/"}}),
        lambda pod: pod["spec"]["securityContext"].update(runAsUser=0),
        lambda pod: pod["spec"]["securityContext"].pop("seccompProfile"),
        lambda pod: pod["spec"]["securityContext"].pop("runAsNonRoot"),
        lambda pod: pod["spec"]["containers"][0]["securityContext"].pop("capabilities"),
        lambda pod: pod["spec"]["containers"][0]["securityContext"].update(privileged=True),
        lambda pod: pod["spec"]["containers"][0].pop("securityContext"),
        lambda pod: pod["spec"]["containers"][0].update(ports=[{"hostPort": 22}]),
    ],
)
def test_the_checker_finds_faults(harm: Any) -> None:
    pod = deepcopy(find(render(), "Job", "worker")["spec"]["template"])
    harm(pod)
    assert find_faults(pod)


@every_variant
def test_who_speaks_to_the_api_server_has_a_token(words: tuple[str, ...]) -> None:
    objects = render(*words)
    speaking = {"credentials", "master"} if str(EVERYTHING) in words else {"credentials"}
    accounts = [item for item in objects if item["kind"] == "ServiceAccount"]
    for name, pod in find_pods(objects).items():
        role = pod["metadata"]["labels"]["pestfleet.role"]
        own = role in speaking
        assert pod["spec"]["automountServiceAccountToken"] is own, name
        assert ("serviceAccountName" in pod["spec"]) is own, name
        assert pod["spec"]["enableServiceLinks"] is False, name
    assert all(item["automountServiceAccountToken"] is False for item in accounts)
    assert len(accounts) == len([item for item in objects if item["kind"] == "RoleBinding"])


def test_the_credentials_may_touch_one_secret_only() -> None:
    objects = render(namespace="here")
    secret = find(objects, "Secret")
    name = secret["metadata"]["name"]
    assert find(objects, "Role")["rules"] == [
        {"apiGroups": [""], "resources": ["secrets"], "resourceNames": [name],
         "verbs": ["get", "patch"]}
    ]  # fmt: skip
    account = find(objects, "ServiceAccount")["metadata"]["name"]
    assert find(objects, "RoleBinding")["subjects"] == [
        {"kind": "ServiceAccount", "name": account, "namespace": "here"}
    ]
    # Whoever applies it again must not empty it.
    assert not {"data", "stringData"} & set(secret)
    words = find(objects, "Job", "credentials")["spec"]["template"]["spec"]["containers"][0]["args"]
    assert words[words.index("--into-secret") + 1] == name
    assert words[words.index("--broker-host") + 1] == find(objects, "Service")["metadata"]["name"]


def test_an_elastic_master_may_scale_its_workers_only() -> None:
    objects = render("--set", "elastic.most=9,workers.count=3", namespace="here")
    job = find(objects, "Job", "worker")
    assert job["spec"]["parallelism"] == 3
    assert find(objects, "Role", "master")["rules"] == [
        {"apiGroups": ["batch"], "resources": ["jobs"],
         "resourceNames": [job["metadata"]["name"]], "verbs": ["get", "patch"]},
        {"apiGroups": [""], "resources": ["pods"], "verbs": ["list"]},
    ]  # fmt: skip
    pod = find(objects, "Job", "master")["spec"]["template"]["spec"]
    account = find(objects, "ServiceAccount", "master")["metadata"]["name"]
    assert pod["serviceAccountName"] == account
    assert find(objects, "RoleBinding", "master")["subjects"] == [
        {"kind": "ServiceAccount", "name": account, "namespace": "here"}
    ]
    words = pod["containers"][0]["args"]
    assert words[words.index("--workers-job") + 1] == job["metadata"]["name"]
    assert words[words.index("--most") + 1] == "9"
    assert words[words.index("--workers") + 1] == "3"
    policy = find(objects, "NetworkPolicy", "master")["spec"]["egress"]
    assert {
        "ports": [{"protocol": "TCP", "port": 443}, {"protocol": "TCP", "port": 6443}]
    } in policy
    # A drained worker is to be seen before its Job is made smaller.
    [worker] = job["spec"]["template"]["spec"]["containers"]
    assert worker["readinessProbe"]["periodSeconds"] == 5


def list_secret_files(pod: Object) -> dict[str, set[str]]:
    """Keys of the Secrets that a pod mounts."""
    found: dict[str, set[str]] = {}
    for volume in pod["spec"].get("volumes", ()):
        if "secret" in volume:
            keys = {item["key"] for item in volume["secret"]["items"]}
            found.setdefault(volume["secret"]["secretName"], set()).update(keys)
            assert volume["secret"]["defaultMode"] == 0o440
    return found


@every_variant
def test_each_pod_gets_its_own_secrets_only(words: tuple[str, ...]) -> None:
    wanted = {
        "broker": {"rabbitmq.conf", "definitions.json", "enabled_plugins", "ca.pem", "cert.pem",
                   "key.pem"},
        "master": {"broker-url", "ca.pem"},
        "worker": {"broker-url", "ca.pem"},
    }  # fmt: skip
    for name, pod in find_pods(render(*words)).items():
        role = pod["metadata"]["labels"]["pestfleet.role"]
        secrets = list_secret_files(pod)
        if role == "tunnel":
            assert list(secrets.values()) == [{"host_key", "authorized_keys"}], name
        elif role not in wanted:
            assert secrets == {}, name
        elif "pestfleet-existing-broker" in secrets:
            assert secrets["pestfleet-existing-broker"] == {f"{role}-url", "ca.pem"}, name
        else:
            secret = next(iter(secrets))
            assert secret == (
                "made-before" if "credentials.existingSecret=made-before" in words
                else "fleet-pestfleet-credentials"
            )  # fmt: skip
            assert secrets == {secret: {f"{role}.{file}" for file in wanted[role]}}, name


@every_variant
def test_no_secret_is_in_a_manifest(words: tuple[str, ...]) -> None:
    for item in render(*words):
        if item["kind"] in ("Secret", "ConfigMap"):
            assert set(item.get("data", {})) <= {"workers", "launch"}, name_of(item)
    for name, pod in find_pods(render(*words)).items():
        for container in list_containers(pod):
            for variable in container.get("env", ()):
                if re.search("secret|password|token|key|url", variable["name"], re.IGNORECASE):
                    assert "value" not in variable, (name, variable)
    text = render_text(*words)
    assert not re.search(r"amqps?://|BEGIN [A-Z ]*PRIVATE KEY|password_hash", text)


@every_variant
def test_every_pod_is_guaranteed_its_resources(words: tuple[str, ...]) -> None:
    small = words == VARIANTS["minimal"]
    for name, pod in find_pods(render(*words)).items():
        role = pod["metadata"]["labels"]["pestfleet.role"]
        for container in list_containers(pod):
            resources = container["resources"]
            assert {"cpu", "memory"} <= set(resources["limits"]), (name, container["name"])
            if not (small and role in ("broker", "credentials", "master")):
                assert resources["requests"] == resources["limits"], (name, container["name"])
            assert resources["requests"]["memory"] == resources["limits"]["memory"], name


@every_variant
def test_every_mount_has_its_volume_and_every_folder_its_limit(words: tuple[str, ...]) -> None:
    for name, pod in find_pods(render(*words)).items():
        volumes = {volume["name"]: volume for volume in pod["spec"].get("volumes", ())}
        mounts = {
            mount["name"]
            for container in list_containers(pod)
            for mount in container.get("volumeMounts", ())
        }
        assert mounts == set(volumes), name
        for volume in volumes.values():
            if "emptyDir" in volume and volume["name"] != "extra":
                assert volume["emptyDir"]["sizeLimit"], (name, volume)


@every_variant
def test_every_role_has_its_network_policy(words: tuple[str, ...]) -> None:
    objects = render(*words)
    policies = [item for item in objects if item["kind"] == "NetworkPolicy"]
    roles = {pod["metadata"]["labels"]["pestfleet.role"] for pod in find_pods(objects).values()}
    if not policies:
        assert "enabled: false" in yaml.safe_dump(list(words)) or "minimal" in words[-1]
        return
    assert {item["spec"]["podSelector"]["matchLabels"]["pestfleet.role"] for item in policies} == (
        roles - {"test"}
    )
    for item in policies:
        assert item["spec"]["policyTypes"] == ["Ingress", "Egress"]


def test_only_master_and_workers_reach_the_broker() -> None:
    [rule] = [
        item["spec"]["ingress"]
        for item in render()
        if item["kind"] == "NetworkPolicy" and item["metadata"]["name"].endswith("-broker")
    ]
    [entry] = rule
    assert [peer["podSelector"]["matchLabels"]["pestfleet.role"] for peer in entry["from"]] == [
        "master", "worker"
    ]  # fmt: skip
    assert entry["ports"] == [{"protocol": "TCP", "port": 5671}]


def test_workers_are_a_queue_whose_losses_are_replaced() -> None:
    spec = find(render(), "Job", "worker")["spec"]
    assert spec["parallelism"] == 4
    assert "completions" not in spec
    assert spec["ttlSecondsAfterFinished"] == 3600
    assert spec["activeDeadlineSeconds"] == 72 * 3600 + 600
    assert spec["template"]["spec"]["restartPolicy"] == "Never"
    assert [(rule["action"], rule.get("onPodConditions"), rule.get("onExitCodes", {}).get("values"))
            for rule in spec["podFailurePolicy"]["rules"]] == [
        ("Ignore", [{"type": "DisruptionTarget", "status": "True"}], None),
        ("Ignore", None, [11, 12]),
        ("FailJob", None, [10]),
    ]  # fmt: skip
    names = {container["name"] for container in spec["template"]["spec"]["containers"]}
    assert names == {"worker"}
    assert all(rule.get("onExitCodes", {}).get("containerName", "worker") == "worker"
               for rule in spec["podFailurePolicy"]["rules"])  # fmt: skip


@pytest.mark.parametrize(("hashed", "other"), [("true", []), ("false", [8])])
def test_a_master_that_is_moved_is_no_failure(hashed: str, other: list[int]) -> None:
    spec = find(render("--set", f"jobs.hashedNames={hashed}"), "Job", "master")["spec"]
    words = spec["template"]["spec"]["containers"][0]["args"]
    assert "--keep-workers" in words
    assert words[words.index("--idle-minutes") + 1] == "20"
    assert words[words.index("--max-hours") + 1] == "72"
    assert [(rule["action"], rule.get("onExitCodes", {}).get("values"))
            for rule in spec["podFailurePolicy"]["rules"]] == [
        ("Ignore", None), ("Ignore", [12]), ("FailJob", [2, 3, 4, 5, 6, 7, *other, 130]),
    ]  # fmt: skip


def test_a_launch_is_an_installation_unless_it_has_a_name() -> None:
    objects = render()
    master = find(objects, "Job", "master")["spec"]["template"]["spec"]["containers"][0]
    assert master["args"][master["args"].index("--launch") + 1] == "$(LAUNCH)"
    [source] = [item["valueFrom"]["configMapKeyRef"] for item in master["env"]
                if item["name"] == "LAUNCH"]  # fmt: skip
    session = find(objects, "ConfigMap")
    assert source == {"name": session["metadata"]["name"], "key": "launch"}
    # Any two differ, but no pod does: an upgrade is no launch.
    other = render("--set", "nameOverride=")
    assert find(other, "ConfigMap")["data"]["launch"] != session["data"]["launch"]
    assert find(other, "Job", "master") == find(objects, "Job", "master")
    named = render("--set", "session.launch=second")
    words = find(named, "Job", "master")["spec"]["template"]["spec"]["containers"][0]["args"]
    assert words[words.index("--launch") + 1] == "second"
    assert "launch" not in find(named, "ConfigMap")["data"]


FIXED = ("template", "podFailurePolicy", "selector", "completions", "completionMode")


@pytest.mark.parametrize(
    ("setting", "changed"),
    [
        ("workers.count=40", set()),
        ("session.hours=1", {"master"}),
        ("session.idleMinutes=0", {"master"}),
        ("session.keepSeconds=0", set()),
        ("workers.backoffLimit=1", set()),
        ("labels.team=x", {"master", "worker", "credentials"}),
        ("workers.resources.limits.memory=8Gi", {"worker"}),
        ("case.image.tag=two", {"master", "worker"}),
        ("engine.options.noptmax=3", {"master"}),
        ("session.launch=two", {"master"}),
    ],
)
def test_a_job_that_cannot_be_changed_has_another_name(setting: str, changed: set[str]) -> None:
    before, after = render(), render("--set", setting)
    for role in ("master", "worker", "credentials"):
        old, new = find(before, "Job", role), find(after, "Job", role)
        renamed = old["metadata"]["name"] != new["metadata"]["name"]
        assert renamed is (role in changed), role
        fixed = [old["spec"].get(word) != new["spec"].get(word) for word in FIXED]
        assert any(fixed) is renamed, role


def test_the_chart_s_version_is_no_reason_for_other_pods() -> None:
    version = re.compile(r"helm\.sh/chart|app\.kubernetes\.io/version|managed-by")
    for name, pod in find_pods(render()).items():
        assert not version.search(" ".join(pod["metadata"]["labels"])), name


@pytest.mark.parametrize(
    ("provider", "label", "tolerations"),
    [
        ("gke", ("cloud.google.com/gke-spot", "true"), 1),
        ("eks", ("eks.amazonaws.com/capacityType", "SPOT"), 0),
        ("aks", ("kubernetes.azure.com/scalesetpriority", "spot"), 1),
        ("karpenter", ("karpenter.sh/capacity-type", "spot"), 0),
    ],
)
def test_spot_is_for_workers_only(provider: str, label: tuple[str, str], tolerations: int) -> None:
    objects = render("--set", f"workers.spot={provider},workers.nodeSelector.pool=mine")
    spec = find(objects, "Job", "worker")["spec"]["template"]["spec"]
    assert spec["nodeSelector"] == {"pool": "mine", label[0]: label[1]}
    assert len(spec.get("tolerations", ())) == tolerations
    for kind, role in (("Job", "master"), ("StatefulSet", "broker")):
        assert "nodeSelector" not in find(objects, kind, role)["spec"]["template"]["spec"]


def test_images_are_those_of_the_registry_and_by_digest() -> None:
    images = {
        container["name"]: container["image"]
        for pod in find_pods(render("--values", str(EVERYTHING))).values()
        for container in list_containers(pod)
    }
    assert images["worker"].startswith("registry.example.org/team/cases/model@sha256:0123")
    assert images["worker"] == images["case"] == images["run"]
    assert images["master"] == "registry.example.org/team/pestfleet-master:9"
    assert images["broker"] == "mirror/rabbitmq:3.13-management"  # not one of ours


def test_a_spread_without_a_selector_is_of_its_own_pods() -> None:
    for role in ("master", "worker"):
        pod = find(render("--values", str(EVERYTHING)), "Job", role)["spec"]["template"]
        [spread] = pod["spec"]["topologySpreadConstraints"]
        chosen = spread["labelSelector"]["matchLabels"]
        assert chosen["pestfleet.role"] == role
        assert chosen.items() <= pod["metadata"]["labels"].items()


def test_results_stay_unless_told_otherwise() -> None:
    keep = "helm.sh/resource-policy"
    claim = find(render(), "PersistentVolumeClaim", "master")
    assert claim["metadata"]["annotations"][keep] == "keep"
    [master] = find(render(), "Job", "master")["spec"]["template"]["spec"]["containers"]
    assert claim["metadata"]["annotations"]["pestfleet.image"] == master["image"]
    claim = find(render("--set", "master.volume.keep=false"), "PersistentVolumeClaim", "master")
    assert keep not in claim["metadata"].get("annotations", {})
    assert not [item for item in render("--set", "master.volume.existingClaim=mine")
                if item["kind"] == "PersistentVolumeClaim"
                and item["metadata"]["labels"]["pestfleet.role"] == "master"]  # fmt: skip
