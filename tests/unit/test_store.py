"""Objects and files in a store: integrity, conditions, parts, resumed downloads, errors."""

from __future__ import annotations

import hashlib
import os
from base64 import b64encode
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import botocore.exceptions
import pytest

from pestfleet.store import StoreError, parse_address
from pestfleet.store.client import make_client
from pestfleet.store.errors import (
    Changed,
    Damaged,
    FileChanged,
    NoBucket,
    NoCredentials,
    NoPermission,
    NotStored,
    Unreachable,
    WrongRegion,
    typed,
)
from pestfleet.store.files import Store
from pestfleet.store.objects import Objects
from pestfleet_worker.errors import ConfigurationError
from s3_fakes import (
    BUCKET,
    PART,
    CutClient,
    Requests,
    make_bucket_anew,
    make_store,
    mock_s3,
    plain_client,
)
from source import run_python


@pytest.fixture(scope="module", autouse=True)
def _aws() -> Iterator[None]:
    with mock_s3():
        yield


@pytest.fixture(autouse=True)
def _bucket() -> None:
    make_bucket_anew()


def put_raw(key: str, data: bytes, **more: Any) -> None:
    plain_client().put_object(Bucket=BUCKET, Key=key, Body=data, **more)


# -- addresses ---------------------------------------------------------------------------------


def test_addresses_are_read_and_written() -> None:
    text = "s3://bucket/a/b?endpoint=http%3A%2F%2Flocalhost%3A9000&region=eu-central-1"
    address = parse_address(text)
    assert (address.bucket, address.prefix, address.region) == ("bucket", "a/b", "eu-central-1")
    assert address.endpoint == "http://localhost:9000"
    assert str(address) == text
    assert str(parse_address("s3://bucket/")) == "s3://bucket"


@pytest.mark.parametrize(
    "place", ["ftp://host/x", "s3://", "s3:///x", "s3://bucket/x?enpoint=y", "s3://bucket/x#y"]
)
def test_what_is_no_address_is_refused(place: str) -> None:
    with pytest.raises(ConfigurationError, match="not the address of a store"):
        parse_address(place)


def test_logins_are_not_shown() -> None:
    with pytest.raises(ConfigurationError) as caught:
        parse_address("s3://key:secret@bucket/x")
    assert "secret" not in str(caught.value)


def test_the_package_is_imported_without_boto3() -> None:
    script = (
        "import sys; sys.modules['boto3'] = sys.modules['botocore'] = None\n"
        "from pestfleet.store import Store\n"
        "try:\n    Store('s3://bucket/x')\n"
        "except Exception as error:\n    print(error.remedy)\n"
    )
    assert run_python(script).strip() == "Install it with: pip install 'pestfleet[s3]'"


# -- small objects -----------------------------------------------------------------------------


def test_objects_are_written_read_found_and_deleted() -> None:
    store = make_store("team")
    assert store.read("a") is None
    assert store.head("a") is None
    store.write("a", b"one", metadata={"x": "1"})
    store.write("b/c", b"")
    content = store.read("a")
    assert content is not None
    assert content.data == b"one"
    assert content.head.sha256 == hashlib.sha256(b"one").hexdigest()
    assert content.head.metadata["x"] == "1"
    assert content.head.age < 60
    assert [found.key for found in store.find()] == ["a", "b/c"]
    assert list(store.find_folders()) == ["b"]
    assert store.delete_all(["a", "b/c", "never"]) == 3
    assert list(store.find()) == []


def spy_headers(client: Any) -> list[dict[str, str]]:
    """The headers of the requests that it sends."""
    seen: list[dict[str, str]] = []
    client.meta.events.register(
        "before-call.s3", lambda params, **_: seen.append(dict(params["headers"]))
    )
    return seen


def test_the_server_is_told_the_checksum() -> None:
    client = make_client(region="us-east-1")
    seen = spy_headers(client)
    make_store(client=client).write("a", b"one")
    digest = b64encode(hashlib.sha256(b"one").digest()).decode()
    assert seen[-1]["x-amz-checksum-sha256"] == digest
    assert not [name for name in seen[-1] if "crc" in name.lower()]


def test_lists_have_more_than_a_page() -> None:
    store = make_store()
    for number in range(5):
        store.write(f"x/{number}", b"")
    pages = [
        page["Contents"][0]["Key"] for page in store._pages("x/", MaxKeys=1) if page["Contents"]
    ]
    assert pages == [f"x/{number}" for number in range(5)]
    assert len(list(store.find("x/", most=2))) == 2


def test_a_damaged_object_is_noticed_and_named() -> None:
    store = make_store()
    store.write("a", b"right")
    head = store.head("a")
    assert head is not None
    put_raw("a", b"wrong", Metadata=head.metadata)
    with pytest.raises(Damaged, match=f"s3://{BUCKET}/a is damaged: its SHA-256"):
        store.read("a")
    assert store.calls["get_object"] == 2  # it was asked for once more


