"""What all tests share."""

from __future__ import annotations

import logging
import os
import shutil
from collections.abc import Iterator
from pathlib import Path

import pytest
from hypothesis import settings

import compose_program
import docker_engine
import kubernetes_cluster

pytest_plugins = ["docker_fixtures"]

ROOT = Path(__file__).resolve().parents[1]

# A busy machine is no failure: no deadline for an example. Nor is chance: the same examples always.
settings.register_profile("pestfleet", deadline=None, derandomize=True)
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
    """Tests are left out where the programs that they run are not; the header says so."""
    left_out = {mark for mark, reason in _find_reasons_against().items() if reason}
    without = [item for item in items if any(map(item.get_closest_marker, left_out))]
    if without:
        config.hook.pytest_deselected(items=without)
        items[:] = [item for item in items if item not in without]


def pytest_report_header() -> list[str]:
    return [
        f"{mark}: {reason}, tests with it are left out" if reason else f"{mark}: tests are run"
        for mark, reason in _find_reasons_against().items()
    ]


def _find_reasons_against() -> dict[str, str]:
    """Mark of tests -> why they cannot be run here; "" when they can."""
    return {
        "pestpp": "" if shutil.which("pestpp-ies") else "PEST++ is not on PATH",
        "docker": docker_engine.find_reason_against(),
        "compose_v2": compose_program.find_reason_against(),
        "kubernetes": kubernetes_cluster.find_reason_against(),
    }


def pytest_sessionfinish(session: pytest.Session) -> None:
    """In CI a skipped test is a failure: nothing may be left out unnoticed."""
    reporter = session.config.pluginmanager.get_plugin("terminalreporter")
    if os.environ.get("CI") and reporter is not None and reporter.stats.get("skipped"):
        session.exitstatus = pytest.ExitCode.TESTS_FAILED
