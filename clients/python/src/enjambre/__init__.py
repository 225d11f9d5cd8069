"""Client and peer of the peer-to-peer file distribution service Enjambre, version 1 of the protocol."""

from .download import get
from .errors import ConnectionLost, EnjambreError, InvalidData, NoProvider, RequestError
from .peer import Peer
from .tracker import FileRecord, Provider, Tracker
from .wire import Connection, connect

__all__ = [
    "Connection",
    "ConnectionLost",
    "EnjambreError",
    "FileRecord",
    "InvalidData",
    "NoProvider",
    "Peer",
    "Provider",
    "RequestError",
    "Tracker",
    "connect",
    "get",
]
