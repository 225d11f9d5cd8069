"""Downloads of files: sections 7 and 8 of docs/PROTOCOL.md."""

from __future__ import annotations

import contextlib
import ipaddress
import os
import secrets
import socket
from collections.abc import Callable, Sequence
from typing import BinaryIO

from .errors import ConnectionLost, EnjambreError, InvalidData, NoProvider
from .pieces import MAX_FILE, file_id, piece_count, piece_hash, piece_length, piece_size
from .tracker import FileRecord, Tracker
from .wire import DEFAULT_TIMEOUT, Connection, connect, field, split_endpoint

WINDOW = 8
SCHEMES = ("tcp", "zmq")

Progress = Callable[[int, int], None]


def get(
    tracker: Tracker,
    file: FileRecord | str,
    path: str | os.PathLike[str],
    progress: Progress | None = None,
    schemes: Sequence[str] = SCHEMES,
    timeout: float = DEFAULT_TIMEOUT,
) -> FileRecord:
    """Downloads a file, or the newest version of a name, to `path`.

    Verifies the list of piece hashes, every piece and the size. The file appears at `path` when it is complete, executable if
    the publisher says so, and replaces an existing one. `progress` is called with the verified and the total number of bytes.
    `schemes` are in order of preference. A directory yields the list of its members.
    """
    record = tracker.find(file) if isinstance(file, str) else file
    folder = os.path.dirname(os.path.abspath(path))
    part = os.path.join(folder, f".{secrets.token_hex(8)}.enjambre-python-part")
    try:
        with open(part, "xb") as out:
            _Download(record.id, out, progress).run(tracker, schemes, timeout)
            out.flush()
            if record.kind == "executable":
                mode = os.fstat(out.fileno()).st_mode
                os.fchmod(out.fileno(), mode | (mode & 0o444) >> 2)
            os.fsync(out.fileno())
        os.replace(part, path)
    finally:
        with contextlib.suppress(FileNotFoundError):
            os.unlink(part)
    return record


class _Download:
    def __init__(self, wanted: bytes, out: BinaryIO, progress: Progress | None) -> None:
        self.id = wanted
        self.out = out
        self.progress = progress
        # Known and proven once a provider has sent a valid last piece.
        self.size: int | None = None
        self.hashes: list[bytes] = []
        self.missing: set[int] = set()
        self.done = 0

    def run(self, tracker: Tracker, schemes: Sequence[str], timeout: float) -> None:
        failures = []
        local = _is_loopback(tracker.endpoint)
        for provider in tracker.providers(self.id):
            for endpoint in sorted(provider.endpoints, key=lambda endpoint: _rank(endpoint, schemes)):
                if _rank(endpoint, schemes) == len(schemes):
                    continue
                try:
                    with connect(_checked(endpoint, local), timeout) as peer:
                        self.fetch(peer)
                except (EnjambreError, OSError, ValueError) as error:
                    failures.append(f"{endpoint}: {error}")
                if self.size is not None and not self.missing:
                    return
        raise NoProvider("; ".join(failures) or "no provider has an endpoint of these schemes")

    def fetch(self, peer: Connection) -> None:
        """Fetches the missing pieces that a peer has."""
        have, bitmap = peer.call("have", id=self.id)
        size, complete = field(have, "size", int), field(have, "complete", bool)
        if self.size is None:
            self.prove(peer, size)
        elif self.size != size:
            raise InvalidData(f"the peer claims {size} bytes, but the file has {self.size}")
        wanted = [index for index in sorted(self.missing) if complete or _has(bitmap, index)]
        pending: dict[int, int] = {}
        while wanted or pending:
            while wanted and len(pending) < WINDOW:
                index = wanted.pop(0)
                pending[peer.send("piece", id=self.id, index=index)] = index
            request, kind, _, content = peer.receive()
            if kind != "piece" or request not in pending:
                raise InvalidData(f"unexpected reply {kind}")
            self.store(pending.pop(request), content)

    def prove(self, peer: Connection, size: int) -> None:
        """Fetches the piece hashes and the last piece, which together prove the size that the peer claims."""
        if size > MAX_FILE:
            raise InvalidData(f"the claimed size of {size} bytes exceeds the maximum")
        count, hashes = piece_count(size), self.id if piece_count(size) == 1 else b""
        while len(hashes) < 32 * count:
            manifest, payload = peer.call("manifest", id=self.id, first=len(hashes) // 32)
            if field(manifest, "size", int) != size or not payload or len(payload) % 32:
                raise InvalidData("the piece hashes are incomplete or belong to another size")
            hashes += payload
        self.hashes = [hashes[at : at + 32] for at in range(0, len(hashes), 32)]
        if len(self.hashes) != count or file_id(self.hashes) != self.id:
            raise InvalidData("the piece hashes do not merge into the id")
        last = b""
        if count:
            _, last = peer.call("piece", id=self.id, index=count - 1)
            self.check(size, count - 1, last)
        self.size, self.missing = size, set(range(count))
        if count:
            self.store(count - 1, last)
        elif self.progress:
            self.progress(0, 0)

    def check(self, size: int, index: int, content: bytes) -> None:
        valid = len(content) == piece_length(size, index) and piece_hash(size, index, content) == self.hashes[index]
        if not valid:
            raise InvalidData(f"piece {index} does not match its length and hash")

    def store(self, index: int, content: bytes) -> None:
        assert self.size is not None, "the size is proven first"
        self.check(self.size, index, content)
        self.out.seek(index * piece_size(self.size))
        self.out.write(content)
        self.missing.discard(index)
        self.done += len(content)
        if self.progress:
            self.progress(self.done, self.size)


def _rank(endpoint: str, schemes: Sequence[str]) -> int:
    scheme = endpoint.partition("://")[0]
    return schemes.index(scheme) if scheme in schemes else len(schemes)


def _has(bitmap: bytes, index: int) -> bool:
    return index // 8 < len(bitmap) and bool(bitmap[index // 8] >> index % 8 & 1)


def _addresses(endpoint: str) -> list[ipaddress.IPv4Address | ipaddress.IPv6Address]:
    _, host, port = split_endpoint(endpoint)
    found = socket.getaddrinfo(host, port, type=socket.SOCK_STREAM)
    addresses = [ipaddress.ip_address(str(entry[4][0]).partition("%")[0]) for entry in found]
    return [getattr(address, "ipv4_mapped", None) or address for address in addresses]


def _is_loopback(endpoint: str) -> bool:
    return all(address.is_loopback for address in _addresses(endpoint))


def _checked(endpoint: str, local: bool) -> str:
    """Resolves the host, and refuses addresses that a remote must not make this host connect to."""
    scheme, _, port = split_endpoint(endpoint)
    for address in _addresses(endpoint):
        forbidden = address.is_link_local or address.is_multicast or address.is_unspecified
        if not forbidden and (local or not address.is_loopback):
            return f"{scheme}://[{address}]:{port}" if address.version == 6 else f"{scheme}://{address}:{port}"
    raise ConnectionLost("the endpoint has no permitted address")
