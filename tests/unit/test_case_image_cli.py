"""`pestfleet build` and `pestfleet images`, as far as they need no engine."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
from click.testing import CliRunner, Result
from docker.errors import APIError

from cases import make_case
from pestfleet.cli.main import cli
from pestfleet.images.case import CaseImage
from pestfleet.images.catalog import (
    ImageEntry,
    check_pushable,
    choose_images,
    list_images,
    push_image,
    remove_images,
)
from pestfleet_worker.errors import CaseError, ConfigurationError, TargetError
from pestfleet_worker.messages import Failure, pack_vector
from pestfleet_worker.messages import Result as RunResult

DIGEST = "d" * 64


@pytest.fixture(autouse=True)
def no_engine(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("DOCKER_HOST", f"unix://{tmp_path}/none")
    monkeypatch.chdir(tmp_path)


def call(*arguments: str | Path) -> Result:
    return CliRunner().invoke(cli, [str(argument) for argument in arguments])


def make_entry(**changes: Any) -> ImageEntry:
    values: dict[str, Any] = {
        "id": "sha256:abcdef0123456789",
        "role": "case",
        "names": ("example.com/team/flow:v1",),
        "digests": (),
        "case": "flow",
        "digest": DIGEST,
        "created": 1000.0,
        "size": 10,
        "added": 1,
        "sessions": (),
    }
    return ImageEntry(**{**values, **changes})


def test_a_dry_run_shows_dockerfile_files_and_problems(tmp_path: Path) -> None:
    control = make_case(tmp_path / "case")
    (control.parent / "big.dat").write_bytes(bytes(2_000_000))
    result = call("build", control, "--dry-run")
    assert result.exit_code == 0, result.output
    text = result.stdout
    assert "FROM ${WORKER} AS packages" in text
    assert "large.tar: 1 file, 2 MB\n      2 MB  big.dat\n" in text
    assert "control.tar: 3 files" in text
    assert "  small.pst\n" in text
    assert "not looked for in the image: no Docker engine runs here" in text
    assert text.endswith("0 errors, 0 warnings; nothing was built.\n")


def test_a_dry_run_as_json_and_with_errors(tmp_path: Path) -> None:
    control = make_case(tmp_path / "case")
    control.write_text(control.read_text().replace("./model.sh", "./model.sh\n./model"))
    (control.parent / "model").write_bytes(b"MZ" + bytes(100))
    (control.parent / "model").chmod(0o755)
    result = call("build", control, "--dry-run", "--json")
    assert result.exit_code == 3
    report = json.loads(result.stdout)
    assert [file["name"] for file in report["layers"]["programs"]] == ["model"]
    assert ["Windows" in problem["message"] for problem in report["problems"]] == [True]
    assert report["not_checked"].startswith("no Docker engine runs here")
    assert report["dockerfile"].startswith("# Image of the case small")


def test_without_an_engine_nothing_is_built(tmp_path: Path) -> None:
    result = call("build", make_case(tmp_path / "case"))
    assert result.exit_code == 7
    assert "no Docker engine runs here" in result.stderr
    assert call("images").exit_code == 7


def test_a_push_needs_a_registry_before_anything_is_built(tmp_path: Path) -> None:
    result = call("build", make_case(tmp_path / "case"), "--push")
    assert result.exit_code == 4
    assert "names no registry to push to" in result.stderr


def test_remove_needs_to_know_which() -> None:
    result = call("images", "--remove")
    assert result.exit_code == 4
    assert "--remove needs to know which images" in result.stderr


@pytest.fixture
def built(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A case whose image is there; runs in it give `[5, 6, 7]`. The control file."""
    image = CaseImage("small:latest", "sha256:1", DIGEST, "c" * 64, built=True)
    engine = SimpleNamespace(close=lambda: None)
    monkeypatch.setattr("pestfleet.images.engine.connect_engine", lambda: engine)
    monkeypatch.setattr("pestfleet.images.case.ensure_case_image", lambda *a, **k: image)
    monkeypatch.setattr(
        "pestfleet.images.catalog.list_images",
        lambda engine: [make_entry(id="sha256:1", size=300_000_000, added=2000)],
    )
    answer_runs(monkeypatch, observations=pack_vector([5.0, 6.0, 7.0]))
    return make_case(tmp_path / "case")


def answer_runs(monkeypatch: pytest.MonkeyPatch, **answer: Any) -> None:
    result = RunResult(1, "trial", 0, 0.5, **answer)
    monkeypatch.setattr("pestfleet.images.trial.run_in_image", lambda *a, **k: result)


