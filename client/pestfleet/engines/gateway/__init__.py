"""The gateway: PEST++ masters get their runs from the fleet.

It speaks the PANTHER agent protocol (PEST++ 5.2) to a master on this machine, one connection for
each slot of the fleet, and turns each START_RUN into a request for a run. docs/engines.md says
how a user meets it; `frames` has the wire format, `agent` what is answered to what.

A PANTHER master trusts its agents blindly: an unknown frame type or a short RUN_FINISHED crash
it, half a frame freezes it, and it listens on all addresses. So frames are written whole, sizes
are checked before anything is sent, and nobody but the gateway may reach its port.
"""

from __future__ import annotations

from pestfleet.engines.gateway.agent import Counters
from pestfleet.engines.gateway.frames import FrameError
from pestfleet.engines.gateway.gateway import Gateway, GatewayEvent
from pestfleet.engines.gateway.names import NamesError
from pestfleet.engines.gateway.sockets import connect_to

__all__ = ["Counters", "FrameError", "Gateway", "GatewayEvent", "NamesError", "connect_to"]
