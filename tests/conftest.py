"""What all tests share."""

from __future__ import annotations

import logging
import os
import shutil
from collections.abc import Iterator
from pathlib import Path

import pytest
from hypothesis import settings

ROOT = Path(__file__).resolve().parents[1]

# A busy machine is no failure: no deadline for an example.
settings.register_profile("pestfleet", deadline=None)
settings.load_profile("pestfleet")


@pytest.fixture
def root() -> Path:
    """The repository's top folder."""
    return ROOT


@pytest.fixture(autouse=True)
def _no_settings_of_the_user(monkeypatch: pytest.MonkeyPatch) -> None:
    """Tests do not see the PESTFLEET_* variables of whoever runs them."""
    for name in [name for name in os.environ if name.upper().startswith("PESTFLEET_")]:
        monkeypatch.delenv(name)


@pytest.fixture(autouse=True)
def _cache_of_its_own(
    monkeypatch: pytest.MonkeyPatch, tmp_path_factory: pytest.TempPathFactory
) -> None:
    """No test takes runs from another one's cache, or from the user's."""
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path_factory.mktemp("cache")))


@pytest.fixture(autouse=True)
def _root_logger_as_it_was() -> Iterator[None]:
    """A Celery worker in a test sets the root logger's level for all tests after it."""
    level = logging.getLogger().level
    yield
    logging.getLogger().setLevel(level)


def pytest_collection_modifyitems(config: pytest.Config, items: list[pytest.Item]) -> None:
    """Tests against real PEST++ are left out where its programs are not; the header says so."""
    if shutil.which("pestpp-ies") is not None:
        return
    without = [item for item in items if item.get_closest_marker("pestpp")]
    if without:
        config.hook.pytest_deselected(items=without)
        items[:] = [item for item in items if item not in without]


def pytest_report_header() -> str:
    program = shutil.which("pestpp-ies")
    if program is None:
        return "PEST++: not on PATH, tests against it are left out"
    return f"PEST++: {Path(program).parent}, tests against it are run"


def pytest_sessionfinish(session: pytest.Session) -> None:
    """In CI a skipped test is a failure: nothing may be left out unnoticed."""
    reporter = session.config.pluginmanager.get_plugin("terminalreporter")
    if os.environ.get("CI") and reporter is not None and reporter.stats.get("skipped"):
        session.exitstatus = pytest.ExitCode.TESTS_FAILED
