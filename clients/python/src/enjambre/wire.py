"""Messages and connections: section 2 of docs/PROTOCOL.md."""

from __future__ import annotations

import socket
import struct
import time
from abc import ABC, abstractmethod
from typing import Any, TypeVar

import cbor2
import zmq
from zmq.utils.monitor import recv_monitor_message

from .errors import ConnectionLost, InvalidData, RequestError

VERSION = 1
PREFACE = b"\x8aENJTCP\x01"
MAX_HEADER, MAX_PAYLOAD = 64 * 1024, 4 * 1024 * 1024
DEFAULT_TIMEOUT = 20.0
HEARTBEAT_MS = 5_000
MAX_QUEUED = 16


def decode(header: bytes) -> dict[str, Any]:
    """Decodes a header, which must be a map."""
    try:
        value = cbor2.loads(header)
    except Exception as error:  # The decoder raises many types.
        raise InvalidData(f"invalid CBOR: {error}") from error
    if not isinstance(value, dict):
        raise InvalidData("the header is not a map")
    return value


def field(fields: Any, name: str, kind: type[Any]) -> Any:
    """Returns a required field of this type."""
    value = fields.get(name) if isinstance(fields, dict) else None
    valid = isinstance(value, kind) and not (kind is int and isinstance(value, bool))
    if not valid or (isinstance(value, int) and value < 0):
        raise InvalidData(f"the field {name} is missing or invalid")
    return value


_Self = TypeVar("_Self", bound="Connection")


class Connection(ABC):
    """A connection to a tracker or peer. It belongs to one thread at a time."""

    def __init__(self) -> None:
        self._last_id = 0

    def send(self, kind: str, /, **fields: Any) -> int:
        """Sends a request and returns its id."""
        self._last_id += 1
        request = {kind: fields} if fields or kind == "open_session" else kind
        self._send(cbor2.dumps({"v": VERSION, "id": self._last_id, "request": request}))
        return self._last_id

    def receive(self) -> tuple[int, str, Any, bytes]:
        """Returns the request id, kind, fields and payload of the next reply."""
        header, payload = self._receive()
        message = decode(header)
        error = message.get("error")
        if error is not None:
            text, retry = field(error, "message", str), error.get("retry_after")
            raise RequestError(field(error, "code", str), text[:1024], retry if isinstance(retry, int) else None)
        reply = message.get("reply")
        if isinstance(reply, str):
            reply = {reply: {}}
        if not isinstance(reply, dict) or len(reply) != 1:
            raise InvalidData("the reply does not have one kind")
        [(kind, fields)] = reply.items()
        return field(message, "id", int), str(kind), fields, payload

    def call(self, kind: str, expected: str | None = None, /, **fields: Any) -> tuple[Any, bytes]:
        """Sends a request and returns the fields and payload of its reply. No other request may be outstanding."""
        request_id = self.send(kind, **fields)
        reply_id, reply_kind, reply, payload = self.receive()
        if reply_id != request_id or reply_kind != (expected or kind):
            raise InvalidData(f"unexpected reply {reply_kind} to {kind}")
        return reply, payload

    def __enter__(self: _Self) -> _Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    @abstractmethod
    def close(self) -> None:
        """Closes the connection."""

    @abstractmethod
    def _send(self, header: bytes) -> None: ...

    @abstractmethod
    def _receive(self) -> tuple[bytes, bytes]: ...


class TcpConnection(Connection):
    """A connection of the scheme `tcp`."""

    def __init__(self, host: str, port: int, timeout: float) -> None:
        super().__init__()
        try:
            self._socket = socket.create_connection((host, port), timeout)
            self._socket.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
            self._socket.sendall(PREFACE)
            self._stream = self._socket.makefile("rb")
        except OSError as error:
            raise ConnectionLost(f"cannot connect to {host}:{port}: {error}") from error
        if self._read(len(PREFACE)) != PREFACE:
            self.close()
            raise InvalidData("the remote does not speak this protocol")

    def close(self) -> None:
        self._stream.close()
        self._socket.close()

    def _send(self, header: bytes) -> None:
        try:
            self._socket.sendall(struct.pack(">II", len(header), 0) + header)
        except OSError as error:
            raise ConnectionLost(f"connection lost: {error}") from error

    def _receive(self) -> tuple[bytes, bytes]:
        header, payload = struct.unpack(">II", self._read(8))
        if header > MAX_HEADER or payload > MAX_PAYLOAD:
            raise InvalidData("the reply exceeds the limits")
        return self._read(header), self._read(payload)

    def _read(self, length: int) -> bytes:
        try:
            content = self._stream.read(length)
        except OSError as error:
            raise ConnectionLost(f"connection lost: {error}") from error
        if len(content) < length:
            raise ConnectionLost("the remote closed the connection")
        return content


