"""The settings of a command: their types, defaults and what is right for each.

`pestfleet.config` reads them from command line, environment and file; docs/configuration.md has
the list.
"""

from __future__ import annotations

import json
import os
import re
from collections.abc import Mapping
from ipaddress import ip_network
from pathlib import Path
from typing import Annotated, Any, Literal

from pydantic import (
    BaseModel,
    ConfigDict,
    Field,
    SecretStr,
    ValidationInfo,
    field_validator,
    model_validator,
)
from pydantic_settings import (
    BaseSettings,
    NoDecode,
    PydanticBaseSettingsSource,
    SettingsConfigDict,
)

from pestfleet.placement import CAPACITY, MEMORY
from pestfleet.targets import is_remote

PREFIX = "PESTFLEET_"
OPTIONS = "engine_options"
IMAGE, AMAZON = "image", "amazon"
TABLES = (OPTIONS, IMAGE, AMAZON)  # merged entry by entry
# Where a session ends by itself, unless the user says otherwise: machines that others pay for.
IDLE_MINUTES, MAX_HOURS = 20.0, 72.0

# Debian's rules for names and versions of packages: anything else is no package, and could be
# something else to the shell that installs it.
_DEBIAN_PACKAGE = re.compile(r"[a-z0-9][a-z0-9+.-]+(:[a-z0-9-]+)?([=/][A-Za-z0-9.+:~-]+)?")
_CONTROL = re.compile(r"[\x00-\x1f\x7f]")

_PACKAGES = 'a list of Debian packages, such as ["libgfortran5", "libnetcdff7"]'
_REQUIREMENTS = 'a list of what pip installs, such as ["flopy>=3.9"]'
EXPECTED = {
    "engine": "the name of an engine, as text",
    "on": "the name of a target, as text",
    "workers": "a whole number, 1 or more, or a range of two such as 4..50",
    "most": "a whole number, 0 or more (0: the number of workers stays)",
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
    "context": "the name of a context of the kubeconfig, as text",
    "namespace": "the name of a namespace of Kubernetes, as text",
    "min_workers": "a whole number, 1 or more",
    "region": "the name of a region of Amazon, such as eu-central-1, as text",
    "profile": "the name of a profile of the AWS configuration, as text",
    "capacity": "spot, ondemand, or mixed:PERCENT on demand, such as mixed:20",
    "instances": "a type of EC2 machines, such as c7i.4xlarge, as text (empty: Fargate)",
    "budget": "a number of US dollars, 0 or more (0: no limit)",
    "master": "there (with the workers) or here (on this machine)",
    "tunnel": "true or false",
    "memory": "a size as text, such as 2g or 512m (empty: no limit)",
    "cpus": "a number of cores, 0 or more (0: no limit)",
    "pids": "a whole number, 1 or more",
    "idle_minutes": "a number of minutes, 0 or more (0: no limit)",
    "max_hours": "a number of hours, 0 or more (0: no limit)",
    OPTIONS: "a table of the engine's options: text, numbers, true or false, or lists of these",
    IMAGE: "a table, with base, apt, pip and others",
    "image.base": "the name of an image, as text",
    "image.apt": _PACKAGES,
    "image.pip": _REQUIREMENTS,
    "image.dockerfile": "the name of a file in the case's folder, as text",
    "image.registry": "a registry and what comes before the image's name, such as ghcr.io/me",
    "image.index": "the URL of a package index, without a password",
    "image.ca": "the path of a file with certificates (PEM), as text",
    "image.network": "the name of a network for builds, such as host",
    "image.broker": "the name of an image, as text",
    AMAZON: "a table, with bucket, subnets, network and others",
    "amazon.bucket": "the name of an S3 bucket, as text",
    "amazon.cluster": "the name of an ECS cluster, as text",
    "amazon.subnets": 'a list of ids of subnets, such as ["subnet-0a1b2c3d"]',
    "amazon.network": "found or make",
    "amazon.public": "true or false",
    "amazon.allow_from": "a CIDR block, such as 203.0.113.7/32, as text",
    "amazon.ask_above": "a number of US dollars, 0 or more",
}


