"""What is looked at before a session's containers are started; the Docker engine is a fake."""

from __future__ import annotations

import shutil
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from pestfleet.case import Case
from pestfleet.images.case import CONTROL_LABEL, hash_control
from pestfleet.targets.images import DIGEST, check_case_image
from pestfleet_worker.errors import ConfigurationError


class FakeEngine:
    """Has one image, with these labels and this digest in its environment."""

    def __init__(self, digest: str | None, labels: dict[str, str]) -> None:
        variables = ["PATH=/usr/bin"] + ([f"{DIGEST}={digest}"] if digest else [])
        image = SimpleNamespace(attrs={"Config": {"Env": variables}}, labels=labels)
        self.images = SimpleNamespace(get=lambda name: image)


@pytest.fixture
def folder(root: Path, tmp_path: Path) -> Path:
    shutil.copytree(root / "examples" / "oude-korendijk", tmp_path / "case")
    (tmp_path / "case" / "README.md").unlink()  # it names the control file, which then counts whole
    return tmp_path / "case"


def check(engine: Any, folder: Path, *, whole: bool = True) -> None:
    check_case_image(engine, "wells:1", Case.read(folder), whole=whole)


def make_engine(folder: Path) -> FakeEngine:
    case = Case.read(folder)
    return FakeEngine(case.digest, {CONTROL_LABEL: hash_control(case)})


def test_the_image_of_the_case_is_taken(folder: Path) -> None:
    check(make_engine(folder), folder)


def test_another_measurement_is_another_case_for_a_master_there(folder: Path) -> None:
    engine = make_engine(folder)
    control = next(folder.glob("*.pst"))
    lines = control.read_text().splitlines(keepends=True)
    at = next(n for n, line in enumerate(lines) if line.lower().startswith("* observation data"))
    name, value, *rest = lines[at + 1].split()
    lines[at + 1] = " ".join([name, str(float(value) + 1), *rest]) + "\n"
    digest = Case.read(folder).digest
    control.write_text("".join(lines))
    assert Case.read(folder).digest == digest  # a run does not depend on it
    with pytest.raises(ConfigurationError, match="another control file"):
        check(engine, folder)
    check(engine, folder, whole=False)


def test_another_template_is_another_case_for_all(folder: Path) -> None:
    engine = make_engine(folder)
    template = next(folder.glob("*.tpl"))
    template.write_text(template.read_text() + "more\n")
    for whole in (True, False):
        with pytest.raises(ConfigurationError, match="its digest is"):
            check(engine, folder, whole=whole)


def test_an_image_without_a_case_is_refused(folder: Path) -> None:
    with pytest.raises(ConfigurationError, match="no image of a case"):
        check(FakeEngine(None, {}), folder)
