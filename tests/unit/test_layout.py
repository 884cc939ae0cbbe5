"""The house stays in order: sizes, direction and weight of imports, versions, registries."""

from __future__ import annotations

import re
import sys
import tomllib
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import pytest
from packaging.requirements import Requirement
from packaging.utils import canonicalize_name

from source import (
    CLIENT,
    ROOT,
    WORKER,
    find_imports,
    list_files,
    list_modules,
    name_module,
    name_path,
    run_python,
)

MAX_LINES = 400

# Where a distribution's import name is not its own name with underscores.
IMPORT_NAMES = {
    "pestfleet-worker": "pestfleet_worker",
    "pyelftools": "elftools",
    "pyyaml": "yaml",
}
# amqp is kombu's own client, requests is docker's: their exceptions come through.
COMES_WITH = {
    "kombu": {"amqp", "vine"},
    "celery": {"billiard"},
    "docker": {"requests"},
    "pydantic-settings": {"pydantic"},
}

# What comes with an extra, for the package that is imported only where it is used.
EXTRAS = {
    "pestfleet.targets.kubernetes": {"kubernetes", "urllib3", "websocket"},
    "pestfleet.targets.ecs": {"boto3", "botocore"},
    "pestfleet.targets.service_workers": {"boto3", "botocore"},
    "pestfleet.store": {"boto3", "botocore"},
}

# Who may not import whom (prefix of the importing module -> prefixes it must not import).
ONE_WAY = {
    "pestfleet_worker": ("pestfleet",),
    "pestfleet.control": ("pestfleet.engines", "pestfleet.targets", "pestfleet.broker"),
    "pestfleet.engines": ("pestfleet.targets", "pestfleet.broker", "pestfleet_worker.channel"),
    "pestfleet.targets": ("pestfleet.engines",),
    "pestfleet.costs": ("pestfleet.targets", "pestfleet.cli"),
}


def is_under(module: str, package: str) -> bool:
    return module == package or module.startswith(package + ".")


def read_project(folder: str) -> dict[str, Any]:
    project: dict[str, Any] = tomllib.loads(
        (ROOT / folder / "pyproject.toml").read_text(encoding="utf-8")
    )["project"]
    return project


def read_constraints() -> dict[str, str]:
    lines = (ROOT / "constraints.txt").read_text(encoding="utf-8").splitlines()
    return {
        canonicalize_name(name): version
        for name, _, version in (line.partition("==") for line in lines if line[:1] != "#")
    }


def list_allowed_imports(folder: str) -> set[str]:
    allowed = set(sys.stdlib_module_names)
    for text in read_project(folder)["dependencies"]:
        name = Requirement(text).name
        allowed |= {IMPORT_NAMES.get(name, name.replace("-", "_"))} | COMES_WITH.get(name, set())
    return allowed


def list_extras(path: Path) -> set[str]:
    module = name_module(path)
    found = [names for package, names in EXTRAS.items() if is_under(module, package)]
    return set().union(*found)


def find_loaded(modules: Iterable[str], unwanted: Iterable[str]) -> list[str]:
    """Which of `unwanted` a fresh Python has loaded after it imported `modules`."""
    script = (
        "import importlib, sys\n"
        f"for name in {list(modules)!r}: importlib.import_module(name)\n"
        f"print(*[name for name in {list(unwanted)!r} if name in sys.modules])\n"
    )
    return run_python(script).split()


@pytest.mark.parametrize("package", [CLIENT, WORKER], ids=["client", "worker"])
def test_modules_have_at_most_400_lines(package: Path) -> None:
    sizes = {
        name_path(path): len(path.read_text(encoding="utf-8").splitlines())
        for path in list_modules(package)
    }
    assert sizes
    assert {path: size for path, size in sizes.items() if size > MAX_LINES} == {}


def test_imports_point_one_way() -> None:
    wrong = [
        f"{name_path(path)}:{line} imports {imported}"
        for path in [*list_modules(CLIENT), *list_modules(WORKER)]
        for importer, forbidden in ONE_WAY.items()
        if is_under(name_module(path), importer)
        for line, imported in find_imports(path)
        if any(is_under(imported, package) for package in forbidden)
    ]
    assert wrong == []