def split_words(value: Any) -> Any:
    """A list as an environment variable has it: words, or JSON; anything else as it is."""
    if not isinstance(value, str):
        return value
    return json.loads(value) if value.lstrip().startswith("[") else value.split()


class ImageSettings(BaseModel):
    """Table `[image]`: how images are built, and where they are.

    `base`: what the images are built on, "" for Debian slim; `apt`, `pip`: packages that the
    model needs; `dockerfile`: in the case's folder, used in place of ours; `registry`: goes before
    the names of images; `index`, `ca`, `network`: how a build reaches packages; `broker`: image of
    RabbitMQ.
    """

    model_config = ConfigDict(extra="forbid")

    base: str = ""
    apt: Annotated[list[str], NoDecode] = Field(default_factory=list)
    pip: Annotated[list[str], NoDecode] = Field(default_factory=list)
    dockerfile: str = ""
    registry: str = ""
    index: str = ""
    ca: str = ""
    network: str = ""
    broker: str = "rabbitmq:3.13"

    @field_validator("apt", "pip", mode="before")
    @classmethod
    def _split_words(cls, value: Any) -> Any:
        return split_words(value)

    @field_validator("apt")
    @classmethod
    def _check_packages(cls, names: list[str]) -> list[str]:
        if not all(_DEBIAN_PACKAGE.fullmatch(name) for name in names):
            raise ValueError("not the name of a package")
        return names

    @field_validator("pip")
    @classmethod
    def _check_requirements(cls, requirements: list[str]) -> list[str]:
        # An option of pip, such as another index, is none of a requirement's.
        if any(not r.strip() or r.startswith("-") or _CONTROL.search(r) for r in requirements):
            raise ValueError("not a requirement")
        return requirements

    @field_validator("base", "broker", "registry", "network", "dockerfile", "ca")
    @classmethod
    def _check_name(cls, name: str) -> str:
        if _CONTROL.search(name) or name != name.strip():
            raise ValueError("not a name")
        return name

    @field_validator("base", "broker")
    @classmethod
    def _check_image(cls, name: str, info: ValidationInfo) -> str:
        left_to_us = not name and info.field_name == "base"
        if not left_to_us and not re.fullmatch(r"[a-zA-Z0-9][a-zA-Z0-9._:/@-]*", name):
            raise ValueError("not the name of an image")
        return name

    @field_validator("registry")
    @classmethod
    def _trim_registry(cls, registry: str) -> str:
        if not re.fullmatch(r"[a-zA-Z0-9._:/-]*", registry) or "://" in registry:
            raise ValueError("not a registry")
        return registry.rstrip("/")

    @field_validator("index")
    @classmethod
    def _check_index(cls, index: str) -> str:
        # What a build gets as an argument stays readable in the history of the image.
        if index and not re.fullmatch(r"(https?|file)://[^\s@]+", index):
            raise ValueError("not a URL, or one with a password")
        return index


class AmazonSettings(BaseModel):
    """Table `[amazon]`: what a session finds in an account; see `pestfleet.placement.AmazonPlace`.

    `ask_above`: US dollars; a launch that may cost more is asked for again.
    """

    model_config = ConfigDict(extra="forbid")

    bucket: str = ""
    cluster: str = ""
    subnets: Annotated[list[str], NoDecode] = Field(default_factory=list)
    network: Literal["found", "make"] = "found"
    public: bool = False
    allow_from: str = ""
    ask_above: float = Field(default=25.0, ge=0.0, allow_inf_nan=False)

    @field_validator("subnets", mode="before")
    @classmethod
    def _split_words(cls, value: Any) -> Any:
        return split_words(value)

    @field_validator("bucket")
    @classmethod
    def _check_bucket(cls, name: str) -> str:
        # Amazon S3 user guide, general purpose bucket naming rules.
        if name and not re.fullmatch(r"[a-z0-9][a-z0-9.-]{1,61}[a-z0-9]", name):
            raise ValueError("not the name of a bucket")
        return name

    @field_validator("allow_from")
    @classmethod
    def _check_block(cls, block: str) -> str:
        return str(ip_network(block)) if block else block


