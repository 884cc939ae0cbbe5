"""Certificates, keys, tokens and kubeconfigs of a test's Kubernetes."""

from __future__ import annotations

import base64
import secrets
from datetime import UTC, datetime, timedelta
from pathlib import Path

from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.x509.oid import ExtendedKeyUsageOID, NameOID

from pestfleet.certificates import make_signed_certificate

ADMIN = "admin"
_TOKENS = "tokens.csv"


def write_keys(folder: Path, *, names: list[str], users: dict[str, tuple[str, str]]) -> None:
    """Write what the API server and its clients identify themselves with.

    `names`: the API server's names and addresses. `users`: file name of the kubeconfig ->
    (user, group or ""). Files: ca.pem, server.pem, server.key; kubelet-client.pem (signs
    itself), kubelet-client.key; accounts.key, tokens.csv.
    """
    folder.mkdir(mode=0o700)
    authority, server = make_signed_certificate("cluster-ca", names)
    _write(folder / "ca.pem", authority)
    _write(folder / "server.pem", server.pem)
    _write(folder / "server.key", server.key)
    _write_client(folder / "kubelet-client", "kube-apiserver", "system:masters")
    _write(folder / "accounts.key", _to_pem(ec.generate_private_key(ec.SECP256R1())))
    tokens = {name: secrets.token_hex(16) for name in users}
    lines = [
        ",".join([tokens[name], user, user, *([group] if group else [])])
        for name, (user, group) in users.items()
    ]
    _write(folder / _TOKENS, "\n".join([*lines, ""]))


def write_kubeconfigs(folder: Path, *, url: str, users: dict[str, tuple[str, str]]) -> None:
    """Beside the keys, one for each user: NAME.kubeconfig, usable from anywhere."""
    authority = (folder / "ca.pem").read_text(encoding="ascii")
    rows = (folder / _TOKENS).read_text(encoding="ascii").splitlines()
    for name, row in zip(users, rows, strict=True):
        text = f"""apiVersion: v1
kind: Config
current-context: test
clusters:
- name: test
  cluster:
    server: {url}
    certificate-authority-data: {_to_base64(authority)}
users:
- name: {name}
  user: {{token: {row.split(",")[0]}}}
contexts:
- name: test
  context: {{cluster: test, user: {name}}}
"""
        _write(folder / f"{name}.kubeconfig", text)


def _write_client(path: Path, user: str, group: str) -> None:
    key = ec.generate_private_key(ec.SECP256R1())
    name = x509.Name(
        [
            x509.NameAttribute(NameOID.ORGANIZATION_NAME, group),
            x509.NameAttribute(NameOID.COMMON_NAME, user),
        ]
    )
    now = datetime.now(UTC)
    certificate = (
        x509.CertificateBuilder()
        .subject_name(name)
        .issuer_name(name)
        .public_key(key.public_key())
        .serial_number(x509.random_serial_number())
        .not_valid_before(now - timedelta(days=1))
        .not_valid_after(now + timedelta(days=30))
        .add_extension(x509.BasicConstraints(ca=True, path_length=0), critical=True)
        .add_extension(x509.ExtendedKeyUsage([ExtendedKeyUsageOID.CLIENT_AUTH]), critical=False)
        .sign(key, hashes.SHA256())
    )
    pem = certificate.public_bytes(serialization.Encoding.PEM).decode("ascii")
    _write(path.with_suffix(".pem"), pem)
    _write(path.with_suffix(".key"), _to_pem(key))


def _to_pem(key: ec.EllipticCurvePrivateKey) -> str:
    return key.private_bytes(
        serialization.Encoding.PEM,
        serialization.PrivateFormat.TraditionalOpenSSL,
        serialization.NoEncryption(),
    ).decode("ascii")


def _to_base64(text: str) -> str:
    return base64.b64encode(text.encode()).decode("ascii")


def _write(path: Path, text: str) -> None:
    path.touch(mode=0o600)
    path.write_text(text, encoding="ascii")
