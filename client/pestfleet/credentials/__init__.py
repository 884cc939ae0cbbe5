"""A session's secrets: who may do what with its broker, and the keys of its tunnel."""

from __future__ import annotations

from pestfleet.credentials.parts import PARTS, Choices, write_credentials

__all__ = ["PARTS", "Choices", "write_credentials"]