class Settings(BaseSettings):
    """The settings of a command. `time_limit` in seconds a run, 0: none.

    `workers`: the fewest where there are `most`, else (0) how many. `idle_minutes`, `max_hours`:
    after which a session ends, 0: never; None becomes what suits the target.
    `memory` (docker's form, "": none), `cpus` (0: none) and `pids` limit a slot in a container.
    """

    model_config = SettingsConfigDict(
        env_prefix=PREFIX, env_nested_delimiter="__", env_ignore_empty=True, extra="forbid"
    )

    engine: str = "glm"
    on: str = "local"
    workers: int = Field(default_factory=lambda: os.cpu_count() or 1, ge=1)
    most: int = Field(default=0, ge=0)
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
    master: Literal["there", "here"] = "there"
    tunnel: bool = False
    context: str = ""
    namespace: str = ""
    min_workers: int = Field(default=1, ge=1)
    memory: str = ""
    cpus: float = Field(default=0.0, ge=0.0, allow_inf_nan=False)
    pids: int = Field(default=256, ge=1)
    idle_minutes: float | None = Field(default=None, ge=0.0, allow_inf_nan=False)
    max_hours: float | None = Field(default=None, ge=0.0, allow_inf_nan=False)
    region: str = ""
    profile: str = ""
    capacity: str = "spot"
    instances: str = Field(default="", pattern=r"^([a-z0-9-]+\.[a-z0-9-]+)?$")
    budget: float = Field(default=0.0, ge=0.0, allow_inf_nan=False)
    engine_options: dict[str, str] = Field(default_factory=dict)
    image: ImageSettings = Field(default_factory=ImageSettings)
    amazon: AmazonSettings = Field(default_factory=AmazonSettings)

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

    @field_validator("capacity")
    @classmethod
    def _check_capacity(cls, capacity: str) -> str:
        if not CAPACITY.fullmatch(capacity):
            raise ValueError("not a kind of capacity")
        return capacity

    @field_validator("memory")
    @classmethod
    def _check_memory(cls, memory: str) -> str:
        if not MEMORY.fullmatch(memory):
            raise ValueError("not a size")
        return memory.lower()

    @model_validator(mode="after")
    def _choose_limits(self) -> Settings:
        # Not by assignment: that would count as given.
        chosen = vars(self)
        if self.idle_minutes is None:
            chosen["idle_minutes"] = IDLE_MINUTES if is_remote(self.on) else 0.0
        if self.max_hours is None:
            chosen["max_hours"] = MAX_HOURS if self.on in ("kubernetes", "ecs") else 0.0
        return self

    @property
    def broker_url(self) -> str:
        """The broker's URL with its password; "" when the session shall have its own broker."""
        return self.broker.get_secret_value()


def split_range(values: Mapping[str, Any]) -> dict[str, Any]:
    """Values of one source with `workers = "4..50"` as `workers` and `most`.

    A plain number of workers, which stays, wins over the range of a source that counts less.
    """
    workers, split = values.get("workers"), dict(values)
    if workers is None:
        return split
    match = re.fullmatch(r"\s*(\d+)\s*\.\.\s*(\d+)\s*", str(workers))
    if match and int(match[1]) <= int(match[2]):
        split |= {"workers": int(match[1]), "most": int(match[2])}
    else:  # also what is no number, and is refused as such
        split.setdefault("most", 0)
    return split


def _write_option(value: Any) -> Any:
    if isinstance(value, bool):
        return str(value).lower()
    if isinstance(value, list):
        return ",".join(str(_write_option(item)) for item in value)
    return str(value) if isinstance(value, int | float) else value
