"""What the documents say can be typed, followed and found."""

from __future__ import annotations

import re
import shlex
from pathlib import Path

import click
import pytest

from pestfleet_worker import errors, worker
from source import ROOT, list_files, name_path

FENCE = re.compile(r"^```(?:console|bash|sh)\n(.*?)^```$", re.MULTILINE | re.DOTALL)
INLINE = re.compile(r"`((?:pestfleet|make) [a-z][^`]*)`")
LINK = re.compile(r"\[[^\]]*\]\(([^)\s]+)\)")
HEADING = re.compile(r"^#+ +(.+)$", re.MULTILINE)

DOCUMENTS = [path for path in list_files() if path.suffix == ".md"]
# The demo ends by telling the user what to type.
DEMO = ROOT / "scripts" / "demo"


def read(path: Path) -> str:
    return path.read_text(encoding="utf-8")


def list_commands(text: str, program: str) -> list[list[str]]:
    """The words after `program` of each command line in `text` that starts with it."""
    commands = []
    for line in text.replace("\\\n", " ").splitlines():
        # Comments go first: an apostrophe in one would look like an open quote.
        words = shlex.split(re.sub(r"(^|\s)#.*", "", line).removeprefix("$ "))
        words = [word.removeprefix(".venv/bin/") for word in words]
        while words and re.fullmatch(r"[A-Z_]+=.*", words[0]):
            del words[0]
        if words[:1] == [program]:
            commands.append(words[1:])
    return commands


def collect_commands(program: str) -> list[tuple[str, list[str]]]:
    """(document, words after the program) of every command line in documents and the demo."""
    texts = {}
    for path in DOCUMENTS:
        # `pestfleet check` in a sentence names the command; it is no complete command line.
        inline = [
            re.sub(r"^(pestfleet \w+)$", r"\1 --help", line) for line in INLINE.findall(read(path))
        ]
        texts[name_path(path)] = "\n".join([*FENCE.findall(read(path)), *inline])
    texts[name_path(DEMO)] = "\n".join(
        line for line in read(DEMO).splitlines() if "pestfleet " in line or "--" in line
    )
    return [(name, words) for name, text in texts.items() for words in list_commands(text, program)]


def check_command(cli: click.Command, words: list[str]) -> None:
    """Raises `click.UsageError` unless click takes these words; runs nothing.

    Values are converted only where click knows them all (choices, numbers): a FOLDER of a
    document does not exist.
    """
    # With the settings that click gives it: a command keeps the first help option that it makes.
    context = click.Context(cli, info_name="pestfleet", **cli.context_settings)
    command = cli
    while True:
        group = isinstance(command, click.Group)
        # A group's own options stand before its command.
        context.allow_interspersed_args = not group
        values, rest, _ = command.make_parser(context).parse_args(list(words))
        asked = command.get_help_option(context)
        if asked is not None and values.get(asked.name or "") is True:
            return
        for parameter in command.get_params(context):
            value = values.get(parameter.name or "")
            given = isinstance(value, str | tuple | list) and len(value) > 0
            closed = isinstance(parameter.type, click.Choice | click.types.IntParamType)
            if closed and isinstance(value, str):
                parameter.type.convert(value, parameter, context)
            elif isinstance(parameter, click.Argument) and parameter.required and not given:
                raise click.MissingParameter(ctx=context, param=parameter)
        if not group or not rest:
            break
        child = command.get_command(context, rest[0])  # type: ignore[attr-defined]
        if child is None:
            raise click.UsageError(f"no command {rest[0]!r}")
        command, words = child, rest[1:]
        context = click.Context(child, info_name=child.name, parent=context)
    if rest:
        raise click.UsageError(f"unexpected {rest}")


def name_anchor(heading: str) -> str:
    """The anchor that Markdown viewers give to a heading."""
    return re.sub(r"[^\w\- ]", "", heading.strip().lower()).replace(" ", "-")


