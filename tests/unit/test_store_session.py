"""A session in a store: its case, its files, requests, the claim, and its removal."""

from __future__ import annotations

import json
import os
import threading
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import pytest

from hosting import wait_for
from pestfleet.folder import SessionFolder
from pestfleet.store import ClaimHeld, ClaimLost, SessionStore, list_sessions, open_session
from pestfleet.store.case_files import RENEWED
from pestfleet.store.claim import Claim
from pestfleet.store.client import make_client
from pestfleet.store.errors import Damaged, FileChanged, NoPermission, NotStored, Unreachable
from pestfleet.store.names import is_kept, list_kept
from pestfleet.store.objects import Head, in_threads
from pestfleet_worker.errors import ConfigurationError, SessionError
from s3_fakes import (
    BUCKET,
    PART,
    CutClient,
    Requests,
    make_bucket_anew,
    make_folder,
    make_store,
    mock_s3,
    plain_client,
)


@pytest.fixture(scope="module", autouse=True)
def _aws() -> Iterator[None]:
    with mock_s3():
        yield


@pytest.fixture(autouse=True)
def _bucket() -> None:
    make_bucket_anew()


def make_session(name: str = "s1", *, client: Any = None) -> SessionStore:
    return SessionStore(make_store(client=client), name)


def list_keys() -> list[str]:
    return [found.key for found in make_store().find()]


def count(requests: Requests, operation: str, part: str) -> int:
    return sum(op == operation and part in key for op, key in requests.keys)


# -- addresses ---------------------------------------------------------------------------------


@pytest.mark.parametrize("place", ["s3://bkt", "s3://bkt/sessions", "s3://bkt/sessions/"])
def test_the_folder_of_sessions_may_be_named_or_not(place: str) -> None:
    session = open_session(place, "s1", client=plain_client())
    assert session.store.name(session.prefix) == "s3://bkt/sessions/s1/"
    assert session.store.name("blobs/x") == "s3://bkt/blobs/x"


def test_a_session_below_a_prefix() -> None:
    session = open_session("s3://bkt/team/sessions", "s1", client=plain_client())
    assert session.store.name("blobs/x") == "s3://bkt/team/blobs/x"
    with pytest.raises(ConfigurationError):
        open_session("bkt/team", "s1")


# -- the case ----------------------------------------------------------------------------------


def test_a_case_goes_there_and_back(tmp_path: Path) -> None:
    folder = make_folder(tmp_path / "s1")
    told: list[tuple[int, int]] = []
    make_session().put_case(folder, lambda *done: told.append(done))
    total = sum(path.stat().st_size for path in folder.case.rglob("*") if path.is_file())
    assert told[-1] == (total, total)
    other = SessionFolder(tmp_path / "there" / "s1")
    other.path.mkdir(parents=True)
    make_session().get_case(other)
    assert (other.case / "case.pst").read_text(encoding="utf-8") == "pcf\n"
    assert (other.case / "case.pst").stat().st_mtime_ns == 1_600_000_000_000_000_000
    assert (other.case / "empty").is_dir()
    if os.name == "posix":
        assert (other.case / "sub" / "model.sh").stat().st_mode & 0o777 == 0o755
    assert sorted(path.name for path in other.path.iterdir()) == ["case"]


def test_only_what_is_new_is_sent(tmp_path: Path) -> None:
    folder = make_folder(tmp_path / "s1")
    for number in range(20):
        (folder.case / f"copy{number}").write_text("all the same", encoding="utf-8")
    client = make_client(region="us-east-1")
    requests = Requests(client)
    make_session(client=client).put_case(folder)
    assert count(requests, "PutObject", "/blobs/") == 3  # one content once
    make_session("s2", client=client).put_case(folder)
    assert count(requests, "PutObject", "/blobs/") == 3
    (folder.case / "case.pst").write_text("pcf\n*", encoding="utf-8")
    make_session("s2", client=client).put_case(folder)
    assert count(requests, "PutObject", "/blobs/") == 4


