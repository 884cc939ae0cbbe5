"""cloudPEST's parameter files become a pestfleet.toml."""

from __future__ import annotations

import random
from pathlib import Path

import click
import pytest
from click.testing import CliRunner

from pestfleet.cli.commands import Commands
from pestfleet.config import read_settings
from pestfleet.parfile import ParfileError, choose_engine, make_toml, read_parfile
from pestfleet_worker.errors import PestfleetError

# In the layout of the files that came with the report, tabs and comments included.
RUNS = """wells.pst  # pest casename
./ppest\t\t# executable
203.0.113.7\t\t# host IP address
4040\t\t\t\t# host port
/home/modeller/runner/NODE_1\t# node names (repeat once for each node)
/home/modeller/runner/NODE_2
"""
FTP = """1     \t\t # FTP code.  1 if using FTP, 0 if local without FTP
ftp.example.org\t\t  # FTP location containing parfile
/pub/wells/\t\t# local path in which files reside"""


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.chdir(tmp_path)
    return tmp_path


def write(folder: Path, text: str, name: str = "node_start_runs.par") -> Path:
    path = folder / name
    path.write_text(text, encoding="utf-8")
    return path


def invoke(*arguments: str) -> tuple[int, str, str]:
    modules = {"import-parfile": "pestfleet.cli.import_parfile"}
    group = click.command(cls=Commands, modules=modules)(lambda: None)
    result = CliRunner().invoke(group, ["import-parfile", *arguments])
    return result.exit_code, result.stdout, result.stderr


def test_the_runs_file_is_read_as_node_starter_did(folder: Path) -> None:
    parfile = read_parfile(write(folder, RUNS))
    assert parfile.runs.control_file == "wells.pst"
    assert parfile.runs.program == "./ppest"
    assert (parfile.runs.host, parfile.runs.port) == ("203.0.113.7", 4040)
    assert parfile.runs.nodes == ("/home/modeller/runner/NODE_1", "/home/modeller/runner/NODE_2")
    assert parfile.ftp is None


def test_the_ftp_file_leads_to_the_runs_file_beside_it(folder: Path) -> None:
    ftp = write(folder, FTP, "node_start_ftp.par")
    runs = write(folder, RUNS)
    parfile = read_parfile(ftp)
    assert parfile.path == runs
    assert parfile.ftp is not None and parfile.ftp.used
    assert parfile.ftp.url == "ftp://ftp.example.org/pub/wells/node_start_runs.par"
    local = read_parfile(write(folder, "0 # local\nnone\nnone\n", "local.par"))
    assert local.ftp is not None and not local.ftp.used
    assert local.runs == parfile.runs
    bare = read_parfile(write(folder, "0\n", "bare.par"))
    assert bare.runs == parfile.runs


def test_both_in_one_file_with_blank_lines_and_comments(folder: Path) -> None:
    text = "\ufeff# from the old days\r\n\r\n" + (FTP + "\n" + RUNS).replace(
        "\n", "\r\n\r\n# -\r\n"
    )
    parfile = read_parfile(write(folder, text, "one.par"))
    assert parfile.runs == read_parfile(write(folder, RUNS)).runs
    assert parfile.ftp is not None and parfile.ftp.host == "ftp.example.org"


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("", "node_start_runs.par has no value"),
        ("# only\n\n", "node_start_runs.par has no value"),
        ("a.pst\n", "node_start_runs.par:1: the file ends before the program"),
        ("a.pst\n\nppest\n", "node_start_runs.par:3: the file ends before the host of the master"),
        ("a.pst\nx\nh\n", "node_start_runs.par:3: the file ends before the port of the master"),
        ("a.pst\nx\nh\n4040\n", "node_start_runs.par:4: the file names no node directory"),
        ("ppest\na.pst\nh\n1\nn\n", "node_start_runs.par:1: 'ppest' is no control file"),
        ("a.pst\nx\nh\n40x\nn\n", "node_start_runs.par:4: '40x' is no port"),
        ("a.pst\nx\nh\n70000\nn\n", "node_start_runs.par:4: '70000' is no port"),
        ("a.pst\nx\nh\n0\nn\n", "node_start_runs.par:4: '0' is no port"),
        ("a.pst\nx\nh\n1\nn\nm\nn # again\n", "par:7: node directory n is on line 5"),
        ("1\n", "node_start_runs.par:1: the file ends before the FTP host"),
        ("1\nhost\n", "node_start_runs.par:2: the file ends before the FTP folder"),
        ("1\nhost\n/dir\n", "node_start_runs.par only says where the machines found the rest"),
        ("0\nhost\n/dir\n", "node_start_runs.par, and that is not in"),
        ("1\nhost\n/dir\na.pst\n", "node_start_runs.par:4: the file ends before the program"),
    ],
)  # fmt: skip
def test_faults_are_told_with_file_and_line(folder: Path, text: str, message: str) -> None:
    with pytest.raises(ParfileError) as told:
        read_parfile(write(folder, text))
    assert message in told.value.message
    assert told.value.remedy


