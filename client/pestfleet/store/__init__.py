"""Sessions in S3, or a server that speaks S3: cases, results, requests, and who the master is."""

from pestfleet.store.claim import ClaimState
from pestfleet.store.client import Address, make_client, parse_address
from pestfleet.store.errors import ClaimHeld, ClaimLost, StoreError
from pestfleet.store.files import Store
from pestfleet.store.mirror import Mirror
from pestfleet.store.session import SessionStore, list_sessions, open_session

__all__ = [
    "Address",
    "ClaimHeld",
    "ClaimLost",
    "ClaimState",
    "Mirror",
    "SessionStore",
    "Store",
    "StoreError",
    "list_sessions",
    "make_client",
    "open_session",
    "parse_address",
]