def test_what_others_wrote_is_read() -> None:
    put_raw("a", b"theirs")
    content = make_store().read("a")
    assert content is not None
    assert (content.data, content.head.sha256) == (b"theirs", "")


def test_conditional_writes() -> None:
    store = make_store()
    etag = store.write("a", b"1", if_absent=True)
    with pytest.raises(Changed):
        store.write("a", b"2", if_absent=True)
    newer = store.write("a", b"2", if_match=etag)
    with pytest.raises(Changed):
        store.write("a", b"3", if_match=etag)
    with pytest.raises(Changed):
        store.write("gone", b"3", if_match=etag)
    with pytest.raises(Changed):
        store.delete("a", if_match=etag)
    store.delete("a", if_match=newer)
    assert store.read("a") is None


class SimpleServer:
    """FAKE: a client of a server that knows neither checksums nor conditions."""

    def __init__(self, client: Any) -> None:
        self._client = client

    def __getattr__(self, name: str) -> Any:
        return getattr(self._client, name)

    def put_object(self, **request: Any) -> Any:
        if request.keys() & {"ChecksumSHA256", "IfMatch", "IfNoneMatch"}:
            raise make_error("NotImplemented", 501)
        return self._client.put_object(**request)


def test_a_server_without_conditions_is_asked_before() -> None:
    store = Store(f"s3://{BUCKET}", client=SimpleServer(plain_client()))
    etag = store.write("a", b"1", if_absent=True)
    with pytest.raises(Changed):
        store.write("a", b"2", if_absent=True)
    store.write("a", b"2", if_match=etag)
    with pytest.raises(Changed):
        store.write("a", b"3", if_match=etag)
    content = store.read("a")
    assert content is not None
    assert content.data == b"2"


# -- errors ------------------------------------------------------------------------------------


def make_error(code: str, status: int = 400) -> Exception:
    answer: Any = {
        "Error": {"Code": code, "Message": "no"},
        "ResponseMetadata": {"HTTPStatusCode": status},
    }
    return botocore.exceptions.ClientError(answer, "Call")


@pytest.mark.parametrize(
    ("error", "kind", "says"),
    [
        (make_error("NoSuchBucket", 404), NoBucket, "Make the bucket, or name another than s3://b"),
        (make_error("AccessDenied", 403), NoPermission, "Ask the owner of s3://b "),
        (make_error("InvalidAccessKeyId", 403), NoCredentials, "AWS_PROFILE"),
        (make_error("ExpiredToken"), NoCredentials, "log in again"),
        (make_error("RequestTimeTooSkewed", 403), NoCredentials, "clock"),
        (make_error("PermanentRedirect", 301), WrongRegion, "--region"),
        (make_error("AuthorizationHeaderMalformed"), WrongRegion, "?region=NAME"),
        (make_error("SlowDown", 503), Unreachable, "in some minutes"),
        (make_error("Strange", 500), Unreachable, "in some minutes"),
        (make_error("BadDigest"), Damaged, "try again"),
        (make_error("Strange"), StoreError, ""),
        (botocore.exceptions.NoCredentialsError(), NoCredentials, "AWS_ACCESS_KEY_ID"),
        (
            botocore.exceptions.EndpointConnectionError(endpoint_url="http://x"),
            Unreachable,
            "network",
        ),
        (ConnectionResetError("reset"), Unreachable, "network"),
    ],
    ids=lambda value: getattr(value, "__name__", None),
)
def test_errors_say_what_to_do(error: Exception, kind: type[StoreError], says: str) -> None:
    with pytest.raises(StoreError) as caught, typed("read", "s3://b/key"):
        raise error
    assert type(caught.value) is kind
    assert "cannot read s3://b/key" in caught.value.message
    assert says in caught.value.remedy
    assert caught.value.passing == (kind is Unreachable)


def test_defects_are_no_errors_of_the_store() -> None:
    with pytest.raises(botocore.exceptions.ParamValidationError), typed("read", "s3://b/key"):
        raise botocore.exceptions.ParamValidationError(report="a defect")
    with pytest.raises(KeyError), typed("read", "s3://b/key"):
        raise KeyError("a defect")


def test_a_missing_bucket_is_named() -> None:
    store = Store("s3://not-there/x?region=us-east-1")
    with pytest.raises(NoBucket, match="s3://not-there/x/a"):
        store.write("a", b"")


