"""What is looked at before a session's objects are made; the cluster is a fake."""

from __future__ import annotations

import copy
from typing import Any

import pytest
import yaml

from fake_cluster_access import ABSENT, FORBIDDEN, FakeAccess
from pestfleet.targets.kubernetes.access import Refused
from pestfleet.targets.kubernetes.checks import check_launch, list_permissions
from pestfleet.targets.kubernetes.permissions import find_missing, write_role
from pestfleet.targets.kubernetes.quantities import (
    format_amount,
    parse_quantity,
    sum_requests,
    sum_usage,
)
from pestfleet_worker.errors import ConfigurationError, TargetError

Object = dict[str, Any]

ALL_RULES = [{"verbs": ["*"], "apiGroups": ["*"], "resources": ["*"]}]


def make_template(role: str, cpu: str, memory: str, **spec: Any) -> Object:
    size = {"cpu": cpu, "memory": memory}
    container = {
        "name": role,
        "image": f"registry.test/{role}:1",
        "resources": {"requests": size, "limits": size},
    }
    return {"metadata": {"labels": {}}, "spec": {"containers": [container], **spec}}


def make(version: str, kind: str, role: str, **more: Any) -> Object:
    labels = {"pestfleet.session": "first", "pestfleet.role": role}
    metadata = {"name": f"pf-{role}", "labels": labels}
    return {"apiVersion": version, "kind": kind, "metadata": metadata, **more}


def make_objects(workers: int = 5, cpu: str = "1", memory: str = "2Gi", **pod: Any) -> list[Object]:
    """What the chart makes of a session with its master in the cluster, shortened."""
    claim = {"accessModes": ["ReadWriteOnce"], "resources": {"requests": {"storage": "10Gi"}}}
    return [
        make(
            "batch/v1",
            "Job",
            "worker",
            spec={"parallelism": workers, "template": make_template("worker", cpu, memory, **pod)},
        ),
        make("batch/v1", "Job", "master", spec={"template": make_template("master", "1", "2Gi")}),
        make(
            "apps/v1",
            "StatefulSet",
            "broker",
            spec={"replicas": 1, "template": make_template("broker", "1", "1Gi")},
        ),
        make("v1", "ConfigMap", "session", data={}),
        make("v1", "PersistentVolumeClaim", "master", spec=claim),
    ]


def make_node(cpu: str = "64", memory: str = "256Gi", *taints: Object, **labels: str) -> Object:
    return {
        "metadata": {"name": "node", "labels": labels},
        "spec": {"taints": list(taints)},
        "status": {
            "allocatable": {"cpu": cpu, "memory": memory, "pods": "110"},
            "conditions": [{"type": "Ready", "status": "True"}],
        },
    }


def make_class(name: str, *, default: bool) -> Object:
    word = {"storageclass.kubernetes.io/is-default-class": str(default).lower()}
    return {"metadata": {"name": name, "annotations": word}}


def make_quota(hard: dict[str, str], used: dict[str, str], **spec: Any) -> Object:
    return {
        "metadata": {"name": "small"},
        "spec": {"hard": hard, **spec},
        "status": {"hard": hard, "used": used},
    }


def serve(**more: Any) -> FakeAccess:
    """A cluster where all is well, but for what is given: by the last word of the path."""
    return FakeAccess(
        {
            "/namespaces/wells": {"status": {"phase": "Active"}},
            "/selfsubjectrulesreviews": {"status": {"resourceRules": ALL_RULES}},
            "/pods": {},
            "/resourcequotas": [],
            "/nodes": [make_node()],
            "/apis": {"groups": []},
            "/storageclasses": [make_class("standard", default=True)],
            **{f"/{name}": answer for name, answer in more.items()},
        }
    )


def check(access: FakeAccess, objects: list[Object] | None = None, **more: Any) -> list[str]:
    return check_launch(access, objects or make_objects(), **more)  # type: ignore[arg-type]


