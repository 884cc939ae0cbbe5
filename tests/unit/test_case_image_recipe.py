"""The Dockerfile of a case's image, its name, and what it is built from."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

from cases import make_case
from pestfleet.case import Case
from pestfleet.images.case import CasePlan, name_case_image, plan_image
from pestfleet.images.recipe import quote
from pestfleet.settings import ImageSettings
from pestfleet_worker.errors import ConfigurationError


def make_plan(folder: Path, *, name: str = "small", **settings: object) -> CasePlan:
    case = Case.read(make_case(folder / "case", name=name))
    return plan_image(case, ImageSettings.model_validate(settings))


def test_the_plain_dockerfile(tmp_path: Path) -> None:
    plan = make_plan(tmp_path)
    lines = [line for line in plan.dockerfile.splitlines() if line]
    assert lines[1:7] == [
        "ARG WORKER",
        "FROM ${WORKER} AS packages",
        "USER root",
        "FROM packages",
        "ADD inputs.tar /",
        "ADD control.tar /",
    ]
    assert lines[7] == f"ENV PESTFLEET_DIGEST={plan.case.digest}"
    assert lines[-1] == "USER 10001:10001"
    assert f'pestfleet.case.digest="{plan.case.digest}"' in plan.dockerfile
    assert 'pestfleet.role="case"' in plan.dockerfile


def test_packages_come_before_the_case(tmp_path: Path) -> None:
    ca = tmp_path / "ca.pem"
    ca.write_text("-----BEGIN CERTIFICATE-----\n")
    plan = make_plan(
        tmp_path, apt=["libgfortran5", "bc"], pip=["flopy>=3.9; python_version > '3'"], ca=str(ca)
    )
    text = plan.dockerfile
    assert re.search(r"install -y --no-install-recommends \\\n +libgfortran5 \\\n +bc \\\n", text)
    assert "'flopy>=3.9; python_version > '\"'\"'3'\"'\"''" in text  # as a shell reads it
    assert text.index("COPY --from=pip") < text.index("ADD control.tar")
    assert plan.texts == {"ca.pem": ca.read_bytes()}
    assert "COPY ca.pem" in text


def test_no_name_of_a_file_is_in_the_dockerfile(tmp_path: Path) -> None:
    case = Case.read(make_case(tmp_path / "case"))
    (case.folder / "x\nRUN touch y").write_text("1")
    assert "touch" not in plan_image(case, ImageSettings()).dockerfile


def test_the_name_of_a_case_is_quoted(tmp_path: Path) -> None:
    plan = make_plan(tmp_path, name='my "best" $HOME\\ case')
    assert r'pestfleet.case="my \"best\" \$HOME\\ case"' in plan.dockerfile
    assert quote("a\nRUN b") == '"a?RUN b"'


def test_what_changes_the_context(tmp_path: Path) -> None:
    plan = make_plan(tmp_path)
    first = plan.compute_context("sha256:1")
    assert plan_image(plan.case, ImageSettings()).compute_context("sha256:1") == first
    assert plan.compute_context("sha256:2") != first
    with_apt = plan_image(plan.case, ImageSettings(apt=["bc"]))
    assert with_apt.compute_context("sha256:1") != first
    # Other weights are no other case for a run, but the master reads them in the image.
    control = plan.case.control.path
    control.write_text(control.read_text().replace(" 1.0 obs", " 2.0 obs"))
    weighted = plan_image(Case.read(control), ImageSettings())
    assert weighted.case.digest == plan.case.digest
    assert weighted.compute_context("sha256:1") != first


def test_a_dockerfile_of_the_users_own(tmp_path: Path) -> None:
    case = Case.read(make_case(tmp_path / "case"))
    settings = ImageSettings(dockerfile="docker/Dockerfile")
    with pytest.raises(ConfigurationError, match="cannot be read"):
        plan_image(case, settings)
    (case.folder / "docker").mkdir()
    path = case.folder / "docker" / "Dockerfile"
    path.write_text("FROM debian\n")
    with pytest.raises(ConfigurationError, match="does not build on the worker image") as caught:
        plan_image(case, settings)
    assert "FROM ${WORKER}" in caught.value.remedy
    path.write_text("ARG WORKER\nFROM ${WORKER}\n")
    with pytest.raises(ConfigurationError, match="does not unpack the case"):
        plan_image(case, settings)
    with pytest.raises(ConfigurationError, match="apt and pip do nothing beside"):
        plan_image(case, ImageSettings(dockerfile="docker/Dockerfile", apt=["bc"]))
    path.write_text("ARG WORKER\nFROM ${WORKER}\nADD *.tar /")
    text = plan_image(case, settings).dockerfile
    assert text.startswith("ARG WORKER\nFROM ${WORKER}\nADD *.tar /\nENV PESTFLEET_DIGEST=")
    with pytest.raises(ConfigurationError, match="outside of the case folder"):
        plan_image(case, ImageSettings(dockerfile="../Dockerfile"))


@pytest.mark.parametrize(
    ("tag", "registry", "name"),
    [
        ("", "", "pestfleet-case-my-case-2:abcdefabcdef"),
        ("", "example.com/me", "example.com/me/pestfleet-case-my-case-2:abcdefabcdef"),
        ("mine", "", "mine:latest"),
        ("mine:v1", "example.com:5000", "example.com:5000/mine:v1"),
        ("other.org/x/mine", "example.com", "other.org/x/mine:latest"),
        ("localhost:5000/mine", "", "localhost:5000/mine:latest"),
    ],
)
def test_names_of_images(tag: str, registry: str, name: str) -> None:
    settings = ImageSettings(registry=registry)
    assert name_case_image("My case_2", "abcdef" * 10, settings, tag=tag) == name


@pytest.mark.parametrize("tag", ["Mine", "a b", "-x", "x:y:z", "https://x/y", "x/"])
def test_names_that_are_none(tag: str) -> None:
    with pytest.raises(ConfigurationError, match="is not the name of an image"):
        name_case_image("case", "0" * 64, ImageSettings(), tag=tag)
