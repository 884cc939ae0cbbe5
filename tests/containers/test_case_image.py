"""Images of cases: their layers, what is refused, the run in them, and a registry."""

from __future__ import annotations

import json
import shlex
import shutil
import socket
import subprocess
from collections.abc import Callable, Iterator
from pathlib import Path
from uuid import uuid4

import docker
import pytest
from click.testing import CliRunner, Result
from docker.errors import ImageNotFound

from cases import make_case
from image_registry import Registry
from pestfleet.case import Case
from pestfleet.cli.main import cli
from pestfleet.images.base import list_stages, remove_nameless_images
from pestfleet.images.case import CASE_ROLE, ImageProblems, ensure_case_image
from pestfleet.images.catalog import list_images
from pestfleet.images.trial import run_in_image
from pestfleet.settings import ImageSettings
from pestfleet_worker.messages import unpack_vector

pytestmark = pytest.mark.docker

ROOT = Path(__file__).resolve().parents[2]
EXAMPLE = ROOT / "examples" / "oude-korendijk"
SOMEBODY = "4711:4711"


@pytest.fixture
def tag(docker_engine: docker.DockerClient) -> Iterator[Callable[[str], str]]:
    """Names for images, which are removed after the test."""
    names: list[str] = []

    def make(registry: str = "") -> str:
        names.append(f"{registry}pestfleet-test-case-{uuid4().hex[:8]}:latest")
        return names[-1]

    yield make
    for name in names:
        try:
            docker_engine.images.remove(name)
        except ImageNotFound:
            continue
    remove_nameless_images(docker_engine, list_stages(docker_engine, CASE_ROLE))


@pytest.fixture
def pestfleet(
    monkeypatch: pytest.MonkeyPatch, image_settings: ImageSettings, worker_image: str
) -> Callable[..., Result]:
    """The command line, with the settings that builds need here."""
    for name, value in image_settings.model_dump().items():
        if value:
            monkeypatch.setenv(f"PESTFLEET_IMAGE__{name.upper()}", str(value))

    def call(*arguments: str | Path) -> Result:
        return CliRunner().invoke(cli, [str(argument) for argument in arguments])

    return call


def list_layers(engine: docker.DockerClient, image: str) -> list[str]:
    layers: list[str] = engine.images.get(image).attrs["RootFS"]["Layers"]
    return layers


def run_shell(engine: docker.DockerClient, image: str, script: str) -> str:
    container = engine.containers.create(
        image,
        entrypoint=["sh", "-c", script],
        user=SOMEBODY,
        read_only=True,
        network_mode="none",
    )
    try:
        container.start()
        assert container.wait()["StatusCode"] == 0
        return container.logs().decode()
    finally:
        container.remove(force=True, v=True)


def measure_blobs(folder: Path) -> dict[str, int]:
    return {path.parent.name: path.stat().st_size for path in folder.rglob("data")}


def make_large(path: Path, seed: int) -> None:
    """3 MB that no compression makes smaller."""
    import random

    path.write_bytes(random.Random(seed).randbytes(3_000_000))


def test_the_example_gives_the_same_bits_in_its_image(
    tmp_path: Path,
    docker_engine: docker.DockerClient,
    pestfleet: Callable[..., Result],
    tag: Callable[[], str],
) -> None:
    name = tag()
    case = Path(shutil.copytree(EXAMPLE, tmp_path / "case"))
    (case / "notes.txt").write_text(name)  # one like this was not built before
    result = pestfleet("build", case, "--tag", name, "--json")
    assert result.exit_code == 0, result.output
    report = json.loads(result.stdout)
    assert report["trial"]["same"] is True
    assert (report["image"], report["built"], report["problems"]) == (name, True, [])
    digest = Case.read(case).digest
    image = docker_engine.images.get(name)
    assert image.labels["pestfleet.case"] == "oude-korendijk"
    assert image.labels["pestfleet.case.digest"] == report["digest"] == digest
    assert f"PESTFLEET_DIGEST={digest}" in image.attrs["Config"]["Env"]
    assert image.attrs["Config"]["User"] == "10001:10001"
    assert 0 < report["added"] < 100_000
    again = json.loads(pestfleet("build", case, "--tag", name, "--json", "--no-trial").stdout)
    assert (again["built"], again["id"]) == (False, report["id"])
    assert "trial" not in again
    text = pestfleet("build", case, "--tag", name).stdout
    assert "(nothing changed)" in text
    assert "the same bits as on this machine" in text


