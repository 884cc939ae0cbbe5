"""What runs in a worker: makes model runs, slot by slot, and answers on the channel."""

from __future__ import annotations
