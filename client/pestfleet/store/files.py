"""A store: files of any size to and from S3, checked, in parts, and resumed where they were cut."""

from __future__ import annotations

import hashlib
import logging
import os
import time
from base64 import b64encode
from collections import deque
from collections.abc import Callable, Iterator, Mapping
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import closing
from dataclasses import dataclass
from pathlib import Path
from typing import Any, BinaryIO

from pestfleet.store.errors import (
    Changed,
    Damaged,
    FileChanged,
    NotStored,
    StoreError,
    Unreachable,
    typed,
)
from pestfleet.store.objects import SHA256, Head, Objects, make_head

logger = logging.getLogger(__name__)

OnProgress = Callable[[int, int], None]  # bytes that are over, and of how many

PART = 8 << 20  # bytes; larger files are sent in parts of this size
MOST_PARTS = 10_000  # Amazon S3 user guide, "Multipart upload limits"
AT_A_TIME = 4  # parts of a file
CHUNK = 1 << 20
TRIES = 6  # times that a download goes on without having got a byte
PAUSE, LONGEST_PAUSE = 0.2, 10.0  # seconds between them


@dataclass(frozen=True, slots=True)
class Sent:
    """A file as it was sent. `sha256`: hex."""

    size: int
    sha256: str
    etag: str


