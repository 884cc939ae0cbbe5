"""One client's connection: handshake, frames in and out, channels, heartbeat.

AMQP 0-9-1 specification, sections 2.2 (connection) and 4.2 (wire format).
"""

from __future__ import annotations

import asyncio
import logging
import struct
from typing import Protocol

from pamqp import base
from pamqp.commands import Channel as ChannelMethods
from pamqp.commands import Connection as Methods

from pestfleet.broker import fastframes, frames
from pestfleet.broker.channel import Channel
from pestfleet.broker.errors import (
    AmqpError,
    access_refused,
    channel_error,
    command_invalid,
    not_allowed,
    unexpected_frame,
)
from pestfleet.broker.exchanges import Router
from pestfleet.broker.logins import SERVER_PROPERTIES, read_credentials
from pestfleet.broker.queues import Queue
from pestfleet.broker.streams import Host, Stream

FRAME_MAX = 131072  # bytes, RabbitMQ's; larger ones were no faster with bodies of 800 kB
CHANNEL_MAX = 2047
HEARTBEAT = 60  # seconds, when the client does not ask for less
HANDSHAKE_SECONDS = 10
CLOSE_SECONDS = 5

_method_index = struct.Struct(">I").unpack_from
_log = logging.getLogger(__name__)


class Server(Host, Protocol):
    """What a connection needs of its server."""

    router: Router

    def check_login(self, user: str, password: str) -> bool: ...
    def add(self, connection: Connection) -> None: ...
    def remove(self, connection: Connection) -> None: ...