def test_where_all_is_well_nothing_is_said_and_nothing_is_made() -> None:
    access = serve()
    assert check(access) == []
    reviews = [one for one in access.posted if "selfsubject" in one[0]]
    assert len(reviews) == 1
    assert all(query == {"dryRun": "All"} for path, _, query in access.posted if "self" not in path)
    assert len(access.asked) <= 8


# -- namespace -----------------------------------------------------------------------------------


def test_the_namespace_must_be_there() -> None:
    with pytest.raises(TargetError, match="has no namespace wells"):
        check(serve(**{"namespaces/wells": ABSENT}))


def test_a_namespace_that_goes_is_none() -> None:
    with pytest.raises(TargetError, match="is being removed"):
        check(serve(**{"namespaces/wells": {"status": {"phase": "Terminating"}}}))


def test_who_may_not_look_at_namespaces_tries() -> None:
    access = serve(**{"namespaces/wells": FORBIDDEN, "configmaps": {}})
    assert check(access) == []
    with pytest.raises(TargetError, match="has no namespace wells"):
        check(serve(**{"namespaces/wells": FORBIDDEN, "configmaps": ABSENT}))


# -- permissions ---------------------------------------------------------------------------------


def test_all_that_is_missing_is_told_with_a_role_that_allows_it() -> None:
    rules = [
        {"verbs": ["*"], "apiGroups": ["", "apps"], "resources": ["*"]},
        {"verbs": ["get", "list"], "apiGroups": ["batch"], "resources": ["jobs"]},
    ]
    access = serve(selfsubjectrulesreviews={"status": {"resourceRules": rules}})
    with pytest.raises(TargetError) as caught:
        check(access)
    assert "jobs (batch): create, delete, deletecollection, patch" in caught.value.message
    assert "pods" not in caught.value.message
    role = yaml.safe_load(caught.value.remedy.partition(":\n")[2])
    assert (role["kind"], role["metadata"]["namespace"]) == ("Role", "wells")
    assert find_missing_with(role["rules"]) == []


def find_missing_with(rules: list[Object], **status: Any) -> list[str]:
    answer = {"status": {"resourceRules": rules, **status}}
    access = serve(
        selfsubjectrulesreviews=answer,
        selfsubjectaccessreviews={"status": {"allowed": False}},
    )
    needed = [one for one in list_permissions(make_objects()) if not one.optional]
    return [str(one) for one in find_missing(access, needed)]  # type: ignore[arg-type]


def test_an_authorizer_that_lists_nothing_is_asked_for_each() -> None:
    access = serve(
        selfsubjectrulesreviews={"status": {"resourceRules": [], "incomplete": True}},
        selfsubjectaccessreviews={"status": {"allowed": True}},
    )
    assert check(access) == []
    asked = [b["spec"]["resourceAttributes"] for path, b, _ in access.posted if "access" in path]
    execution = [one for one in asked if one["subresource"] == "exec"]
    assert {(one["resource"], one["verb"]) for one in execution} == {
        ("pods", "get"),
        ("pods", "create"),
    }
    assert "jobs (batch): create" in find_missing_with([], incomplete=True)[-1]


@pytest.mark.parametrize(
    "rule",
    [
        {"resources": ["pods/exec"]},
        {"resources": ["*/exec"]},
        {"resources": ["*"]},
    ],
)
def test_rules_name_subresources_in_three_ways(rule: Object) -> None:
    rule |= {"verbs": ["*"], "apiGroups": [""]}
    assert not any(one.startswith("pods/exec") for one in find_missing_with([rule]))


def test_a_rule_for_some_names_is_none_for_ours() -> None:
    rule = {"verbs": ["*"], "apiGroups": ["*"], "resources": ["*"], "resourceNames": ["other"]}
    assert any(one.startswith("pods/exec") for one in find_missing_with([rule]))


def test_a_master_at_home_needs_a_port_and_one_in_the_cluster_does_not() -> None:
    there = make_objects()
    here = [one for one in there if one["metadata"]["name"] != "pf-master"]
    assert not any("portforward" in str(one) for one in list_permissions(there))
    assert any("portforward" in str(one) for one in list_permissions(here))


