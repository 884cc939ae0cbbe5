"""What is in an image: files, libraries, PATH. A container without network and rights tells it."""

from __future__ import annotations

import posixpath
import re
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

from pestfleet_worker.errors import TargetError

if TYPE_CHECKING:
    from docker import DockerClient

_PATH = "/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin"
_SYSTEM_FOLDERS = ("/lib", "/usr/lib", "/usr/local/lib", "/lib64", "/usr/lib64")
_MERGED = ("/bin/", "/sbin/", "/lib/", "/lib64/", "/lib32/")
# Each part follows a line of its own. Names with a line feed in them are of no interest.
_SCRIPT = """
echo ==glibc; getconf GNU_LIBC_VERSION 2>/dev/null
echo ==libraries; PATH=$PATH:/sbin:/usr/sbin ldconfig -p 2>/dev/null
echo ==files; find / -xdev \\( -type f -o -type l \\) 2>/dev/null
echo ==end
"""
_END = "==end\n"
_LIBRARY = re.compile(r"\s+(\S+) \(([^)]*)\) => (\S+)")


@dataclass(frozen=True, slots=True)
class ImageContents:
    """`libraries`: name -> path, those that the dynamic linker finds by itself.

    `files`: paths of all files and links; `path`: folders of PATH; `glibc`: its version as
    numbers, () where it is not known.
    """

    architecture: str = "amd64"
    files: frozenset[str] = frozenset()
    libraries: Mapping[str, str] = field(default_factory=dict)
    path: tuple[str, ...] = tuple(_PATH.split(":"))
    search: tuple[str, ...] = ()
    glibc: tuple[int, ...] = ()

    def has(self, path: str) -> bool:
        """Whether a file of that absolute path is there."""
        path = posixpath.normpath(path)
        # On Debian /bin is a link to /usr/bin, and so are its brothers.
        return path in self.files or (path.startswith(_MERGED) and f"/usr{path}" in self.files)

    def find_program(self, name: str) -> str:
        """The path of a program that PATH has; "" if there is none."""
        paths = (f"{folder}/{name}" for folder in self.path)
        return next((path for path in paths if self.has(path)), "")

    def find_library(self, name: str) -> str:
        """The path of a library that is found without the help of the program; "" if none is."""
        if name in self.libraries:
            return self.libraries[name]
        paths = (f"{folder}/{name}" for folder in (*self.search, *_SYSTEM_FOLDERS))
        return next((path for path in paths if self.has(path)), "")


def read_contents(engine: DockerClient, image: str) -> ImageContents:
    """Start a container of the image that lists what it has.

    Raises docker's own errors, and `TargetError` where the image has no shell to do that.
    """
    from docker.types import LogConfig

    attributes = engine.images.get(image).attrs
    container = engine.containers.create(
        image,
        entrypoint=["sh", "-c", _SCRIPT],
        command=[],
        network_mode="none",
        read_only=True,
        user="10001:10001",
        cap_drop=["ALL"],
        security_opt=["no-new-privileges"],
        healthcheck={"test": ["NONE"]},
        log_config=LogConfig(type=LogConfig.types.JSON),
        labels={"pestfleet.role": "look"},
    )
    try:
        container.start()
        container.wait(timeout=None)
        # After its end: a log that is followed may stop before its last lines.
        text = container.logs(stdout=True, stderr=False).decode("utf-8", "replace")
    finally:
        container.remove(force=True, v=True)
    if not text.endswith(_END):
        raise TargetError(
            f"image {image} could not be looked into",
            remedy="It must have a shell and find, as Debian's images have.",
        )
    environment = dict(
        entry.split("=", 1) for entry in attributes["Config"].get("Env") or () if "=" in entry
    )
    return parse_contents(
        text,
        architecture=attributes.get("Architecture", "amd64"),
        environment=environment,
    )


def parse_contents(
    text: str, *, architecture: str, environment: Mapping[str, str]
) -> ImageContents:
    """What the container wrote."""
    parts: dict[str, list[str]] = {}
    lines: list[str] = []
    for line in text.splitlines():
        if line.startswith("=="):
            lines = parts.setdefault(line[2:], [])
        else:
            lines.append(line)
    glibc = re.search(r"(\d+)\.(\d+)", "".join(parts.get("glibc", ())))
    libraries: dict[str, str] = {}
    for line in parts.get("libraries", ()):
        match = _LIBRARY.match(line)
        # Of several architectures, those of 64 bits say so.
        if match and ("64" in match[2]) == ("64" in architecture):
            libraries.setdefault(match[1], match[3])
    return ImageContents(
        architecture=architecture,
        files=frozenset(parts.get("files", ())),
        libraries=libraries,
        path=tuple(environment.get("PATH", _PATH).split(":")),
        search=tuple(filter(None, environment.get("LD_LIBRARY_PATH", "").split(":"))),
        glibc=tuple(map(int, glibc.groups())) if glibc else (),
    )
