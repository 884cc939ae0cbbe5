"""Images made without a Docker engine: as an archive, or put into a registry."""

from __future__ import annotations

import hashlib
import http.client
import io
import json
import subprocess
import tarfile
import tempfile
from dataclasses import dataclass
from pathlib import Path

_CONFIG = "application/vnd.oci.image.config.v1+json"
_LAYER = "application/vnd.oci.image.layer.v1.tar"
_MANIFEST = "application/vnd.oci.image.manifest.v1+json"

# It holds a pod's namespaces open, and collects the ends of orphans, until it is told to stop.
_PAUSE = """
#include <signal.h>
#include <sys/wait.h>
#include <unistd.h>
static void stop(int number) { (void)number; _exit(0); }
static void collect(int number) { (void)number; while (waitpid(-1, 0, WNOHANG) > 0); }
int main(void) {
    signal(SIGINT, stop);
    signal(SIGTERM, stop);
    signal(SIGCHLD, collect);
    for (;;) pause();
}
"""


@dataclass(frozen=True, slots=True)
class Image:
    """One layer, a tar archive, and the command that its containers run."""

    layer: bytes
    command: tuple[str, ...]

    @property
    def config(self) -> bytes:
        settings = {"Cmd": list(self.command), "Env": ["PATH=/usr/sbin:/usr/bin:/sbin:/bin"]}
        root = {"type": "layers", "diff_ids": [_digest(self.layer)]}
        value = {"architecture": "amd64", "os": "linux", "rootfs": root, "config": settings}
        return json.dumps(value).encode()


def make_pause_image() -> Image:
    """A program of one file, that does nothing until it is stopped."""
    with tempfile.TemporaryDirectory(prefix="pestfleet-pause-") as folder:
        program = Path(folder, "pause")
        subprocess.run(
            ["gcc", "-static", "-O2", "-s", "-x", "c", "-", "-o", str(program)],
            input=_PAUSE.encode(),
            check=True,
        )
        layer = io.BytesIO()
        with tarfile.open(fileobj=layer, mode="w") as archive:
            _add(archive, "pause", program.read_bytes(), mode=0o755)
    return Image(layer.getvalue(), ("/pause",))


def write_archive(image: Image, name: str, path: Path) -> None:
    """As `docker save` writes one."""
    config = f"{_digest(image.config).partition(':')[2]}.json"
    manifest = [{"Config": config, "RepoTags": [name], "Layers": ["layer.tar"]}]
    with tarfile.open(path, "w") as archive:
        _add(archive, config, image.config)
        _add(archive, "layer.tar", image.layer)
        _add(archive, "manifest.json", json.dumps(manifest).encode())


def push(image: Image, name: str, *, address: str) -> str:
    """Put it into the registry at HOST:PORT; NAME:TAG -> the image's whole name."""
    repository, _, tag = name.partition(":")
    connection = http.client.HTTPConnection(address)
    for blob in (image.layer, image.config):
        place = _send(connection, "POST", f"/v2/{repository}/blobs/uploads/", b"")
        separator = "&" if "?" in place else "?"
        _send(connection, "PUT", f"{place}{separator}digest={_digest(blob)}", blob)
    manifest = {
        "schemaVersion": 2,
        "mediaType": _MANIFEST,
        "config": _describe(image.config, _CONFIG),
        "layers": [_describe(image.layer, _LAYER)],
    }
    body = json.dumps(manifest).encode()
    _send(connection, "PUT", f"/v2/{repository}/manifests/{tag}", body, _MANIFEST)
    connection.close()
    return f"{address}/{name}"


def _send(
    connection: http.client.HTTPConnection,
    method: str,
    place: str,
    body: bytes,
    kind: str = "application/octet-stream",
) -> str:
    """The place that the registry names in its answer."""
    connection.request(method, place, body, {"Content-Type": kind})
    answer = connection.getresponse()
    text = answer.read()
    assert answer.status in (201, 202), f"{method} {place}: {answer.status} {text!r}"
    return answer.headers["Location"]


def _describe(blob: bytes, kind: str) -> dict[str, object]:
    return {"mediaType": kind, "digest": _digest(blob), "size": len(blob)}


def _digest(blob: bytes) -> str:
    return f"sha256:{hashlib.sha256(blob).hexdigest()}"


def _add(archive: tarfile.TarFile, name: str, data: bytes, mode: int = 0o644) -> None:
    entry = tarfile.TarInfo(name)
    entry.size, entry.mode = len(data), mode
    archive.addfile(entry, io.BytesIO(data))