def test_nobody_gives_rights_that_they_have_not() -> None:
    rule = {"verbs": ["watch"], "apiGroups": ["batch"], "resources": ["jobs"]}
    role = make("rbac.authorization.k8s.io/v1", "Role", "master", rules=[rule])
    needed = {one.resource: one for one in list_permissions([*make_objects(), role])}
    assert "watch" in needed["jobs"].verbs
    assert needed["roles"].group == "rbac.authorization.k8s.io"
    assert [one.resource for one in needed.values() if one.optional] == ["nodes", "storageclasses"]


def test_a_role_is_yaml() -> None:
    needed = list_permissions(make_objects())
    role = yaml.safe_load(write_role(needed, "wells"))
    assert len(role["rules"]) == len(needed)
    assert role["rules"][0]["apiGroups"] == [needed[0].group]


# -- admission -----------------------------------------------------------------------------------


def refuse(message: str, status: int = 403) -> Refused:
    return Refused(status, "Forbidden", message)


@pytest.mark.parametrize(
    ("message", "says"),
    [
        (
            'pods "x" is forbidden: violates PodSecurity "restricted:latest": host namespaces',
            "allows only pods of security level restricted: host namespaces",
        ),
        (
            'pods "x" is forbidden: maximum memory usage per Container is 1Gi, but limit is 2Gi',
            "allows a container memory of 1Gi at most",
        ),
        (
            'pods "x" is forbidden: exceeded quota: small, requested: pods=1, used: pods=2, '
            "limited: pods=2",
            "the quota small allows 2 pods, 2 pods of it in use",
        ),
        (
            'admission webhook "guard.test" denied the request: no image of registry.test',
            r"a rule of the cluster \(guard.test\) forbids it: no image of registry.test",
        ),
    ],
)
def test_what_the_api_server_refuses_is_told(message: str, says: str) -> None:
    with pytest.raises(TargetError, match=says):
        check(serve(pods=refuse(message)))


def test_pods_that_no_cluster_takes_are_a_wrong_configuration() -> None:
    with pytest.raises(ConfigurationError, match="role master"):
        check(serve(pods=refuse('Pod "x" is invalid: spec.volumes', 422)))


@pytest.mark.parametrize(
    "message",
    [
        'pods is forbidden: User "ann" cannot create resource "pods" in API group ""',
        'admission webhook "guard.test" does not support dry run',
    ],
)
def test_who_may_not_try_goes_on(message: str) -> None:
    assert check(serve(pods=refuse(message))) == []


def test_what_is_made_with_the_pods_is_not_missed() -> None:
    objects = make_objects(serviceAccountName="pf-worker", priorityClassName="urgent")
    objects.append(make("v1", "ServiceAccount", "worker"))
    access = serve()
    check(access, objects)
    specs = [body["spec"] for path, body, _ in access.posted if path.endswith("/pods")]
    assert [spec.get("serviceAccountName") for spec in specs] == [None] * 3
    assert specs[-1]["priorityClassName"] == "urgent"


# -- quotas --------------------------------------------------------------------------------------


def test_a_quota_leaves_room_for_some() -> None:
    quota = make_quota({"requests.cpu": "6"}, {"requests.cpu": "1"})
    # Of the five that are free, master and broker take two.
    assert check(serve(resourcequotas=[quota])) == [
        "the quota small leaves room for 3 of 5 workers: of 6 cores (requests.cpu) 1 core is in "
        "use, and each asks for 1 core"
    ]
    with pytest.raises(TargetError, match="leaves room for 3 of 5 workers"):
        check(serve(resourcequotas=[quota]), least=4)


@pytest.mark.parametrize(
    ("hard", "says"),
    [
        ({"pods": "1"}, "leaves no room for the master and the broker"),
        ({"requests.storage": "5Gi"}, "asks? for 10 GiB"),
        ({"limits.memory": "4Gi"}, "leaves room for 0 of 5 workers"),
    ],
)
def test_a_quota_leaves_room_for_none(hard: dict[str, str], says: str) -> None:
    with pytest.raises(TargetError, match=says):
        check(serve(resourcequotas=[make_quota(hard, {})]))


