"""Guards, as far as Linux can, that the client imports and works on Windows.

Two nets: a scan of the source for what Windows does not have, and an import of the whole client
in a Python that has been made to look like Windows (a fake: the real thing may differ more).
"""

from __future__ import annotations

import ast
import re
from collections import Counter
from collections.abc import Iterator
from pathlib import Path

import pytest

from source import CLIENT, ROOT, list_files, list_modules, name_module, name_path, run_python

# The only module that may use what POSIX alone has: a local fleet needs Linux, macOS or WSL.
POSIX_ONLY = {
    "client/pestfleet/engines/enclosure/helper.py",
    "client/pestfleet/targets/local.py",
}

# What is there names files in containers, and these run Linux.
IN_CONTAINERS = (
    "client/pestfleet/images/",
    "client/pestfleet/targets/compose/",
    "client/pestfleet/targets/ecs/",
    "client/pestfleet/targets/kubernetes/",
    "client/pestfleet/cluster_api.py",
)

POSIX_MODULES = {
    "crypt", "fcntl", "grp", "posix", "pty", "pwd", "resource", "syslog", "termios", "tty",
}  # fmt: skip
POSIX_OS = {
    "chown", "confstr", "ctermid", "fchdir", "fchmod", "fchown", "fork", "forkpty", "getegid",
    "geteuid", "getgid", "getgroups", "getloadavg", "getpgid", "getpgrp", "getpriority", "getsid",
    "getuid", "initgroups", "kill", "killpg", "lchown", "mkfifo", "mknod", "nice", "openpty",
    "pathconf", "posix_fallocate", "posix_spawn", "pread", "preadv", "pwrite", "pwritev",
    "sched_getaffinity", "sched_setaffinity", "sched_yield", "sendfile", "setegid", "seteuid",
    "setgid", "setpgid", "setpriority", "setregid", "setreuid", "setsid", "setuid", "statvfs",
    "symlink", "sync", "sysconf", "tcgetpgrp", "uname", "wait", "wait3", "wait4", "waitid",
    "waitpid", "WEXITSTATUS", "WIFEXITED", "WIFSIGNALED", "WNOHANG", "WTERMSIG",
}  # fmt: skip
WINDOWS_SIGNAL = {
    "SIGABRT", "SIGFPE", "SIGILL", "SIGINT", "SIGSEGV", "SIGTERM", "SIG_DFL", "SIG_IGN",
    "Handlers", "Signals", "default_int_handler", "getsignal", "raise_signal", "set_wakeup_fd",
    "signal", "strsignal", "valid_signals",
}  # fmt: skip
POSIX_METHODS = {"add_signal_handler", "symlink_to"}
POSIX_ARGUMENTS = {"preexec_fn", "process_group", "shell", "start_new_session", "umask"}
POSIX_PATH = re.compile(r"/(bin|dev|etc|home|opt|proc|root|run|sys|tmp|usr|var)(/|$)")
NOT_TEXT_OPENERS = {"bz2", "gzip", "lzma", "opener", "os", "tarfile", "webbrowser", "zipfile"}


