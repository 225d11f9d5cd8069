"""A peer that publishes files and serves their pieces: sections 6 and 7 of docs/PROTOCOL.md."""

from __future__ import annotations

import os
import socket
import stat
import struct
import threading
import time
from dataclasses import dataclass
from typing import Any

import blake3
import cbor2
import zmq
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey

from .errors import EnjambreError, InvalidData, RequestError
from .pieces import MAX_PAYLOAD_HASHES, file_id, piece_count, piece_hashes, piece_length, piece_size
from .tracker import Tracker
from .wire import DEFAULT_TIMEOUT, MAX_HEADER, PREFACE, VERSION, decode, field, split_endpoint

MAX_CONNECTIONS = 64
IDLE_TIMEOUT = 300.0
ANNOUNCE_INTERVAL = 15 * 60.0
MAX_OFFERS = 800
ZERO_ID = bytes(32)


@dataclass(frozen=True)
class _Shared:
    path: str
    size: int
    modified_ns: int
    hashes: list[bytes]


class Peer:
    """Publishes files at a tracker and serves them until `close`.

    `listen` contains endpoints of the schemes `tcp` and `zmq`; port 0 selects a free port. `secret` is the Ed25519 key of the
    peer; without it, the peer gets a new one. Files are read from where they are and must not change.
    """

    def __init__(
        self,
        tracker: str,
        listen: tuple[str, ...] = ("tcp://0.0.0.0:0",),
        secret: bytes | None = None,
        timeout: float = DEFAULT_TIMEOUT,
    ) -> None:
        self._key = Ed25519PrivateKey.from_private_bytes(secret or os.urandom(32))
        self.id = blake3.blake3(self._public()).digest()
        self._tracker, self._timeout = tracker, timeout
        self._files: dict[bytes, _Shared] = {}
        # The requests that repeat the publications.
        self._published: dict[str, dict[str, Any]] = {}
        self._started, self._sent, self._active = time.monotonic(), 0, 0
        self._counters = threading.Lock()
        self._closed = threading.Event()
        self._slots = threading.BoundedSemaphore(MAX_CONNECTIONS)
        self._listeners: list[socket.socket] = []
        self._threads: list[threading.Thread] = []
        self.endpoints = [self._listen(endpoint) for endpoint in listen]
        # Serializes the requests to the tracker.
        self._session_lock = threading.RLock()
        self._connection: Tracker | None = None
        self._session, self._lease = b"", 60.0
        self._gaps: list[Any] = []
        with self._session_lock:
            self._open_session()
        self._run(self._keep_session)

    def publish(self, path: str | os.PathLike[str], name: str | None = None) -> bytes:
        """Publishes a file, by default under its file name, and returns its id."""
        path = os.path.abspath(path)
        with open(path, "rb") as content:
            status = os.fstat(content.fileno())
            hashes = piece_hashes(content, status.st_size)
        published = file_id(hashes)
        self._files[published] = _Shared(path, status.st_size, status.st_mtime_ns, hashes)
        kind = "executable" if status.st_mode & stat.S_IXUSR else "file"
        name = name or os.path.basename(path)
        fields = {"name": name, "id": published, "size": status.st_size, "kind": kind}
        with self._session_lock:
            reply = self._with_session("publish", "published", **fields)
            self._published[name] = {**fields, "again": field(reply, "version", int)}
        return published

    def close(self) -> None:
        """Leaves the tracker and stops serving."""
        if self._closed.is_set():
            return
        self._closed.set()
        for listener in self._listeners:
            listener.close()
        with self._session_lock:
            try:
                if self._connection:
                    self._connection.connection.call("leave", "done", session=self._session)
            except EnjambreError:
                pass  # The lease expires.
            self._disconnect()
        for thread in self._threads:
            thread.join(self._timeout)

    def __enter__(self) -> Peer:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def _public(self) -> bytes:
        return self._key.public_key().public_bytes_raw()

    def _run(self, target: Any, *arguments: Any) -> None:
        thread = threading.Thread(target=target, args=arguments, daemon=True)
        self._threads = [other for other in self._threads if other.is_alive()] + [thread]
        thread.start()

    # The session with the tracker.

    def _disconnect(self) -> None:
        if self._connection:
            self._connection.close()
        self._connection = None

    def _open_session(self) -> None:
        self._disconnect()
        self._connection = Tracker(self._tracker, self._timeout)
        call = self._connection.connection.call
        start, _ = call("open_session")
        nonce = field(start, "nonce", bytes)
        texts = b"".join(endpoint.encode() + b"\n" for endpoint in self.endpoints)
        parts = [b"enjambre session 1", ZERO_ID, field(start, "catalogue", bytes), nonce, blake3.blake3(texts).digest()]
        signature = self._key.sign(b"".join(parts))
        proof = {"key": self._public(), "nonce": nonce, "signature": signature, "endpoints": self.endpoints}
        grant = field(call("open_session", proof=proof)[0], "grant", dict)
        self._session = field(grant, "session", bytes)
        self._lease = max(field(grant, "lease_ms", int) / 1000, 1.0)
        self._announce()
        gaps = field(grant, "gaps", list)
        if self._is_new(gaps):
            self._publish_again()
            self._gaps = gaps

    def _is_new(self, gaps: list[Any]) -> bool:
        return any(gap not in self._gaps for gap in gaps)

    def _publish_again(self) -> None:
        """Repeats the publications, which the catalogue may have lost. Those that it has stay as they are."""
        assert self._connection is not None, "the session is open"
        failed: RequestError | None = None
        for fields in self._published.values():
            try:
                reply, _ = self._connection.connection.call("publish", "published", session=self._session, **fields)
                fields["again"] = field(reply, "version", int)
            except RequestError as error:
                # Others, such as a name that is reserved now, are final.
                if error.code in ("unauthorized", "replaced", "busy", "storage"):
                    failed = error
        if failed:
            raise failed

    def _announce(self) -> None:
        assert self._connection is not None, "the session is open"
        offers = [{"id": key, "size": file.size, "complete": True} for key, file in list(self._files.items())]
        for at in range(0, len(offers), MAX_OFFERS):
            page = offers[at : at + MAX_OFFERS]
            self._connection.connection.call("announce", "announced", session=self._session, offers=page)

    def _with_session(self, kind: str, expected: str, /, **fields: Any) -> Any:
        """Sends a request with the session. Opens a new session if there is none or it is void."""
        with self._session_lock:
            try:
                if self._connection is None:
                    self._open_session()
                assert self._connection is not None, "the session is open"
                return self._connection.connection.call(kind, expected, session=self._session, **fields)[0]
            except RequestError as error:
                if error.code not in ("unauthorized", "replaced"):
                    raise
            except EnjambreError:
                pass
            try:
                self._open_session()
                assert self._connection is not None, "the session is open"
                return self._connection.connection.call(kind, expected, session=self._session, **fields)[0]
            except EnjambreError:
                self._disconnect()
                raise

    def _keep_session(self) -> None:
        announced = time.monotonic()
        while not self._closed.wait(self._lease / 3):
            try:
                renewed = self._with_session("renew", "renewed")
                if self._is_new(field(renewed, "gaps", list)):
                    with self._session_lock:
                        self._open_session()
                if time.monotonic() - announced > ANNOUNCE_INTERVAL:
                    with self._session_lock:
                        self._announce()
                    announced = time.monotonic()
            except (EnjambreError, OSError):
                continue  # Repeated after the next interval.

    # Requests of other peers.

    def _listen(self, endpoint: str) -> str:
        scheme, host, port = split_endpoint(endpoint)
        bracketed = f"[{host}]" if ":" in host else host
        if scheme == "tcp":
            family = socket.AF_INET6 if ":" in host else socket.AF_INET
            listener = socket.create_server((host, port), family=family)
            self._listeners.append(listener)
            self._run(self._accept, listener)
            return f"tcp://{bracketed}:{listener.getsockname()[1]}"
        if scheme == "zmq":
            router: zmq.Socket[bytes] = zmq.Context.instance().socket(zmq.ROUTER)
            router.setsockopt(zmq.LINGER, 0)
            router.setsockopt(zmq.MAXMSGSIZE, MAX_HEADER)
            router.setsockopt(zmq.IPV6, int(":" in host))
            router.bind(f"tcp://{bracketed}:{port or '*'}")
            bound = router.getsockopt_string(zmq.LAST_ENDPOINT)
            self._run(self._route, router)
            return f"zmq://{bracketed}:{bound.rpartition(':')[2]}"
        raise ValueError(f"the scheme {scheme} is not supported; use tcp or zmq")

    def _accept(self, listener: socket.socket) -> None:
        while not self._closed.is_set():
            try:
                connection, _ = listener.accept()
            except OSError:
                return
            if self._slots.acquire(blocking=False):
                self._run(self._serve, connection)
            else:
                connection.close()

    def _serve(self, connection: socket.socket) -> None:
        try:
            connection.settimeout(IDLE_TIMEOUT)
            connection.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
            with connection, connection.makefile("rb") as stream:
                connection.sendall(PREFACE)
                if stream.read(len(PREFACE)) != PREFACE:
                    return
                while not self._closed.is_set():
                    lengths = stream.read(8)
                    if len(lengths) < 8:
                        return
                    header_length, payload_length = struct.unpack(">II", lengths)
                    if header_length > MAX_HEADER or payload_length:
                        return
                    header, payload = self._answer(stream.read(header_length))
                    connection.sendall(struct.pack(">II", len(header), len(payload)) + header)
                    connection.sendall(payload)
        except OSError:
            pass  # The remote is gone.
        finally:
            self._slots.release()

    def _route(self, router: zmq.Socket[bytes]) -> None:
        with router:
            while not self._closed.is_set():
                if not router.poll(200):
                    continue
                frames = router.recv_multipart()
                # A REQ socket sends an empty delimiter before the header.
                start = 2 if len(frames) > 2 and not frames[1] else 1
                header, payload = self._answer(frames[start] if len(frames) == start + 1 else b"")
                router.send_multipart([*frames[:start], header, *([payload] if payload else [])])

    def _answer(self, request: bytes) -> tuple[bytes, bytes]:
        """Returns the header and payload of the reply."""
        reply: dict[str, Any] = {"v": VERSION, "id": None}
        payload = b""
        try:
            message = decode(request)
            identifier, version = message.get("id"), message.get("v")
            reply["id"] = identifier if isinstance(identifier, int) else None
            if version == VERSION:
                reply["reply"], payload = self._reply(message.get("request"))
            else:
                text = "unknown protocol version"
                reply["error"] = {"code": "unsupported", "message": text, "versions": [VERSION]}
        except RequestError as error:
            reply["error"] = {"code": error.code, "message": error.message}
        except InvalidData as error:
            reply["error"] = {"code": "malformed", "message": str(error)}
        return cbor2.dumps(reply), payload

    def _reply(self, request: Any) -> tuple[Any, bytes]:
        if isinstance(request, str):
            request = {request: {}}
        if not isinstance(request, dict) or len(request) != 1:
            raise InvalidData("the request does not have one kind")
        [(kind, fields)] = request.items()
        if kind == "status":
            uptime = int((time.monotonic() - self._started) * 1000)
            counters = {"files": len(self._files), "sent_bytes": self._sent, "active_requests": self._active}
            return {"peer_status": {"program": "enjambre-python", "uptime_ms": uptime, **counters}}, b""
        if kind == "cancel":
            field(fields, "ids", list)
            return "done", b""
        if kind not in ("have", "manifest", "piece"):
            raise RequestError("unsupported", "unknown kind of request")
        key, index = field(fields, "id", bytes), 0
        if kind != "have":
            index = field(fields, "first" if kind == "manifest" else "index", int)
        file = self._files.get(key)
        if file is None:
            raise RequestError("not_found", "the file is not offered")
        if kind == "have":
            return {"have": {"size": file.size, "complete": True}}, b""
        if kind == "manifest":
            return {"manifest": {"size": file.size}}, b"".join(file.hashes[index : index + MAX_PAYLOAD_HASHES])
        return "piece", self._read(file, index)

    def _read(self, file: _Shared, index: int) -> bytes:
        if index >= piece_count(file.size):
            raise RequestError("not_found", "the file has fewer pieces")
        with self._counters:
            self._active += 1
        try:
            with open(file.path, "rb") as content:
                status = os.fstat(content.fileno())
                if (status.st_size, status.st_mtime_ns) != (file.size, file.modified_ns):
                    raise RequestError("not_found", "the file changed")
                content.seek(index * piece_size(file.size))
                piece = content.read(piece_length(file.size, index))
        except OSError as error:
            raise RequestError("not_found", "the file cannot be read") from error
        finally:
            with self._counters:
                self._active -= 1
        with self._counters:
            self._sent += len(piece)
        return piece
