"""Files in and out of containers, as the tar streams that the Docker engine speaks."""

from __future__ import annotations

import io
import tarfile
from collections.abc import Mapping
from pathlib import Path

import docker

from pestfleet.targets.streams import open_archive


def _open(client: docker.DockerClient, container: str, path: str) -> tarfile.TarFile:
    chunks, _ = client.api.get_archive(container, path)
    return open_archive(iter(chunks))


def read_file(client: docker.DockerClient, container: str, path: str) -> bytes:
    """One file of a container, running or not. Raises `docker.errors.NotFound`."""
    with _open(client, container, path) as archive:
        for member in archive:
            content = archive.extractfile(member)
            if content is not None:
                return content.read()
    return b""


def unpack(client: docker.DockerClient, container: str, path: str, folder: Path) -> None:
    """Copy a file or folder of a container into `folder`. Raises `docker.errors.NotFound`.

    Links that lead out of the folder, devices and the like are refused by tarfile's filter.
    """
    with _open(client, container, path) as archive:
        archive.extractall(folder, filter="data")


def pack_files(files: Mapping[str, bytes], *, user: str) -> bytes:
    """A tar archive of files with mode 0400, owned by `user` (uid:gid)."""
    uid, gid = map(int, user.split(":"))
    packed = io.BytesIO()
    with tarfile.open(fileobj=packed, mode="w") as archive:
        for name, content in files.items():
            entry = tarfile.TarInfo(name)
            entry.size, entry.mode, entry.uid, entry.gid = len(content), 0o400, uid, gid
            archive.addfile(entry, io.BytesIO(content))
    return packed.getvalue()
