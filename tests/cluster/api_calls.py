"""What commands ask of the API server: they reach it by a proxy of kubectl's, which writes it down.

kubectl knows every way to identify oneself, so the commands need none.
"""

from __future__ import annotations

import contextlib
import json
import re
import subprocess
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from urllib.parse import parse_qs, urlsplit

# A line for each answer: of kubectl 1.33 and later, or of an earlier one.
_ANSWER = re.compile(
    r'"Response" verb="(\w+)" url="([^"]+)"|\b(GET|POST|PUT|PATCH|DELETE) (https?://\S+) \d{3}\b'
)


@dataclass(frozen=True, slots=True)
class Call:
    """A request. `path`: without the query."""

    verb: str
    path: str
    query: dict[str, list[str]]

    @property
    def is_further_page(self) -> bool:
        """Is it for another page of a long list?"""
        return "continue" in self.query


class CallRecorder:
    """`kubeconfig`: for the commands whose calls are written down."""

    def __init__(self, kubeconfig: Path, log: Path) -> None:
        self.kubeconfig = kubeconfig
        self._log = log
        self._read = 0

    def take(self) -> list[Call]:
        """The calls since the last time; of a command that has ended all are there."""
        with self._log.open("rb") as log:
            log.seek(self._read)
            new = log.read()
        whole = new[: new.rfind(b"\n") + 1]
        self._read += len(whole)
        return [_read_call(*found) for found in _ANSWER.findall(whole.decode("utf-8", "replace"))]


def _read_call(verb: str, url: str, older_verb: str, older_url: str) -> Call:
    parts = urlsplit(url or older_url)
    return Call(verb or older_verb, parts.path, parse_qs(parts.query))


@contextlib.contextmanager
def record_calls(kubectl: Path, kubeconfig: Path, folder: Path) -> Iterator[CallRecorder]:
    """A way to the cluster, while the block runs, on which calls are counted."""
    log = folder / "calls.log"
    with log.open("wb") as lines:
        proxy = subprocess.Popen(
            [
                *("setpriv", "--pdeathsig", "TERM", str(kubectl), f"--kubeconfig={kubeconfig}"),
                # Without the filter, for that refuses exec; it is on loopback only.
                *("proxy", "--port=0", "--disable-filter", "-v=6"),
            ],
            stdout=subprocess.PIPE,
            stderr=lines,
            text=True,
        )
        assert proxy.stdout is not None
        try:
            line = proxy.stdout.readline()  # "Starting to serve on HOST:PORT"
            assert line, f"kubectl proxy did not start: {log.read_text()}"
            named = {"cluster": "counted", "user": "", "namespace": "default"}
            config = {
                "apiVersion": "v1",
                "kind": "Config",
                "current-context": "counted",
                "clusters": [
                    {"name": "counted", "cluster": {"server": f"http://{line.split()[-1]}"}}
                ],
                "contexts": [{"name": "counted", "context": named}],
                "users": [],
            }
            path = folder / "counted.kubeconfig"
            path.write_text(json.dumps(config))
            yield CallRecorder(path, log)
        finally:
            proxy.terminate()
            proxy.communicate()
