"""What the documents say about files, options and the Python API agrees with the code."""

from __future__ import annotations

import ast
import inspect
import json
import re
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

import pestfleet
from fake_runner import make_control, make_job
from pestfleet.case import Case, check_case
from pestfleet.engines import glm, ies, sweep
from pestfleet.engines.glm import settings as glm_settings
from pestfleet.engines.ies.options import Options
from pestfleet.folder import SessionFolder
from pestfleet.master import Outcome
from pestfleet.session import Session, create_session
from pestfleet_worker.messages import Limits, pack_vector, unpack_vector
from pestfleet_worker.runs import Slot
from pestfleet_worker.slots import prepare_slot
from session_files import write_events
from source import ROOT
from test_results import ITERATIONS, write_glm

DOCS = ROOT / "docs"
FILE = re.compile(r"^```\w+ file=(\S+)\n(.*?)^```$", re.MULTILINE | re.DOTALL)
PYTHON = re.compile(r"^```python\n(.*?)^```$", re.MULTILINE | re.DOTALL)


def read(name: str) -> str:
    return (DOCS / name).read_text(encoding="utf-8")


def read_section(name: str, heading: str) -> str:
    found = re.search(rf"^## {heading}\n(.*?)(?=^## |\Z)", read(name), re.MULTILINE | re.DOTALL)
    assert found is not None
    return found[1]


