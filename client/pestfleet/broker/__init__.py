"""The broker inside the master: AMQP 0-9-1 for workers on the same machine."""

from __future__ import annotations

from pestfleet.broker.server import BrokerStats, EmbeddedBroker, QueueStats

__all__ = ["BrokerStats", "EmbeddedBroker", "QueueStats"]