class WindowsScan(ast.NodeVisitor):
    """Collects (line, what) of each thing in a module that does not work on Windows."""

    def __init__(self) -> None:
        self.found: list[tuple[int, str]] = []
        self._inside_try = 0

    def _add(self, node: ast.expr | ast.stmt, what: str) -> None:
        self.found.append((node.lineno, what))

    def visit_If(self, node: ast.If) -> None:
        # A branch that asks for the platform, or for the attribute, knows what it does.
        text = ast.unparse(node.test)
        if not re.search(r"sys\.platform|os\.name|hasattr\((os|signal)\b", text):
            self.generic_visit(node)

    def visit_Try(self, node: ast.Try) -> None:
        self._inside_try += 1
        for statement in node.body:
            self.visit(statement)
        self._inside_try -= 1
        for part in (*node.handlers, *node.orelse, *node.finalbody):
            self.visit(part)

    def visit_Import(self, node: ast.Import) -> None:
        for alias in node.names:
            if alias.name in POSIX_MODULES:
                self._add(node, f"import {alias.name}")

    def visit_ImportFrom(self, node: ast.ImportFrom) -> None:
        if node.module in POSIX_MODULES:
            self._add(node, f"import {node.module}")
        for alias in node.names:
            self._check_attribute(node, node.module or "", alias.name)

    def visit_Attribute(self, node: ast.Attribute) -> None:
        if isinstance(node.value, ast.Name):
            self._check_attribute(node, node.value.id, node.attr)
        if node.attr in POSIX_METHODS:
            self._add(node, f".{node.attr}")
        if node.attr == "hardlink_to" and not self._inside_try:
            self._add(node, ".hardlink_to outside try")
        self.generic_visit(node)

    def _check_attribute(self, node: ast.expr | ast.stmt, module: str, name: str) -> None:
        if module == "os" and name in POSIX_OS:
            self._add(node, f"os.{name}")
        if module == "os" and name == "link" and not self._inside_try:
            self._add(node, "os.link outside try")
        if module == "signal" and name not in WINDOWS_SIGNAL:
            self._add(node, f"signal.{name}")

    def visit_Call(self, node: ast.Call) -> None:
        for keyword in node.keywords:
            if keyword.arg in POSIX_ARGUMENTS and ast.unparse(keyword.value) != "False":
                self._add(node, f"{keyword.arg}=")
        if self._opens_text_without_encoding(node):
            self._add(node, "text file without encoding=")
        self.generic_visit(node)

    def _opens_text_without_encoding(self, node: ast.Call) -> bool:
        # Windows' default encoding is not UTF-8.
        if any(keyword.arg == "encoding" for keyword in node.keywords):
            return False
        match node.func:
            case ast.Attribute(attr="read_text"):
                return len(node.args) == 0
            case ast.Attribute(attr="write_text"):
                return len(node.args) == 1
            case ast.Name(id="open"):
                mode = node.args[1:2]
            case ast.Attribute(attr="open", value=ast.Name(id=name)) if (
                name in NOT_TEXT_OPENERS or name[0].isupper()
            ):
                return False  # another module's `open`, or a class method like Image.open
            case ast.Attribute(attr="open"):
                mode = node.args[:1]
            case _:
                return False
        modes = [*mode, *(word.value for word in node.keywords if word.arg == "mode")]
        return not any("b" in ast.unparse(value).strip("'\"") for value in modes)

    def visit_Constant(self, node: ast.Constant) -> None:
        if isinstance(node.value, str) and POSIX_PATH.match(node.value):
            self._add(node, f"path {node.value!r}")


def scan(source: str) -> list[str]:
    visitor = WindowsScan()
    visitor.visit(ast.parse(source))
    return [what for _, what in visitor.found]


@pytest.mark.parametrize(
    ("source", "what"),
    [
        ("import fcntl", "import fcntl"),
        ("def f():\n    from pwd import getpwuid", "import pwd"),
        ("import os\nos.killpg(1, 9)", "os.killpg"),
        ("from os import geteuid", "os.geteuid"),
        ("os.symlink(a, b)", "os.symlink"),
        ("a.symlink_to(b)", ".symlink_to"),
        ("os.link(a, b)", "os.link outside try"),
        ("signal.signal(signal.SIGHUP, f)", "signal.SIGHUP"),
        ("from signal import SIGKILL", "signal.SIGKILL"),
        ("loop.add_signal_handler(2, f)", ".add_signal_handler"),
        ("subprocess.run(a, shell=True)", "shell="),
        ("subprocess.Popen(a, start_new_session=True)", "start_new_session="),
        ("Path('/tmp/x')", "path '/tmp/x'"),
        ("f'/proc/{pid}/stat'", "path '/proc/'"),
        ("open(a)", "text file without encoding="),
        ("open(a, mode='w')", "text file without encoding="),
        ("a.open('a')", "text file without encoding="),
        ("a.read_text()", "text file without encoding="),
        ("a.write_text(b)", "text file without encoding="),
        ("if x:\n    os.fork()", "os.fork"),
    ],
)
def test_scan_finds_what_windows_lacks(source: str, what: str) -> None:
    assert scan(source) == [what]


@pytest.mark.parametrize(
    "source",
    [
        "signal.signal(signal.SIGINT, f)",
        "try:\n    os.link(a, b)\nexcept OSError:\n    shutil.copy(a, b)",
        "if sys.platform != 'win32':\n    os.killpg(1, 9)",
        "if hasattr(signal, 'SIGHUP'):\n    signal.signal(signal.SIGHUP, f)",
        "open(a, 'rb')",
        "a.open('w', encoding='utf-8')",
        "a.read_text(encoding='utf-8')",
        "tarfile.open(a)",
        "Image.open(a)",
        "url = 'amqp://host//'",
    ],
)
def test_scan_lets_portable_code_pass(source: str) -> None:
    assert scan(source) == []


def test_client_uses_nothing_that_windows_lacks() -> None:
    wrong = []
    for path in list_modules(CLIENT):
        if name_path(path) not in POSIX_ONLY:
            visitor = WindowsScan()
            visitor.visit(ast.parse(path.read_text(encoding="utf-8")))
            found = visitor.found
            if name_path(path).startswith(IN_CONTAINERS):
                found = [(line, what) for line, what in found if not what.startswith("path ")]
            wrong += [f"{name_path(path)}:{line}: {what}" for line, what in found]
    assert wrong == []