def test_missing_objects_that_may_not_be_seen_are_missing() -> None:
    """Who may not list all of the bucket is told 403 for an object that is not there."""
    client = make_client(region="us-east-1")
    store, requests = make_store(client=client), Requests(client)
    requests.fail("HeadObject", 1, status=403, code="AccessDenied")
    assert store.head("a") is None
    store.write("a", b"1")
    requests.fail("GetObject", 1, status=403, code="AccessDenied")
    with pytest.raises(NoPermission):
        store.read("a")


def test_throttling_is_waited_for() -> None:
    client = make_client(region="us-east-1")
    store, requests = make_store(client=client), Requests(client)
    requests.fail("PutObject", 2)
    requests.fail("GetObject", 1, status=500, code="InternalError")
    store.write("a", b"1")
    content = store.read("a")
    assert content is not None
    assert content.data == b"1"
    assert (requests.counts["PutObject"], requests.counts["GetObject"]) == (3, 2)


def test_the_bucket_must_be_its_owners() -> None:
    client = make_client(region="us-east-1")
    seen = spy_headers(client)
    Objects(f"s3://{BUCKET}", client=client, owner="123456789012").write("a", b"")
    assert seen[-1]["x-amz-expected-bucket-owner"] == "123456789012"


# -- files -------------------------------------------------------------------------------------


