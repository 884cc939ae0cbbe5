"""cloudPEST's parameter files, and the `pestfleet.toml` that asks for the same.

cloudPEST (USGS Open-File Report 2011-1062) put a program, `node_starter.py`, on every machine.
It read two files. In both the first word of a line is the value, and the rest is a comment; this
module takes blank lines and lines of nothing but a `#` comment, too. The order is fixed.

`node_start_ftp.par`, on the machine image:
    1. FTP flag: 1, get the other file by FTP; 0, it is on this machine
    2. FTP host
    3. folder there

`node_start_runs.par`:
    1. control file
    2. program of the agent, in each node directory
    3. host of the master
    4. port of the master
    5. a node directory, and one more line for each further node of the machine

One file that has the fields of the first and then those of the second is read as well.
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path, PureWindowsPath

from pestfleet_worker.errors import ConfigurationError

RUNS_FILE = "node_start_runs.par"
_REMEDY = "A value is the first word of its line; the rest of the line is a comment."
_RUNS_FIELDS = ("control file", "program", "host of the master", "port of the master")
_FTP_FIELDS = ("FTP flag", "FTP host", "FTP folder")


class ParfileError(ConfigurationError):
    """A parameter file of cloudPEST that cannot be read or used."""


@dataclass(frozen=True, slots=True)
class FtpFields:
    """Where a machine found its parameter file. `used`: the FTP flag."""

    used: bool
    host: str = ""
    folder: str = ""

    @property
    def url(self) -> str:
        return f"ftp://{self.host}/{self.folder.strip('/')}/{RUNS_FILE}"


@dataclass(frozen=True, slots=True)
class RunFields:
    """What a machine of cloudPEST did: one agent in each of `nodes`."""

    control_file: str
    program: str
    host: str
    port: int
    nodes: tuple[str, ...]


@dataclass(frozen=True, slots=True)
class Parfile:
    """A parameter file, or a pair of them. `path`: the one with the run's fields."""

    path: Path
    runs: RunFields
    ftp: FtpFields | None = None

    @property
    def control_name(self) -> str:
        return PureWindowsPath(self.runs.control_file).name  # knows both slashes


@dataclass(frozen=True, slots=True)
class _Field:
    line: int
    value: str


def read_parfile(path: Path) -> Parfile:
    """Read a parameter file; one with FTP fields only is completed by `node_start_runs.par`
    beside it. Raises `ParfileError` with file and line.
    """
    fields = list(_read_fields(path))
    if not fields:
        raise ParfileError(f"{path} has no value", remedy=f"Fields: {', '.join(_RUNS_FIELDS)}.")
    ftp = None
    if fields[0].value in ("0", "1"):
        ftp, fields = _take_ftp(path, fields)
        if not fields:
            beside = path.with_name(RUNS_FILE)
            if beside == path or not beside.is_file():
                raise _make_incomplete(path, ftp)
            path, fields = beside, list(_read_fields(beside))
    return Parfile(path, _take_runs(path, fields), ftp)


def _read_fields(path: Path) -> Iterator[_Field]:
    try:
        text = path.read_text(encoding="utf-8", errors="replace")
    except OSError as error:
        raise ParfileError(f"{path} cannot be read: {error.strerror}") from error
    for number, line in enumerate(text.lstrip("\ufeff").splitlines(), start=1):
        words = line.split()
        if words and not words[0].startswith("#"):
            yield _Field(number, words[0])


def _take_ftp(path: Path, fields: list[_Field]) -> tuple[FtpFields, list[_Field]]:
    used = fields[0].value == "1"
    values = [field.value for field in fields[1:3]]
    if used and len(values) < 2:
        raise ParfileError(
            f"{path}:{fields[-1].line}: the file ends before the {_FTP_FIELDS[len(fields)]}",
            remedy=f"With FTP flag 1 the next lines are the FTP host and folder. {_REMEDY}",
        )
    return FtpFields(used, *values), fields[3:]