def read_options(heading: str) -> dict[str, str]:
    """Option -> what the table has as its default; names that share a row share the defaults."""
    options = {}
    for names, default in re.findall(
        r"^\| (`[^|]*`) \| ([^|]*) \|", read_section("engine-options.md", heading), re.MULTILINE
    ):
        listed = re.findall(r"`([^`]+)`", names)
        defaults = default.split(", ") if default.count(", ") == len(listed) - 1 else [default]
        options |= dict(zip(listed, defaults * (len(listed) // len(defaults)), strict=True))
    return options


@pytest.fixture
def line_case(tmp_path: Path) -> Path:
    """The case of docs/files.md, in both versions."""
    files = dict(FILE.findall(read("files.md")))
    assert {"line.pst", "line2.pst", "line.tpl", "line.ins", "model.py"} <= files.keys()
    for name, text in files.items():
        (tmp_path / name).write_text(text, encoding="utf-8")
    return tmp_path


@pytest.mark.parametrize("name", ["line.pst", "line2.pst"])
def test_the_case_to_start_from_has_no_problems_and_runs(line_case: Path, name: str) -> None:
    _, problems = check_case(line_case / name)
    assert problems == []
    case = Case.read(line_case / name)
    slot = Slot(
        case.spec,
        source=line_case,
        directory=line_case.with_name("line-slots") / name,
        limits=Limits(seconds=30.0),
        worker_id="w",
    )
    slot.prepare()
    try:
        outcome = slot.execute(pack_vector([2.0, 1.0]))
    finally:
        slot.close()
    assert outcome.failure is None
    assert unpack_vector(outcome.observations) == pytest.approx([3.0, 5.0, 7.0])


def test_both_versions_of_it_are_the_same_case(line_case: Path) -> None:
    first, second = (Case.read(line_case / name) for name in ("line.pst", "line2.pst"))
    for what in ("parameters", "observations", "groups"):
        one, two = getattr(first.control, what), getattr(second.control, what)
        assert [_facts(item) for item in one] == [_facts(item) for item in two]
    assert first.control.options["ies_num_reals"] == second.control.options["ies_num_reals"]
    assert first.control.control_data["noptmax"] == second.control.control_data["noptmax"]


def _facts(item: Any) -> dict[str, Any]:
    return {name: getattr(item, name) for name in item.__slots__ if name not in ("place", "extra")}


def test_options_of_glm_and_their_defaults() -> None:
    options = read_options("glm")
    # Not public, but the list itself: a new option must be documented.
    known = {*glm_settings._INTEGERS, *glm_settings._NUMBERS, *glm_settings._OTHERS}
    assert options.keys() - {"absparmax(n)"} == known
    defaults = glm_settings.Settings()
    for name, text in options.items():
        value = getattr(defaults, name, None)
        if isinstance(value, bool):
            assert text == str(value).lower(), name
        elif isinstance(value, int | float) and name != "phimaccept":
            assert float(text.split()[0]) == value, name
    section = read_section("engine-options.md", "glm")
    for name in (*glm_settings._UNUSED, *glm_settings._UNUSED_ABOVE_0):
        assert f"`{name}`" in section


@pytest.mark.parametrize("engine", ["ies", "sweep"])
def test_options_of_ies_and_sweep(
    engine: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Every option that the engine asks for is documented, and no other."""
    asked: set[str] = set()
    find: Callable[..., Any] = Options._find

    def note(self: Options, names: tuple[str, ...]) -> Any:
        asked.update(names)
        return find(self, names)

    monkeypatch.setattr(Options, "_find", note)
    (tmp_path / "sweep_in.csv").write_text("run,a\none,1.0\n", encoding="utf-8")
    control = replace(make_control({"a": 1.0}, [0.0]), path=tmp_path / "case.pst")
    job, _, _ = make_job(control, lambda x: x, tmp_path / "results")
    {"ies": ies, "sweep": sweep}[engine].run(job)
    documented = read_options(engine).keys()
    mentioned = set(re.findall(r"`(\w+)", read_section("engine-options.md", engine)))
    assert asked <= mentioned
    assert documented <= asked


def test_the_csv_of_a_sweep_is_one_that_sweep_reads(tmp_path: Path) -> None:
    text = re.search(r"```csv\n(.*?)```", read_section("engine-options.md", "sweep"), re.DOTALL)
    assert text is not None
    (tmp_path / "sweep_in.csv").write_text(text[1], encoding="utf-8")
    control = make_control({"k1": 1.0, "k2": 1.0, "s": 0.2}, [0.0] * 3)
    control = replace(control, path=tmp_path / "case.pst")
    job, _, _ = make_job(control, lambda x: x, tmp_path / "results")
    assert sweep.run(job)["runs"] == 2
    head, low, *_ = (tmp_path / "results" / "sweep_out.csv").read_text().splitlines()
    assert head.split(",")[:3] == ["run_id", "input_run_id", "failed_flag"]
    assert low.split(",")[1] == "low"


def test_files_of_glm_are_all_described(tmp_path: Path) -> None:
    control = make_control({"a": 1.0}, [0.0, 1.0, 3.0])
    job, _, _ = make_job(control, lambda x: x[[0, 0, 0]], tmp_path)
    glm.run(job)
    section = read_section("files.md", "Results of glm")
    described = {name.replace("NAME", "case") for name in re.findall(r"`(NAME\.[^`]+)`", section)}
    written = {re.sub(r"\.\d+\.par$", ".N.par", path.name) for path in tmp_path.iterdir()}
    assert written == described


def test_the_python_example_runs(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """As it is written, with a master that leaves a calibration's files without a fleet."""
    monkeypatch.setattr("pestfleet.session.version", lambda _: "0")  # also when not installed

    class Master:
        def __init__(self, folder: SessionFolder) -> None:
            self.folder = folder

        def host(self) -> Outcome:
            prepare_slot(ROOT / "examples" / "oude-korendijk", self.folder.case)
            write_glm(self.folder)
            write_events(self.folder, *ITERATIONS)
            return Outcome(self.folder, {}, None)

    monkeypatch.setattr(Session, "make_master", lambda self, **_: Master(self.folder))
    (tmp_path / "examples").mkdir()
    prepare_slot(ROOT / "examples" / "oude-korendijk", tmp_path / "examples" / "oude-korendijk")
    monkeypatch.chdir(tmp_path)
    example, errors = PYTHON.findall(read("python-api.md"))
    scope: dict[str, Any] = {}
    exec(compile(example, "python-api.md", "exec"), scope)
    assert (scope["session"].path / "results" / "fit.png").stat().st_size > 1000
    spec = json.loads((scope["session"].path / "session.json").read_text())
    assert (spec["workers"], spec["options"]) == (2, {"noptmax": "8"})
    ast.parse(errors)


def test_the_python_names_are_those_of_the_code() -> None:
    text = read("python-api.md")
    for name in pestfleet.__all__:
        assert f"`{name}" in text
    run_table, session_table = text.split("## Session\n")
    rows = "\n".join(re.findall(r"^\| (`.*?) \| ", run_table, re.MULTILINE))
    keywords = set(re.findall(r"`(\w+)`", rows))
    parameters = inspect.signature(create_session).parameters
    taken = {*parameters, *inspect.signature(pestfleet.run).parameters}
    assert keywords <= taken
    assert keywords >= parameters.keys() - {"case", "own_broker"}
    members = re.findall(r"`(?:Session\.)?(\w+)", "\n".join(
        row.split(" | ")[0] for row in session_table.splitlines() if row.startswith("| `")
    ))  # fmt: skip
    assert len(members) >= 8
    assert [name for name in members if not hasattr(Session, name) and name != "spec"] == []


def test_the_readme_links_every_document() -> None:
    readme = (ROOT / "README.md").read_text(encoding="utf-8")
    missing = [path.name for path in DOCS.glob("*.md") if f"(docs/{path.name})" not in readme]
    assert missing == []