def test_a_quota_with_room_or_for_other_pods_is_no_matter() -> None:
    roomy = make_quota({"requests.cpu": "100", "configmaps": "1"}, {"configmaps": "1"})
    other = make_quota({"pods": "0"}, {}, scopes=["BestEffort"])
    assert check(serve(resourcequotas=[roomy, other])) == []


# -- nodes ---------------------------------------------------------------------------------------

GPU = {"key": "dedicated", "value": "gpu", "effect": "NoSchedule"}


@pytest.mark.parametrize(
    ("nodes", "pod", "says"),
    [
        (
            [make_node("2")],
            {"cpu": "4"},
            "it asks for 4 cores, and the largest node there has 2 cores",
        ),
        ([make_node()], {"nodeSelector": {"zone": "a"}}, "no node has the label zone=a"),
        ([make_node("64", "256Gi", GPU)], {}, "have the taint dedicated=gpu:NoSchedule"),
        (
            [make_node("2"), make_node("64", "256Gi", GPU)],
            {"cpu": "4"},
            r"\(larger ones have the taint dedicated=gpu:NoSchedule\)",
        ),
        (
            [make_node("2", "64Gi"), make_node("64", "2Gi")],
            {"cpu": "4", "memory": "4Gi"},
            "it asks for 4 cores and 4 GiB, and no node has all of that at once",
        ),
    ],
)
def test_no_node_can_take_it(nodes: list[Object], pod: Object, says: str) -> None:
    objects = make_objects(**pod)
    with pytest.raises(TargetError, match=says):
        check(serve(nodes=nodes), objects)
    # A node may be added where the cluster does that, or where nobody knows.
    for status in ({"data": {}}, FORBIDDEN):
        (warning, *_) = check(serve(nodes=nodes, **{"cluster-autoscaler-status": status}), objects)
        assert warning.endswith("one must be added")


@pytest.mark.parametrize(
    "pod",
    [
        {"tolerations": [{"key": "dedicated", "operator": "Exists"}]},
        {"tolerations": [{"key": "dedicated", "value": "gpu", "effect": "NoSchedule"}]},
        {"tolerations": [{"operator": "Exists"}]},
    ],
)
def test_a_taint_can_be_tolerated(pod: Object) -> None:
    access = serve(nodes=[make_node(), make_node("64", "256Gi", GPU, zone="a")])
    assert check(access, make_objects(nodeSelector={"zone": "a"}, **pod)) == []


@pytest.mark.parametrize(
    ("expression", "fits"),
    [
        ({"key": "zone", "operator": "In", "values": ["a", "b"]}, True),
        ({"key": "zone", "operator": "NotIn", "values": ["a"]}, False),
        ({"key": "zone", "operator": "Exists"}, True),
        ({"key": "zone", "operator": "DoesNotExist"}, False),
        ({"key": "generation", "operator": "Gt", "values": ["3"]}, True),
        ({"key": "generation", "operator": "Lt", "values": ["3"]}, False),
    ],
)
def test_affinity_counts(expression: Object, fits: bool) -> None:
    terms = {"nodeSelectorTerms": [{"matchExpressions": [expression]}]}
    affinity = {"nodeAffinity": {"requiredDuringSchedulingIgnoredDuringExecution": terms}}
    access = serve(nodes=[make_node(zone="a", generation="4")])
    objects = make_objects(affinity=affinity)
    if fits:
        assert check(access, objects) == []
        return
    with pytest.raises(TargetError, match=f"no node has the label {expression['key']}"):
        check(access, objects)


def test_nodes_that_are_too_few_or_away_are_a_warning() -> None:
    assert check(serve(nodes=[make_node("3"), make_node("3")]), make_objects(20)) == [
        "the nodes that are there have room for 6 of 20 workers, if nothing else runs there"
    ]
    away = make_node()
    away["spec"]["unschedulable"] = True
    warnings = check(serve(nodes=[away]))
    assert len(warnings) == 3
    assert all("(node) is not ready, or closed for new pods" in one for one in warnings)


