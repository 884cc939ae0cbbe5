"""What an image of ours is built from: its Dockerfile, our own wheels, and exact versions.

Everything is taken from the packages that are installed here, so an image has the code and the
versions of the `pestfleet` that builds it, and no checkout of the repository is needed. A wheel is
a zip archive with a `.dist-info` folder:
https://packaging.python.org/en/latest/specifications/binary-distribution-format/
"""

from __future__ import annotations

import base64
import hashlib
import io
import re
import tarfile
import zipfile
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from importlib.metadata import Distribution, PackageNotFoundError, distribution, version
from importlib.util import find_spec
from pathlib import Path

from pestfleet_worker.errors import ConfigurationError

FILES = Path(__file__).parent / "files"
ROLES = ("worker", "master", "tunnel")

# Which of our own distributions an image has, and the package of each.
_OWN = {"pestfleet-worker": "pestfleet_worker", "pestfleet": "pestfleet"}
_CONTENTS = {"worker": ("pestfleet-worker",), "master": ("pestfleet-worker", "pestfleet")}

_NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]*")
# A master in a cluster keeps finished runs in a bucket, where it is asked to.
_EXTRAS = {"master": ("s3",)}
_EXTRA = re.compile(r";.*\bextra\s*==")
_AT_LEAST = re.compile(r">=\s*([0-9]+(?:\.[0-9]+)*)")
_OLDEST_PYTHON = (3, 11)  # of an image that pestfleet runs in


@dataclass(frozen=True, slots=True)
class Context:
    """The files (relative name with forward slashes -> content) and arguments of a build."""

    role: str
    files: Mapping[str, bytes]
    build_args: Mapping[str, str]

    @property
    def digest(self) -> str:
        """SHA-256 of all of it, hexadecimal: the same for the same image."""
        sha = hashlib.sha256()
        texts = {f"arg {name}": value.encode() for name, value in self.build_args.items()}
        for name, content in sorted({**self.files, **texts}.items()):
            sha.update(f"{name}\0{len(content)}\0".encode() + content)
        return sha.hexdigest()

    def pack(self) -> bytes:
        """The files as a tar archive, as the engine wants it; the same bytes each time."""
        packed = io.BytesIO()
        with tarfile.open(fileobj=packed, mode="w", format=tarfile.PAX_FORMAT) as archive:
            for name, content in sorted(self.files.items()):
                entry = tarfile.TarInfo(name)
                entry.size = len(content)
                entry.mode = _choose_mode(content)
                archive.addfile(entry, io.BytesIO(content))
        return packed.getvalue()

    def write(self, folder: Path) -> None:
        """Write the files into a folder, for `docker build`; what is there of one is replaced."""
        folder.mkdir(parents=True, exist_ok=True)
        for wheel in folder.glob("*.whl"):
            wheel.unlink()
        for name, content in self.files.items():
            path = folder / name
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_bytes(content)
            path.chmod(_choose_mode(content))


def make_context(
    role: str, *, base: str = "", index: str = "", ca: str = "", folder: Path | None = None
) -> Context:
    """The context of the image of a role: "worker", "master" or "tunnel".

    `base`: image to build on, "" for the Dockerfile's own choice; `index`: URL of the package
    index, "" for pip's; `ca`: path of a file with certificates (PEM) that a build must trust.
    `folder`: has the Dockerfile, when it is not one of ours. Raises `ConfigurationError` when
    `ca` cannot be read.
    """
    folder = folder or FILES / role
    files = {
        path.relative_to(folder).as_posix(): path.read_bytes()
        for path in sorted(folder.rglob("*"))
        if path.is_file()
    }
    arguments = {"VERSION": version("pestfleet")}
    if base:
        arguments["BASE"] = base
    if role in _CONTENTS:
        own = [distribution(name) for name in _CONTENTS[role]]
        for one in own:
            files[_name_wheel(one)] = make_wheel(one, _OWN[one.metadata["Name"]])
        found = {text for one in own for text in _list_requirements(one)}
        found |= {text for one in own for text in _list_extras(one, _EXTRAS.get(role, ()))}
        needed = sorted(found, key=str.lower)
        needed = [text for text in needed if _read_name(text) not in _OWN]
        files["requirements.txt"] = "".join(f"{text}\n" for text in needed).encode()
        files["constraints.txt"] = "".join(f"{line}\n" for line in pin_versions(needed)).encode()
        if index:
            arguments["INDEX"] = index
        if ca:
            files["ca.pem"] = read_certificates(ca)
    return Context(role, files, arguments)


