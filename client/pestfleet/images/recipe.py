"""The Dockerfile of a case image: the worker image, what the model needs, the case in layers."""

from __future__ import annotations

import shlex
from collections.abc import Mapping, Sequence
from pathlib import Path

from pestfleet.checks.names import is_outside
from pestfleet.images.context import read_certificates
from pestfleet.images.layers import Layer
from pestfleet.settings import ImageSettings
from pestfleet_worker.errors import ConfigurationError

PACKAGES = "packages"  # the stage with the packages, and without the case
USER = "10001:10001"
CERTIFICATES = "ca.pem"

_APT = """\
RUN apt-get update \\
 && DEBIAN_FRONTEND=noninteractive apt-get install -y --no-install-recommends \\
      {packages} \\
 && rm -rf /var/lib/apt/lists/* /var/cache/apt/*.bin /var/log/apt /var/log/dpkg.log \\
 && find / -xdev -type f -perm /6000 -exec chmod a-s {{}} +
"""
# In a stage of its own: the image gets the packages, and not what installs them.
_PIP = """\
FROM ${{WORKER}} AS pip
LABEL pestfleet.role=case-build
USER root
RUN apt-get update \\
 && DEBIAN_FRONTEND=noninteractive apt-get install -y --no-install-recommends \\
      ca-certificates python3-pip
ENV PIP_CERT=/etc/ssl/certs/ca-certificates.crt PIP_BREAK_SYSTEM_PACKAGES=1 PIP_NO_CACHE_DIR=1
{certificates}ARG INDEX=
RUN pip install ${{INDEX:+--index-url "$INDEX"}} --root /installed --ignore-installed \\
      {requirements}

"""
_COPY_PIP = "COPY --from=pip /installed/ /\n"


def write_dockerfile(
    name: str, layers: Sequence[Layer], image: ImageSettings, *, own: str = ""
) -> str:
    """The Dockerfile of the image of the case `name`, without its tail.

    `own`: the user's Dockerfile, which is taken in place of ours.
    """
    if own:
        return own.rstrip() + "\n"
    text = f"# Image of the case {_make_line(name)}, as pestfleet build makes it.\nARG WORKER\n\n"
    if image.pip:
        certificates = f"COPY {CERTIFICATES} .\nRUN cat {CERTIFICATES} >>$PIP_CERT\n"
        text += _PIP.format(
            certificates=certificates if image.ca else "",
            requirements=_quote_words(image.pip),
        )
    text += f"FROM ${{WORKER}} AS {PACKAGES}\nUSER root\n"
    if image.apt:
        text += _APT.format(packages=_quote_words(image.apt))
    if image.pip:
        text += _COPY_PIP
    text += f"\nFROM {PACKAGES}\n"
    for layer in layers:
        text += f"ADD {layer.archive} /\n"
    return text


def write_tail(labels: Mapping[str, str], digest: str) -> str:
    """The last lines of every case image's Dockerfile: digest, labels, user."""
    pairs = " \\\n      ".join(f"{key}={quote(value)}" for key, value in labels.items())
    return f"ENV PESTFLEET_DIGEST={digest}\nLABEL {pairs}\nUSER {USER}\n"


def list_texts(image: ImageSettings) -> dict[str, bytes]:
    """Files of the context that are no layers. Raises `ConfigurationError`."""
    return {CERTIFICATES: read_certificates(image.ca)} if image.ca else {}


def read_own_dockerfile(folder: Path, image: ImageSettings) -> str:
    """The user's Dockerfile in the case folder. Raises `ConfigurationError`."""
    name = image.dockerfile
    path = folder / name
    if image.apt or image.pip:
        raise ConfigurationError(
            "[image] apt and pip do nothing beside [image] dockerfile",
            remedy=f"Let {name} install these, and remove them from [image].",
        )
    if is_outside(name):
        raise ConfigurationError(
            f"[image] dockerfile is {name!r}, which is outside of the case folder",
            remedy="Put the Dockerfile into the case folder.",
        )
    try:
        text = path.read_text(encoding="utf-8")
    except (OSError, UnicodeDecodeError) as error:
        raise ConfigurationError(
            f"[image] dockerfile: {path} cannot be read: {error}", remedy="Correct the name."
        ) from error
    if "WORKER" not in text:
        raise ConfigurationError(
            f"{path}: it does not build on the worker image",
            remedy="Begin it with: ARG WORKER, and then FROM ${WORKER}. docs/images.md has more.",
        )
    if ".tar" not in text:
        raise ConfigurationError(
            f"{path}: it does not unpack the case",
            remedy="Add the line: ADD *.tar /",
        )
    return text


def quote(value: str) -> str:
    """A value as a Dockerfile takes it: https://docs.docker.com/reference/dockerfile/#label."""
    text = _make_line(value).replace("\\", "\\\\").replace('"', '\\"').replace("$", "\\$")
    return f'"{text}"'


def _quote_words(words: Sequence[str]) -> str:
    # A Dockerfile's RUN does not look into quotes; the shell does.
    return " \\\n      ".join(shlex.quote(word) for word in words)


def _make_line(text: str) -> str:
    return "".join(letter if letter.isprintable() else "?" for letter in text)