def _make_incomplete(path: Path, ftp: FtpFields) -> ParfileError:
    if ftp.used:
        return ParfileError(
            f"{path} only says where the machines found the rest",
            remedy=f"Get {ftp.url}, put it beside this file, and try again.",
        )
    return ParfileError(
        f"{path} says that the rest is in {RUNS_FILE}, and that is not in {path.parent}",
        remedy="Put it there; on cloudPEST's machines it was in c:\\runner\\Node_starter.",
    )


def _take_runs(path: Path, fields: list[_Field]) -> RunFields:
    last = fields[-1].line if fields else 0
    place = f"{path}:{last}" if last else str(path)
    if len(fields) < len(_RUNS_FIELDS):
        raise ParfileError(
            f"{place}: the file ends before the {_RUNS_FIELDS[len(fields)]}",
            remedy=f"Order: {', '.join(_RUNS_FIELDS)}, node directories. {_REMEDY}",
        )
    control, program, host, port, *nodes = fields
    if not control.value.lower().endswith(".pst"):
        raise ParfileError(
            f"{path}:{control.line}: {control.value!r} is no control file",
            remedy="Its name ends in .pst, and it is the first value"
            " (or the fourth, after FTP flag, host and folder).",
        )
    if not re.fullmatch(r"\d{1,5}", port.value) or not 0 < int(port.value) < 65536:
        raise ParfileError(
            f"{path}:{port.line}: {port.value!r} is no port",
            remedy=f"Expected: a number from 1 to 65535. {_REMEDY}",
        )
    if not nodes:
        raise ParfileError(
            f"{place}: the file names no node directory",
            remedy="After the port, each line names one: a slot of the worker.",
        )
    seen: dict[str, int] = {}
    for node in nodes:
        if node.value in seen:
            raise ParfileError(
                f"{path}:{node.line}: node directory {node.value} is on line "
                f"{seen[node.value]} already",
                remedy="Two agents cannot work in one directory: remove one of the lines.",
            )
        seen[node.value] = node.line
    values = [node.value for node in nodes]
    return RunFields(control.value, program.value, host.value, int(port.value), tuple(values))


def choose_engine(program: str) -> tuple[str, bool]:
    """The engine whose agent a program is, and whether its name tells that for certain.

    cloudPEST started programs under any name (`ppest`); their command line was that of BEOPEST.
    """
    name = PureWindowsPath(program).name.lower().removesuffix(".exe")
    name = re.sub(r"^i(?=pestpp-)", "", name)  # PEST++ built with Intel's compiler
    if re.fullmatch(r"pestpp-(glm|ies|swp|sen|opt|da|mou|sqp)", name):
        return name, True
    if name in ("pest++", "pestpp"):
        return "pestpp-glm", True
    if name in ("agent_hp", "pest_hp", "pest_hp_mkl"):
        return "pest_hp", True
    return "beopest", name.startswith(("beopest", "ppest"))


def make_toml(parfile: Parfile) -> str:
    """The text of a `pestfleet.toml` that asks for what the parameter file asked for."""
    runs = parfile.runs
    engine, _ = choose_engine(runs.program)
    lines = [
        f"# From cloudPEST's parameter file {_comment(parfile.path.name)}.",
        f"# Run it with: pestfleet run {_comment(parfile.control_name)}",
        "",
        f"# Its program was {_comment(runs.program)}.",
        f'engine = "{engine}"',
        "",
        "# Machines. cloudPEST took as many as were started; each had the slots below.",
        "workers = 1",
        "",
        f"# Runs at a time on each machine: {len(runs.nodes)} node "
        f"{'directory' if len(runs.nodes) == 1 else 'directories'}. A slot makes its own.",
        *(f"#   {_comment(node)}" for node in runs.nodes),
        f"slots = {len(runs.nodes)}",
        "",
        f"# Not needed any more: the master's address {_comment(runs.host)}:{runs.port};",
        "# workers find it by themselves.",
    ]
    if parfile.ftp is not None and parfile.ftp.used:
        lines += [
            f"# Nor the file {_comment(parfile.ftp.url)}:",
            "# workers get what they need from the master.",
        ]
    return "\n".join(lines) + "\n"


def _comment(text: str) -> str:
    """Text that is safe in a TOML comment: no control characters."""
    return "".join(sign if sign.isprintable() else "?" for sign in text)
