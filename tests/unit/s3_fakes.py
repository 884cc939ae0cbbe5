"""For tests of stores: a bucket of moto's in this process, and clients of which requests fail."""

from __future__ import annotations

import functools
import os
import threading
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import botocore.exceptions
import pytest
from botocore.awsrequest import AWSResponse
from moto import mock_aws
from moto.s3.models import s3_backends

from pestfleet.folder import SessionFolder, SessionSpec
from pestfleet.store import Store
from pestfleet.store.client import make_client

BUCKET = "pestfleet-tests"
PART = 5 << 20  # bytes; the least that S3 takes


@functools.cache
def plain_client() -> Any:
    """For tests that change nothing about it: making one takes a while."""
    return make_client(region="us-east-1")


@contextmanager
def mock_s3() -> Iterator[None]:
    """moto instead of S3, in this process."""
    with pytest.MonkeyPatch.context() as patch, mock_aws():
        patch.delenv("AWS_PROFILE", raising=False)
        plain_client.cache_clear()
        yield


def make_bucket_anew() -> None:
    """An empty bucket, and no other."""
    s3_backends["123456789012"]["aws"].reset()
    plain_client().create_bucket(Bucket=BUCKET)


def make_store(prefix: str = "", *, client: Any = None) -> Store:
    """A store in moto's bucket. Parts are as small as they can be."""
    store = Store(
        f"s3://{BUCKET}/{prefix}?region=us-east-1",
        client=client or plain_client(),
    )
    store.part_bytes = PART
    return store


def make_folder(path: Path, *, files: dict[str, str] | None = None) -> SessionFolder:
    """A session's folder with a case and these files."""
    folder = SessionFolder(path)
    folder.create(SessionSpec(path.name, "case.pst", "d", "ies", "ecs", 1, 1))
    (folder.case / "empty").mkdir(parents=True)
    (folder.case / "sub").mkdir()
    (folder.case / "case.pst").write_text("pcf\n", encoding="utf-8")
    (folder.case / "sub" / "model.sh").write_text("#!/bin/sh\n", encoding="utf-8")
    (folder.case / "sub" / "model.sh").chmod(0o755)
    os.utime(folder.case / "case.pst", ns=(1_600_000_000_000_000_000,) * 2)
    for name, text in (files or {}).items():
        (folder.path / name).parent.mkdir(parents=True, exist_ok=True)
        (folder.path / name).write_text(text, encoding="utf-8")
    return folder


class Requests:
    """Counts the requests of a client as they go over the wire, and lets some of them fail."""

    def __init__(self, client: Any) -> None:
        self.counts: Counter[str] = Counter()
        self.keys: list[tuple[str, str]] = []  # operation, key
        self._faults: list[tuple[str, int, str, bool]] = []
        self._lock = threading.Lock()
        client.meta.events.register_first("before-send.s3", self._send)

    def fail(
        self,
        operation: str,
        times: int,
        *,
        status: int = 503,
        code: str = "SlowDown",
        done: bool = False,
    ) -> None:
        """The next requests of an operation ("": any) are answered by this error.

        `done`: what was asked for is done nevertheless.
        """
        with self._lock:
            self._faults += [(operation, status, code, done)] * times

    def recover(self) -> None:
        with self._lock:
            self._faults.clear()

    def _send(self, request: Any, event_name: str, **_: Any) -> AWSResponse | None:
        operation = event_name.rpartition(".")[2]
        with self._lock:
            self.counts[operation] += 1
            self.keys.append((operation, request.url.partition("?")[0]))
            fault = next((one for one in self._faults if one[0] in ("", operation)), None)
            if fault is None:
                return None
            self._faults.remove(fault)
        _, status, code, done = fault
        answer_to = request.url
        if not done:
            request.url = "http://nobody.invalid/"  # moto is asked, too, whatever we answer
        body = f"<Error><Code>{code}</Code><Message>fake</Message></Error>".encode()
        if request.method == "HEAD":
            body = b""
        return AWSResponse(answer_to, status, {}, _Raw(body))


class _Raw:
    """What urllib3 answers, as far as botocore reads it."""

    def __init__(self, body: bytes) -> None:
        self._body = body

    def stream(self, **_: Any) -> Any:
        yield self._body

    def read(self, amt: int | None = None) -> bytes:
        body, self._body = self._body, b""
        return body


class CutClient:
    """FAKE: an S3 client whose answers to GetObject break off after some bytes, some times."""

    def __init__(self, client: Any, *, after: int, times: int) -> None:
        self._client = client
        self._after = after
        self.times = times
        self.ranges: list[str] = []

    def __getattr__(self, name: str) -> Any:
        return getattr(self._client, name)

    def get_object(self, **request: Any) -> Any:
        self.ranges.append(request.get("Range", ""))
        answer = self._client.get_object(**request)
        if self.times:
            self.times -= 1
            answer["Body"] = _CutBody(answer["Body"], self._after)
        return answer


class _CutBody:
    def __init__(self, body: Any, after: int) -> None:
        self._body = body
        self._left = after

    def read(self, size: int | None = None) -> bytes:
        if not self._left:
            raise botocore.exceptions.ReadTimeoutError(endpoint_url="fake")
        data: bytes = self._body.read(min(size or self._left, self._left))
        self._left -= len(data)
        return data

    def close(self) -> None:
        self._body.close()


def await_true(condition: Callable[[], bool], *, seconds: float = 20.0) -> None:
    """Fails where the condition does not become true."""
    for _ in range(int(seconds / 0.02)):
        if condition():
            return
        threading.Event().wait(0.02)
    raise AssertionError("it did not come")