def test_after_an_edit_of_the_control_file_a_registry_gets_its_layer_only(
    tmp_path: Path,
    docker_engine: docker.DockerClient,
    pestfleet: Callable[..., Result],
    tag: Callable[..., str],
    registry: Registry,
) -> None:
    control = make_case(tmp_path / "case")
    make_large(tmp_path / "case" / "field.bin", 1)
    (tmp_path / "case" / "wells.dat").write_text("1 2 3\n")
    address, blobs = f"{registry.address}/", registry.folder
    name = tag(address)
    first = pestfleet("build", control, "--tag", name, "--push", "--no-trial", "--json")
    assert first.exit_code == 0, first.output
    pushed = json.loads(first.stdout)["pushed"]
    assert pushed.startswith(f"{name.removesuffix(':latest')}@sha256:")
    assert pushed in docker_engine.images.get(name).attrs["RepoDigests"]
    layers, before = list_layers(docker_engine, name), measure_blobs(blobs)
    assert sum(before.values()) > 3_000_000

    control.write_text(control.read_text().replace(" 2.0 -1000.0", " 3.0 -1000.0"))
    second = pestfleet("build", control, "--tag", name, "--push", "--no-trial", "--json")
    assert second.exit_code == 0, second.output
    assert json.loads(second.stdout)["pushed"] != pushed
    changed = list_layers(docker_engine, name)
    assert changed[:-1] == layers[:-1]
    assert changed[-1] != layers[-1]
    sent = sum(size for blob, size in measure_blobs(blobs).items() if blob not in before)
    assert 0 < sent < 50_000


def test_a_push_that_cannot_be_says_why(
    tmp_path: Path, pestfleet: Callable[..., Result], tag: Callable[..., str]
) -> None:
    control = make_case(tmp_path / "case")
    result = pestfleet("build", control, "--tag", tag(), "--push", "--no-trial")
    assert result.exit_code == 4
    assert "names no registry" in result.stderr
    with socket.socket() as unused:
        unused.bind(("127.0.0.1", 0))
        name = tag(f"127.0.0.1:{unused.getsockname()[1]}/")
        result = pestfleet("build", control, "--tag", name, "--push", "--no-trial")
    assert result.exit_code == 7
    assert f"image {name} cannot be pushed" in result.stderr


def test_layers_are_the_same_wherever_and_whenever_they_are_built(
    tmp_path: Path,
    docker_engine: docker.DockerClient,
    image_settings: ImageSettings,
    tag: Callable[[], str],
) -> None:
    layers = []
    for number in (1, 2):
        folder = tmp_path / f"case{number}"
        control = make_case(folder)
        # Another large file: the engine's cache has no layer after that.
        make_large(folder / "field.bin", number)
        (folder / "sub").mkdir()
        (folder / "sub" / "wells.dat").write_text("1 2 3\n")
        name = tag()
        ensure_case_image(Case.read(control), image_settings, tag=name, engine=docker_engine)
        layers.append(list_layers(docker_engine, name))
    one, other = layers
    assert one[-3] != other[-3]
    assert one[-2:] == other[-2:]


def test_awkward_names_empty_folders_and_modes(
    tmp_path: Path,
    docker_engine: docker.DockerClient,
    image_settings: ImageSettings,
    tag: Callable[[], str],
) -> None:
    folder = tmp_path / "Fallstudie Ä"
    control = make_case(folder, name="small")
    names = ["-rf", "two  words.dat", "größe.txt", "$HOME", "a'b\"c", "x" * 200, "*", "水.csv"]
    for name in names:
        (folder / name).write_text(name)
        (folder / name).chmod(0o600)
    (folder / "out" / "deep").mkdir(parents=True)
    # Left out as an output of PEST++, but the engine is told to read it.
    (folder / "small.0.par.csv").write_text("real_name,p1,p2,p3\na,1,2,3\n")
    (folder / "small.1.par.csv").write_text("not wanted\n")
    control.write_text(control.read_text() + "++ies_parameter_ensemble(small.0.par.csv)\n")
    name = tag()
    ensure_case_image(Case.read(control), image_settings, tag=name, engine=docker_engine)
    listed = run_shell(docker_engine, name, "cd /case && find . -type f -exec cat {} + >/dev/null"
                       " && find . -printf '%m %U %T@ %P\\n'")  # fmt: skip
    found = {line.split(" ", 3)[3]: line.split(" ", 3)[:3] for line in listed.splitlines()}
    own = ["input.tpl", "output.ins", "small.pst", "small.0.par.csv", *names]
    folders = ["", "out", "out/deep"]
    assert found.keys() == {*own, *folders, "model.sh"}
    assert {tuple(found[n]) for n in own} == {("644", "0", "0.0000000000")}
    assert {tuple(found[n]) for n in [*folders, "model.sh"]} == {("755", "0", "0.0000000000")}


