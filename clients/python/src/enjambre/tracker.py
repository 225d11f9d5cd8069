"""Lookups at a tracker: section 6 of docs/PROTOCOL.md."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

from .errors import InvalidData
from .wire import DEFAULT_TIMEOUT, connect, field

MAX_EMPTY_PAGES = 2_000
PAGE = 1_000


@dataclass(frozen=True)
class FileRecord:
    """A published version of a name. Its size and kind are claims of the publisher."""

    id: bytes
    name: str
    version: int
    size: int
    kind: str
    published_ms: int
    publisher: bytes
    providers: int

    @classmethod
    def _decode(cls, fields: Any) -> FileRecord:
        integers = {key: field(fields, key, int) for key in ("version", "size", "published_ms", "providers")}
        name, kind = field(fields, "name", str), field(fields, "kind", str)
        return cls(id=hash_field(fields, "id"), name=name, kind=kind, publisher=hash_field(fields, "publisher"), **integers)


@dataclass(frozen=True)
class Provider:
    """A live peer that offers a file. Its size is a claim of that peer."""

    peer: bytes
    endpoints: tuple[str, ...]
    size: int
    complete: bool

    @classmethod
    def _decode(cls, fields: Any) -> Provider:
        endpoints = field(fields, "endpoints", list)
        if not all(isinstance(endpoint, str) for endpoint in endpoints):
            raise InvalidData("an endpoint is not a text")
        size, complete = field(fields, "size", int), field(fields, "complete", bool)
        return cls(hash_field(fields, "peer"), tuple(endpoints), size, complete)


def hash_field(fields: Any, name: str) -> bytes:
    """Returns a required field of 32 bytes."""
    value: bytes = field(fields, name, bytes)
    if len(value) != 32:
        raise InvalidData(f"the field {name} is not 32 bytes long")
    return value


class Tracker:
    """A connection to a tracker, at an endpoint such as `tcp://tracker.example.org:7700`."""

    def __init__(self, endpoint: str, timeout: float = DEFAULT_TIMEOUT) -> None:
        self.endpoint = endpoint
        self.timeout = timeout
        self.connection = connect(endpoint, timeout)

    def find(self, query: str) -> FileRecord:
        """Returns the newest version of a name, or the file with this id or id prefix in hexadecimal digits."""
        reply, _ = self.connection.call("find", query=query)
        return FileRecord._decode(field(reply, "file", dict))

    def list(self, pattern: str = "") -> Iterator[FileRecord]:
        """Yields the files whose names match, ordered by name, the newest version of a name first."""
        cursor, last, empty = None, ("", 0), 0
        while True:
            reply, _ = self.connection.call("list", pattern=pattern, limit=PAGE, cursor=cursor)
            files = [FileRecord._decode(file) for file in field(reply, "files", list)]
            for file in files:
                # UTF-8 keeps the order of code points.
                position = (file.name, -file.version)
                if last != ("", 0) and position <= last:
                    raise InvalidData("the tracker sent files in the wrong order")
                last = position
                yield file
            cursor = reply.get("cursor")
            empty = 0 if files else empty + 1
            if cursor is None:
                return
            if empty > MAX_EMPTY_PAGES:
                raise InvalidData("the tracker sent too many empty pages")

    def providers(self, file_id: bytes) -> tuple[Provider, ...]:
        """Returns live peers that offer a file, in random order."""
        reply, _ = self.connection.call("providers", id=file_id)
        return tuple(Provider._decode(provider) for provider in field(reply, "providers", list))

    def close(self) -> None:
        """Closes the connection."""
        self.connection.close()

    def __enter__(self) -> Tracker:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()
