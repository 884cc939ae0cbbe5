"""Which engines there are, and how each gets its runs."""

from __future__ import annotations

import pytest

from pestfleet.engines import NAMES, check_name, choose_mode
from pestfleet_worker.errors import ConfigurationError


@pytest.mark.parametrize(
    ("engine", "asked", "mode"),
    [
        ("glm", "", "queue"),
        ("pestpp-ies", "", "queue"),
        ("pestpp-ies", "agent", "agent"),
        ("beopest", "", "agent"),
        ("pest_hp", "agent", "agent"),
    ],
)
def test_mode_of_an_engine(engine: str, asked: str, mode: str) -> None:
    assert choose_mode(engine, asked) == mode


@pytest.mark.parametrize(
    ("engine", "asked", "remedy"),
    [("glm", "agent", "It has: queue."), ("beopest", "queue", "It has: agent.")],
)
def test_a_mode_that_an_engine_does_not_have(engine: str, asked: str, remedy: str) -> None:
    with pytest.raises(ConfigurationError, match="does not run in mode") as error:
        choose_mode(engine, asked)
    assert error.value.remedy == remedy


def test_an_unknown_engine_is_answered_with_the_known_ones() -> None:
    with pytest.raises(ConfigurationError, match="there is no engine 'gml'") as error:
        check_name("gml")
    assert all(name in error.value.remedy for name in NAMES)
