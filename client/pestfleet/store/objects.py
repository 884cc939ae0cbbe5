"""Small objects of one bucket, below one prefix: read, written, found and deleted.

Each object that we write has its SHA-256 in its metadata, which is checked when it is read; it is
also sent as x-amz-checksum-sha256, so that a server that knows this header refuses what was damaged
on its way.
"""

from __future__ import annotations

import hashlib
import logging
import time
from base64 import b64encode
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Mapping
from concurrent.futures import ThreadPoolExecutor
from contextlib import closing
from dataclasses import dataclass, field
from email.utils import parsedate_to_datetime
from typing import Any, TypeVar

from pestfleet.store.client import Address, make_client, parse_address
from pestfleet.store.errors import (
    Changed,
    Damaged,
    NoPermission,
    NotStored,
    NotSupported,
    StoreError,
    typed,
)

logger = logging.getLogger(__name__)

Item = TypeVar("Item")
Result = TypeVar("Result")

THREADS = 16  # requests at a time where many objects are sent, fetched or deleted
SHA256 = "pestfleet-sha256"  # names of metadata
_WORDS = {
    "put_object": "write", "get_object": "read", "head_object": "read", "delete_object": "delete",
    "list_objects_v2": "list", "copy_object": "renew",
}  # fmt: skip


@dataclass(frozen=True, slots=True)
class Found:
    """An object as a list shows it. `modified`: seconds since 1970, of the server's clock."""

    key: str
    size: int
    etag: str
    modified: float


@dataclass(frozen=True, slots=True)
class Head:
    """What is known of an object. `sha256`: hex, "" where somebody else has written it.

    `modified`, `now`: last write, and when this was read, by the server's clock (seconds since
    1970).
    """

    size: int
    etag: str
    modified: float
    now: float
    metadata: dict[str, str] = field(default_factory=dict)

    @property
    def sha256(self) -> str:
        return self.metadata.get(SHA256, "")

    @property
    def age(self) -> float:
        """Seconds since the last write."""
        return max(0.0, self.now - self.modified)


@dataclass(frozen=True, slots=True)
class Content:
    """An object that was read whole."""

    data: bytes
    head: Head


