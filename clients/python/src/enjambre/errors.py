"""Errors of this package."""

from __future__ import annotations


class EnjambreError(Exception):
    """Base class of all errors of this package."""


class ConnectionLost(EnjambreError):
    """The remote cannot be reached, closed the connection or did not answer in time."""


class InvalidData(EnjambreError):
    """The remote violated the protocol, or its content does not match the id."""


class NoProvider(EnjambreError):
    """No provider offers the whole file. The message contains the failure of each."""


class RequestError(EnjambreError):
    """An error reply."""

    def __init__(self, code: str, message: str, retry_after_ms: int | None = None) -> None:
        super().__init__(f"{code}: {message}")
        self.code = code
        self.message = message
        self.retry_after_ms = retry_after_ms