needs_compiler = pytest.mark.skipif(shutil.which("gcc") is None, reason="no C compiler")


def compile_model(folder: Path, *, search: str = "") -> None:
    """A model that is linked with a stand-in for Fortran's library."""
    (folder.parent / "lib.c").write_text("double gf_square(double x) { return x * x; }\n")
    (folder.parent / "main.c").write_text(
        "#include <stdio.h>\ndouble gf_square(double);\nint main(void) {\n"
        'FILE *in = fopen("input.dat", "r"), *out = fopen("output.dat", "w");\n'
        'double x; int n = 0;\nwhile (fscanf(in, "%lf", &x) == 1)\n'
        '  fprintf(out, "%.17g\\n", gf_square(x) + ++n);\nreturn fclose(out);\n}\n'
    )
    build = (
        "gcc -shared -fPIC -Wl,-soname,libgfortran.so.5 -o {f}/libgfortran.so.5 {d}/lib.c && "
        "gcc -o {f}/model {d}/main.c {f}/libgfortran.so.5 {search}"
    )
    command = build.format(f=shlex.quote(str(folder)), d=shlex.quote(str(folder.parent)),
                           search=f"-Wl,-rpath,{search}" if search else "")  # fmt: skip
    subprocess.run(["sh", "-c", command], check=True)


@needs_compiler
def test_a_missing_library_is_told_with_its_package(
    tmp_path: Path,
    docker_engine: docker.DockerClient,
    pestfleet: Callable[..., Result],
    tag: Callable[[], str],
) -> None:
    control = make_case(tmp_path / "case", model="#!/bin/sh\n./model\n")
    compile_model(control.parent)
    library = control.parent / "libgfortran.so.5"
    name = tag()
    wrong = pestfleet("build", control, "--tag", name)
    assert wrong.exit_code == 3
    assert "patchelf --set-rpath '$ORIGIN' model" in wrong.stderr
    library.rename(tmp_path / "libgfortran.so.5")
    result = pestfleet("build", control, "--tag", name)
    assert result.exit_code == 3
    assert "model.sh:2: error: 'model' needs the library libgfortran.so.5" in result.stderr
    assert '[image] apt = ["libgfortran5"]' in result.stderr
    assert "1 error, 0 warnings; no image was built" in result.stderr
    report = json.loads(pestfleet("build", control, "--tag", name, "--json").stdout)
    assert report["image"] is None
    assert [problem["line"] for problem in report["problems"]] == [2]
    with pytest.raises(ImageNotFound):
        docker_engine.images.get(name)


@needs_compiler
def test_a_library_of_the_case_is_found(
    tmp_path: Path,
    docker_engine: docker.DockerClient,
    image_settings: ImageSettings,
    tag: Callable[[], str],
) -> None:
    case = Case.read(make_case(tmp_path / "case", model="#!/bin/sh\n./model\n"))
    compile_model(case.folder, search="'$ORIGIN'")
    image = ensure_case_image(case, image_settings, tag=tag(), engine=docker_engine)
    result = run_in_image(docker_engine, image.reference, case)
    assert result.failure is None
    assert list(unpack_vector(result.observations)) == [5.0, 6.0, 7.0]


def test_programs_for_windows_and_those_that_are_missing_are_refused(
    tmp_path: Path, docker_engine: docker.DockerClient, image_settings: ImageSettings
) -> None:
    control = make_case(tmp_path / "case", model="#!/usr/bin/env Rscript\n# ./run.exe\n")
    (control.parent / "run.exe").write_bytes(b"MZ" + bytes(100))
    text = control.read_text()
    control.write_text(text.replace("./model.sh", "./model.sh\n./run.exe\nmf6 -p 4"))
    with pytest.raises(ImageProblems) as caught:
        ensure_case_image(Case.read(control), image_settings, engine=docker_engine)
    told = "\n".join(map(str, caught.value.problems))
    assert "Windows" in told
    assert "the image has no 'Rscript'" in told and "r-base-core" in told
    assert "the model command 'mf6' is neither in the case folder nor in the image" in told


