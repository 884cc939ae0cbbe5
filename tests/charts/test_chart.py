"""The chart as a whole: what it accepts, and what all of its objects have in common."""

from __future__ import annotations

import json
import re
import shutil
from pathlib import Path
from typing import Any

import pytest
import yaml

from chart import (
    CHART,
    EVERYTHING,
    ROOT,
    VARIANTS,
    find,
    find_pods,
    name_of,
    render,
    render_text,
    run_helm,
)

every_variant = pytest.mark.parametrize("words", VARIANTS.values(), ids=VARIANTS)
SCHEMA = json.loads((CHART / "values.schema.json").read_text(encoding="utf-8"))


def resolve(schema: dict[str, Any]) -> dict[str, Any]:
    reference = schema.get("$ref")
    found: dict[str, Any] = SCHEMA["$defs"][reference.split("/")[-1]] if reference else schema
    return found


def list_schema(schema: dict[str, Any], path: str = "") -> dict[str, dict[str, Any]]:
    """Every value that the schema knows, by its path."""
    found = {}
    for name, entry in resolve(schema).get("properties", {}).items():
        found[f"{path}.{name}".lstrip(".")] = resolve(entry)
        found |= list_schema(entry, f"{path}.{name}")
    return found


def list_values(values: dict[str, Any], path: str = "") -> set[str]:
    found = set()
    for name, value in values.items():
        found.add(f"{path}.{name}".lstrip("."))
        known = list_schema(SCHEMA).get(f"{path}.{name}".lstrip("."), {})
        if isinstance(value, dict) and "properties" in known:
            found |= list_values(value, f"{path}.{name}")
    return found


@every_variant
def test_helm_finds_no_fault(words: tuple[str, ...]) -> None:
    done = run_helm("lint", "--strict", str(CHART), *words)
    assert done.returncode == 0, done.stdout + done.stderr
    assert render(*words)


def test_values_and_schema_have_the_same_keys() -> None:
    values = yaml.safe_load((CHART / "values.yaml").read_text(encoding="utf-8"))
    # Requests and limits are whatever Kubernetes knows.
    schema = {path for path in list_schema(SCHEMA) if path != "global"}
    assert list_values(values) == schema


def test_every_value_is_described_and_no_other_is_known() -> None:
    for path, entry in list_schema(SCHEMA).items():
        assert len(entry.get("description", "")) > 7, path
        if entry["type"] == "object" and "properties" in entry:
            assert entry["additionalProperties"] is False, path


@pytest.mark.parametrize(
    "setting",
    [
        "workers.cuont=3", "worker.count=3", "engine.mode=both", "workers.count=-1",
        "workers.spot=mars", "security.user=0", "session.hours=0", "case.file=a/b.pst",
        "session.id=-x", "case.image.digest=sha256:0", "image.pullSecrets[0].name=x",
        "master.resources.request.cpu=1", "broker.volume.size=much",
    ],
)  # fmt: skip
def test_a_wrong_value_is_refused(setting: str) -> None:
    done = run_helm("template", "fleet", str(CHART), "--set", setting)
    assert done.returncode != 0
    assert "values don't meet the specifications" in done.stderr


@pytest.mark.parametrize(
    ("setting", "missing"),
    [
        ("tunnel.enabled=true", "tunnel.existingSecret"),
        ("broker.external.enabled=true", "broker.external.existingSecret"),
    ],
)
def test_a_missing_value_is_named(setting: str, missing: str) -> None:
    done = run_helm("template", "fleet", str(CHART), "--set", setting)
    assert done.returncode != 0
    assert missing in done.stderr


def test_everything_on_has_every_part() -> None:
    kinds = {item["kind"] for item in render("--values", str(EVERYTHING))}
    assert kinds == {
        "ConfigMap", "DaemonSet", "Deployment", "Job", "NetworkPolicy", "PersistentVolumeClaim",
        "Pod", "PriorityClass", "Role", "RoleBinding", "Secret", "Service", "ServiceAccount",
        "StatefulSet",
    }  # fmt: skip


def test_chart_and_packages_have_one_version() -> None:
    chart = yaml.safe_load((CHART / "Chart.yaml").read_text(encoding="utf-8"))
    project = (ROOT / "client" / "pyproject.toml").read_text(encoding="utf-8")
    assert f'\nversion = "{chart["appVersion"]}"\n' in project
    assert chart["version"].replace("-dev", ".dev") == chart["appVersion"]


