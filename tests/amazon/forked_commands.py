"""Commands of pestfleet, each a process of its own, that begin in a moment.

A process that has imported everything forks for each. Also it asks Amazon again after shorter
pauses than usual, and fewer times: what is said, done and left is the same.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
import types
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from importlib import import_module
from pathlib import Path
from pkgutil import walk_packages

TIMES = 2  # that a request is asked at most
PAUSE = 0.02  # seconds between two of these


@dataclass(frozen=True, slots=True)
class Ended:
    """A command that has ended. `code`: negative for a signal; `text`: stdout and stderr."""

    words: tuple[str, ...]
    code: int
    text: str


class Commands:
    """Runs commands one after the other, in `folder`."""

    def __init__(self, process: subprocess.Popen[str], folder: Path) -> None:
        self._process = process
        self.folder = folder
        self._number = 0

    def run(self, *words: str, folder: Path | None = None) -> Ended:
        """`folder`: where it is run, if elsewhere."""
        assert self._process.stdin is not None and self._process.stdout is not None
        self._number += 1
        log = self.folder / f"output-{self._number}.txt"
        asked = {
            "words": words,
            "folder": str(folder or self.folder),
            "log": str(log),
            "environment": dict(os.environ),
        }
        self._process.stdin.write(json.dumps(asked) + "\n")
        self._process.stdin.flush()
        answer = self._process.stdout.readline()
        assert answer, "the process that forks has ended"
        return Ended(words, int(answer), log.read_text(errors="replace"))


@contextmanager
def run_commands(folder: Path) -> Iterator[Commands]:
    """Commands with the environment that this process has when each is run."""
    process = subprocess.Popen(
        [sys.executable, __file__], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
    )
    try:
        yield Commands(process, folder)
    finally:
        assert process.stdin is not None and process.stdout is not None
        process.stdin.close()
        process.wait()
        process.stdout.close()


# -- the process that forks --------------------------------------------------------------------


def _serve() -> None:
    _prepare()
    for line in sys.stdin:
        asked = json.loads(line)
        child = os.fork()
        if not child:
            _become(asked)
        _, status = os.waitpid(child, 0)
        print(os.waitstatus_to_exitcode(status), flush=True)


def _prepare() -> None:
    """Import and read all that commands do, and be quick."""
    import botocore.endpoint
    import botocore.loaders
    import botocore.session
    import docker  # noqa: F401
    import numpy  # noqa: F401
    import rich.live  # noqa: F401

    import pestfleet
    from pestfleet.targets.ecs import access
    from pestfleet.targets.ecs.resources import waiting

    for module in walk_packages(pestfleet.__path__, "pestfleet."):
        if not module.name.endswith("__main__"):
            import_module(module.name)
    access.ATTEMPTS = TIMES
    waiting.FIRST = PAUSE
    loader = botocore.loaders.create_loader()  # it keeps the models that it has read
    botocore.session.create_loader = lambda search_path=None: loader  # type: ignore[assignment]
    botocore.endpoint.time = types.SimpleNamespace(  # type: ignore[assignment]
        sleep=lambda seconds: _TIME.sleep(min(seconds, PAUSE)), time=_TIME.time
    )
    _read_models()


def _read_models() -> None:
    import boto3

    services = ("autoscaling", "ec2", "ecr", "ecs", "iam", "logs", "pricing", "s3", "scheduler",
                "resourcegroupstaggingapi", "secretsmanager", "service-quotas", "servicediscovery",
                "ssm", "sts")  # fmt: skip
    session = boto3.Session("key", "secret", region_name="eu-central-1")
    for service in services:
        client = session.client(service)
        client.close()


def _become(asked: dict[str, object]) -> None:
    os.setsid()
    os.environ.clear()
    os.environ.update(asked["environment"])  # type: ignore[call-overload]
    os.chdir(str(asked["folder"]))
    log = os.open(str(asked["log"]), os.O_WRONLY | os.O_CREAT | os.O_TRUNC)
    for number in (1, 2):
        os.dup2(log, number)
    os.dup2(os.open(os.devnull, os.O_RDONLY), 0)
    from pestfleet.cli.main import main

    sys.argv = ["pestfleet", *asked["words"]]  # type: ignore[misc]
    code = 1
    try:
        main()
    except SystemExit as error:
        code = error.code if isinstance(error.code, int) else int(error.code is not None)
    except BaseException:
        import traceback

        traceback.print_exc()
    sys.stdout.flush()
    sys.stderr.flush()
    os._exit(code)


if __name__ == "__main__":
    import time as _TIME

    _serve()