def test_the_posix_only_modules_exist() -> None:
    assert {name_path(path) for path in list_modules(CLIENT)} >= POSIX_ONLY


# Makes this Python look like Windows for the client: other packages are loaded before and keep
# what they need. os.name stays: pathlib itself would refuse to work.
FAKE_WINDOWS = """
import importlib, os, shutil, signal, subprocess, sys

modules = {modules!r}
for name in modules:
    importlib.import_module(name)
for name in [name for name in sys.modules if name.partition(".")[0].startswith("pestfleet")]:
    del sys.modules[name]

class Blocker:
    def find_spec(self, name, path=None, target=None):
        if name in {posix_modules!r}:
            raise ModuleNotFoundError("not on Windows: " + name, name=name)

for name in {posix_modules!r}:
    sys.modules.pop(name, None)
sys.meta_path.insert(0, Blocker())
for name in {posix_os!r}:
    if hasattr(os, name):
        delattr(os, name)
for name in [name for name in vars(signal) if name.startswith("SIG") and name.isupper()]:
    if name not in {signals!r}:
        delattr(signal, name)
sys.platform = "win32"
"""
# os.symlink, os.kill and os.waitpid exist on Windows too; they only do less there.
_ON_WINDOWS_TOO = {"kill", "symlink", "waitpid"}


def make_fake_windows(modules: list[str]) -> str:
    return FAKE_WINDOWS.format(
        modules=modules,
        posix_modules=sorted(POSIX_MODULES - {"posix"}),
        posix_os=sorted(POSIX_OS - _ON_WINDOWS_TOO),
        signals=sorted(WINDOWS_SIGNAL),
    )


def list_client_modules() -> list[str]:
    return [name_module(p) for p in list_modules(CLIENT) if not p.stem.startswith("__main__")]


def test_fake_windows_lacks_what_windows_lacks() -> None:
    printed = run_python(
        make_fake_windows([])
        + "import os, signal, sys\n"
        + "print(sys.platform, hasattr(os, 'fork'), hasattr(signal, 'SIGKILL'))\n"
        + "try:\n    import fcntl\nexcept ImportError as error:\n    print(error)\n"
    )
    assert printed.splitlines() == ["win32 False False", "not on Windows: fcntl"]


def test_every_client_module_imports_on_fake_windows() -> None:
    modules = list_client_modules()
    printed = run_python(
        make_fake_windows(modules)
        + "for name in modules:\n    print(importlib.import_module(name))\n"
    )
    assert len(printed.splitlines()) == len(modules) > 10


def test_check_works_on_fake_windows() -> None:
    """`pestfleet check` of the example ends with a verdict on the case, not with a defect."""
    printed = run_python(
        make_fake_windows(list_client_modules())
        + "from click.testing import CliRunner\n"
        + "from pestfleet.cli.main import cli\n"
        + "result = CliRunner().invoke(cli, ['check', sys.argv[1]], catch_exceptions=True)\n"
        + "print('ended with', result.exit_code, type(result.exception).__name__)\n",
        str(ROOT / "examples" / "oude-korendijk"),
    )
    assert re.search(r"ended with (0 NoneType|3 \w+)$", printed), printed


RESERVED = {"aux", "con", "nul", "prn"} | {f"{d}{n}" for d in ("com", "lpt") for n in range(1, 10)}


def find_illegal_names(paths: Iterator[str] | list[str]) -> list[str]:
    """Paths that cannot be checked out on Windows, or that clash there with another one."""
    paths = list(paths)
    folded = Counter(path.casefold() for path in paths)
    return [
        path
        for path in paths
        if folded[path.casefold()] > 1
        or len(path) > 180
        or any(
            re.search(r'[<>:"|?*\\\x00-\x1f]|[. ]$', part)
            or part.partition(".")[0].casefold() in RESERVED
            for part in path.split("/")
        )
    ]


def test_illegal_names_are_found() -> None:
    wrong = ["a:b", "dir./x", "a/NUL.txt", "x?", "end ", "Model.in", "model.in"]
    assert find_illegal_names([*wrong, "good/name.txt"]) == wrong


def test_file_names_are_legal_on_windows() -> None:
    assert find_illegal_names(name_path(path) for path in list_files()) == []


def test_no_symbolic_links_in_the_repository() -> None:
    assert [name_path(path) for path in list_files() if Path(path).is_symlink()] == []