def test_large_files_are_sent_in_parts_with_progress(tmp_path: Path) -> None:
    folder = make_folder(tmp_path / "s1")
    (folder.case / "large").write_bytes(os.urandom(2 * PART))
    told: list[tuple[int, int]] = []
    session = make_session()
    session.put_case(folder, lambda *done: told.append(done))
    assert session.store.calls["upload_part"] == 2
    done = [bytes_over for bytes_over, _ in told]
    assert done == sorted(done)
    assert len([one for one in done if PART <= one < 2 * PART]) >= 1
    session.get_case(tmp_path / "back")
    assert (tmp_path / "back" / "large").read_bytes() == (folder.case / "large").read_bytes()


def test_a_case_fetch_that_was_cut_goes_on(tmp_path: Path) -> None:
    folder = make_folder(tmp_path / "s1")
    (folder.case / "large").write_bytes(os.urandom(3_000_000))
    make_session().put_case(folder)
    client = make_client(region="us-east-1")
    requests = Requests(client)
    target = tmp_path / "there" / "case"
    cut = CutClient(client, after=100_000_000, times=0)
    requests.fail("GetObject", 1, status=403, code="InvalidAccessKeyId")  # of the list of files
    with pytest.raises(Exception, match="InvalidAccessKeyId"):
        make_session(client=cut).get_case(target)
    others = [target.with_name("case.draft") / name for name in ("case.pst", "sub/model.sh")]
    with pytest.raises(NoPermission):
        DenyingClient.session(client, "large", after=others).get_case(target)
    assert not target.exists()  # a case that is not whole is not taken for one
    requests.keys.clear()
    make_session(client=client).get_case(target)
    assert (target / "large").read_bytes() == (folder.case / "large").read_bytes()
    assert count(requests, "GetObject", "/blobs/") == 1  # the others were there


class DenyingClient:
    """FAKE: a client that may not read the content of a file, and learns it after some others."""

    def __init__(self, client: Any, key: str, after: list[Path]) -> None:
        self._client = client
        self._key = key
        self._after = after

    @classmethod
    def session(cls, client: Any, name: str, *, after: list[Path]) -> SessionStore:
        manifest = json.loads(
            client.get_object(Bucket=BUCKET, Key="sessions/s1/case.json")["Body"].read()
        )
        return make_session(client=cls(client, manifest["files"][name]["sha256"], after))

    def __getattr__(self, name: str) -> Any:
        return getattr(self._client, name)

    def get_object(self, **request: Any) -> Any:
        if self._key in request["Key"]:
            wait_for(lambda: all(path.exists() for path in self._after), what="the other files")
            raise_denied()
        return self._client.get_object(**request)


def raise_denied() -> None:
    import botocore.exceptions

    answer: Any = {"Error": {"Code": "AccessDenied"}}
    raise botocore.exceptions.ClientError(answer, "GetObject")


def test_a_case_that_is_there_stays(tmp_path: Path) -> None:
    folder = make_folder(tmp_path / "s1")
    session = make_session()
    session.put_case(folder)
    (folder.case / "case.pst").write_text("mine", encoding="utf-8")
    session.get_case(folder)
    assert (folder.case / "case.pst").read_text(encoding="utf-8") == "mine"


def test_a_case_that_is_not_all_there_is_told(tmp_path: Path) -> None:
    folder = make_folder(tmp_path / "s1")
    session = make_session()
    with pytest.raises(NotStored, match="session s1 has no case in the store"):
        session.get_case(tmp_path / "case")
    session.put_case(folder)
    blob = next(key for key in list_keys() if key.startswith("blobs/"))
    session.store.delete(blob)
    with pytest.raises(NotStored, match="not in the store any more") as caught:
        session.get_case(tmp_path / "case")
    assert "pestfleet resume" in caught.value.remedy
    session.put_case(folder)
    session.get_case(tmp_path / "case")


def test_a_damaged_blob_is_noticed_and_sent_again(tmp_path: Path) -> None:
    folder = make_folder(tmp_path / "s1")
    session = make_session()
    session.put_case(folder)
    blob = next(key for key in list_keys() if key.startswith("blobs/"))
    plain_client().put_object(Bucket=BUCKET, Key=blob, Body=b"damaged")
    with pytest.raises(Damaged, match=blob):
        session.get_case(tmp_path / "case")
    session.put_case(folder)
    session.get_case(tmp_path / "case")