class Store(Objects):
    """One bucket, or what is below a prefix there: `s3://bucket/prefix[?endpoint=URL&region=NAME]`.

    See `Objects` for small objects, made from bytes.
    """

    part_bytes = PART

    def upload(
        self,
        path: Path,
        key: str,
        *,
        sha256: str = "",
        metadata: Mapping[str, str] | None = None,
        on_progress: OnProgress | None = None,
    ) -> Sent:
        """Send a file as it is now; what is appended meanwhile is left out.

        `sha256`: what it must have (hex); `on_progress` is called from this thread. Raises
        `OSError` where the file cannot be read, `FileChanged` where it is another, or written
        over meanwhile.
        """
        tell = on_progress or _ignore
        with path.open("rb") as file:
            size = os.fstat(file.fileno()).st_size
            if size > self.part_bytes:
                return self._upload_parts(file, size, key, sha256, metadata or {}, tell)
            data = file.read(size)
        digest = hashlib.sha256(data).hexdigest()
        if len(data) < size or sha256 not in ("", digest):
            raise _make_changed(path, self.name(key))
        etag = self.write(key, data, metadata=metadata)
        tell(size, size)
        return Sent(size, digest, etag)

    def _upload_parts(
        self,
        file: BinaryIO,
        size: int,
        key: str,
        sha256: str,
        metadata: Mapping[str, str],
        tell: OnProgress,
    ) -> Sent:
        part = max(self.part_bytes, -(-size // MOST_PARTS))
        whole, digests = _measure(file, size, part)
        if len(digests) < -(-size // part) or sha256 not in ("", whole):
            raise _make_changed(Path(file.name), self.name(key))
        upload = self.request(
            "create_multipart_upload",
            key,
            ContentType="application/octet-stream",
            Metadata={SHA256: whole, **metadata},
        )["UploadId"]
        try:
            parts = list(self._send_parts(file, size, part, digests, key, upload, tell))
            etag = self._complete(key, upload, parts, whole)
        except BaseException:
            self._abort(key, upload)
            raise
        return Sent(size, whole, etag)

    def _send_parts(
        self,
        file: BinaryIO,
        size: int,
        part: int,
        digests: list[bytes],
        key: str,
        upload: str,
        tell: OnProgress,
    ) -> Iterator[dict[str, Any]]:
        """Sends some parts at a time, and no more of the file is in memory."""

        def send(number: int, data: bytes, digest: bytes) -> dict[str, Any]:
            answer = self.request(
                "upload_part",
                key,
                UploadId=upload,
                PartNumber=number,
                Body=data,
                ContentMD5=b64encode(digest).decode(),
            )
            # A client that adds checksums by itself has to name them at the end.
            made = {name: text for name, text in answer.items() if name.startswith("Checksum")}
            return {"PartNumber": number, "ETag": answer["ETag"], **made}

        under_way: deque[tuple[int, Future[dict[str, Any]]]] = deque()
        sent = 0
        file.seek(0)
        with ThreadPoolExecutor(AT_A_TIME, "store-parts") as pool:
            for number, digest in enumerate(digests, 1):
                data = file.read(min(part, size - part * (number - 1)))
                if _md5(data) != digest:
                    raise _make_changed(Path(file.name), self.name(key))
                under_way.append((len(data), pool.submit(send, number, data, digest)))
                while len(under_way) >= AT_A_TIME or (under_way and number == len(digests)):
                    length, future = under_way.popleft()
                    yield future.result()
                    sent += length
                    tell(sent, size)

    def _complete(self, key: str, upload: str, parts: list[dict[str, Any]], sha256: str) -> str:
        try:
            answer = self.request(
                "complete_multipart_upload",
                key,
                UploadId=upload,
                MultipartUpload={"Parts": parts},
            )
            return str(answer["ETag"])
        except NotStored:
            head = self.head(key)  # done, but the first answer was lost?
            if head is None or head.sha256 != sha256:
                raise
            return head.etag

    def _abort(self, key: str, upload: str) -> None:
        try:
            self.request("abort_multipart_upload", key, UploadId=upload)
        except StoreError as error:  # the bucket's lifecycle rules remove it later
            logger.warning("parts of %s may be left: %s", self.name(key), error.message)

    def abort_uploads(self, prefix: str) -> int:
        """Remove what unfinished uploads have left below a prefix; the answer is how many."""
        found = 0
        marker: dict[str, str] = {}
        while True:
            page = self.request("list_multipart_uploads", Prefix=self._prefix + prefix, **marker)
            for one in page.get("Uploads", ()):
                self._abort(one["Key"].removeprefix(self._prefix), one["UploadId"])
                found += 1
            if not page.get("IsTruncated"):
                return found
            marker = {
                "KeyMarker": page["NextKeyMarker"],
                "UploadIdMarker": page["NextUploadIdMarker"],
            }

    # -- downloads -------------------------------------------------------------------------------

    def download(
        self,
        key: str,
        path: Path,
        *,
        head: Head | None = None,
        on_progress: OnProgress | None = None,
    ) -> Head:
        """Fetch an object to a file, which is there when it is whole and checked, or not at all.

        What a cut download has left (`NAME.part`, and `NAME.part-of` with its ETag) is gone on
        with, if the object is still the same. `head`: as it was read just now, or what it has to
        be, without an ETag. Raises `NotStored`, `Damaged`, and `OSError` where the file cannot be
        written.
        """
        for last in (False, True):
            known = head or self.head(key)
            head = head if head and not head.etag else None
            if known is None:
                place = self.name(key)
                raise NotStored(f"there is no {place}", place=place)
            part = _Part(path, known.etag or known.sha256)
            try:
                self._fetch(key, known, part, on_progress or _ignore)
                return known
            except (Changed, Damaged) as error:
                part.drop()
                if last:
                    raise
                logger.warning("fetched from its beginning: %s", error.message)
        raise AssertionError("unreachable")

    def _fetch(self, key: str, head: Head, part: _Part, tell: OnProgress) -> None:
        tries = 0
        with part.begin() as file:
            while part.size < head.size:
                before = part.size
                try:
                    self._fetch_rest(key, head, part, file, tell)
                    break  # by itself: where something lacks, it is damaged
                except Unreachable as error:
                    tries = tries + 1 if part.size == before else 0
                    if tries >= TRIES:
                        raise
                    logger.info("%s goes on at byte %d: %s", key, part.size, error.message)
                    time.sleep(min(LONGEST_PAUSE, PAUSE * 2**tries))
        self.check(key, head, part.size, part.digest.hexdigest())
        part.finish()

    def _fetch_rest(
        self, key: str, head: Head, part: _Part, file: BinaryIO, tell: OnProgress
    ) -> None:
        wanted = {"IfMatch": head.etag} if head.etag else {}
        wanted |= {"Range": f"bytes={part.size}-"} if part.size else {}
        answer = self.request("get_object", key, **wanted)
        with closing(answer["Body"]) as body:
            if part.size and make_head(answer).size == answer["ContentLength"]:
                part.restart(file)  # the server knows no ranges
            while True:
                with typed("read", self.name(key)):
                    chunk: bytes = body.read(CHUNK)
                if not chunk:
                    return
                part.add(file, chunk)
                tell(part.size, head.size)


class _Part:
    """The beginning of a file that is being fetched."""

    def __init__(self, path: Path, etag: str) -> None:
        self._path = path
        self._part = path.with_name(f"{path.name}.part")
        self._note = path.with_name(f"{path.name}.part-of")
        self._etag = etag
        self.size = 0
        self.digest = hashlib.sha256()

    def begin(self) -> BinaryIO:
        """The file, at the place where the next byte belongs."""
        self._path.parent.mkdir(parents=True, exist_ok=True)
        try:
            same = self._note.read_text(encoding="utf-8") == self._etag
        except (FileNotFoundError, UnicodeDecodeError):
            same = False
        if not same or not self._part.exists():
            self._part.unlink(missing_ok=True)
            self._note.write_text(self._etag, encoding="utf-8")
            return self._part.open("wb")
        file = self._part.open("r+b")
        while chunk := file.read(CHUNK):
            self.digest.update(chunk)
            self.size += len(chunk)
        return file

    def add(self, file: BinaryIO, chunk: bytes) -> None:
        file.write(chunk)
        self.digest.update(chunk)
        self.size += len(chunk)

    def restart(self, file: BinaryIO) -> None:
        file.seek(0)
        file.truncate()
        self.size, self.digest = 0, hashlib.sha256()

    def drop(self) -> None:
        self._note.unlink(missing_ok=True)  # first: without it the part counts for nothing
        self._part.unlink(missing_ok=True)

    def finish(self) -> None:
        self._part.replace(self._path)
        self._note.unlink(missing_ok=True)


def _measure(file: BinaryIO, size: int, part: int) -> tuple[str, list[bytes]]:
    """The SHA-256 of a file, and the MD5 of each of its parts: how S3 checks them."""
    whole, digests = hashlib.sha256(), []
    file.seek(0)
    while size > 0:
        data = file.read(min(part, size))
        if not data:
            break
        whole.update(data)
        digests.append(_md5(data))
        size -= len(data)
    return whole.hexdigest(), digests


def _md5(data: bytes) -> bytes:
    return hashlib.md5(data, usedforsecurity=False).digest()


def _make_changed(path: Path, place: str) -> FileChanged:
    return FileChanged(
        f"{path} was changed while it was sent to {place}",
        place=place,
        remedy="Try again when nothing writes to it.",
    )


def _ignore(done: int, total: int) -> None:
    """For who wants to hear of no progress."""
