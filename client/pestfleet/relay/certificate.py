"""The relay's certificate: made for one session, signed by itself, trusted by its workers alone."""

from __future__ import annotations

from pestfleet.certificates import Certificate, make_own_authority
from pestfleet_worker.forwarder import RELAY_NAME


def make_certificate() -> Certificate:
    """A new key with a certificate that it signs itself."""
    return make_own_authority(RELAY_NAME)


__all__ = ["Certificate", "make_certificate"]