@click.group()
@click.option("--json", "as_json", is_flag=True)
def sample() -> None:
    """A command line to test the checker with."""


@sample.command()
@click.argument("folder", type=click.Path(exists=True))
@click.option("--engine", type=click.Choice(["glm", "ies"]))
@click.option("--workers", type=click.IntRange(1))
def run() -> None:
    """One command of it."""


@pytest.mark.parametrize(
    "line", ["run FOLDER", "run FOLDER --engine glm --workers 4", "--json run FOLDER", "run --help"]
)
def test_checker_takes_what_click_takes(line: str) -> None:
    check_command(sample, line.split())


@pytest.mark.parametrize(
    "line",
    [
        "walk FOLDER",
        "run",
        "run FOLDER OTHER",
        "run FOLDER --fast",
        "run FOLDER --engine sce",
        "run FOLDER --workers many",
        "run FOLDER --workers 0",
        "run FOLDER --engine",
    ],
)
def test_checker_refuses_what_click_refuses(line: str) -> None:
    with pytest.raises(click.UsageError):
        check_command(sample, line.split())


def test_commands_are_found_in_text() -> None:
    text = (
        "$ pestfleet run A \\\n  --engine glm  # the user's case\nX=1 .venv/bin/pestfleet check A\n"
    )
    assert list_commands(text, "pestfleet") == [["run", "A", "--engine", "glm"], ["check", "A"]]


def test_every_command_line_in_the_documents_parses() -> None:
    from pestfleet.cli.main import cli

    commands = collect_commands("pestfleet")
    assert {name for name, _ in commands} >= {"README.md", "scripts/demo"}
    wrong = []
    for name, words in commands:
        try:
            check_command(cli, words)
        except click.UsageError as error:
            wrong.append(f"{name}: pestfleet {shlex.join(words)}: {error.format_message()}")
    assert wrong == []


def test_every_make_target_in_the_documents_exists() -> None:
    targets = set(re.findall(r"^([a-z ]+):", read(ROOT / "Makefile"), re.MULTILINE))
    names = {name for line in targets for name in line.split()}
    phony = re.search(r"^\.PHONY: (.+)$", read(ROOT / "Makefile"), re.MULTILINE)
    assert phony is not None and set(phony[1].split()) == names
    told = set(re.findall(r'@echo "make ([a-z]+) ', read(ROOT / "Makefile")))
    assert told == names - {"help"}
    used = {words[0] for _, words in collect_commands("make")}
    assert used >= {"demo", "test"}
    assert used - names == set()


@pytest.mark.parametrize("document", DOCUMENTS, ids=name_path)
def test_relative_links_lead_somewhere(document: Path) -> None:
    wrong = []
    for link in LINK.findall(read(document)):
        if re.match(r"[a-z]+:", link):
            continue
        target, _, anchor = link.partition("#")
        path = document.parent / target if target else document
        anchors = map(name_anchor, HEADING.findall(read(path))) if anchor and path.exists() else []
        if not path.exists() or (anchor and anchor not in anchors):
            wrong.append(link)
    assert wrong == []


def test_exit_codes_are_those_of_the_errors() -> None:
    commands, workers = read(ROOT / "docs" / "exit-codes.md").split("## `pestfleet-worker`")
    rows = re.findall(r"^\| (\d+) \|", commands, re.MULTILINE)
    kinds = [
        kind
        for kind in vars(errors).values()
        if isinstance(kind, type) and issubclass(kind, errors.PestfleetError)
    ]
    # 0 is success, 2 is click's own for a wrong command line.
    assert sorted(map(int, rows)) == sorted({0, 2} | {kind.exit_code for kind in kinds})
    codes = re.findall(r"^\| (\d+) \|", workers, re.MULTILINE)
    assert list(map(int, codes)) == [
        worker.SESSION_OVER, worker.REFUSED, worker.MASTER_GONE, worker.SENT_AWAY
    ]  # fmt: skip