class Objects:
    """Objects below `s3://bucket/prefix`. Keys are relative to that; safe to use from threads.

    Every verb raises `StoreError`. `calls`: requests by boto3's name of the operation, to count
    what is paid for.
    """

    def __init__(self, place: str | Address, *, client: Any = None, owner: str = "") -> None:
        """`client`: boto3's for S3; made of the address if there is none. No request is made.

        `owner`: the account that the bucket must belong to, where that is known (S3 user guide,
        "Verifying bucket ownership"). Raises `ConfigurationError` where `place` is no address.
        """
        self.address = parse_address(place) if isinstance(place, str) else place
        if client is None:
            client = make_client(endpoint=self.address.endpoint, region=self.address.region)
        self.client = client
        self.calls: Counter[str] = Counter()
        self._prefix = f"{self.address.prefix}/" if self.address.prefix else ""
        self._owner = {"ExpectedBucketOwner": owner} if owner else {}
        self._checksums = self._conditions = True  # does the server know them?

    def name(self, key: str) -> str:
        """The object's address, for people."""
        return f"s3://{self.address.bucket}/{self._prefix}{key}"

    def close(self) -> None:
        self.client.close()

    def request(self, operation: str, key: str | None = None, **parameters: Any) -> dict[str, Any]:
        """One request of boto3's client, for this bucket."""
        if key is not None:
            parameters["Key"] = self._prefix + key
        self.calls[operation] += 1
        what = _WORDS.get(operation, "write")
        with typed(what, self.name(key or "")):
            answer: dict[str, Any] = getattr(self.client, operation)(
                Bucket=self.address.bucket, **parameters, **self._owner
            )
        return answer

    # -- reading ---------------------------------------------------------------------------------

    def read(self, key: str, *, most: int | None = None) -> Content | None:
        """A whole object, checked; None where there is none. Raises also `Damaged`.

        `most`: bytes that it may have; a larger one is none of ours, and is not read.
        """
        for last in (False, True):
            answer = self._or_missing("get_object", key)
            if answer is None:
                return None
            head = make_head(answer)
            with closing(answer["Body"]) as body, typed("read", self.name(key)):
                if most is not None and head.size > most:
                    raise StoreError(
                        f"{self.name(key)} has {head.size:,} bytes, which is more than it may have",
                        place=self.name(key),
                    )
                data: bytes = body.read()
            try:
                self.check(key, head, len(data), hashlib.sha256(data).hexdigest())
            except Damaged as error:
                if last:
                    raise
                logger.warning("read once more: %s", error.message)
            else:
                return Content(data, head)
        raise AssertionError("unreachable")

    def head(self, key: str) -> Head | None:
        """What is known of an object; None where there is none."""
        answer = self._or_missing("head_object", key)
        return None if answer is None else make_head(answer)

    def check(self, key: str, head: Head, size: int, sha256: str) -> None:
        """Raises `Damaged` where what was read is not what was written."""
        if size != head.size:
            why = f"{size:,} of {head.size:,} bytes arrived"
        elif head.sha256 and head.sha256 != sha256:
            why = "its SHA-256 is not that of what was written"
        else:
            return
        place = self.name(key)
        raise Damaged(
            f"{place} is damaged: {why}",
            place=place,
            remedy="Try again; if it stays so, the object itself is damaged: remove it.",
        )

    def find(self, prefix: str = "", *, most: int = 0) -> Iterator[Found]:
        """The objects whose keys begin so, sorted, 1,000 a request; `most` of them (0: all)."""
        for page in self._pages(prefix, **({"MaxKeys": most} if most else {})):
            for item in page.get("Contents", ()):
                key = item["Key"].removeprefix(self._prefix)
                yield Found(key, item["Size"], item["ETag"], item["LastModified"].timestamp())
            if most:
                return

    def find_folders(self, prefix: str = "") -> Iterator[str]:
        """The names between `prefix` and the next slash, sorted."""
        for page in self._pages(prefix, Delimiter="/"):
            for item in page.get("CommonPrefixes", ()):
                yield item["Prefix"].removeprefix(self._prefix + prefix).rstrip("/")

    def _pages(self, prefix: str, **parameters: Any) -> Iterator[dict[str, Any]]:
        token: dict[str, str] = {}
        while True:
            page = self.request(
                "list_objects_v2", Prefix=self._prefix + prefix, **parameters, **token
            )
            yield page
            if not page.get("IsTruncated"):
                return
            token = {"ContinuationToken": page["NextContinuationToken"]}

    def _or_missing(self, operation: str, key: str) -> dict[str, Any] | None:
        try:
            return self.request(operation, key)
        except NotStored:
            return None
        except NoPermission:
            # Who may not list the whole bucket gets this for a missing object, too (S3 API
            # reference, GetObject, "Permissions").
            if self._lists(key):
                raise
            return None

    def _lists(self, key: str) -> bool:
        """Is there such an object? True, too, where we may not know."""
        try:
            return any(found.key == key for found in self.find(key, most=1))
        except NoPermission:
            return True

    # -- writing ---------------------------------------------------------------------------------

    def write(
        self,
        key: str,
        data: bytes,
        *,
        metadata: Mapping[str, str] | None = None,
        if_absent: bool = False,
        if_match: str = "",
    ) -> str:
        """Write an object; the answer is its ETag. A reader sees the old one or the new one.

        `if_absent`: only where there is none; `if_match`: only where there is the one with this
        ETag; raises `Changed` else. A server that knows no such conditions is asked before, which
        leaves a moment in which another's write is lost.
        """
        digest = hashlib.sha256(data)
        request: dict[str, Any] = {
            "Body": data,
            "ContentType": "application/octet-stream",
            "Metadata": {SHA256: digest.hexdigest(), **(metadata or {})},
        }
        conditions = {"IfNoneMatch": "*"} if if_absent else {}
        conditions |= {"IfMatch": if_match} if if_match else {}
        while True:
            checksum = (
                {"ChecksumSHA256": b64encode(digest.digest()).decode()} if self._checksums else {}
            )
            given = conditions if self._conditions else {}
            if conditions and not given:
                self._check_conditions(key, if_absent=if_absent, if_match=if_match)
            try:
                answer = self.request("put_object", key, **request, **checksum, **given)
                return str(answer["ETag"])
            except NotStored as error:
                raise Changed(error.message, place=error.place, code=error.code) from error
            except NotSupported:
                if self._checksums:
                    self._checksums = False
                elif given:
                    self._conditions = False
                else:
                    raise

    def _check_conditions(self, key: str, *, if_absent: bool, if_match: str) -> None:
        head = self.head(key)
        if (if_absent and head) or (if_match and (head is None or head.etag != if_match)):
            place = self.name(key)
            raise Changed(f"{place} was written by another", place=place)

    def delete(self, key: str, *, if_match: str = "") -> None:
        """Delete an object, if there is one; `if_match`: only the one with this ETag.

        Raises `Changed` where there is another by now; a server may not know that condition.
        """
        try:
            self.request("delete_object", key, **({"IfMatch": if_match} if if_match else {}))
        except NotStored:
            return
        except NotSupported:
            self.request("delete_object", key)

    def delete_all(self, keys: Iterable[str]) -> int:
        """Delete objects, many at a time; the answer is how many."""
        # One a request: it is free of charge, and the request for many is one that servers differ
        # in (its checksum).
        return len(in_threads(self.delete, list(keys)))

    def touch(self, key: str, head: Head) -> None:
        """Renew an object's time of writing, so that it expires later."""
        self.request(
            "copy_object",
            key,
            CopySource={"Bucket": self.address.bucket, "Key": self._prefix + key},
            CopySourceIfMatch=head.etag,
            Metadata=head.metadata,
            MetadataDirective="REPLACE",
            ContentType="application/octet-stream",
        )


