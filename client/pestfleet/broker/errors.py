"""The exceptions of AMQP 0-9-1 (specification, section 1.2), as the broker raises them.

A soft error closes the channel that caused it, a hard one the connection. Texts follow
RabbitMQ's, which users find when they search for them.
"""

from __future__ import annotations

from collections.abc import Callable

_NAMES = {
    320: "CONNECTION_FORCED",
    403: "ACCESS_REFUSED",
    404: "NOT_FOUND",
    405: "RESOURCE_LOCKED",
    406: "PRECONDITION_FAILED",
    501: "FRAME_ERROR",
    502: "SYNTAX_ERROR",
    503: "COMMAND_INVALID",
    504: "CHANNEL_ERROR",
    505: "UNEXPECTED_FRAME",
    530: "NOT_ALLOWED",
    540: "NOT_IMPLEMENTED",
    541: "INTERNAL_ERROR",
}
_SOFT = frozenset({403, 404, 405, 406})
_TEXT_BYTES = 255  # reply-text is a short string


class AmqpError(Exception):
    """A protocol exception: `code`, and `text` as it goes into Channel.Close or Connection.Close.

    `hard`: the whole connection must be closed, not only the channel.
    """

    def __init__(self, code: int, text: str, *, hard: bool | None = None) -> None:
        full = f"{_NAMES[code]} - {text}"
        super().__init__(full)
        self.code = code
        self.text = full.encode()[:_TEXT_BYTES].decode(errors="ignore")
        self.hard = code not in _SOFT if hard is None else hard


def _raiser(code: int) -> Callable[[str], AmqpError]:
    def make(text: str) -> AmqpError:
        return AmqpError(code, text)

    return make


access_refused = _raiser(403)
not_found = _raiser(404)
resource_locked = _raiser(405)
precondition_failed = _raiser(406)
frame_error = _raiser(501)
syntax_error = _raiser(502)
command_invalid = _raiser(503)
channel_error = _raiser(504)
unexpected_frame = _raiser(505)
not_allowed = _raiser(530)
not_implemented = _raiser(540)
internal_error = _raiser(541)
