"""Settings: what a command uses when its options do not say it, and where each value came from.

Command line > environment (`PESTFLEET_WORKERS`, …) > `pestfleet.toml` > default. The file is
looked for in the case's folder, then in the current folder and those above it; the first one
found counts alone. docs/configuration.md has the list of settings.
"""

from __future__ import annotations

import difflib
import os
import re
import tomllib
from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

from pydantic import BaseModel, ValidationError
from pydantic_settings import EnvSettingsSource
from pydantic_settings.exceptions import SettingsError

from pestfleet.settings import (
    AMAZON,
    EXPECTED,
    IMAGE,
    OPTIONS,
    PREFIX,
    TABLES,
    AmazonSettings,
    ImageSettings,
    Settings,
    split_range,
)
from pestfleet_worker.errors import ConfigurationError

__all__ = [
    "FILE_NAME", "Configuration", "ImageSettings", "Settings", "find_settings_file",
    "read_configuration", "read_settings", "redact",
]  # fmt: skip

FILE_NAME = "pestfleet.toml"

# Variables with our prefix that are something else than settings.
_NO_SETTINGS = frozenset({"broker_file", "engines", "digest"})

# The tables of our own, whose entries we know.
_OWN_TABLES: dict[str, type[BaseModel]] = {IMAGE: ImageSettings, AMAZON: AmazonSettings}


@dataclass(frozen=True, slots=True)
class Configuration:
    """Settings, and for each of them where its value came from.

    `origins`: setting -> "command line", "environment (PESTFLEET_…)", "<path of the file>" or
    "default"; for tables the setting is `engine_options.<name>`, `image.<name>`.
    """

    settings: Settings
    origins: dict[str, str] = field(default_factory=dict)

    def describe(self) -> dict[str, tuple[Any, str]]:
        """Setting -> (value, where it came from); passwords are blotted out."""
        values: dict[str, Any] = {}
        for name in Settings.model_fields:
            value = getattr(self.settings, name)
            if name == OPTIONS:
                values |= {f"{OPTIONS}.{option}": text for option, text in value.items()}
            elif isinstance(value, BaseModel):
                values |= {f"{name}.{entry}": item for entry, item in value}
            elif name == "broker":
                values[name] = redact(self.settings.broker_url)
            else:
                values[name] = str(value) if isinstance(value, Path) else value
        return {name: (value, self.origins.get(name, "default")) for name, value in values.items()}


@dataclass(frozen=True, slots=True)
class _Source:
    """Values from one place. `path`: the file, when they are from one."""

    origin: str
    values: dict[str, Any]
    path: Path | None = None

    def name(self, setting: str) -> str:
        """How the user knows this source's value of a setting."""
        if self.origin == "command line":
            return f"--{setting.replace('_', '-')}"
        if self.origin == "environment":
            return f"environment variable {_name_variable(setting)}"
        assert self.path is not None
        return f"{_locate(self.path, setting)}: {setting}"

    def describe(self, setting: str) -> str:
        if self.origin == "environment":
            return f"environment ({_name_variable(setting)})"
        return self.origin


def _name_variable(setting: str) -> str:
    """`image.base` -> PESTFLEET_IMAGE__BASE."""
    return PREFIX + setting.upper().replace(".", "__")


def redact(text: str) -> str:
    """The text with the passwords of all URLs in it blotted out."""
    return re.sub(r"(://[^:/@\s]*):\S*@", r"\1:***@", text)


def find_settings_file(case: Path | None = None) -> Path | None:
    """`pestfleet.toml` in the case's folder, else in the current one or the nearest above."""
    here = Path.cwd()
    folders = [here, *here.parents]
    if case is not None:
        folders.insert(0, case if case.is_dir() else case.parent)
    return next((path for folder in folders if (path := folder / FILE_NAME).is_file()), None)


def read_configuration(
    case: Path | None = None, *, given: Mapping[str, Any] | None = None
) -> Configuration:
    """The settings for a case. `given`: values of the command line; None is not given.

    Raises `ConfigurationError` with the file, variable or option, the value, and what is expected.
    """
    sources = [
        _Source(
            "command line",
            {name: value for name, value in (given or {}).items() if value not in (None, {})},
        ),
        _read_environment(),
    ]
    path = find_settings_file(case)
    if path is not None:
        sources.append(_read_file(path, case))
    sources = [replace(source, values=split_range(source.values)) for source in sources]
    merged: dict[str, Any] = {table: {} for table in TABLES}
    origins: dict[str, str] = {}
    for source in reversed(sources):
        _validate(source.values, [source])
        for name, value in source.values.items():
            if name in TABLES:
                for entry, choice in value.items():
                    merged[name][entry.lower()] = choice
                    origins[f"{name}.{entry.lower()}"] = source.describe(f"{name}.{entry}")
            else:
                merged[name] = value
                origins[name] = source.describe(name)
    return Configuration(_validate(merged, sources), origins)


def read_settings(case: Path | None = None, *, given: Mapping[str, Any] | None = None) -> Settings:
    """As `read_configuration`, without the origins."""
    return read_configuration(case, given=given).settings