def test_a_build_tells_image_digest_and_run(built: Path) -> None:
    result = call("build", built)
    assert result.exit_code == 0, result.output
    assert result.stdout.splitlines() == [
        "image   small:latest, 300 MB, of which 2 kB are the case's",
        f"digest  {DIGEST}",
        "run     in the image: 0.5 s; the same bits as on this machine",
    ]


def test_values_that_differ_are_told(built: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    answer_runs(monkeypatch, observations=pack_vector([5.0, 6.0 + 6e-9, 7.0]))
    result = call("build", built)
    assert result.exit_code == 0
    assert result.stdout.endswith(
        "1 observation differs from this machine's, at most by 1e-09 of the value: o2\n"
    )


def test_a_machine_that_cannot_run_the_model_is_told(
    built: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def refuse(*_: Any) -> None:
        raise CaseError("no run can be made here: Windows")

    monkeypatch.setattr("pestfleet.initial_run.make_initial_run", refuse)
    result = call("build", built)
    assert result.exit_code == 0
    assert result.stdout.endswith("; not compared: no run can be made here: Windows\n")


def test_a_model_that_fails_here_only_is_told(built: Path) -> None:
    (built.parent / "model.sh").write_text("#!/bin/sh\nexit 9\n")
    result = call("build", built)
    assert result.exit_code == 0
    assert "not compared: the run on this machine failed: the command './model.sh'" in result.stdout


def test_a_model_that_fails_in_the_image_ends_the_build(
    built: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    log = "Traceback\nModuleNotFoundError: No module named 'flopy'\n"
    answer_runs(monkeypatch, failure=Failure("model-failed", "exit code 1", log=log))
    result = call("build", built, "--tag", "h:5000/small", "--push")
    assert result.exit_code == 5
    assert "the run in the image failed after 0.5 s (model-failed):" in result.stderr
    assert '[image] pip = ["flopy"]' in result.stderr
    assert "pushed" not in result.stdout


@pytest.mark.parametrize(
    "name", ["localhost/x:1", "example.com/x:1", "h:5000/x:1", "docker.io/u/x:1"]
)
def test_names_with_a_registry(name: str) -> None:
    check_pushable(name)


@pytest.mark.parametrize("name", ["x:1", "user/x:1"])
def test_names_without_a_registry(name: str) -> None:
    with pytest.raises(ConfigurationError, match="names no registry"):
        check_pushable(name)


@pytest.mark.parametrize(
    "word",
    ["flow", "flow:v1", "example.com/team/flow", "example.com/team/flow:v1", "dddddd", DIGEST,
     "abcdef01", "sha256:abcdef01"],
)  # fmt: skip
def test_what_an_image_is_called(word: str) -> None:
    assert make_entry().matches(word)


@pytest.mark.parametrize("word", ["flo", "v1", "team", "ddd", "abcdef1", "", "flow:v2"])
def test_what_an_image_is_not_called(word: str) -> None:
    assert not make_entry().matches(word)


def test_images_are_chosen_by_name_and_age() -> None:
    old, new = make_entry(created=10.0), make_entry(created=20.0, case="other", names=())
    assert choose_images([new, old], []) == [new, old]
    assert choose_images([new, old], ["other"]) == [new]
    assert choose_images([new, old], [], created_before=15.0) == [old]
    assert choose_images([new, old], ["other"], created_before=15.0) == []
    with pytest.raises(ConfigurationError, match="there is no image 'nothing'"):
        choose_images([new, old], ["flow", "nothing"])


@pytest.mark.parametrize(
    ("words", "names"),
    [
        (["mine"], ("mine:1",)),
        (["mine:1", "flow:2"], ("mine:1", "h:5000/flow:2")),
        ([], ("mine:1", "h:5000/flow:2")),
        (["mine", "well"], ("mine:1", "h:5000/flow:2")),  # its case
    ],
)
def test_only_the_names_that_are_meant(words: list[str], names: tuple[str, ...]) -> None:
    entry = make_entry(names=("mine:1", "h:5000/flow:2"), case="well")
    assert entry.keep_names(words).names == names


def make_engine(
    *, answers: list[dict[str, Any]] | None = None, remove: Callable[[str], None] | None = None
) -> Any:
    """An engine that answers pushes and removals like this."""

    def push(name: str, **asked: Any) -> Iterator[dict[str, Any]]:
        return iter(answers or [])

    return SimpleNamespace(images=SimpleNamespace(push=push, remove=remove))


def test_images_as_the_engine_lists_them() -> None:
    labels = {"pestfleet.role": "case", "pestfleet.case": "flow", "pestfleet.worker": "sha256:w"}
    listed: list[dict[str, Any]] = [
        {"Id": "sha256:c", "Labels": labels, "Size": 150, "Created": 5, "RepoTags": ["flow:1"],
         "RepoDigests": ["<none>@<none>"]},
        {"Id": "sha256:o", "Labels": {**labels, "pestfleet.worker": "gone"}, "Size": 9,
         "Created": 7, "RepoTags": ["<none>:<none>"], "RepoDigests": None},
        {"Id": "sha256:w", "Labels": {"pestfleet.role": "worker"}, "Size": 100, "Created": 1,
         "RepoTags": ["pestfleet-worker:1"]},
        {"Id": "sha256:s", "Labels": {"pestfleet.role": "build"}, "Size": 1, "Created": 1,
         "RepoTags": None},
    ]  # fmt: skip

    def list_all(filters: dict[str, str] | None = None) -> list[dict[str, Any]]:
        label, _, value = (filters or {}).get("label", "").partition("=")
        return [
            image
            for image in listed
            if not label or (label in image["Labels"] and value in ("", image["Labels"][label]))
        ]

    containers = [
        {"ImageID": "sha256:c", "Labels": {"pestfleet.session": "s2"}},
        {"ImageID": "sha256:c", "Labels": {"pestfleet.session": "s1"}},
        {"ImageID": "sha256:w", "Labels": None},
    ]
    engine: Any = SimpleNamespace(
        api=SimpleNamespace(images=list_all, containers=lambda all: containers)
    )
    nameless, case = list_images(engine)
    assert (case.names, case.digests, case.added) == (("flow:1",), (), 50)
    assert case.sessions == ("s1", "s2")
    assert (nameless.names, nameless.added) == ((), None)
    roles = [(entry.role, entry.sessions) for entry in list_images(engine, all_roles=True)]
    assert roles == [("case", ()), ("case", ("s1", "s2")), ("worker", ("",))]


def test_a_push_tells_of_its_layers_and_gives_the_digest() -> None:
    engine = make_engine(
        answers=[
            {"status": "The push refers to repository [h:5000/x]"},
            {"id": "a1", "status": "Preparing"},
            {"id": "a1", "status": "Pushing", "progress": "1"},
            {"id": "a1", "status": "Pushing", "progress": "2"},
            {"id": "a1", "status": "Pushed"},
            {"aux": {"Tag": "v1", "Digest": "sha256:77", "Size": 3}},
        ]
    )
    lines: list[str] = []
    assert push_image(engine, "h:5000/x:v1", lines.append) == "h:5000/x@sha256:77"
    assert lines == ["a1: preparing", "a1: pushing", "a1: pushed"]


@pytest.mark.parametrize(
    ("error", "remedy"),
    [
        ("denied: requested access to the resource is denied", "docker login h:5000"),
        ("unauthorized: authentication required", "docker login h:5000"),
        ("no basic auth credentials", "docker login h:5000"),
        (
            'Get "http://h:5000/v2/": dial tcp 127.0.0.1:5000: connect: connection refused',
            "Nothing answers the engine at h:5000",
        ),
        ("Get: http: server gave HTTP response to HTTPS client", "h:5000 has no TLS"),
    ],
)
def test_a_push_that_is_refused(error: str, remedy: str) -> None:
    engine = make_engine(answers=[{"errorDetail": {"message": error}, "error": error}])
    with pytest.raises(TargetError, match="image h:5000/x:v1 cannot be pushed") as caught:
        push_image(engine, "h:5000/x:v1")
    assert remedy in caught.value.remedy


def test_images_in_use_are_kept() -> None:
    removed: list[str] = []
    case, used = make_entry(names=("a:1", "a:2")), make_entry(names=("b:1",), sessions=("s1",))
    worker = make_entry(role="worker", names=("w:1",))
    done = list(remove_images(make_engine(remove=removed.append), [worker, case, used]))
    assert removed == ["a:1", "a:2", "w:1"]  # what is built on another one first
    assert [(entry.names[0], reason) for entry, reason in done] == [
        ("a:1", ""), ("b:1", "s1 uses it"), ("w:1", "")
    ]  # fmt: skip


def test_an_image_that_others_are_built_on_is_kept() -> None:
    def refuse(name: str) -> None:
        response: Any = SimpleNamespace(status_code=409, reason="Conflict", url="")
        raise APIError("conflict", response=response, explanation="image has dependent images")

    ((_, reason),) = remove_images(make_engine(remove=refuse), [make_entry()])
    assert reason == "image has dependent images"
