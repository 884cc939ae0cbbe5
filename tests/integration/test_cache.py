"""The run cache in S3: against moto's server, over HTTP, as against any server that speaks S3."""

from __future__ import annotations

import secrets
import socket
import threading
from concurrent.futures import ThreadPoolExecutor
from typing import Any
from urllib.parse import quote

import botocore.exceptions
import pytest

from pestfleet.cache import CachedRuns, RunCache, RunKey, RunRecord, bucket, open_cache
from pestfleet.cache.bucket import BucketShelf
from pestfleet.cache.shelf import CacheError, ShelfError
from pestfleet.cache.upkeep import prune_cache, summarize_cases, verify_cache
from pestfleet.store.client import make_client as make_s3_client
from pestfleet_worker.messages import CaseSpec, pack_vector

DIGEST, OTHER = "ab" * 32, "cd" * 32
SPEC = CaseSpec("case", DIGEST, ("a",), ("x", "y"), (), (), ("model",))


@pytest.fixture(autouse=True)
def _login(s3_login: None, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("AWS_DEFAULT_REGION", "us-east-1")


@pytest.fixture
def place(s3_server: str) -> str:
    """The address of a run cache in a new bucket."""
    name = f"runs-{secrets.token_hex(6)}"
    make_client(s3_server).create_bucket(Bucket=name)
    return f"s3://{name}/team/runs?endpoint={quote(s3_server, safe='')}&region=us-east-1"


def make_client(s3_server: str) -> Any:
    return make_s3_client(endpoint=s3_server, region="us-east-1")


def make_key(number: int, *, case: str = DIGEST) -> RunKey:
    return RunKey(case, f"{number:064x}")


def get_object(place: str, s3_server: str, key: RunKey) -> dict[str, Any]:
    name = place.removeprefix("s3://").partition("/")[0]
    answer: dict[str, Any] = make_client(s3_server).get_object(
        Bucket=name, Key=f"team/runs/v1/{key.name}"
    )
    return answer


def put_object(
    place: str, s3_server: str, key: RunKey, data: bytes, metadata: dict[str, str] | None = None
) -> None:
    name = place.removeprefix("s3://").partition("/")[0]
    make_client(s3_server).put_object(
        Bucket=name, Key=f"team/runs/v1/{key.name}", Body=data, Metadata=metadata or {}
    )


def test_put_get_update_delete(place: str, s3_server: str) -> None:
    cache, key = open_cache(place), make_key(1)
    assert cache.get(key) is None
    assert cache.put(key, [1, "two"])
    assert not cache.put(key, [3])
    assert open_cache(place).get(key) == [1, "two"]
    assert cache.update(key, b"new")
    assert cache.get(key) == b"new"
    assert get_object(place, s3_server, key)["Metadata"]["pestfleet-expires"] == "0"
    assert cache.delete(key)
    assert cache.get(key) is None
    assert cache.counts.errors == 0
    cache.close()


def test_values_expire(place: str, s3_server: str) -> None:
    now = [1000.0]
    cache = RunCache(BucketShelf(place), clock=lambda: now[0])
    cache.put(make_key(1), b"old", keep_seconds=10)
    assert get_object(place, s3_server, make_key(1))["Metadata"]["pestfleet-expires"] == "1010"
    now[0] = 1011.0
    assert cache.put(make_key(1), b"new")
    assert cache.get(make_key(1)) == b"new"


def test_damaged_objects_are_missing(place: str, s3_server: str) -> None:
    warnings: list[str] = []
    cache = open_cache(place, on_warning=warnings.append)
    key, record = make_key(1), RunRecord(b"p" * 8, b"o" * 16, 1.0, {"name": "case"})
    cache.put(key, record)
    whole = get_object(place, s3_server, key)["Body"].read()
    for data in (b"", whole[:40], whole[:-1], whole[:70] + b"\1" + whole[71:], whole + b"\0"):
        assert data != whole
        put_object(place, s3_server, key, data)
        assert cache.get(key) is None
    put_object(place, s3_server, key, whole, {"pestfleet-sha256": "0" * 64})
    assert cache.get(key) is None
    assert (cache.counts.damaged, cache.counts.errors) == (6, 0)
    assert len(warnings) == 1
    put_object(place, s3_server, key, whole[:-1])
    assert cache.put(key, record)  # in place of the damaged one
    assert cache.get(key) == record


def test_of_many_writers_one_wins(place: str) -> None:
    caches = [open_cache(place) for _ in range(4)]
    keys = [make_key(number) for number in range(10)]
    with ThreadPoolExecutor(4) as threads:
        won = list(
            threads.map(
                lambda number: [caches[number].put(key, [number]) for key in keys], range(4)
            )
        )
    for index, key in enumerate(keys):
        winners = [number for number in range(4) if won[number][index]]
        assert len(winners) == 1
        assert caches[0].get(key) == winners


def test_lists_and_prunes_more_than_a_page(place: str, s3_server: str) -> None:
    class SmallPages:
        """Asks for pages of three, so that a few objects fill several."""

        def __getattr__(self, name: str) -> Any:
            return getattr(client, name)

        def list_objects_v2(self, **request: Any) -> Any:
            return client.list_objects_v2(**request, MaxKeys=3)

    client = make_client(s3_server)
    cache = RunCache(BucketShelf(place, client=SmallPages()))
    for number in range(10):
        cache.put(make_key(number), RunRecord(b"", b"", 1.0, {"name": "mine"}))
    cache.put(make_key(11, case=OTHER), b"x", keep_seconds=1e-6)
    uses = {use.case: (use.name, use.entries) for use in summarize_cases(cache)}
    assert uses == {DIGEST: ("mine", 10), OTHER: ("", 1)}
    assert verify_cache(cache).entries == 11
    assert prune_cache(cache).removed == 1  # what had expired
    assert prune_cache(cache, max_bytes=0, dry_run=True).removed == 10
    assert prune_cache(cache, case=DIGEST).removed == 10
    assert summarize_cases(cache) == []


def test_a_session_finds_the_runs_of_an_earlier_one(place: str) -> None:
    cache = open_cache(place)
    runs = CachedRuns(cache, SPEC, platform="linux/x86_64")
    vectors = {pack_vector([n]): pack_vector([n / 3, -n]) for n in range(40)}
    for parameters, observations in vectors.items():
        runs.store(parameters, observations, 0.1)
    runs.close()
    assert runs.counts.dropped == 0
    later = CachedRuns(open_cache(place), SPEC, platform="linux/x86_64")
    assert {p: later.lookup(p) for p in vectors} == vectors
    assert later.lookup(pack_vector([99.0])) is None


# -- errors -----------------------------------------------------------------------------------


class FaultyClient:
    """FAKE: an S3 client of which some calls fail, or whose answers break off."""

    def __init__(self, client: Any, failing: str, error: Exception) -> None:
        self._client = client
        self._failing = failing
        self._error = error

    def __getattr__(self, name: str) -> Any:
        if name == self._failing:
            return self._fail
        return getattr(self._client, name)

    def get_object(self, **request: Any) -> Any:
        if self._failing == "get_object":
            self._fail()
        answer = self._client.get_object(**request)
        if self._failing == "body":
            answer["Body"].read = self._fail
        return answer

    def _fail(self, *_: Any, **__: Any) -> Any:
        raise self._error


def make_server_error(code: str) -> Exception:
    return botocore.exceptions.ClientError({"Error": {"Code": code, "Message": "no"}}, "Call")


ERRORS = [
    make_server_error("InternalError"),
    make_server_error("AccessDenied"),
    make_server_error("SlowDown"),
    make_server_error("NoSuchBucket"),
    botocore.exceptions.EndpointConnectionError(endpoint_url="http://nowhere"),
    botocore.exceptions.ReadTimeoutError(endpoint_url="http://nowhere"),
    botocore.exceptions.IncompleteReadError(actual_bytes=1, expected_bytes=2),
    botocore.exceptions.NoCredentialsError(),
    ConnectionResetError("reset by peer"),
    ValueError("an answer that cannot be parsed"),
]


@pytest.mark.parametrize("error", ERRORS, ids=lambda error: type(error).__name__)
@pytest.mark.parametrize(
    "call", ["get_object", "body", "put_object", "delete_object", "list_objects_v2"]
)
def test_an_error_at_each_call_never_raises(
    call: str, error: Exception, s3_server: str, place: str
) -> None:
    parameters, observations = pack_vector([1.0]), pack_vector([2.0, 3.0])
    sound = CachedRuns(open_cache(place), SPEC, platform="linux/x86_64")
    sound.store(parameters, observations, 0.1)
    sound.close()

    warnings: list[str] = []
    shelf = BucketShelf(place, client=FaultyClient(make_client(s3_server), call, error))
    cache = RunCache(shelf, on_warning=warnings.append)
    runs = CachedRuns(cache, SPEC, platform="linux/x86_64")
    assert runs.lookup(parameters) in (None, observations)
    assert runs.lookup(pack_vector([5.0])) is None
    runs.store(pack_vector([5.0]), observations, 0.1)
    runs.close()
    cache.update(make_key(1), b"x")
    cache.delete(make_key(1))
    assert len(warnings) in (1, 2)
    assert "the run cache failed" not in " ".join(warnings)  # that would be a defect
    assert isinstance(raised_by(lambda: list(shelf.list_entries())), ShelfError | None)
    if call != "delete_object" and call != "put_object":
        with pytest.raises(CacheError):
            verify_cache(cache)
    again = CachedRuns(open_cache(place), SPEC, platform="linux/x86_64")
    assert again.lookup(parameters) == observations


def raised_by(call: Any) -> Exception | None:
    try:
        call()
    except Exception as error:
        return error
    return None


@pytest.mark.parametrize("code", ["NotImplemented", "501"])
def test_a_server_without_conditional_writes(code: str, s3_server: str, place: str) -> None:
    class Unconditional(FaultyClient):
        """FAKE: does not know If-None-Match."""

        asked = 0

        def put_object(self, **request: Any) -> Any:
            if "IfNoneMatch" in request:
                self.asked += 1
                raise make_server_error(code)
            return self._client.put_object(**request)

    client = Unconditional(make_client(s3_server), "", ValueError())
    cache = RunCache(BucketShelf(place, client=client))
    assert cache.put(make_key(1), b"first")
    assert not cache.put(make_key(1), b"second")
    assert cache.get(make_key(1)) == b"first"
    assert client.asked == 2  # with a checksum, too, which it might not know


def test_a_bucket_that_is_not_there(s3_server: str) -> None:
    warnings: list[str] = []
    cache = open_cache(f"s3://nobody-has-this/x?endpoint={s3_server}", on_warning=warnings.append)
    assert cache.get(make_key(1)) is None
    assert not cache.put(make_key(1), b"x")
    assert ["NoSuchBucket" in text for text in warnings] == [True, True]


def test_a_server_that_is_not_there_costs_seconds_not_the_session() -> None:
    with socket.socket() as unused:
        unused.bind(("127.0.0.1", 0))
        endpoint = f"http://127.0.0.1:{unused.getsockname()[1]}"
        warnings: list[str] = []
        cache = open_cache(f"s3://bucket/x?endpoint={endpoint}", on_warning=warnings.append)
        for number in range(100):
            assert cache.get(make_key(number)) is None
        assert (cache.counts.errors, cache.counts.skipped) == (3, 97)
        assert len(warnings) == 1


def test_a_server_that_says_nothing_is_given_up(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(bucket, "READ_SECONDS", 0.2)
    silent = socket.create_server(("127.0.0.1", 0))
    taken: list[socket.socket] = []

    def accept() -> None:
        while True:
            try:
                taken.append(silent.accept()[0])
            except OSError:
                return

    thread = threading.Thread(target=accept, daemon=True)
    thread.start()
    try:
        cache = open_cache(
            f"s3://bucket/x?endpoint=http://127.0.0.1:{silent.getsockname()[1]}",
            on_warning=[].append,
        )
        runs = CachedRuns(cache, SPEC, platform="linux/x86_64")
        assert [runs.lookup(pack_vector([n])) for n in range(50)] == [None] * 50
        assert 0 < len(taken) < 50  # it is not asked for each run
    finally:
        silent.shutdown(socket.SHUT_RDWR)
        silent.close()
        for connection in taken:
            connection.close()
        thread.join(5)