def test_a_file_that_is_not_there_is_told(folder: Path) -> None:
    with pytest.raises(ParfileError, match=r"nothing\.par cannot be read: No such file"):
        read_parfile(folder / "nothing.par")


def test_random_bytes_are_never_a_defect(folder: Path) -> None:
    generator = random.Random(4)
    whole = (FTP + "\n" + RUNS).encode()
    for _ in range(300):
        cut = generator.randrange(len(whole))
        data = whole[:cut] + generator.randbytes(generator.randrange(6)) + whole[cut + 3 :]
        path = folder / "random.par"
        path.write_bytes(data[generator.randrange(4) :])
        try:
            text = make_toml(read_parfile(path))
        except PestfleetError:
            continue
        (folder / "pestfleet.toml").write_text(text, encoding="utf-8")
        assert read_settings(folder).slots >= 1


@pytest.mark.parametrize(
    ("program", "engine", "certain"),
    [
        ("./ppest", "beopest", True),
        ("beopest64.exe", "beopest", True),
        (r"c:\runner\NODE_1\BEOPEST.EXE", "beopest", True),
        ("./agent_hp", "pest_hp", True),
        ("pestpp-ies", "pestpp-ies", True),
        ("ipestpp-glm.exe", "pestpp-glm", True),
        ("pest++", "pestpp-glm", True),
        ("./mypest", "beopest", False),
    ],
)
def test_the_program_tells_the_engine(program: str, engine: str, certain: bool) -> None:
    assert choose_engine(program) == (engine, certain)


def test_the_command_writes_settings_that_do_the_same(folder: Path) -> None:
    ftp = write(folder, FTP, "node_start_ftp.par")
    write(folder, RUNS)
    write(folder, "pcf\n", "wells.pst")
    code, out, err = invoke(str(ftp))
    assert (code, err) == (0, "")
    assert f"wrote {folder / 'pestfleet.toml'}" in out
    assert f"next: pestfleet check {folder / 'wells.pst'}" in out
    settings = read_settings(folder / "wells.pst")
    assert (settings.engine, settings.workers, settings.slots) == ("beopest", 1, 2)
    text = (folder / "pestfleet.toml").read_text()
    for part in ("pestfleet run wells.pst", "NODE_2", "203.0.113.7:4040", "ftp.example.org"):
        assert part in text


def test_a_settings_file_is_not_overwritten(folder: Path) -> None:
    parfile = str(write(folder, RUNS))
    settings = write(folder, "workers = 7\n", "pestfleet.toml")
    code, _, err = invoke(parfile)
    assert code == 4
    assert f"error: {settings} is there already" in err
    assert "--force" in err
    assert settings.read_text() == "workers = 7\n"
    code, out, _ = invoke(parfile, "--dry-run")
    assert code == 0
    assert out.startswith("# From cloudPEST's parameter file")
    assert settings.read_text() == "workers = 7\n"
    assert invoke(parfile, "--force")[0] == 0
    assert read_settings(folder).slots == 2


def test_what_is_uncertain_is_said(folder: Path) -> None:
    parfile = write(folder, RUNS.replace("ppest", "mypest"))
    case = folder / "case"
    case.mkdir()
    code, _, err = invoke(str(parfile), "--case", str(case))
    assert code == 0
    assert "./mypest is taken for beopest" in err
    assert f"{case / 'wells.pst'} is not there" in err
    assert (case / "pestfleet.toml").is_file()
    code, _, err = invoke(str(parfile), "--case", str(folder / "nowhere"))
    assert code == 4
    assert "cannot be written: No such file" in err
