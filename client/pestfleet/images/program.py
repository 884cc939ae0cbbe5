"""The master's image with the program of an external engine in it."""

from __future__ import annotations

import hashlib
import io
import tarfile
from collections.abc import Callable
from contextlib import closing
from pathlib import Path

from pestfleet.images.base import CONTEXT_LABEL, ROLE_LABEL, ImageSettings, ensure_image
from pestfleet.images.engine import build_image, connect_engine, explain_errors
from pestfleet.images.executables import name_kind, read_head
from pestfleet_worker.errors import ConfigurationError


def ensure_master_image(
    settings: ImageSettings,
    *,
    program: Path | None = None,
    on_line: Callable[[str], None] = lambda line: None,
) -> str:
    """The reference of the master's image; with `program`, the engine's, one that has it.

    Raises `ConfigurationError` for a program that does not run on Linux, `TargetError` where the
    image cannot be built.
    """
    base = ensure_image("master", settings, on_line=on_line)
    if program is None:
        return base
    if name_kind(read_head(program)) in ("windows", "macos"):
        raise ConfigurationError(
            f"{program} does not run on Linux, as the container of the master does",
            remedy="Say --master here, or name a folder with the program's build for Linux in "
            "PESTFLEET_ENGINES.",
        )
    content = program.read_bytes()
    name = program.name.lower()
    digest = hashlib.sha256(content).hexdigest()
    tag = f"{base.replace('pestfleet-master', f'pestfleet-master-{name}')}-{digest[:12]}"
    with closing(connect_engine()) as engine:
        with explain_errors(f"image {base} cannot be looked up"):
            context = hashlib.sha256(f"{engine.images.get(base).id} {digest}".encode()).hexdigest()
            labels = {ROLE_LABEL: "master", CONTEXT_LABEL: context}
            if engine.images.list(name=tag, filters={"label": f"{CONTEXT_LABEL}={context}"}):
                return tag
        on_line(f"building image {tag}, with the program {program}")
        build_image(
            engine,
            _pack({"Dockerfile": _write_dockerfile(base, name), name: content}),
            tag=tag,
            labels=labels,
            network=settings.network,
            on_line=on_line,
        )
    return tag


def _write_dockerfile(base: str, name: str) -> bytes:
    return f"FROM {base}\nCOPY {name} /usr/local/bin/{name}\n".encode()


def _pack(files: dict[str, bytes]) -> bytes:
    packed = io.BytesIO()
    with tarfile.open(fileobj=packed, mode="w") as archive:
        for name, content in files.items():
            entry = tarfile.TarInfo(name)
            entry.size, entry.mode = len(content), 0o755
            archive.addfile(entry, io.BytesIO(content))
    return packed.getvalue()