def make_head(answer: Mapping[str, Any]) -> Head:
    """Of the answer to GetObject or HeadObject."""
    headers = answer.get("ResponseMetadata", {}).get("HTTPHeaders", {})
    size = int(answer["ContentLength"])
    whole = str(answer.get("ContentRange", "")).rpartition("/")[2]  # bytes 5-9/10
    return Head(
        size=int(whole) if whole.isdecimal() else size,
        etag=str(answer["ETag"]),
        modified=answer["LastModified"].timestamp(),
        now=_read_clock(headers.get("date", "")),
        metadata={name.lower(): text for name, text in answer.get("Metadata", {}).items()},
    )


def _read_clock(text: str) -> float:
    try:
        return parsedate_to_datetime(text).timestamp()
    except ValueError:
        return time.time()


def in_threads(
    function: Callable[[Item], Result],
    items: list[Item],
    *,
    threads: int = THREADS,
    on_done: Callable[[Item, Result], None] | None = None,
) -> list[Result]:
    """The function of each item, in this order. `on_done` is called in the calling thread.

    The first error is raised, when those under way have ended; what waits is left out.
    """
    if not items:
        return []
    with ThreadPoolExecutor(min(threads, len(items)), "store") as pool:
        waiting = [pool.submit(function, item) for item in items]
        results: list[Result] = []
        try:
            for item, future in zip(items, waiting, strict=True):
                results.append(future.result())
                if on_done is not None:
                    on_done(item, results[-1])
        except BaseException:
            pool.shutdown(wait=True, cancel_futures=True)
            raise
    return results


__all__ = [
    "SHA256", "THREADS", "Content", "Found", "Head", "Objects", "StoreError", "in_threads",
    "make_head",
]  # fmt: skip
