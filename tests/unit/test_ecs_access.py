"""Connecting with Amazon: what is wrong is told before any request is made."""

from __future__ import annotations

import sys

import pytest

from pestfleet.targets.base import Where
from pestfleet.targets.ecs.access import connect
from pestfleet_worker.errors import ConfigurationError


@pytest.mark.parametrize("region", ["eu-central-1,us-east-1", "eu_central_1"])
def test_what_is_not_the_name_of_one_region(region: str) -> None:
    with pytest.raises(ConfigurationError, match="not the name of one region"):
        connect(Where(region=region))
    with pytest.raises(ConfigurationError, match="not the name of one region"):
        connect(Where(region="eu-central-1")).elsewhere(region)


def test_a_region_that_amazon_does_not_have() -> None:
    with pytest.raises(ConfigurationError, match="Amazon has no region mars-north-1"):
        _ = connect(Where(region="mars-north-1")).partition


def test_without_boto3_it_says_what_to_install(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "boto3", None)
    with pytest.raises(ConfigurationError, match="needs the package boto3") as caught:
        connect(Where(region="eu-central-1"))
    assert caught.value.remedy == "pip install 'pestfleet[ecs]'"