def test_only_the_command_line_imports_the_command_line() -> None:
    wrong = [
        f"{name_path(path)}:{line}"
        for path in [*list_modules(CLIENT), *list_modules(WORKER)]
        if not is_under(name_module(path), "pestfleet.cli") and path.name != "__main__.py"
        for line, imported in find_imports(path)
        if is_under(imported, "pestfleet.cli")
    ]
    assert wrong == []


@pytest.mark.parametrize(
    ("folder", "package", "own"),
    [("client", CLIENT, "pestfleet"), ("worker", WORKER, "pestfleet_worker")],
)
def test_only_declared_packages_are_imported(folder: str, package: Path, own: str) -> None:
    allowed = list_allowed_imports(folder) | {own}
    wrong = [
        f"{name_path(path)}:{line} imports {imported}"
        for path in list_modules(package)
        for line, imported in find_imports(path)
        if imported.partition(".")[0] not in allowed | list_extras(path)
    ]
    assert wrong == []


def test_the_command_line_is_light_to_import() -> None:
    heavy = ["pandas", "matplotlib", "scipy", "celery", "iterative_ensemble_smoother", "docker"]
    heavy += ["kubernetes", "yaml"]
    assert find_loaded(["pestfleet", "pestfleet.cli.main"], heavy) == []


def test_the_worker_is_light_to_import() -> None:
    modules = [name_module(path) for path in list_modules(WORKER)]
    modules = [name for name in modules if not name.endswith("__main__")]
    heavy = ["pestfleet", "numpy", "pandas", "scipy", "matplotlib", "boto3", "pydantic"]
    assert find_loaded(modules, heavy) == []
    assert find_loaded(["pestfleet_worker"], ["celery", "kombu", "msgpack"]) == []


def test_both_distributions_have_one_version() -> None:
    version = read_project("worker")["version"]
    assert read_project("client")["version"] == version
    assert f"pestfleet-worker=={version}" in read_project("client")["dependencies"]


def test_distributions_carry_their_types_and_license() -> None:
    text = (ROOT / "LICENSE").read_bytes()
    for folder, package in (("client", CLIENT), ("worker", WORKER)):
        assert (package / "py.typed").is_file()
        assert (ROOT / folder / "LICENSE").read_bytes() == text
        assert read_project(folder)["license"] == "BSD-3-Clause"


def test_constraints_are_plain_and_fit_the_ranges() -> None:
    lines = (ROOT / "constraints.txt").read_text(encoding="utf-8").splitlines()
    plain = re.compile(r"#.*|[A-Za-z0-9._-]+==[A-Za-z0-9.!+]+")
    assert [line for line in lines if not plain.fullmatch(line)] == []

    constraints = read_constraints()
    requirements = [
        Requirement(text)
        for folder in ("client", "worker")
        for project in [read_project(folder)]
        for text in [
            *project["dependencies"],
            *project.get("optional-dependencies", {}).get("dev", []),
        ]
    ]
    wrong = [
        str(requirement)
        for requirement in requirements
        if requirement.name != "pestfleet-worker"
        and not requirement.specifier.contains(
            constraints.get(canonicalize_name(requirement.name), "0"), prereleases=True
        )
    ]
    assert wrong == []


def test_no_file_names_a_package_registry() -> None:
    # In pieces, so that this file does not name them either.
    hosts = [
        ".".join(host)
        for host in (
            ("pypi", "org"),
            ("pythonhosted", "org"),
            ("anaconda", "org"),
            ("npmjs", "org"),
            ("npmjs", "com"),
            ("crates", "io"),
            ("golang", "org"),
        )
    ]
    pattern = re.compile("|".join(map(re.escape, hosts)).encode())
    wrong = [name_path(path) for path in list_files() if pattern.search(path.read_bytes())]
    assert wrong == []
