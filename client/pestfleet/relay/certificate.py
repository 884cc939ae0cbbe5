"""The relay's certificate: made for one session, signed by itself, trusted by its workers alone."""

from __future__ import annotations

import ssl
import tempfile
from dataclasses import dataclass, field
from datetime import UTC, datetime, timedelta
from pathlib import Path

from pestfleet_worker.forwarder import RELAY_NAME

# Clocks of workers may be off by this much.
_LEEWAY = timedelta(days=2)
_LIFE = timedelta(days=400)


@dataclass(frozen=True, slots=True)
class Certificate:
    """A certificate and its private key, both PEM. The workers get `pem` only."""

    pem: str
    key: str = field(repr=False)

    def make_context(self) -> ssl.SSLContext:
        """TLS settings of the master's end."""
        context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
        context.minimum_version = ssl.TLSVersion.TLSv1_2
        # ssl reads keys from files only; this folder is for its owner alone.
        with tempfile.TemporaryDirectory(prefix="pestfleet-relay-") as folder:
            chain = Path(folder, "chain.pem")
            chain.write_text(self.pem + self.key, encoding="ascii")
            context.load_cert_chain(chain)
        return context


def make_certificate() -> Certificate:
    """A new key (P-256) with a certificate that it signs itself."""
    from cryptography import x509
    from cryptography.hazmat.primitives import hashes, serialization
    from cryptography.hazmat.primitives.asymmetric import ec

    key = ec.generate_private_key(ec.SECP256R1())
    name = x509.Name([x509.NameAttribute(x509.NameOID.COMMON_NAME, RELAY_NAME)])
    now = datetime.now(UTC)
    public = key.public_key()
    certificate = (
        x509.CertificateBuilder()
        .subject_name(name)
        .issuer_name(name)
        .public_key(public)
        .serial_number(x509.random_serial_number())
        .not_valid_before(now - _LEEWAY)
        .not_valid_after(now + _LIFE)
        .add_extension(x509.SubjectAlternativeName([x509.DNSName(RELAY_NAME)]), critical=False)
        # It is its own authority: strict verification asks for the marks of one.
        .add_extension(x509.BasicConstraints(ca=True, path_length=0), critical=True)
        .add_extension(
            x509.KeyUsage(
                digital_signature=True,
                key_cert_sign=True,
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
        .add_extension(x509.SubjectKeyIdentifier.from_public_key(public), critical=False)
        .sign(key, hashes.SHA256())
    )
    return Certificate(
        pem=certificate.public_bytes(serialization.Encoding.PEM).decode("ascii"),
        key=key.private_bytes(
            serialization.Encoding.PEM,
            serialization.PrivateFormat.PKCS8,
            serialization.NoEncryption(),
        ).decode("ascii"),
    )
