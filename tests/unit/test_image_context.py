"""What images are built from: wheels of what is installed, exact versions, the same bytes."""

from __future__ import annotations

import base64
import csv
import hashlib
import io
import os
import subprocess
import sys
import tarfile
import zipfile
from importlib.metadata import distribution, version
from pathlib import Path

import pytest

from pestfleet.images.base import name_image
from pestfleet.images.context import FILES, Context, make_context, make_wheel, pin_versions
from pestfleet_worker.errors import ConfigurationError
from source import CLIENT, ROOT, WORKER, run_python

DIGEST = (
    "from pestfleet.images.context import make_context\n"
    "import pestfleet, pestfleet_worker\n"
    "print(make_context('master').digest, pestfleet.__file__, pestfleet_worker.__file__)\n"
)


def open_wheel(content: bytes) -> zipfile.ZipFile:
    return zipfile.ZipFile(io.BytesIO(content))


@pytest.mark.parametrize(
    ("name", "package", "folder"),
    [("pestfleet-worker", "pestfleet_worker", WORKER), ("pestfleet", "pestfleet", CLIENT)],
)
def test_a_wheel_has_all_files_of_an_editable_installation(
    name: str, package: str, folder: Path
) -> None:
    with open_wheel(make_wheel(distribution(name), package)) as wheel:
        names = set(wheel.namelist())
        info = f"{package}-{version(name)}.dist-info"
        for path in [*folder.rglob("*.py"), folder / "py.typed"]:
            assert wheel.read(f"{package}/{path.relative_to(folder).as_posix()}") == (
                path.read_bytes()
            )
        assert {f"{info}/{file}" for file in ("METADATA", "WHEEL", "entry_points.txt")} < names
        assert wheel.read(f"{info}/licenses/LICENSE") == (ROOT / "LICENSE").read_bytes()
        assert not [file for file in names if "__pycache__" in file]
        record = list(csv.reader(io.StringIO(wheel.read(f"{info}/RECORD").decode())))
        assert {file for file, *_ in record} == names
        for file, digest, size in record[:-1]:
            content = wheel.read(file)
            made = base64.urlsafe_b64encode(hashlib.sha256(content).digest()).rstrip(b"=")
            assert (digest, size) == (f"sha256={made.decode()}", str(len(content)))


def test_installed_wheels_give_the_context_that_they_came_from(tmp_path: Path) -> None:
    context = make_context("master")
    context.write(tmp_path / "context")
    wheels = sorted(str(path) for path in (tmp_path / "context").glob("*.whl"))
    assert len(wheels) == 2
    installed = tmp_path / "installed"
    subprocess.run(
        [
            *(sys.executable, "-m", "pip", "install", "--quiet", "--disable-pip-version-check"),
            *("--no-index", "--no-deps", "--target", str(installed), *wheels),
        ],
        check=True,
    )

    done = subprocess.run(
        [sys.executable, "-c", DIGEST],
        env={**os.environ, "PYTHONPATH": str(installed)},
        capture_output=True,
        text=True,
        check=True,
    )

    digest, *places = done.stdout.split()
    assert all(place.startswith(str(installed)) for place in places)
    assert digest == context.digest
    assert (installed / "bin" / "pestfleet-worker").is_file()


def test_a_context_is_the_same_in_another_process() -> None:
    assert run_python(DIGEST).split()[0] == make_context("master").digest


def test_the_worker_has_only_its_own_wheel_and_requirements() -> None:
    worker, master = make_context("worker").files, make_context("master").files

    assert {name for name in worker if name.endswith(".whl")} == {
        f"pestfleet_worker-{version('pestfleet')}-py3-none-any.whl"
    }
    assert len([name for name in master if name.endswith(".whl")]) == 2
    assert "celery" in worker["requirements.txt"].decode()
    assert "numpy" not in worker["requirements.txt"].decode() + worker["constraints.txt"].decode()
    assert "pestfleet" not in master["requirements.txt"].decode()
    pins = master["constraints.txt"].decode().splitlines()
    for name in ("celery", "numpy", "vine"):  # vine: of kombu's
        assert f"{name}=={version(name)}" in pins
    assert not [line for line in pins if line.startswith("pytest")]  # of another extra
    assert "boto3>=1.40,<2" in master["requirements.txt"].decode()  # a run cache in a bucket


def test_arguments_are_given_only_where_they_say_something(tmp_path: Path) -> None:
    ca = tmp_path / "ca.pem"
    ca.write_text("-----BEGIN CERTIFICATE-----\n")

    plain = make_context("worker")
    full = make_context("worker", base="my:base", index="https://index/simple", ca=str(ca))
    broker = make_context("broker", base="my:base", ca=str(ca), folder=ROOT / "images" / "broker")

    assert dict(plain.build_args) == {"VERSION": version("pestfleet")}
    assert full.build_args["BASE"] == "my:base"
    assert full.build_args["INDEX"] == "https://index/simple"
    assert full.files["ca.pem"] == ca.read_bytes()
    assert "ca.pem" not in plain.files
    assert set(broker.files) == {"Dockerfile"}