class ZmqConnection(Connection):
    """A connection of the scheme `zmq`."""

    def __init__(self, host: str, port: int, timeout: float) -> None:
        super().__init__()
        self._timeout = timeout
        self._socket: zmq.Socket[bytes] = zmq.Context.instance().socket(zmq.DEALER)
        options = {
            zmq.LINGER: 0,
            zmq.SNDTIMEO: int(timeout * 1000),
            zmq.CONNECT_TIMEOUT: int(timeout * 1000),
            zmq.HEARTBEAT_IVL: HEARTBEAT_MS,
            zmq.HEARTBEAT_TIMEOUT: int(timeout * 1000),
            zmq.MAXMSGSIZE: MAX_PAYLOAD,
            # Replies that wait in memory.
            zmq.RCVHWM: MAX_QUEUED,
            # A reconnected socket has lost its outstanding requests.
            zmq.RECONNECT_IVL: -1,
            zmq.IPV6: 1,
        }
        for option, value in options.items():
            self._socket.setsockopt(option, value)
        lost = zmq.EVENT_DISCONNECTED | zmq.EVENT_CLOSED | zmq.EVENT_HANDSHAKE_FAILED_NO_DETAIL
        self._lost: zmq.Socket[bytes] = self._socket.get_monitor_socket(lost | zmq.EVENT_HANDSHAKE_FAILED_PROTOCOL)
        bracketed = f"[{host}]" if ":" in host else host
        self._socket.connect(f"tcp://{bracketed}:{port}")

    def close(self) -> None:
        self._socket.disable_monitor()
        self._lost.close(0)
        self._socket.close(0)

    def _send(self, header: bytes) -> None:
        try:
            self._socket.send(header)
        except zmq.ZMQError as error:
            raise ConnectionLost(f"connection lost: {error}") from error

    def _receive(self) -> tuple[bytes, bytes]:
        poller = zmq.Poller()
        poller.register(self._socket, zmq.POLLIN)
        poller.register(self._lost, zmq.POLLIN)
        end = time.monotonic() + self._timeout
        while True:
            ready = dict(poller.poll(max(0, int((end - time.monotonic()) * 1000))))
            if self._socket in ready:
                frames = self._socket.recv_multipart()
                if len(frames) > 2 or len(frames[0]) > MAX_HEADER:
                    raise InvalidData("the reply exceeds the limits")
                return frames[0], frames[1] if len(frames) == 2 else b""
            if self._lost in ready:
                recv_monitor_message(self._lost)
                raise ConnectionLost("the remote closed or refused the connection")
            if not ready:
                raise ConnectionLost(f"no reply within {self._timeout:g} s")


def split_endpoint(endpoint: str) -> tuple[str, str, int]:
    """Returns the scheme, host and port of an endpoint."""
    scheme, separator, rest = endpoint.partition("://")
    host, colon, port = rest.rpartition(":")
    if not separator or not colon or not host or not port.isascii() or not port.isdigit() or int(port) > 65535:
        raise ValueError(f"invalid endpoint {endpoint!r}: expected SCHEME://HOST:PORT")
    return scheme, host.removeprefix("[").removesuffix("]"), int(port)


def connect(endpoint: str, timeout: float = DEFAULT_TIMEOUT) -> Connection:
    """Connects to an endpoint of the scheme `tcp` or `zmq`. Every wait ends after `timeout` seconds."""
    scheme, host, port = split_endpoint(endpoint)
    if scheme == "tcp":
        return TcpConnection(host, port, timeout)
    if scheme == "zmq":
        return ZmqConnection(host, port, timeout)
    raise ValueError(f"the scheme {scheme} is not supported; use tcp or zmq")
