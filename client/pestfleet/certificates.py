"""Certificates made for one session: of the relay, which signs its own, and of the broker.

Keys are P-256, signatures SHA-256. Nothing here is kept beyond what the caller writes: the key
of a session's authority is gone once it has signed.
"""

from __future__ import annotations

import ipaddress
import ssl
import tempfile
from collections.abc import Sequence
from dataclasses import dataclass, field
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from cryptography import x509
    from cryptography.hazmat.primitives.asymmetric import ec

# Clocks of the machines may be off by this much.
_LEEWAY = timedelta(days=2)
_LIFE = timedelta(days=400)


@dataclass(frozen=True, slots=True)
class Certificate:
    """A certificate and its private key, both PEM. Only `pem` is for others."""

    pem: str
    key: str = field(repr=False)

    def make_context(self) -> ssl.SSLContext:
        """TLS settings of the end that shows this certificate."""
        context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
        context.minimum_version = ssl.TLSVersion.TLSv1_2
        # ssl reads keys from files only; this folder is for its owner alone.
        with tempfile.TemporaryDirectory(prefix="pestfleet-key-") as folder:
            chain = Path(folder, "chain.pem")
            chain.write_text(self.pem + self.key, encoding="ascii")
            context.load_cert_chain(chain)
        return context


def make_own_authority(name: str) -> Certificate:
    """A certificate for a server of that name which signs itself: who trusts it trusts no other."""
    from cryptography import x509
    from cryptography.hazmat.primitives.asymmetric import ec

    key = ec.generate_private_key(ec.SECP256R1())
    subject = _make_name(name)
    builder = _start(subject, subject, key).add_extension(
        x509.SubjectAlternativeName([x509.DNSName(name)]), critical=False
    )
    # Strict verification asks for the marks of an authority.
    return _sign(builder, key, key, authority=True, server=True)


def make_signed_certificate(
    authority: str, names: Sequence[str], *, begin: datetime | None = None
) -> tuple[str, Certificate]:
    """A new authority's certificate (PEM) and one that it has signed, for a server.

    `names`: DNS names and IP addresses of the server, the first one its common name. The
    authority's key is not kept: it will sign nothing else. Both count from `begin` (now) for
    400 days.
    """
    from cryptography.hazmat.primitives.asymmetric import ec

    ca_key, key = (ec.generate_private_key(ec.SECP256R1()) for _ in range(2))
    issuer = _make_name(authority)
    ca = _sign(
        _start(issuer, issuer, ca_key, begin=begin), ca_key, ca_key, authority=True, server=False
    )
    builder = _start(_make_name(names[0]), issuer, key, begin=begin).add_extension(
        _make_alternatives(names), critical=False
    )
    return ca.pem, _sign(builder, key, ca_key, authority=False, server=True)


def _make_name(name: str) -> x509.Name:
    from cryptography import x509

    return x509.Name([x509.NameAttribute(x509.NameOID.COMMON_NAME, name)])


def _make_alternatives(names: Sequence[str]) -> x509.SubjectAlternativeName:
    from cryptography import x509

    found: list[x509.GeneralName] = []
    for name in dict.fromkeys(names):
        try:
            found.append(x509.IPAddress(ipaddress.ip_address(name)))
        except ValueError:
            found.append(x509.DNSName(name))
    return x509.SubjectAlternativeName(found)


def _start(
    subject: x509.Name,
    issuer: x509.Name,
    key: ec.EllipticCurvePrivateKey,
    *,
    begin: datetime | None = None,
) -> x509.CertificateBuilder:
    from cryptography import x509

    begin = begin or datetime.now(UTC)
    return (
        x509.CertificateBuilder()
        .subject_name(subject)
        .issuer_name(issuer)
        .public_key(key.public_key())
        .serial_number(x509.random_serial_number())
        .not_valid_before(begin - _LEEWAY)
        .not_valid_after(begin + _LIFE)
    )


def _sign(
    builder: x509.CertificateBuilder,
    key: ec.EllipticCurvePrivateKey,
    signer: ec.EllipticCurvePrivateKey,
    *,
    authority: bool,
    server: bool,
) -> Certificate:
    """With what strict verification (RFC 5280) wants of an authority, and of a server."""
    from cryptography import x509
    from cryptography.hazmat.primitives import hashes, serialization
    from cryptography.x509.oid import ExtendedKeyUsageOID

    constraints = x509.BasicConstraints(ca=authority, path_length=0 if authority else None)
    builder = (
        builder.add_extension(constraints, critical=True)
        .add_extension(
            x509.KeyUsage(
                digital_signature=server,
                key_cert_sign=authority,
                content_commitment=False,
                key_encipherment=False,
                data_encipherment=False,
                key_agreement=False,
                crl_sign=False,
                encipher_only=False,
                decipher_only=False,
            ),
            critical=True,
        )
        .add_extension(x509.SubjectKeyIdentifier.from_public_key(key.public_key()), critical=False)
    )
    if not authority:
        usage = x509.ExtendedKeyUsage([ExtendedKeyUsageOID.SERVER_AUTH])
        issuer = x509.AuthorityKeyIdentifier.from_issuer_public_key(signer.public_key())
        builder = builder.add_extension(usage, critical=False).add_extension(issuer, critical=False)
    return Certificate(
        pem=builder.sign(signer, hashes.SHA256())
        .public_bytes(serialization.Encoding.PEM)
        .decode("ascii"),
        key=key.private_bytes(
            serialization.Encoding.PEM,
            serialization.PrivateFormat.PKCS8,
            serialization.NoEncryption(),
        ).decode("ascii"),
    )