def test_a_list_of_files_that_leads_elsewhere_is_refused(tmp_path: Path) -> None:
    make_session().put_case(make_folder(tmp_path / "s1"))
    store = make_store()
    content = store.read("sessions/s1/case.json")
    assert content is not None
    values = json.loads(content.data)
    values["files"]["../outside"] = values["files"].pop("case.pst")
    store.write("sessions/s1/case.json", json.dumps(values).encode())
    with pytest.raises(Damaged, match=r"\.\./outside"):
        make_session().get_case(tmp_path / "in" / "case")
    assert not (tmp_path / "in").exists()


def test_old_content_is_renewed_when_it_is_used(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    folder = make_folder(tmp_path / "s1")
    client = make_client(region="us-east-1")
    requests = Requests(client)
    make_session(client=client).put_case(folder)
    monkeypatch.setattr(Head, "age", RENEWED + 1)
    make_session("s2", client=client).put_case(folder)
    assert count(requests, "CopyObject", "/blobs/") == 2
    assert count(requests, "PutObject", "/blobs/") == 2
    make_session("s2").get_case(tmp_path / "case")  # with its checksums


def test_no_case_is_told(tmp_path: Path) -> None:
    with pytest.raises(SessionError, match="there is no case in"):
        make_session().put_case(tmp_path / "nothing")


# -- files -------------------------------------------------------------------------------------

FILES = {
    "state.json": '{"state": "running"}',
    "journal.jsonl": '{"event": "start"}\n',
    "master.log": "a line\n",
    "launched": "{}",
    "results/case.par": "k 1",
    "results/deep/ä b.csv": "1,2",
    "kits/run-3.tar.gz": "kit",
    "logs/worker-1.log": "said",
    "lock": "",
    "stop": "",
    "follow.log": "no",
    "results/x.part": "no",
}
KEPT = sorted({"session.json", *FILES} - {"lock", "stop", "follow.log", "results/x.part"})


def test_files_go_there_and_back(tmp_path: Path) -> None:
    folder = make_folder(tmp_path / "s1", files=FILES)
    (folder.path / "kits" / "run-3.tar.gz").chmod(0o600)
    os.utime(folder.path / "journal.jsonl", ns=(1_700_000_000_123_456_789,) * 2)
    session = make_session()
    assert sorted(session.push(folder)) == KEPT
    assert session.push(folder) == []
    other = SessionFolder(tmp_path / "there" / "s1")
    back = make_session()
    told: list[tuple[int, int]] = []
    assert sorted(back.pull(other, on_progress=lambda *done: told.append(done))) == KEPT
    assert told[-1][0] == told[-1][1] > 0
    for name in KEPT:
        assert (other.path / name).read_bytes() == (folder.path / name).read_bytes()
    assert (other.path / "journal.jsonl").stat().st_mtime_ns == 1_700_000_000_123_456_789
    if os.name == "posix":
        assert (other.path / "kits" / "run-3.tar.gz").stat().st_mode & 0o777 == 0o600
    assert back.pull(other) == []
    assert back.push(other) == []
    assert other.read_spec() == folder.read_spec()


def test_state_and_end_are_sent_last(tmp_path: Path) -> None:
    folder = make_folder(tmp_path / "s1", files={**FILES, "ended": "l 0"})
    (folder.path / "results" / "large").write_bytes(bytes(PART + 1))
    client = make_client(region="us-east-1")
    requests = Requests(client)
    make_session(client=client).push(folder)
    sent = [key for op, key in requests.keys if op in ("PutObject", "CompleteMultipartUpload")]
    assert [key.rpartition("/")[2] for key in sent[-3:]] == ["large", "state.json", "ended"]


def test_another_process_sends_only_what_differs(tmp_path: Path) -> None:
    folder = make_folder(tmp_path / "s1", files=FILES)
    make_session().push(folder)
    (folder.path / "master.log").write_text("b line\n", encoding="utf-8")  # as long as before
    (folder.path / "journal.jsonl").write_text("longer" * 9, encoding="utf-8")
    os.utime(folder.path / "results" / "case.par", (1, 1))
    assert sorted(make_session().push(folder)) == ["journal.jsonl", "master.log"]


def test_a_file_that_was_only_touched_is_not_sent_again(tmp_path: Path) -> None:
    folder = make_folder(tmp_path / "s1", files=FILES)
    session = make_session()
    session.push(folder)
    os.utime(folder.path / "state.json", (1, 1))
    before = session.store.calls["put_object"]
    assert session.push(folder) == []
    assert session.store.calls["put_object"] == before


def test_some_names_only(tmp_path: Path) -> None:
    folder = make_folder(tmp_path / "s1", files=FILES)
    session = make_session()
    assert sorted(session.push(folder, ["state.json", "results"])) == [
        "results/case.par", "results/deep/ä b.csv", "state.json",
    ]  # fmt: skip
    session.push(folder)
    other = SessionFolder(tmp_path / "there" / "s1")
    assert make_session().pull(other, ["journal.jsonl", "kits"]) == [
        "journal.jsonl", "kits/run-3.tar.gz",
    ]  # fmt: skip


def test_results_that_are_gone_here_go_there(tmp_path: Path) -> None:
    folder = make_folder(tmp_path / "s1", files=FILES)
    session = make_session()
    session.push(folder)
    (folder.path / "results" / "case.par").unlink()
    (folder.path / "launched").unlink()
    session.push(folder)
    assert "sessions/s1/files/results/case.par" not in list_keys()
    assert "sessions/s1/files/launched" in list_keys()
    # Who never had a file does not remove it.
    make_session().push(make_folder(tmp_path / "empty" / "s1"))
    assert "sessions/s1/files/kits/run-3.tar.gz" in list_keys()


def test_a_pull_goes_on_with_a_cut_file(tmp_path: Path) -> None:
    folder = make_folder(tmp_path / "s1")
    data = os.urandom(3_000_000)
    folder.journal.write_bytes(data)
    make_session().push(folder)
    other = SessionFolder(tmp_path / "there" / "s1")
    client = CutClient(plain_client(), after=1_100_000, times=1)
    make_session(client=client).pull(other, ["journal.jsonl"])
    assert other.journal.read_bytes() == data
    assert client.ranges == ["", "bytes=1100000-"]


def test_names_from_a_store_stay_in_the_folder(tmp_path: Path) -> None:
    store = make_store()
    for name in ("results/../../evil", "stop", "../evil", "results/a\\..\\b", "case/x", "lock"):
        store.write(f"sessions/s1/files/{name}", b"x")
    store.write("sessions/s1/files/results/good", b"x")
    folder = SessionFolder(tmp_path / "s1")
    assert make_session().pull(folder) == ["results/good"]
    assert [p.relative_to(tmp_path).as_posix() for p in tmp_path.rglob("*") if p.is_file()] == [
        "s1/results/good"
    ]


def test_what_is_kept() -> None:
    assert is_kept("state.json")
    assert is_kept("results/a/b")
    for name in ("results", "results/", "", "x", "/results/a", "results//a", "results/./a"):
        assert not is_kept(name)


def test_a_file_that_cannot_be_sent_does_not_keep_the_others(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    folder = make_folder(tmp_path / "s1", files=FILES)
    session = make_session()
    upload = session.store.upload

    def fail(path: Path, key: str, **more: Any) -> Any:
        if path.name == "case.par":
            raise FileChanged("changed", place=key)
        if path.name == "master.log":
            raise PermissionError("not readable")
        return upload(path, key, **more)

    monkeypatch.setattr(session.store, "upload", fail)
    with pytest.raises((FileChanged, PermissionError)):
        session.push(folder)
    there = [key for key in list_keys() if "/files/" in key]
    assert len(there) == len(KEPT) - 2
    monkeypatch.undo()
    assert sorted(session.push(folder)) == ["master.log", "results/case.par"]


def test_state_and_end_are_read(tmp_path: Path) -> None:
    session = make_session()
    assert session.read_state() == {}
    assert session.read_ended() == ""
    assert not session.exists()
    session.push(make_folder(tmp_path / "s1", files={**FILES, "ended": "launch-1 0\n"}))
    assert session.read_state() == {"state": "running"}
    assert session.read_ended() == "launch-1 0"
    assert session.exists()
    assert list(list_kept(tmp_path / "s1"))[-1] == "ended"


# -- requests ----------------------------------------------------------------------------------


def test_requests_are_taken_once() -> None:
    user, master = make_session(), make_session()
    assert master.take_requests() == {}
    user.request_stop()
    user.request_workers(7)
    delivered: list[tuple[str, str]] = []
    taken = master.take_requests(lambda *request: delivered.append(request))
    assert taken == {"stop": "", "scale": '{"workers": 7}'}
    assert sorted(delivered) == sorted(taken.items())
    assert master.take_requests() == {}
    with pytest.raises(ValueError, match="no request"):
        user.request("other")


def test_a_newer_request_is_not_lost() -> None:
    user, master = make_session(), make_session()
    user.request_workers(7)
    taken = master.take_requests(lambda *_: user.request_workers(8))
    assert taken == {"scale": '{"workers": 7}'}
    assert master.take_requests() == {"scale": '{"workers": 8}'}
    assert master.take_requests() == {}


def test_a_request_that_cannot_be_removed_is_delivered_once() -> None:
    make_session().request_workers(7)
    client = make_client(region="us-east-1")
    requests, master = Requests(client), make_session(client=client)
    delivered: list[str] = []
    requests.fail("DeleteObject", 1, status=403, code="AccessDenied")
    with pytest.raises(NoPermission):
        master.take_requests(lambda name, _: delivered.append(name))
    assert master.take_requests(lambda name, _: delivered.append(name)) == {}
    assert delivered == ["scale"]
    assert [key for key in list_keys() if "requests" in key] == []


def test_requests_are_cleared() -> None:
    session = make_session()
    session.request_stop()
    session.clear_requests()
    assert session.take_requests() == {}


# -- the claim ---------------------------------------------------------------------------------


def test_one_of_many_gets_the_claim() -> None:
    won: list[str] = []

    def claim(holder: str) -> None:
        try:
            make_session().claim(holder)
        except ClaimHeld:
            return
        won.append(holder)

    with ThreadPoolExecutor(8) as pool:
        list(pool.map(claim, [f"task-{number}" for number in range(8)]))
    assert len(won) == 1
    state = make_session().read_claim()
    assert state is not None
    assert (state.holder, state.free) == (won[0], False)


def test_a_held_claim_names_its_holder() -> None:
    make_session().claim("task-1")
    with pytest.raises(ClaimHeld, match="session s1 has a master: task-1") as caught:
        make_session().claim("task-2")
    assert caught.value.exit_code == 8


def test_a_released_claim_is_free_at_once() -> None:
    first, second = make_session(), make_session()
    first.claim("task-1")
    first.renew()
    first.release()
    first.release()
    second.claim("task-2")
    second.renew()
    with pytest.raises(ClaimLost):
        first.renew()


def test_an_old_claim_may_be_taken_and_its_holder_hears_of_it() -> None:
    first, second = make_session(), make_session()
    first.claim("task-1")
    Claim(second.store, "sessions/s1/claim", "s1").take("task-2", stale=-1)
    with pytest.raises(ClaimLost, match="another master has taken session s1 over: task-2"):
        first.renew()
    first.release()
    state = make_session().read_claim()
    assert state is not None
    assert (state.holder, state.free) == ("task-2", False)


def test_a_claim_is_waited_for() -> None:
    first, second = make_session(), make_session()
    first.claim("task-1")
    waited: list[float] = []

    def wait(seconds: float) -> None:
        waited.append(seconds)
        first.release()

    Claim(second.store, "sessions/s1/claim", "s1").take("task-2", patience=60, wait=wait)
    assert waited == [2.0]


def test_the_same_task_goes_on_with_its_claim() -> None:
    make_session().claim("task-1")
    make_session().claim("task-1")


def test_a_removed_session_has_no_master() -> None:
    session = make_session()
    session.claim("task-1")
    make_session().remove()
    with pytest.raises(ClaimLost, match="was removed"):
        session.renew()


@pytest.mark.parametrize("verb", ["claim", "renew"])
def test_a_lost_answer_to_a_claim_does_not_matter(verb: str) -> None:
    class Repeating:
        """FAKE: asks again, as the SDK does where the answer to a request was lost."""

        again = verb == "claim"

        def __getattr__(self, name: str) -> Any:
            return getattr(plain_client(), name)

        def put_object(self, **request: Any) -> Any:
            answer = plain_client().put_object(**request)
            return plain_client().put_object(**request) if self.again else answer

    client = Repeating()
    session = make_session(client=client)
    session.claim("task-1")
    client.again = verb == "renew"
    session.renew()
    session.renew()
    with pytest.raises(ClaimHeld):
        make_session().claim("task-2")


@pytest.mark.parametrize("done", [True, False])
def test_a_claim_outlasts_answers_that_do_not_come(done: bool) -> None:
    client = make_client(region="us-east-1", attempts=1)
    requests, session = Requests(client), make_session(client=client)
    requests.fail("PutObject", 1, done=done)
    with pytest.raises(Unreachable):
        session.claim("task-1")
    session.claim("task-1")
    for _ in range(2):
        requests.fail("PutObject", 2, done=done)
        for _ in range(2):
            with pytest.raises(Unreachable):
                session.renew()
        session.renew()
    state = session.read_claim()
    assert state is not None
    assert not state.free
    session.release()


# -- the end -----------------------------------------------------------------------------------


def test_nothing_is_left_of_a_removed_session(tmp_path: Path) -> None:
    session = make_session()
    folder = make_folder(tmp_path / "s1", files=FILES)
    session.put_case(folder)
    session.push(folder)
    session.claim("task-1")
    session.request_stop()
    plain_client().create_multipart_upload(Bucket=BUCKET, Key="sessions/s1/files/results/x")
    assert session.remove() == len(KEPT) + 5
    assert list_keys() == []
    assert plain_client().list_multipart_uploads(Bucket=BUCKET).get("Uploads", []) == []
    assert session.remove() == 0


def test_content_that_others_have_stays(tmp_path: Path) -> None:
    first, second = make_session("s1"), make_session("s2")
    first.put_case(make_folder(tmp_path / "s1"))
    folder = make_folder(tmp_path / "s2")
    (folder.case / "own").write_text("own", encoding="utf-8")
    second.put_case(folder)
    assert list_sessions(make_store()) == ["s1", "s2"]
    second.remove()
    assert list_sessions(make_store()) == ["s1"]
    assert len([key for key in list_keys() if key.startswith("blobs/")]) == 2
    first.get_case(tmp_path / "case")
    first.remove()
    assert list_keys() == []


def test_a_removal_that_was_cut_is_finished(tmp_path: Path) -> None:
    folder = make_folder(tmp_path / "s1", files=FILES)
    make_session().put_case(folder)
    make_session().push(folder)
    client = make_client(region="us-east-1")
    requests = Requests(client)
    cut = make_session(client=client)
    requests.fail("DeleteObject", 1, status=403, code="AccessDenied")
    with pytest.raises(NoPermission):
        cut.remove()
    assert "sessions/s1/case.json" in list_keys()
    make_session().remove()
    assert list_keys() == []


def test_a_removal_without_the_right_to_list_uploads(tmp_path: Path) -> None:
    make_session().put_case(make_folder(tmp_path / "s1"))
    client = make_client(region="us-east-1")
    Requests(client).fail("ListMultipartUploads", 1, status=403, code="AccessDenied")
    make_session(client=client).remove()
    assert list_keys() == []


def test_the_first_error_of_many_threads_ends_them() -> None:
    began: list[int] = []
    go_on = threading.Event()

    def work(number: int) -> int:
        began.append(number)
        if number == 0:
            raise ValueError("first")
        go_on.wait(5)
        return number

    def release() -> None:
        time.sleep(0.2)
        go_on.set()

    threading.Thread(target=release).start()
    with pytest.raises(ValueError, match="first"):
        in_threads(work, list(range(100)), threads=4)
    assert len(began) < 100