def test_each_part_of_a_context_counts_for_its_digest() -> None:
    context = Context("worker", {"Dockerfile": b"FROM a", "x": b""}, {"BASE": "a"})
    others = [
        Context("worker", {"Dockerfile": b"FROM b", "x": b""}, {"BASE": "a"}),
        Context("worker", {"Dockerfile": b"FROM a", "y": b""}, {"BASE": "a"}),
        Context("worker", {"Dockerfile": b"FROM a", "x": b""}, {"BASE": "b"}),
        Context("worker", {"Dockerfile": b"FROM a", "x": b""}, {}),
    ]
    same = Context("worker", {"x": b"", "Dockerfile": b"FROM a"}, {"BASE": "a"})

    assert same.digest == context.digest
    assert len({other.digest for other in [context, *others]}) == 5


def test_a_packed_context_tells_no_time_and_no_user() -> None:
    context = Context("x", {"Dockerfile": b"FROM a\n", "start": b"#!/bin/sh\n"}, {})

    with tarfile.open(fileobj=io.BytesIO(context.pack())) as archive:
        entries = {entry.name: entry for entry in archive}

    assert {name: entry.mode for name, entry in entries.items()} == {
        "Dockerfile": 0o644,
        "start": 0o755,
    }
    assert {(entry.mtime, entry.uid, entry.uname) for entry in entries.values()} == {(0, 0, "")}


def test_a_context_is_written_anew_without_wheels_of_another_version(tmp_path: Path) -> None:
    (tmp_path / "pestfleet_worker-0.0.1-py3-none-any.whl").touch()

    make_context("worker").write(tmp_path)

    assert [path.name for path in tmp_path.glob("*.whl")] == [
        f"pestfleet_worker-{version('pestfleet')}-py3-none-any.whl"
    ]
    assert (tmp_path / "Dockerfile").read_bytes() == (FILES / "worker/Dockerfile").read_bytes()


def test_versions_for_newer_pythons_only_are_pinned_for_these(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    for name, needs, requires in (
        ("new", ">=3.13", 'old[fast]>1; python_version>"3"'),
        ("old", ">=3.8,!=3.9.0", "absent_here ; sys_platform == 'plan9'"),
        ("other", ">=3.11", "never; extra == 'all'"),
        ("never", "", ""),
    ):
        info = tmp_path / f"{name}-2.0.dist-info"
        info.mkdir()
        lines = [f"Name: {name}", "Version: 2.0"]
        lines += [f"Requires-Python: {needs}"] if needs else []
        lines += [f"Requires-Dist: {requires}"] if requires else []
        (info / "METADATA").write_text("Metadata-Version: 2.1\n" + "\n".join(lines) + "\n")
    monkeypatch.syspath_prepend(str(tmp_path))

    assert pin_versions(["new>=1", "other"]) == [
        'new==2.0 ; python_full_version >= "3.13"',
        "old==2.0",
        "other==2.0",
    ]


@pytest.mark.parametrize("content", [None, b"no certificate"])
def test_certificates_that_are_none_are_refused(tmp_path: Path, content: bytes | None) -> None:
    path = tmp_path / "ca.pem"
    if content is not None:
        path.write_bytes(content)

    with pytest.raises(ConfigurationError, match=r"ca\.pem") as caught:
        make_context("worker", ca=str(path))

    assert "PESTFLEET_IMAGE__CA" in caught.value.remedy


def test_names_of_images() -> None:
    assert name_image("worker") == f"pestfleet-worker:{version('pestfleet')}"
    assert name_image("worker", registry="host:5000/a/").startswith("host:5000/a/pestfleet-worker:")


def test_the_package_has_the_files_of_images_themselves() -> None:
    """A link in it would be empty in a source distribution; the ones at the top point to it."""
    assert not [path for path in CLIENT.rglob("*") if path.is_symlink()]
    for role in ("worker", "master"):
        assert (FILES / role / "Dockerfile").is_file()
        assert (ROOT / "images" / role).resolve() == FILES / role


def test_contexts_can_be_written_for_a_build_by_hand(tmp_path: Path) -> None:
    printed = run_python(
        "import runpy, sys; sys.argv = ['x', sys.argv[1]]\n"
        "runpy.run_module('pestfleet.images', run_name='__main__')",
        str(tmp_path / "contexts"),
    )

    for role in ("worker", "master"):
        command = next(line for line in printed.splitlines() if line.endswith(f"{role}"))
        assert command.startswith(f"docker build -t {name_image(role)} --build-arg VERSION=")
        assert (tmp_path / "contexts" / role / "Dockerfile").is_file()
        assert (tmp_path / "contexts" / role / "constraints.txt").is_file()