class Connection(Stream):
    """The broker's side of one TCP connection; runs in the event loop's thread."""

    def __init__(self, server: Server) -> None:
        super().__init__(server)
        self.cancel_notify = False
        self.channels: dict[int, Channel] = {}
        self._server = server
        self._heartbeat = 0
        self._expects: type[base.Frame] | None = None  # the handshake's next method
        self._ready = False
        self._closing = False
        self._close_on_failure = False
        self._publishing: set[Channel] = set()

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        super().connection_made(transport)
        self._deadline = asyncio.get_running_loop().call_later(HANDSHAKE_SECONDS, self.abort)
        self._server.add(self)

    def connection_lost(self, error: Exception | None) -> None:
        super().connection_lost(error)
        self._deadline.cancel()
        self._detach()
        self._server.remove(self)
        self._server.flush()

    def set_writable(self, writable: bool) -> None:
        super().set_writable(writable)
        for channel in list(self.channels.values()):
            channel.update_window()

    def finish_read(self) -> None:
        for channel in self._publishing:
            self.send(channel.confirm())
        self._publishing.clear()

    def _reply(self, method: base.Frame, channel: int = 0) -> None:
        self.send(frames.encode_method(channel, method))

    def handle_frame(self, kind: int, number: int, payload: bytes) -> None:
        if self._closing:
            self._handle_closing(kind, number, payload)
            return
        channel = self.channels.get(number)
        if channel is None:
            if kind == frames.FRAME_METHOD:
                method = frames.decode_method(payload)
                if number:
                    self._open_channel(number, method)
                else:
                    self._handle_connection(method)
            elif kind != frames.FRAME_HEARTBEAT or number or not self._ready:
                raise unexpected_frame(f"frame of type {kind} on channel {number}")
            return
        if channel.closing:
            self._handle_closed_channel(channel, kind, payload)
            return
        try:
            self._handle_channel(channel, kind, payload)
        except AmqpError as error:
            if error.hard:
                raise
            self._fail_channel(channel, error)

    def _handle_channel(self, channel: Channel, kind: int, payload: bytes) -> None:
        if kind == frames.FRAME_METHOD:
            index = _method_index(payload)[0] if len(payload) >= 4 else 0
            if index == fastframes.PUBLISH:
                channel.start_publish(payload)
            elif index == fastframes.ACK:
                channel.expect_method()
                channel.settle(*fastframes.decode_ack(payload))
            else:
                method = frames.decode_method(payload)
                if isinstance(method, ChannelMethods.Close):
                    self._close_channel(channel)
                    self._reply(ChannelMethods.CloseOk(), channel.number)
                elif isinstance(method, ChannelMethods.Open):
                    raise channel_error("second 'channel.open' seen")
                else:
                    channel.handle(method)
        elif kind == frames.FRAME_HEADER:
            self._publishing.add(channel)
            channel.take_header(payload)
        elif kind == frames.FRAME_BODY:
            self._publishing.add(channel)
            channel.take_body(payload)
        else:
            raise unexpected_frame(f"frame of type {kind} on channel {channel.number}")

    # Channels

    def _open_channel(self, number: int, method: base.Frame) -> None:
        if not self._ready:
            raise command_invalid(f"{method.name} before the connection is open")
        if isinstance(method, ChannelMethods.Close):
            self._reply(ChannelMethods.CloseOk(), number)
        elif isinstance(method, ChannelMethods.CloseOk):
            return
        elif not isinstance(method, ChannelMethods.Open):
            raise channel_error(f"expected 'channel.open' on channel {number}")
        elif number > CHANNEL_MAX:
            raise not_allowed(f"channel {number} is above channel-max {CHANNEL_MAX}")
        else:
            self.channels[number] = channel = Channel(number, self, self._server.router)
            channel.update_window()
            self._reply(ChannelMethods.OpenOk(), number)

    def _close_channel(self, channel: Channel) -> None:
        self.send(channel.confirm())
        self._publishing.discard(channel)
        del self.channels[channel.number]
        self._serve(channel.detach())

    def _fail_channel(self, channel: Channel, error: AmqpError) -> None:
        self._close_channel(channel)
        channel.closing = True
        self.channels[channel.number] = channel
        self._reply(ChannelMethods.Close(error.code, error.text, 0, 0), channel.number)

    def _handle_closed_channel(self, channel: Channel, kind: int, payload: bytes) -> None:
        if kind != frames.FRAME_METHOD:
            return
        method = frames.decode_method(payload)
        if isinstance(method, ChannelMethods.CloseOk):
            del self.channels[channel.number]
        elif isinstance(method, ChannelMethods.Close):
            self._reply(ChannelMethods.CloseOk(), channel.number)

    def _serve(self, queues: dict[Queue, None]) -> None:
        now = self._server.now()
        for queue in queues:
            queue.deliver(now)

    # Handshake

    def start(self) -> None:
        self._expects = Methods.StartOk
        self._reply(
            Methods.Start(
                server_properties=SERVER_PROPERTIES,
                mechanisms="PLAIN AMQPLAIN",
                locales="en_US",
            )
        )

    def _handle_connection(self, method: base.Frame) -> None:
        if isinstance(method, Methods.Close):
            self._detach()
            self._reply(Methods.CloseOk())
            self.hang_up()
        elif self._expects is None or not isinstance(method, self._expects):
            raise command_invalid(f"{method.name} out of place")
        elif isinstance(method, Methods.StartOk):
            self._log_in(method)
        elif isinstance(method, Methods.TuneOk):
            self._tune(method)
        elif isinstance(method, Methods.Open):
            if method.virtual_host != "/":
                raise not_allowed(f"vhost {method.virtual_host} not found")
            self._deadline.cancel()
            self._ready = True
            self._expects = None
            self._reply(Methods.OpenOk())

    def _log_in(self, method: Methods.StartOk) -> None:
        capabilities = (method.client_properties or {}).get("capabilities")
        if isinstance(capabilities, dict):
            self.cancel_notify = bool(capabilities.get("consumer_cancel_notify"))
            self._close_on_failure = bool(capabilities.get("authentication_failure_close"))
        user, password = read_credentials(method)
        if not self._server.check_login(user, password):
            mechanism = method.mechanism
            error = access_refused(f"Login was refused using authentication mechanism {mechanism}.")
            if not self._close_on_failure:
                self.abort()
                return
            error.hard = True
            raise error
        self._expects = Methods.TuneOk
        self._reply(Methods.Tune(CHANNEL_MAX, FRAME_MAX, HEARTBEAT))

    def _tune(self, method: Methods.TuneOk) -> None:
        wanted = method.frame_max or FRAME_MAX
        if not 4096 <= wanted <= FRAME_MAX:
            raise not_allowed(f"negotiated frame_max = {wanted} is not in 4096..{FRAME_MAX}")
        self.frame_max = wanted
        self._heartbeat = method.heartbeat
        self._expects = Methods.Open

    # Ends

    def fail(self, error: AmqpError) -> None:
        if self._closing:
            self.abort()
        else:
            self.close(error)

    def close(self, error: AmqpError) -> None:
        """Tell the client why, and give what it held to others."""
        if self._closing or self._lost:
            return
        self._closing = True
        self._detach()
        self._reply(Methods.Close(error.code, error.text, 0, 0))
        self._deadline.cancel()
        self._deadline = asyncio.get_running_loop().call_later(CLOSE_SECONDS, self.abort)

    def _handle_closing(self, kind: int, number: int, payload: bytes) -> None:
        if kind != frames.FRAME_METHOD or number:
            return
        method = frames.decode_method(payload)
        if isinstance(method, Methods.CloseOk):
            self.hang_up()
        elif isinstance(method, Methods.Close):
            self._reply(Methods.CloseOk())
            self.hang_up()

    def hang_up(self) -> None:
        super().hang_up()
        self._deadline.cancel()
        self._deadline = asyncio.get_running_loop().call_later(CLOSE_SECONDS, self.abort)

    def _detach(self) -> None:
        """Return what the client holds; queues are served when all its consumers are gone."""
        touched: dict[Queue, None] = {}
        channels = list(self.channels.values())
        self.channels.clear()
        self._publishing.clear()
        for channel in channels:
            touched.update(channel.detach())
        router = self._server.router
        for queue in [queue for queue in router.queues.values() if queue.owner is self]:
            router.delete_queue(queue)
        self._serve(touched)

    # Time

    def check_heartbeat(self, now: float) -> None:
        """Send a heartbeat when one is due; drop a client that was silent for two intervals."""
        if not self._heartbeat or self._lost:
            return
        if now - self._last_in > 2 * self._heartbeat:
            seconds = 2 * self._heartbeat
            _log.warning("%s was silent for %d s: connection closed", self.peer, seconds)
            self.abort()
        elif now - self._last_out >= self._heartbeat / 2:
            self.send(frames.HEARTBEAT)

    def forgive_silence(self, now: float) -> None:
        """The broker itself did not listen for a while."""
        self._last_in = now

    def set_paused(self, paused: bool) -> None:
        """Stop or go on reading."""
        if self._lost:
            return
        if paused:
            self._transport.pause_reading()
        else:
            self._transport.resume_reading()
            self.flush()
