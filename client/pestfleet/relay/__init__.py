"""The relay: the only way from agents to an engine's master, and only for announced workers."""

from __future__ import annotations

from pestfleet.relay.certificate import Certificate, make_certificate
from pestfleet.relay.server import Relay
from pestfleet.relay.service import FleetAgents

__all__ = ["Certificate", "FleetAgents", "Relay", "make_certificate"]