@every_variant
def test_all_objects_are_labelled(words: tuple[str, ...]) -> None:
    objects = render(*words)
    session = "Everything.on_1" if str(EVERYTHING) in words else "fleet-pestfleet"
    labelled = {name_of(item): item["metadata"]["labels"] for item in objects}
    labelled |= {f"pods of {name}": pod["metadata"]["labels"]
                 for name, pod in find_pods(objects).items()}  # fmt: skip
    for name, labels in labelled.items():
        assert labels["pestfleet.session"] == session, name
        assert labels["app.kubernetes.io/instance"] == "fleet", name
        assert labels["pestfleet.role"] in (
            "broker", "credentials", "master", "prepull", "session", "test", "tunnel", "worker"
        )  # fmt: skip
        if str(EVERYTHING) in words:
            assert labels["team"] == "groundwater", name


@every_variant
def test_metadata_has_nothing_unknown(words: tuple[str, ...]) -> None:
    objects = render(*words)
    for item in [*objects, *find_pods(objects).values()]:
        known = {"name", "labels", "annotations"}
        known |= {"namespace"} if item.get("kind") == "ServiceAccount" else set()
        assert set(item["metadata"]) <= known, item["metadata"]


@every_variant
def test_selectors_select_the_pods_of_one_role(words: tuple[str, ...]) -> None:
    objects = render(*words)
    pods = find_pods(objects)
    for item in objects:
        spec = item.get("spec", {})
        if item["kind"] == "NetworkPolicy":
            selector = spec["podSelector"]["matchLabels"]
        elif item["kind"] in ("Deployment", "StatefulSet", "DaemonSet"):
            selector = spec["selector"]["matchLabels"]
        elif item["kind"] == "Service":
            selector = spec["selector"]
        else:
            continue
        chosen = [
            n for n, pod in pods.items() if selector.items() <= pod["metadata"]["labels"].items()
        ]
        assert len(chosen) == 1, (name_of(item), chosen)


@pytest.mark.parametrize("release", ["a", "pestfleet", "x" * 53, "a-" * 20 + "b"])
def test_names_are_short_enough(release: str) -> None:
    for item in render("--values", str(EVERYTHING), release=release, namespace="n" * 63):
        name = item["metadata"]["name"]
        if item["kind"] == "PriorityClass":
            assert len(name) <= 253
            continue
        # Those of a Job's or a StatefulSet's pods are longer, by 6 and 11 letters.
        assert len(name) <= 63 - 11 and re.fullmatch(r"[a-z]([-a-z0-9]*[a-z0-9])?", name), name


def test_the_name_may_be_chosen() -> None:
    assert "chosen-broker" in render_text("--set", "fullnameOverride=chosen")
    assert "fleet-ours-broker" in render_text("--set", "nameOverride=ours")


@pytest.mark.parametrize("others", [("one", "two"), ("x" * 52 + "1", "x" * 52 + "2")])
@pytest.mark.parametrize("variant", ["defaults", "everything-on"])
def test_two_releases_do_not_clash(variant: str, others: tuple[str, str]) -> None:
    one, other = (render(*VARIANTS[variant], release=release) for release in others)
    assert not {name_of(item) for item in one} & {name_of(item) for item in other}
    for item in one:
        if item["kind"] in ("NetworkPolicy", "Service"):
            spec = item["spec"]
            selector = (
                spec["selector"] if "selector" in spec else spec["podSelector"]["matchLabels"]
            )
            for pod in find_pods(other).values():
                assert not selector.items() <= pod["metadata"]["labels"].items()


def test_notes_say_what_is_next(tmp_path: Path) -> None:
    # Without a cluster Helm shows objects only.
    shutil.copytree(CHART, tmp_path / "pestfleet")
    (tmp_path / "pestfleet/templates/shown.yaml").write_text(
        'notes: {{ include (print .Template.BasePath "/NOTES.txt") . | toJson }}'
    )
    done = run_helm(
        "template", "fleet", str(tmp_path / "pestfleet"), "--namespace", "here",
        "--show-only", "templates/shown.yaml",
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    notes = yaml.safe_load(done.stdout)["notes"]
    commands = re.findall(r"^  (\w+ \w+)", notes, re.MULTILINE)
    assert commands == ["kubectl get", "kubectl logs", "helm test"]
    assert notes.count("--namespace here") == 3


def test_an_engine_gets_its_options_as_they_are_written() -> None:
    master = find(render("--values", str(EVERYTHING)), "Job", "master")
    words = master["spec"]["template"]["spec"]["containers"][0]["args"]
    options = {words[at + 1] for at, word in enumerate(words) if word == "--option"}
    assert options == {
        "noptmax=20", "ies_num_reals=1000000", "panther_poll_interval=0.5", "ies_no_noise=true"
    }  # fmt: skip
    assert words[words.index("--engine-args") + 1] == "--verbose 'two words'"
    assert words[words.index("--time-limit") + 1] == "900.5"
    assert words[words.index("--cache") + 1] == "s3://bucket/runs"
    assert words[:2] == ["host", "/input/case/model.pst"]
    assert all(isinstance(word, str) for word in words)
