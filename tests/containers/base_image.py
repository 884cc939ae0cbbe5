"""The image that the tests build on, where none can be pulled: Debian, as slim as the official.

debootstrap makes it once for a machine; it is kept outside the checkout. It trusts whom this
machine trusts, for builds go the same way to their packages.
"""

from __future__ import annotations

import hashlib
import os
import shutil
import subprocess
import tempfile
from pathlib import Path

from docker import DockerClient

NAME, SUITE = "pestfleet-test-base", "bookworm"
BASE = f"{NAME}:{SUITE}"
CACHE = Path.home() / ".cache" / "pestfleet-tests"
CERTIFICATES = Path("/etc/ssl/certs/ca-certificates.crt")

# What the official slim image leaves out, too.
_LEFT_OUT = ("doc", "groff", "info", "linda", "lintian", "locale", "man")
_WITHOUT = "".join(f"path-exclude /usr/share/{name}/*\n" for name in _LEFT_OUT)


def ensure_base(engine: DockerClient) -> str:
    """The name of the base image on this engine, which has it then."""
    if not engine.images.list(BASE):
        with ensure_archive().open("rb") as archive:
            engine.api.import_image(src=archive, repository=NAME, tag=SUITE)
    return BASE


def ensure_archive() -> Path:
    """The base image's root as a tar archive."""
    trusted = hashlib.sha256(CERTIFICATES.read_bytes()).hexdigest()[:12]
    path = CACHE / f"{NAME}-{SUITE}-{trusted}.tar"
    if not path.exists():
        CACHE.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryDirectory(prefix="pestfleet-base-") as folder:
            made = Path(folder, "root.tar")
            _make_archive(Path(folder, "root"), made)
            unfinished = path.with_suffix(f".{os.getpid()}")
            shutil.copy(made, unfinished)
            unfinished.replace(path)
    return path


def _make_archive(root: Path, archive: Path) -> None:
    _run("debootstrap", "--variant=minbase", "--include=ca-certificates", SUITE, str(root))
    shutil.copy(CERTIFICATES, root / CERTIFICATES.relative_to("/"))
    (root / "etc/dpkg/dpkg.cfg.d/docker").write_text(_WITHOUT)
    for name in _LEFT_OUT:
        shutil.rmtree(root / "usr/share" / name, ignore_errors=True)
    for folder in ("var/lib/apt/lists", "var/cache/apt/archives", "var/log"):
        for path in (root / folder).rglob("*"):
            if path.is_file():
                path.unlink()
    _run("tar", "--numeric-owner", "-C", str(root), "-cf", str(archive), ".")


def _run(*command: str) -> None:
    done = subprocess.run(
        command, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True, check=False
    )
    assert done.returncode == 0, f"{command}:\n{done.stdout[-4000:]}"