@pytest.mark.parametrize("size", [0, 10, PART, PART + 1, 2 * PART + 1000])
def test_files_of_any_size_go_there_and_back(tmp_path: Path, size: int) -> None:
    source, data = tmp_path / "source", os.urandom(size)
    source.write_bytes(data)
    store = make_store()
    told: list[tuple[int, int]] = []
    sent = store.upload(source, "a", on_progress=lambda *done: told.append(done))
    assert sent.sha256 == hashlib.sha256(data).hexdigest()
    assert told[-1] == (size, size)
    assert [done for done, _ in told] == sorted(done for done, _ in told)
    assert store.calls["upload_part"] == (0 if size <= PART else -(-size // PART))
    head = store.download("a", tmp_path / "x" / "target")
    assert head.sha256 == sent.sha256
    assert (tmp_path / "x" / "target").read_bytes() == data
    assert [path.name for path in (tmp_path / "x").iterdir()] == ["target"]


def test_progress_is_told_part_by_part(tmp_path: Path) -> None:
    source = tmp_path / "source"
    source.write_bytes(bytes(2 * PART + 5))
    told: list[tuple[int, int]] = []
    make_store().upload(source, "a", on_progress=lambda *done: told.append(done))
    total = 2 * PART + 5
    assert told == [(PART, total), (2 * PART, total), (total, total)]


def test_an_upload_that_fails_leaves_no_parts(tmp_path: Path) -> None:
    source = tmp_path / "source"
    source.write_bytes(bytes(PART + 5))
    client = make_client(region="us-east-1")
    store, requests = make_store(client=client), Requests(client)
    requests.fail("UploadPart", 20, status=403, code="AccessDenied")
    with pytest.raises(NoPermission):
        store.upload(source, "a")
    assert client.list_multipart_uploads(Bucket=BUCKET).get("Uploads", []) == []
    assert store.head("a") is None


def test_unfinished_uploads_are_removed() -> None:
    client = plain_client()
    client.create_multipart_upload(Bucket=BUCKET, Key="team/s/a")
    client.create_multipart_upload(Bucket=BUCKET, Key="team/other")
    assert make_store("team").abort_uploads("s/") == 1
    left = client.list_multipart_uploads(Bucket=BUCKET)["Uploads"]
    assert [one["Key"] for one in left] == ["team/other"]


def test_a_lost_answer_to_the_end_of_an_upload_does_not_matter(tmp_path: Path) -> None:
    source = tmp_path / "source"
    source.write_bytes(bytes(PART + 5))

    class Forgetful:
        def __init__(self, client: Any) -> None:
            self._client = client

        def __getattr__(self, name: str) -> Any:
            return getattr(self._client, name)

        def complete_multipart_upload(self, **request: Any) -> Any:
            self._client.complete_multipart_upload(**request)
            return self._client.complete_multipart_upload(**request)

    store = make_store(client=Forgetful(plain_client()))
    head = store.head("a")
    assert head is None
    sent = store.upload(source, "a")
    head = store.head("a")
    assert head is not None
    assert head.etag == sent.etag


def test_a_client_with_checksums_of_its_own_sends_parts(tmp_path: Path) -> None:
    import boto3

    source = tmp_path / "source"
    source.write_bytes(os.urandom(PART + 5))
    store = make_store(client=boto3.client("s3", region_name="us-east-1"))
    store.upload(source, "a")
    store.download("a", tmp_path / "target")
    assert (tmp_path / "target").read_bytes() == source.read_bytes()


def test_what_is_appended_meanwhile_is_left_out_and_what_is_changed_is_refused(
    tmp_path: Path,
) -> None:
    source = tmp_path / "source"
    source.write_bytes(bytes(PART + 5))
    client = plain_client()
    done: list[str] = []

    class Busy:
        """Writes to the file while its parts are being sent."""

        how = "ab"

        def __getattr__(self, name: str) -> Any:
            return getattr(client, name)

        def create_multipart_upload(self, **request: Any) -> Any:
            with source.open(self.how) as file:
                file.write(b"new")
            done.append(self.how)
            return client.create_multipart_upload(**request)

    busy = Busy()
    store = make_store(client=busy)
    assert store.upload(source, "a").size == PART + 5
    busy.how = "r+b"
    with pytest.raises(FileChanged, match="was changed while it was sent"):
        store.upload(source, "b")
    assert store.head("b") is None
    assert done == ["ab", "r+b"]


def test_a_cut_download_goes_on_where_it_was_cut(tmp_path: Path) -> None:
    data = os.urandom(3_000_000)
    make_store().write("a", data)
    client = CutClient(plain_client(), after=1_100_000, times=2)
    store = make_store(client=client)
    store.download("a", tmp_path / "a")
    assert (tmp_path / "a").read_bytes() == data
    assert client.ranges == ["", "bytes=1100000-", "bytes=2200000-"]


def test_another_process_goes_on_with_a_part(tmp_path: Path, monkeypatch: Any) -> None:
    monkeypatch.setattr("pestfleet.store.files.PAUSE", 0.0)
    data = os.urandom(3_000_000)
    make_store().write("a", data)
    dead = CutClient(plain_client(), after=1_000_000, times=1)

    def cut(**request: Any) -> Any:
        if dead.times == 0:
            raise botocore.exceptions.EndpointConnectionError(endpoint_url="fake")
        return CutClient.get_object(dead, **request)

    dead.get_object = cut  # type: ignore[method-assign]
    with pytest.raises(Unreachable):
        make_store(client=dead).download("a", tmp_path / "a")
    assert not (tmp_path / "a").exists()
    assert (tmp_path / "a.part").stat().st_size == 1_000_000
    told: list[tuple[int, int]] = []
    client = CutClient(plain_client(), after=0, times=0)
    make_store(client=client).download("a", tmp_path / "a", on_progress=lambda *d: told.append(d))
    assert client.ranges == ["bytes=1000000-"]
    assert (tmp_path / "a").read_bytes() == data
    assert told[-1] == (3_000_000, 3_000_000)
    assert sorted(path.name for path in tmp_path.iterdir()) == ["a"]


@pytest.mark.parametrize("what", ["another object", "a damaged part", "no note", "too long"])
def test_a_part_that_does_not_fit_is_not_used(tmp_path: Path, what: str) -> None:
    store = make_store()
    store.write("a", b"0123456789")
    head = store.head("a")
    assert head is not None
    part, note = tmp_path / "a.part", tmp_path / "a.part-of"
    part.write_bytes({"a damaged part": b"012x", "too long": b"0" * 20}.get(what, b"0123"))
    if what != "no note":
        note.write_text("other" if what == "another object" else head.etag, encoding="utf-8")
    store.download("a", tmp_path / "a")
    assert (tmp_path / "a").read_bytes() == b"0123456789"
    assert sorted(path.name for path in tmp_path.iterdir()) == ["a"]


def test_an_object_that_is_replaced_meanwhile_is_fetched_anew(tmp_path: Path) -> None:
    store = make_store()
    store.write("a", b"old")
    head = store.head("a")
    store.write("a", b"newer")
    store.download("a", tmp_path / "a", head=head)
    assert (tmp_path / "a").read_bytes() == b"newer"


def test_a_damaged_file_is_never_left(tmp_path: Path) -> None:
    put_raw("a", b"wrong", Metadata={"pestfleet-sha256": "0" * 64})
    (tmp_path / "a").write_text("before", encoding="utf-8")
    with pytest.raises(Damaged, match=f"s3://{BUCKET}/a is damaged"):
        make_store().download("a", tmp_path / "a")
    assert (tmp_path / "a").read_text(encoding="utf-8") == "before"
    assert sorted(path.name for path in tmp_path.iterdir()) == ["a"]


def test_what_is_not_there_is_not_fetched(tmp_path: Path) -> None:
    with pytest.raises(NotStored, match=f"there is no s3://{BUCKET}/a"):
        make_store().download("a", tmp_path / "a")


def test_a_server_without_ranges_is_read_from_the_beginning(tmp_path: Path) -> None:
    make_store().write("a", b"0123456789")

    class NoRanges(CutClient):
        def get_object(self, **request: Any) -> Any:
            request.pop("Range", None)
            return super().get_object(**request)

    client = NoRanges(plain_client(), after=4, times=1)
    make_store(client=client).download("a", tmp_path / "a")
    assert (tmp_path / "a").read_bytes() == b"0123456789"
