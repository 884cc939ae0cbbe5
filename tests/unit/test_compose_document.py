"""The compose file of a session: who gets which secrets, limits, ports and names."""

from __future__ import annotations

import json
import re
from dataclasses import replace
from typing import Any

import pytest
import yaml

from pestfleet.placement import Placement
from pestfleet.targets.compose.document import (
    DOCUMENT,
    ComposePlan,
    Document,
    Images,
    dump_document,
    make_document,
    read_label,
)

IMAGES = Images(worker="my-case", master="master:1", broker="rabbitmq:3.13", tunnel="tunnel:1")
PLAN = ComposePlan(
    session="first",
    images=IMAGES,
    workers=3,
    slots=2,
    place=Placement(master="there"),
    user="4711:4712",
    host=("/input/case/case.pst", "--session", "first"),
    folder="/home/me/sessions/first",
)


def make(plan: ComposePlan = PLAN, **place: Any) -> Document:
    return make_document(replace(plan, place=replace(plan.place, **place)))


def list_mounts(document: Document, service: str) -> list[str]:
    volumes: list[str] = document["services"][service].get("volumes", [])
    return volumes


def test_services_of_a_master_there() -> None:
    services = make()["services"]
    assert list(services) == ["credentials", "broker", "case", "master", "worker"]
    assert services["master"]["command"] == ["host", *PLAN.host]
    assert services["worker"]["scale"] == 3
    assert services["worker"]["command"] == ["--session", "first", "--slots", "2"]


def test_services_of_a_master_here() -> None:
    assert list(make(master="here")["services"]) == ["credentials", "broker", "worker"]
    through = make(master="here", tunnel=True)["services"]
    assert list(through) == ["credentials", "broker", "tunnel", "worker"]
    no_broker = make(replace(PLAN, broker=False), master="here", tunnel=True)["services"]
    assert list(no_broker) == ["credentials", "tunnel", "worker"]


@pytest.mark.parametrize("tunnel", [False, True])
@pytest.mark.parametrize("master", ["there", "here"])
def test_each_service_sees_only_its_own_secrets(master: str, tunnel: bool) -> None:
    document = make(master=master, tunnel=tunnel)
    for name in document["services"]:
        secrets = [mount for mount in list_mounts(document, name) if "secrets" in mount]
        if name == "credentials":
            assert all(re.fullmatch(r"(\w+)-secrets:/secrets/\1", mount) for mount in secrets)
        elif name == "case":
            assert secrets == []
        else:
            assert secrets == [f"{name}-secrets:/secrets:ro,nocopy"]


def test_no_secret_is_in_the_environment_and_no_service_has_rights() -> None:
    for name, service in make(master="here", tunnel=True)["services"].items():
        assert service["user"] == "4711:4712"
        assert service["read_only"] is True
        assert service["cap_drop"] == ["ALL"]
        assert service["security_opt"] == ["no-new-privileges:true"]
        words = json.dumps(service.get("environment", {})).lower()
        assert "amqp" not in words and "password" not in words, name


def test_published_is_what_must_be_reachable_and_nothing_else() -> None:
    def find_ports(document: Document) -> dict[str, list[str]]:
        services = document["services"]
        return {name: service["ports"] for name, service in services.items() if "ports" in service}

    assert find_ports(make()) == {}
    plan = replace(PLAN, broker_port=15671, tunnel_port=12222)
    assert find_ports(make(plan, master="here")) == {"broker": ["127.0.0.1:15671:5671"]}
    assert find_ports(make(replace(plan, broker=False), master="here", tunnel=True)) == {
        "tunnel": ["127.0.0.1:12222:2222"]
    }


def test_a_slot_has_the_limits_that_were_asked_for() -> None:
    worker = make()["services"]["worker"]
    assert "mem_limit" not in worker and "cpus" not in worker
    assert worker["pids_limit"] == 2 * 256 + 64
    limited = make(memory="1.5g", cpus=0.5, pids=10)["services"]["worker"]
    assert limited["mem_limit"] == str(3 * 1024**3)
    assert limited["cpus"] == 1.0
    assert limited["pids_limit"] == 84


@pytest.mark.parametrize(
    ("size", "bytes_"),
    [("512m", 2**30), ("1GB", 2 * 2**30), ("123456789", 246913578), ("1000b", 2000), ("1t", 2**41)],
)
def test_sizes(size: str, bytes_: int) -> None:
    assert make(memory=size)["services"]["worker"]["mem_limit"] == str(bytes_)


def test_everything_carries_the_session_and_its_role() -> None:
    document = make(replace(PLAN, session="A.b"))
    for name, service in document["services"].items():
        assert service["labels"]["pestfleet.session"] == "A.b"
        assert service["labels"]["pestfleet.role"] == name
        assert service["labels"]["pestfleet.folder"] == "/home/me/sessions/first"
    assert document["networks"]["default"]["labels"]["pestfleet.session"] == "A.b"
    for name, volume in document["volumes"].items():
        assert volume["labels"]["pestfleet.session"] == "A.b"
        assert volume["labels"]["pestfleet.role"] == name
    assert document["volumes"]["session"]["labels"]["pestfleet.image"] == "master:1"


def test_names_of_projects_are_compose_s_and_differ() -> None:
    names = [replace(PLAN, session=name).project for name in ("a.b", "a-b", "A-B", "a_b", "A.b")]
    assert len(set(names)) == 5
    assert all(re.fullmatch(r"pestfleet-[a-z0-9_-]+", name) for name in names)
    assert names[1] == "pestfleet-a-b"


def test_every_volume_is_used_and_every_used_one_is_there() -> None:
    for document in (make(), make(master="here"), make(master="here", tunnel=True)):
        used = {
            mount.partition(":")[0]
            for name in document["services"]
            for mount in list_mounts(document, name)
            if ":" in mount
        }
        assert used == set(document["volumes"])


def test_the_network_s_label_has_the_whole_file() -> None:
    document = make()
    text = document["networks"]["default"]["labels"][DOCUMENT]
    assert read_label(text) == document


def test_compose_reads_dollars_as_they_are() -> None:
    document = make(replace(PLAN, host=("case.pst", "--option", "name=$HOME$$")))
    read = yaml.safe_load(dump_document(document))
    assert read["services"]["master"]["command"][-1] == "name=$$HOME$$$$"
    # The label is escaped as the rest: what compose makes of it is the document again.
    label = read["networks"]["default"]["labels"][DOCUMENT].replace("$$", "$")
    assert read_label(label) == document


def test_people_see_the_file_without_its_copy() -> None:
    assert DOCUMENT not in dump_document(make(), whole=False)