def test_packages_of_apt_and_pip(
    tmp_path: Path,
    docker_engine: docker.DockerClient,
    image_settings: ImageSettings,
    tag: Callable[[], str],
) -> None:
    model = "#!/bin/sh\nbc -v >/dev/null && python3 -c 'import six' && seq 3 >output.dat\n"
    case = Case.read(make_case(tmp_path / "case", model=model))
    image = ensure_case_image(case, image_settings, tag=tag(), engine=docker_engine)
    failure = run_in_image(docker_engine, image.reference, case).failure
    assert failure is not None and "bc" in failure.log
    with_both = image_settings.model_copy(update={"apt": ["bc"], "pip": ["six>=1.16, <2"]})
    image = ensure_case_image(case, with_both, tag=tag(), engine=docker_engine)
    result = run_in_image(docker_engine, image.reference, case)
    assert result.failure is None, result.failure
    assert "pip" not in run_shell(docker_engine, image.reference, "ls /usr/bin /usr/local/bin")


def test_a_dockerfile_of_the_users_own(
    tmp_path: Path,
    docker_engine: docker.DockerClient,
    image_settings: ImageSettings,
    tag: Callable[[], str],
) -> None:
    case = Case.read(make_case(tmp_path / "case", model="#!/bin/sh\ncat /data >output.dat\n"))
    (case.folder / "Dockerfile").write_text(
        "ARG WORKER\nFROM ${WORKER}\nUSER root\nRUN seq 3 >/data\nADD *.tar /\n"
    )
    own = image_settings.model_copy(update={"dockerfile": "Dockerfile"})
    image = ensure_case_image(case, own, tag=tag(), engine=docker_engine)
    result = run_in_image(docker_engine, image.reference, case)
    assert list(unpack_vector(result.observations)) == [1.0, 2.0, 3.0]
    assert docker_engine.images.get(image.id).labels["pestfleet.case.digest"] == case.digest


def test_a_run_that_differs_or_fails_in_the_image_is_told(
    tmp_path: Path, pestfleet: Callable[..., Result], tag: Callable[[], str]
) -> None:
    model = "#!/bin/sh\n[ -e /case ] && echo 4 >output.dat || echo 3 >output.dat\n"
    control = make_case(tmp_path / "case", parameters=1, model=model)
    result = pestfleet("build", control, "--tag", tag())
    assert result.exit_code == 0, result.output
    assert "1 observation differs" in result.stdout and "at most by 0.25" in result.stdout
    (control.parent / "model.sh").write_text("#!/bin/sh\necho 1 >/home/result\n")
    result = pestfleet("build", control, "--tag", tag())
    assert result.exit_code == 5
    assert "The model writes outside of its own folder" in result.stderr


def test_images_are_listed_and_removed_unless_they_are_used(
    tmp_path: Path,
    docker_engine: docker.DockerClient,
    pestfleet: Callable[..., Result],
    tag: Callable[[], str],
) -> None:
    used, unused = tag(), tag()
    control = make_case(tmp_path / "case", name=f"case{uuid4().hex[:6]}")
    for name in (used, unused):
        (control.parent / "input.dat.txt").write_text(name)
        assert pestfleet("build", control, "--tag", name, "--no-trial").exit_code == 0
    container = docker_engine.containers.create(used, labels={"pestfleet.session": "s1"})
    try:
        listed = {row["names"][0]: row for row in json.loads(pestfleet("images", "--json").stdout)}
        assert listed[used]["sessions"] == ["s1"]
        assert listed[unused]["sessions"] == []
        assert listed[used]["case"] == control.stem
        assert 0 < listed[used]["added"] < 100_000
        table = pestfleet("images", control.stem).stdout
        assert used in table and unused in table and EXAMPLE.name not in table
        kept = pestfleet("images", "--remove", control.stem, "--older-than", "1h", "--yes")
        assert "there is no such image" in kept.stdout
        removed = pestfleet("images", "--remove", control.stem, "--yes", "--json")
        report = json.loads(removed.stdout)
        assert report["removed"] == [unused]
        assert report["kept"] == [{"image": used, "reason": "s1 uses it"}]
    finally:
        container.remove(v=True)
    assert [entry.names[0] for entry in list_images(docker_engine) if entry.case == control.stem] \
        == [used]  # fmt: skip
