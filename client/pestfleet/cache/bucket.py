"""Entries of the run cache as objects in an S3 bucket, or a server that speaks S3.

    <prefix>/v1/<case digest>/<first two digits>/<hash>

An object appears whole or not at all, and a conditional write (`If-None-Match: *`, S3 API
reference, PutObject) keeps the first of two writers. Credentials come from the SDK's usual places,
never from the cache's address.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import closing, contextmanager
from dataclasses import replace as change
from typing import Any

from pestfleet.cache.directory import LAYOUT, MAX_BYTES
from pestfleet.cache.keys import RunKey, parse_name
from pestfleet.cache.shelf import CacheError, Leftovers, ShelfError, Stored
from pestfleet.store.client import Address, make_client, parse_address
from pestfleet.store.errors import Changed, Damaged, NotStored, StoreError, typed
from pestfleet.store.objects import Objects
from pestfleet_worker.errors import ConfigurationError

CONNECT_SECONDS = 3.0
READ_SECONDS = 10.0


class BucketShelf:
    """`s3://bucket/prefix`, with `?endpoint=URL` and `&region=NAME` for other servers than AWS."""

    slow = True

    def __init__(self, place: str, *, client: Any = None) -> None:
        """`client`: a boto3 S3 client; made if there is none.

        Raises `CacheError` when the address is none.
        """
        self.place = place
        try:
            address = parse_address(place, what="a run cache")
            made = client if client is not None else _make_client(address)
        except ConfigurationError as error:
            raise CacheError(error.message, remedy=error.remedy) from error
        below = "/".join(part for part in (address.prefix, LAYOUT) if part)
        self._objects = Objects(change(address, prefix=below), client=made)

    def read(self, key: RunKey) -> bytes | None:
        """See `Shelf.read`."""
        with _as_shelf_errors("read", key.name):
            try:
                content = self._objects.read(key.name, most=MAX_BYTES)
            except Damaged:
                return b""  # which is no entry, either
            return None if content is None else content.data

    def read_head(self, key: RunKey, size: int) -> bytes | None:
        """See `Shelf.read_head`."""
        with _as_shelf_errors("read", key.name):
            try:
                answer = self._objects.request("get_object", key.name, Range=f"bytes=0-{size - 1}")
            except NotStored:
                return None
            except Damaged:
                return b""  # no first byte: the object has none
            with closing(answer["Body"]) as body, typed("read", self._objects.name(key.name)):
                data: bytes = body.read()
            return data

    def write(self, key: RunKey, data: bytes, *, replace: bool, expires: float) -> bool:
        """See `Shelf.write`. A server without conditional writes is asked before."""
        metadata = {"pestfleet-expires": f"{expires:.0f}"}
        with _as_shelf_errors("write", key.name):
            try:
                self._objects.write(key.name, data, metadata=metadata, if_absent=not replace)
            except Changed:
                return False
            return True

    def remove(self, key: RunKey) -> bool:
        """See `Shelf.remove`. S3 does not tell whether there was one: always true."""
        with _as_shelf_errors("remove", key.name):
            self._objects.delete(key.name)
        return True

    def set_aside(self, key: RunKey) -> None:
        """See `Shelf.set_aside`: removed, for a bucket with versions keeps it anyhow."""
        self.remove(key)

    def list_entries(self, case: str | None = None) -> Iterator[Stored]:
        """See `Shelf.list_entries`: 1,000 a request. `used` is when an entry was written."""
        with _as_shelf_errors("list", self.place):
            for found in self._objects.find(f"{case}/" if case else ""):
                key = parse_name(found.key)
                if key is not None:
                    yield Stored(key, found.size, found.modified)

    def list_cases(self) -> Iterator[str]:
        """See `Shelf.list_cases`."""
        with _as_shelf_errors("list", self.place):
            yield from self._objects.find_folders()

    def clean(self, *, before: float, dry_run: bool) -> Leftovers:
        """See `Shelf.clean`: a bucket has no leftovers."""
        return Leftovers()

    def claim_sweep(self, seconds: float) -> bool:
        """See `Shelf.claim_sweep`: a bucket is pruned by command only."""
        return False

    def close(self) -> None:
        self._objects.close()


@contextmanager
def _as_shelf_errors(what: str, name: str) -> Iterator[None]:
    try:
        yield
    except StoreError as error:
        raise ShelfError(str(error)) from error
    except Exception as error:
        # The errors of the SDK's parsers have no base of their own.
        raise ShelfError(f"cannot {what} {name}: {type(error).__name__}: {error}") from error


def _make_client(address: Address) -> Any:
    return make_client(
        endpoint=address.endpoint,
        region=address.region,
        what="a run cache in S3",
        connect_seconds=CONNECT_SECONDS,
        read_seconds=READ_SECONDS,
        attempts=2,
        connections=16,
    )