def _read_environment() -> _Source:
    _check_environment(os.environ)
    try:
        values = EnvSettingsSource(Settings)()
    except SettingsError as error:
        table = next((name for name in _OWN_TABLES if f'"{name}"' in str(error)), OPTIONS)
        example, value = {
            IMAGE: (f"{IMAGE}.base", "debian:bookworm-slim"),
            AMAZON: (f"{AMAZON}.network", "make"),
            OPTIONS: (f"{OPTIONS}.noptmax", "20"),
        }[table]
        raise ConfigurationError(
            f"environment variable {_name_variable(table)} is not a JSON object",
            remedy=f"Set one entry a variable: {_name_variable(example)}={value}",
        ) from error
    return _Source("environment", values)


def _check_environment(environment: Mapping[str, str]) -> None:
    """Raise `ConfigurationError` for a variable that is nearly the name of a setting.

    Other variables with our prefix are let be: programs around us set some (Kubernetes does for
    every service), and pestfleet has others that are no settings.
    """
    for variable, value in environment.items():
        name, _, entry = variable.lower().partition("__")
        if not name.startswith(PREFIX.lower()) or not value:
            continue
        name = name.removeprefix(PREFIX.lower())
        if name in Settings.model_fields or name in _NO_SETTINGS or name.startswith("test_"):
            continue
        # Models have these two from their worker, with a mark in them; a number is a slip.
        if name in ("worker", "slot") and not value.strip().isdecimal():
            continue
        near = difflib.get_close_matches(name, [*Settings.model_fields], 1, 0.8)
        if near:
            meant = f"{near[0]}__{entry}" if entry else near[0]
            raise ConfigurationError(
                f"environment variable {variable}: there is no such setting",
                remedy=f"Did you mean {PREFIX}{meant.upper()}?",
            )


def _read_file(path: Path, case: Path | None) -> _Source:
    try:
        with path.open("rb") as file:
            values = tomllib.load(file)
    except OSError as error:
        raise ConfigurationError(f"{path} cannot be read: {error.strerror}") from error
    except (tomllib.TOMLDecodeError, UnicodeDecodeError) as error:
        raise ConfigurationError(
            f"{path} is not a TOML file: {error}",
            remedy='A setting is a line such as workers = 4 or engine = "glm".',
        ) from error
    for name in values:
        if name not in Settings.model_fields:
            raise _make_unknown(path, name)
    image = values.get(IMAGE)
    for table, name in ((values, "sessions"), (values, "scratch"), (image, "ca")):
        if isinstance(table, dict) and table.get(name) and isinstance(table[name], str):
            table[name] = str(path.parent / table[name])
    source = _Source(str(path), values, path)
    folder = case if case is None or case.is_dir() else case.parent
    broker = values.get("broker")
    secret = isinstance(broker, str) and redact(broker) != broker
    if secret and folder is not None and path.parent.resolve() == folder.resolve():
        raise ConfigurationError(
            f"{source.name('broker')} has a password, and the case's folder is copied to "
            "every worker",
            remedy=f"Set it in the environment ({PREFIX}BROKER), or in a {FILE_NAME} "
            "outside the case's folder.",
        )
    return source


def _make_unknown(path: Path, name: str) -> ConfigurationError:
    near = difflib.get_close_matches(name.lower().replace("-", "_"), Settings.model_fields, 1)
    hint = f"Did you mean {near[0]}? " if near else ""
    return ConfigurationError(
        f"{_locate(path, name)}: there is no setting {name!r}",
        remedy=f"{hint}Settings: {', '.join(Settings.model_fields)}. "
        f"Options of an engine belong below [{OPTIONS}].",
    )


def _validate(values: dict[str, Any], sources: list[_Source]) -> Settings:
    try:
        return Settings(**values)
    except ValidationError as error:
        first = error.errors()[0]
        location = [str(part) for part in first["loc"]]
        name = location[0]
        source = next(source for source in sources if name in source.values)
        value = values[name]
        # An entry of our own tables is told by its name; of the engine's, the whole table.
        table = name
        if table in _OWN_TABLES and len(location) > 1 and isinstance(value, Mapping):
            value, name = value.get(location[1]), f"{table}.{location[1]}"
        if first["type"] == "extra_forbidden":
            entry, entries = location[1], _OWN_TABLES[table].model_fields
            near = difflib.get_close_matches(entry.lower(), entries, 1)
            raise ConfigurationError(
                f"{source.name(name)}: there is no setting {entry!r} in [{table}]",
                remedy=(f"Did you mean {near[0]}? " if near else "")
                + f"Settings: {', '.join(entries)}.",
            ) from None
        # Never the value of what may have a password.
        wrong = " is wrong" if name in ("broker", "image.index") else f" is {value!r}"
        raise ConfigurationError(
            f"{source.name(name)}{wrong}", remedy=f"Expected: {EXPECTED[name]}."
        ) from None


def _locate(path: Path, name: str) -> str:
    """`path:line` of a setting; the path alone where the line is not clear."""
    lines = path.read_text(encoding="utf-8").splitlines()
    found, start = None, 0
    for part in name.split("."):
        # The entry of a table stands below its head, or in the head's own line.
        pattern = re.compile(rf"""(?:.*[.{{,])?\s*(\[\s*)?["']?{re.escape(part)}["']?\s*[.=\]]""")
        at = next((n for n in range(start, len(lines)) if pattern.match(lines[n])), None)
        if at is None:
            break
        found, start = at, at
    return str(path) if found is None else f"{path}:{found + 1}"
