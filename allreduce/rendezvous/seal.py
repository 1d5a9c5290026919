"""Seals what ranks write into a store: an HMAC of the job's secret over key and value.

So a foreign or damaged entry is an error, never data. Without a secret it guards against accidents
alone.
"""

from __future__ import annotations

import hashlib
import hmac

from allreduce.errors import UsageError
from allreduce.rendezvous.handshake import NO_SECRET, Session

__all__ = ["Seal"]


class Seal:
    """The seal of one job and generation."""

    BYTES = 32  # in front of each value

    def __init__(self, secret: bytes | None, generation: int) -> None:
        self._key = Session.derive(secret or NO_SECRET, 0, generation).key

    def close(self, key: str, body: bytes) -> bytes:
        """Return what is to be written under `key`."""
        return self._mac(key, body) + body

    def open(self, key: str, writer: str, sealed: bytes) -> bytes:
        """Return what `writer` wrote under `key`. Raises UsageError for another seal."""
        mac, body = sealed[: self.BYTES], sealed[self.BYTES :]
        if not hmac.compare_digest(mac, self._mac(key, body)):
            raise UsageError(
                f"what {writer} wrote into the store does not carry this job's seal: its "
                "ALLREDUCE_SECRET_FILE or "
                "ALLREDUCE_SECRET differs, or the store is shared with another job"
            )
        return body

    def _mac(self, key: str, body: bytes) -> bytes:
        return hmac.digest(self._key, key.encode() + b"\0" + body, hashlib.sha256)