def make_wheel(installed: Distribution, package: str) -> bytes:
    """A wheel of an installed pure Python distribution with one package; editable ones too.

    The same files give the same bytes.
    """
    spec = find_spec(package)
    if spec is None or not spec.submodule_search_locations:
        raise ConfigurationError(
            f"the files of the package {package} cannot be found",
            remedy="Install pestfleet with pip: a packed program cannot build images.",
        )
    folder = Path(spec.submodule_search_locations[0])
    files = {
        f"{package}/{path.relative_to(folder).as_posix()}": path.read_bytes()
        for path in sorted(folder.rglob("*"))
        if path.is_file() and _is_source(path.relative_to(folder))
    }
    info = f"{_stem(installed)}.dist-info"
    names = ["METADATA", "entry_points.txt"]
    names += [f"licenses/{name}" for name in installed.metadata.get_all("License-File") or []]
    for name in names:
        text = installed.read_text(name)
        if text is not None:
            files[f"{info}/{name}"] = text.encode()
    files[f"{info}/WHEEL"] = (
        b"Wheel-Version: 1.0\nGenerator: pestfleet\nRoot-Is-Purelib: true\nTag: py3-none-any\n"
    )
    record = [f"{name},{_hash_record(content)},{len(content)}" for name, content in files.items()]
    files[f"{info}/RECORD"] = "\n".join([*record, f"{info}/RECORD,,", ""]).encode()
    packed = io.BytesIO()
    with zipfile.ZipFile(packed, "w") as archive:
        for name, content in files.items():
            entry = zipfile.ZipInfo(name)  # of 1980-01-01
            entry.external_attr = 0o100644 << 16
            entry.create_system = 3  # as written on Unix: Windows writes the same bytes
            archive.writestr(entry, content)  # as it is: not each zlib packs alike
    return packed.getvalue()


def pin_versions(requirements: Iterable[str]) -> list[str]:
    """`name==version` of what is installed here for requirements, and for theirs; sorted.

    A version that needs a newer Python than an image may have is pinned for newer ones only.
    """
    found: dict[str, Distribution] = {}
    todo = [_read_name(text) for text in requirements]
    while todo:
        name = todo.pop()
        if name in found:
            continue
        try:
            found[name] = distribution(name)
        except PackageNotFoundError:
            continue  # what another operating system or Python needs
        todo += [_read_name(text) for text in _list_requirements(found[name])]
    return [f"{name}=={one.version}{_mark(one)}" for name, one in sorted(found.items())]


def _mark(installed: Distribution) -> str:
    """For which Pythons a version is pinned: none but newer ones, if it needs these."""
    needed = installed.metadata["Requires-Python"] or ""
    bounds = [tuple(map(int, bound.split("."))) for bound in _AT_LEAST.findall(needed)]
    newest = max(bounds, default=(0,))
    if newest <= _OLDEST_PYTHON:
        return ""
    return f' ; python_full_version >= "{".".join(map(str, newest))}"'


def _list_requirements(installed: Distribution) -> list[str]:
    """The requirements of a distribution without those of its extras."""
    return [text for text in installed.requires or [] if not _EXTRA.search(text)]


def _list_extras(installed: Distribution, extras: Iterable[str]) -> list[str]:
    """The requirements of some extras of a distribution, without that mark."""
    marks = tuple(re.compile(rf"\s*;\s*extra\s*==\s*['\"]{extra}['\"]\s*$") for extra in extras)
    return [
        mark.sub("", text)
        for text in installed.requires or []
        for mark in marks
        if mark.search(text)
    ]


def _read_name(requirement: str) -> str:
    match = _NAME.match(requirement.strip())
    assert match is not None, requirement
    return re.sub(r"[-_.]+", "-", match[0]).lower()


def _is_source(path: Path) -> bool:
    return path.suffix != ".pyc" and not any(
        part == "__pycache__" or part.startswith(".") for part in path.parts
    )


def _stem(installed: Distribution) -> str:
    return f"{installed.metadata['Name'].replace('-', '_')}-{installed.version}"


def _name_wheel(installed: Distribution) -> str:
    return f"{_stem(installed)}-py3-none-any.whl"


def _hash_record(content: bytes) -> str:
    digest = base64.urlsafe_b64encode(hashlib.sha256(content).digest()).rstrip(b"=")
    return f"sha256={digest.decode()}"


def _choose_mode(content: bytes) -> int:
    """A script is executable; the mode of a file on Windows does not say that."""
    return 0o755 if content.startswith(b"#!") else 0o644


def read_certificates(ca: str) -> bytes:
    """The file of certificates that `[image] ca` names. Raises `ConfigurationError`."""
    try:
        content = Path(ca).expanduser().read_bytes()
    except OSError as error:
        raise ConfigurationError(
            f"the file with certificates for the build, {ca}, cannot be read: {error.strerror}",
            remedy="Correct [image] ca (PESTFLEET_IMAGE__CA): a file in PEM format.",
        ) from error
    if b"-----BEGIN CERTIFICATE-----" not in content:
        raise ConfigurationError(
            f"{ca} has no certificate in PEM format",
            remedy="Correct [image] ca (PESTFLEET_IMAGE__CA).",
        )
    return content
