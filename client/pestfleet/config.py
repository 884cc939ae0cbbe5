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
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from pydantic import Field, SecretStr, ValidationError, field_validator
from pydantic_settings import (
    BaseSettings,
    EnvSettingsSource,
    PydanticBaseSettingsSource,
    SettingsConfigDict,
)
from pydantic_settings.exceptions import SettingsError

from pestfleet_worker.errors import ConfigurationError

FILE_NAME = "pestfleet.toml"
PREFIX = "PESTFLEET_"
OPTIONS = "engine_options"

# Variables with our prefix that are something else than settings.
_NO_SETTINGS = frozenset({"broker_file", "engines"})
_EXPECTED = {
    "engine": "the name of an engine, as text",
    "on": "the name of a target, as text",
    "workers": "a whole number, 1 or more",
    "slots": "a whole number, 1 or more",
    "sessions": "the path of a folder, as text",
    "scratch": "the path of a folder, as text",
    "time_limit": "a number of seconds, 0 or more (0: no limit)",
    "threads": "a whole number, 1 or more",
    "deliveries": "a whole number, 1 or more",
    "mode": "queue or agent",
    "cache": "a folder, an s3:// URL, or none, as text",
    "engine_args": "arguments of the engine's program, as text",
    "broker": "a URL that starts with amqp:// or amqps://",
    OPTIONS: "a table of the engine's options: text, numbers, true or false, or lists of these",
}


class Settings(BaseSettings):
    """The settings of a command. `time_limit` in seconds a run, 0: none."""

    model_config = SettingsConfigDict(
        env_prefix=PREFIX, env_nested_delimiter="__", env_ignore_empty=True, extra="forbid"
    )

    engine: str = "glm"
    on: str = "local"
    workers: int = Field(default_factory=lambda: os.cpu_count() or 1, ge=1)
    slots: int = Field(default=1, ge=1)
    sessions: Path = Path("pestfleet-sessions")
    scratch: str = ""
    time_limit: float = Field(default=0.0, ge=0.0, allow_inf_nan=False)
    threads: int = Field(default=1, ge=1)
    deliveries: int = Field(default=3, ge=1)
    mode: str = ""
    cache: str = ""
    engine_args: str = ""
    broker: SecretStr = SecretStr("")
    engine_options: dict[str, str] = Field(default_factory=dict)

    @classmethod
    def settings_customise_sources(
        cls,
        settings_cls: type[BaseSettings],
        init_settings: PydanticBaseSettingsSource,
        *_: PydanticBaseSettingsSource,
        **__: PydanticBaseSettingsSource,
    ) -> tuple[PydanticBaseSettingsSource, ...]:
        """`read_configuration` merges the sources itself, to know where each value came from."""
        return (init_settings,)

    @field_validator("engine_options", mode="before")
    @classmethod
    def _write_options(cls, options: Any) -> Any:
        """Options as a control file would have them: text; a list with commas between."""
        if not isinstance(options, Mapping):
            return options
        return {str(name).lower(): _write_option(value) for name, value in options.items()}

    @field_validator("broker")
    @classmethod
    def _check_broker(cls, broker: SecretStr) -> SecretStr:
        if broker.get_secret_value() and not re.match(r"amqps?://.", broker.get_secret_value()):
            raise ValueError("not the URL of a broker")
        return broker

    @property
    def broker_url(self) -> str:
        """The broker's URL with its password; "" when the session shall have its own broker."""
        return self.broker.get_secret_value()


@dataclass(frozen=True, slots=True)
class Configuration:
    """Settings, and for each of them where its value came from.

    `origins`: setting -> "command line", "environment (PESTFLEET_…)", "<path of the file>" or
    "default"; for engine options the setting is `engine_options.<name>`.
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
            return f"environment variable {PREFIX}{setting.upper()}"
        assert self.path is not None
        return f"{_locate(self.path, setting)}: {setting}"

    def describe(self, setting: str) -> str:
        if self.origin == "environment":
            return f"environment ({PREFIX}{setting.upper().replace('.', '__')})"
        return self.origin


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
    merged: dict[str, Any] = {}
    options: dict[str, Any] = {}
    origins: dict[str, str] = {}
    for source in reversed(sources):
        _validate(source.values, [source])
        for name, value in source.values.items():
            if name == OPTIONS:
                for option, choice in value.items():
                    options[option.lower()] = choice
                    origins[f"{OPTIONS}.{option.lower()}"] = source.describe(f"{OPTIONS}.{option}")
            else:
                merged[name] = value
                origins[name] = source.describe(name)
    settings = _validate({**merged, OPTIONS: options}, sources)
    return Configuration(settings, origins)


def read_settings(case: Path | None = None, *, given: Mapping[str, Any] | None = None) -> Settings:
    """As `read_configuration`, without the origins."""
    return read_configuration(case, given=given).settings


def _read_environment() -> _Source:
    _check_environment(os.environ)
    try:
        values = EnvSettingsSource(Settings)()
    except SettingsError as error:
        raise ConfigurationError(
            f"environment variable {PREFIX}{OPTIONS.upper()} is not a JSON object",
            remedy=f"Set one option a variable: {PREFIX}{OPTIONS.upper()}__NOPTMAX=20",
        ) from error
    return _Source("environment", values)


def _check_environment(environment: Mapping[str, str]) -> None:
    """Raise `ConfigurationError` for a variable that is nearly the name of a setting.

    Other variables with our prefix are let be: programs around us set some (Kubernetes does for
    every service), and pestfleet has others that are no settings.
    """
    for variable, value in environment.items():
        name, _, option = variable.lower().partition("__")
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
            meant = f"{near[0]}__{option}" if option else near[0]
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
    for name in ("sessions", "scratch"):
        if values.get(name) and isinstance(values[name], str):
            values[name] = str(path.parent / values[name])
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
        setting = str(error.errors()[0]["loc"][0])
        source = next(source for source in sources if setting in source.values)
        # Never the value of the broker: it may have a password.
        wrong = "" if setting == "broker" else f" is {values[setting]!r}"
        raise ConfigurationError(
            f"{source.name(setting)}{wrong or ' is wrong'}",
            remedy=f"Expected: {_EXPECTED[setting]}.",
        ) from None


def _write_option(value: Any) -> Any:
    if isinstance(value, bool):
        return str(value).lower()
    if isinstance(value, list):
        return ",".join(str(_write_option(item)) for item in value)
    return str(value) if isinstance(value, int | float) else value


def _locate(path: Path, name: str) -> str:
    """`path:line` of a setting; the path alone where the line is not clear."""
    pattern = re.compile(rf"""\s*(\[\s*)?["']?{re.escape(name)}["']?\s*[.=\]]""")
    lines = path.read_text(encoding="utf-8").splitlines()
    found = next((n for n, line in enumerate(lines, start=1) if pattern.match(line)), None)
    return f"{path}:{found}" if found else str(path)
