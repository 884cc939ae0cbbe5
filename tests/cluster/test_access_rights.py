"""What the accounts of a session may do, and that the API server lets all of its pods in."""

from __future__ import annotations

import json
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any, NamedTuple

import pytest
import yaml

from chart import EVERYTHING, Object, find, find_pods, render
from cluster_access import Cluster

pytestmark = pytest.mark.kubernetes

VERBS = ("get", "list", "watch", "create", "update", "patch", "delete", "deletecollection")


class Right(NamedTuple):
    """`name`: "" for any."""

    verb: str
    group: str
    resource: str
    name: str = ""


def find_kinds(cluster: Cluster) -> list[tuple[str, str]]:
    """(group, resource) of all that the API server has, subresources that matter too."""
    words = ("--no-headers", "--output=name")
    names = cluster.kubectl("api-resources", *words).split()
    kinds = [(group, resource) for resource, _, group in (name.partition(".") for name in names)]
    return [
        *kinds,
        *(("", f"pods/{part}") for part in ("exec", "log", "portforward", "ephemeralcontainers")),
        *(("batch", f"jobs/{part}") for part in ("status", "scale")),
        ("", "serviceaccounts/token"),
    ]


def find_rights(
    cluster: Cluster, namespace: str, account: str, asked: Iterable[Right]
) -> set[Right]:
    """Those of the rights that the account has; all are asked for in one call of kubectl."""
    asked = list(asked)
    reviews = [
        {
            "apiVersion": "authorization.k8s.io/v1",
            "kind": "SubjectAccessReview",
            "spec": {
                "user": f"system:serviceaccount:{namespace}:{account}",
                "groups": [
                    "system:serviceaccounts",
                    f"system:serviceaccounts:{namespace}",
                    "system:authenticated",
                ],
                "resourceAttributes": {
                    "namespace": namespace,
                    "verb": right.verb,
                    "group": right.group,
                    "resource": right.resource.partition("/")[0],
                    "subresource": right.resource.partition("/")[2],
                    "name": right.name,
                },
            },
        }
        for right in asked
    ]
    given = json.dumps({"apiVersion": "v1", "kind": "List", "items": reviews})
    template = "--output=jsonpath={.status.allowed} "
    answers = cluster.kubectl("create", "--filename=-", template, given=given).split()
    assert len(answers) == len(asked)
    return {right for right, answer in zip(asked, answers, strict=True) if answer == "true"}


@pytest.fixture
def elastic(cluster: Cluster, namespace: str) -> list[Object]:
    """The objects of an elastic session; its accounts and their rights are in the namespace."""
    objects = render("--set", "elastic.most=9", namespace=namespace)
    create(
        cluster,
        namespace,
        [item for item in objects if item["kind"] in ("ServiceAccount", "Role", "RoleBinding")],
    )
    return objects


def create(cluster: Cluster, namespace: str, objects: list[Object], *words: str) -> str:
    given = json.dumps({"apiVersion": "v1", "kind": "List", "items": objects})
    return cluster.kubectl("create", f"-n={namespace}", "--filename=-", *words, given=given)


@pytest.mark.parametrize("role", ["credentials", "master"])
def test_an_account_can_do_what_it_needs_and_nothing_else(
    cluster: Cluster, namespace: str, elastic: list[Object], role: str
) -> None:
    account = find(elastic, "ServiceAccount", role)["metadata"]["name"]
    secret = find(elastic, "Secret")["metadata"]["name"]
    job = find(elastic, "Job", "worker")["metadata"]["name"]
    needed = {
        "credentials": {Right(verb, "", "secrets", secret) for verb in ("get", "patch")},
        "master": {
            *(Right(verb, "batch", "jobs", job) for verb in ("get", "patch")),
            Right("list", "", "pods"),
        },
    }
    asked = {Right(verb, *kind) for verb in VERBS for kind in find_kinds(cluster)}
    asked |= {
        Right(verb, group, resource, name)
        for verb in VERBS
        for group, resource, name in (
            ("", "secrets", secret),
            ("", "secrets", "another"),
            ("batch", "jobs", job),
            ("batch", "jobs", "another"),
            ("batch", "jobs", find(elastic, "Job", "master")["metadata"]["name"]),
        )
    }
    # What every account of the cluster may do, such as ask what it may do, is no right of ours.
    everybody = find_rights(cluster, namespace, "default", asked)
    assert not everybody & needed[role]
    assert find_rights(cluster, namespace, account, asked) - everybody == needed[role]


def test_no_other_pod_has_an_account(elastic: list[Object]) -> None:
    for name, pod in find_pods(elastic).items():
        with_account = pod["metadata"]["labels"]["pestfleet.role"] in ("credentials", "master")
        assert pod["spec"]["automountServiceAccountToken"] is with_account, name


@pytest.fixture
def priorities(cluster: Cluster, namespace: str) -> Iterator[list[str]]:
    """Priority classes are for all of a cluster: those of the values, and the chart's own."""
    names = [f"{namespace}-high", f"{namespace}-fleet-pestfleet"]
    for name in names:
        cluster.kubectl("create", "priorityclass", name, "--value=1")
    yield names
    cluster.kubectl("delete", "priorityclass", *names)


def test_all_pods_with_everything_on_are_let_in(
    cluster: Cluster, namespace: str, priorities: list[str], tmp_path: Path
) -> None:
    values: dict[str, Any] = yaml.safe_load(EVERYTHING.read_text(encoding="utf-8"))
    for part in ("broker", "master", "tunnel"):
        values[part]["priorityClassName"] = priorities[0]
    path = tmp_path / "values.yaml"
    path.write_text(yaml.safe_dump(values))
    objects = render("--values", str(path), namespace=namespace)
    # Pods are refused without their account.
    create(cluster, namespace, [item for item in objects if item["kind"] == "ServiceAccount"])
    rest = [item for item in objects if item["kind"] not in ("ServiceAccount", "PriorityClass")]
    create(cluster, namespace, rest, "--dry-run=server")

    pods = [
        {
            "apiVersion": "v1",
            "kind": "Pod",
            "metadata": {"generateName": "pod-", "labels": pod["metadata"]["labels"]},
            "spec": {"restartPolicy": "Never", **pod["spec"]},
        }
        for name, pod in find_pods(rest).items()
        if not name.startswith("Pod/")
    ]
    assert len(pods) == 6  # of broker, credentials, master, prepull, tunnel, workers
    for pod in pods:
        pod["spec"]["restartPolicy"] = "Never"  # StatefulSets and others know one kind only
    create(cluster, namespace, pods, "--dry-run=server")
