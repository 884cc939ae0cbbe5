"""compose.yaml is what `pestfleet run --dry-run` prints, but for the case and what a shell sets."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

import yaml

from pestfleet.images.base import name_image
from pestfleet.placement import Placement
from pestfleet.settings import ImageSettings
from pestfleet.targets.compose.document import DOCUMENT, ComposePlan, Images, make_document
from pestfleet.targets.compose.launch import USER

_VARIABLE = re.compile(r"\$\{\w+:-([^}]*)\}")
CASE = "./examples/oude-korendijk"


def set_defaults(value: Any) -> Any:
    """As compose reads it where no variable is set."""
    if isinstance(value, dict):
        return {name: set_defaults(item) for name, item in value.items()}
    if isinstance(value, list):
        return [set_defaults(item) for item in value]
    if isinstance(value, str) and _VARIABLE.search(value):
        text = _VARIABLE.sub(r"\1", value)
        return int(text) if value.startswith("${") and text.isdecimal() else text
    return value


def make_expected() -> dict[str, Any]:
    words = "--session by-hand --engine glm --workers 2 --advertise master --no-cache"
    plan = ComposePlan(
        session="by-hand",
        images=Images(
            worker=name_image("worker"), master=name_image("master"), broker=ImageSettings().broker
        ),
        workers=2,
        slots=1,
        place=Placement(master="there"),
        user=USER,
        host=("/input/case", *words.split()),
    )
    document = make_document(plan)
    del document["networks"]["default"]["labels"][DOCUMENT]
    # The case comes from a folder.
    del document["services"]["case"], document["volumes"]["case"]
    master, worker = (document["services"][name] for name in ("master", "worker"))
    del master["depends_on"]["case"]
    master["volumes"][1] = f"{CASE}:/input/case:ro"
    worker["volumes"].insert(0, f"{CASE}:/case:ro")
    master["container_name"] = "pestfleet-by-hand"
    master["command"] = [str(word) for word in master["command"]]
    return document


def test_it_is_what_a_dry_run_prints(root: Path) -> None:
    text = (root / "compose.yaml").read_text(encoding="utf-8")
    document = set_defaults(yaml.safe_load(text))
    del document["x-locked"]
    for service in document["services"].values():
        command = [str(word) for word in service.get("command", ())]
        if command:
            service["command"] = command
    expected = make_expected()
    assert list(document["services"]) == list(expected["services"])
    for name, service in expected["services"].items():
        assert document["services"][name] == service, name
    assert document == expected


def test_what_the_shell_sets_is_told_at_its_top(root: Path) -> None:
    text = (root / "compose.yaml").read_text(encoding="utf-8")
    used = set(re.findall(r"\$\{(\w+)", text))
    told = set(re.findall(r"^#   ([A-Z_]+) ", text, re.MULTILINE))
    assert used == told
