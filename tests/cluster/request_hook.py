"""Ends or fails pestfleet's commands at a certain request to the API server."""

from __future__ import annotations

import os
from pathlib import Path

# Python imports a module of this name when it starts.
_MODULE = """\
import os
import signal

from pestfleet.targets.kubernetes import access

method, number, status = os.environ["HOOK"].split()
ask = access.Access._ask
seen = 0


def hook(self, asked, path, query, *rest, **how):
    global seen
    made = asked == method and "dryRun" not in query and "reviews" not in path
    seen += made
    hit = made and seen == int(number)
    if hit and status != "kill":
        raise access.Refused(int(status), "Test", "the test says no")
    answer = ask(self, asked, path, query, *rest, **how)
    if hit:
        os.kill(os.getpid(), signal.SIGKILL)
    return answer


access.Access._ask = hook
"""


def make_environment(
    folder: Path, *, method: str, number: int, status: str = "kill"
) -> dict[str, str]:
    """The environment of a command that is killed by -9 after that many requests of a method.

    Requests that change nothing are not counted. `status`: instead, the request is refused with
    that status of HTTP.
    """
    hook = folder / "hook"
    hook.mkdir(exist_ok=True)
    (hook / "sitecustomize.py").write_text(_MODULE)
    before = os.environ.get("PYTHONPATH", "")
    return {
        **os.environ,
        "PYTHONPATH": os.pathsep.join(filter(None, (str(hook), before))),
        "HOOK": f"{method} {number} {status}",
    }