def test_who_may_not_list_nodes_hears_nothing_of_them() -> None:
    assert check(serve(nodes=FORBIDDEN, storageclasses=FORBIDDEN)) == []


# -- storage -------------------------------------------------------------------------------------


def test_a_volume_needs_a_class() -> None:
    named = make_objects()
    named[-1]["spec"]["storageClassName"] = "fast"
    with pytest.raises(TargetError, match="has not the storage class fast"):
        check(serve(), named)
    assert check(serve(storageclasses=[make_class("fast", default=False)]), named) == []


def test_without_a_default_class_a_volume_must_be_there() -> None:
    classes = [make_class("fast", default=False)]
    with pytest.raises(TargetError, match="a default storage class") as caught:
        check(serve(storageclasses=classes, persistentvolumes=[]))
    assert "--set master.volume.storageClass=NAME. There are: fast." in caught.value.remedy
    free = {"spec": {}, "status": {"phase": "Available"}}
    (warning,) = check(serve(storageclasses=classes, persistentvolumes=[free]))
    assert "only a volume that is there already can do" in warning
    (warning,) = check(serve(storageclasses=classes, persistentvolumes=FORBIDDEN))
    assert "only a volume that is there already can do" in warning


def test_the_volume_of_a_session_that_resumes_is_there() -> None:
    bound = {"status": {"phase": "Bound"}}
    access = serve(storageclasses=[], **{"persistentvolumeclaims/pf-master": bound})
    assert check(access) == []


def test_a_session_without_volumes_needs_no_classes() -> None:
    access = serve(storageclasses=[])
    assert check(access, make_objects()[:-1]) == []
    assert not any("storage" in one for one in access.asked)


# -- images --------------------------------------------------------------------------------------


def test_images_are_looked_for_where_somebody_can() -> None:
    seen = []

    def find_problem(image: str) -> str:
        seen.append(image)
        return "there is none" if "worker" in image else ""

    with pytest.raises(TargetError, match=r"worker:1 cannot be pulled: there is none"):
        check(serve(), find_problem=find_problem)
    assert len(seen) == len(set(seen)) == 3


# -- amounts -------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("text", "value"),
    [("500m", 0.5), ("2", 2), ("1.5Gi", 1.5 * 2**30), ("1e3", 1000), ("2k", 2000), ("3M", 3e6)],
)
def test_quantities(text: str, value: float) -> None:
    assert parse_quantity(text) == value


@pytest.mark.parametrize("text", ["", "two", "2 Gi", "1Gib", "--1"])
def test_what_is_no_quantity(text: str) -> None:
    with pytest.raises(ValueError, match="is not a quantity"):
        parse_quantity(text)


@pytest.mark.parametrize(
    ("resource", "text", "words"),
    [
        ("cpu", "1", "1 core"),
        ("limits.cpu", "500m", "0.5 cores"),
        ("memory", "1536Mi", "1.5 GiB"),
        ("requests.storage", "1000Mi", "1000 MiB"),
        ("pods", "1", "1 pod"),
        ("nvidia.com/gpu", "2", "2 nvidia.com/gpu"),
    ],
)
def test_amounts_in_words(resource: str, text: str, words: str) -> None:
    assert format_amount(resource, parse_quantity(text)) == words


def test_a_pod_asks_for_the_sum_of_its_containers_or_for_what_comes_before() -> None:
    spec = make_template("worker", "1", "1Gi")["spec"]
    spec["containers"] *= 2
    first = copy.deepcopy(spec["containers"][0])
    first["resources"] = {"limits": {"cpu": "3", "memory": "1Gi"}}
    spec["initContainers"] = [first]
    spec["overhead"] = {"memory": "1Gi"}
    assert sum_requests(spec) == {"cpu": 3, "memory": 3 * 2**30, "pods": 1}
    first["restartPolicy"] = "Always"  # a sidecar
    assert sum_requests(spec)["cpu"] == 5
    assert sum_usage(spec)["limits.cpu"] == sum_usage(spec)["requests.cpu"] == 5
