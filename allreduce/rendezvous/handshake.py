"""Proof of identity on a fresh connection, before anything else is parsed. Pure: no input or
output.

    caller                                  answerer
      hello (64 B: who, to whom, nonce) ->
                                          <- nonce (32 B)
      proof (32 B)                      ->
                                          <- welcome (32 B)

Both proofs are HMAC-SHA256 over hello and nonces with a key of this job and generation; they differ
by a role letter, so that neither can be reflected. A caller is welcome only after its proof, so a
stranger learns nothing.
"""

from __future__ import annotations

import enum
import hashlib
import hmac
import os
import secrets
import stat
import struct
from collections.abc import Generator, Mapping
from dataclasses import dataclass
from pathlib import Path

from allreduce.errors import UsageError

MAGIC = b"HIER"
VERSION = 1
NONCE_BYTES = 32
PROOF_BYTES = 32
MIN_SECRET_BYTES = 16
# magic, version, kind, lane, group id, generation, source, destination, nonce; padded to 64 bytes
_HELLO = struct.Struct("<4sHBBIQII32s4x")
HELLO_BYTES = _HELLO.size
NOT_EXPECTED = "is not expected here"  # by now, or any more

# A dialogue yields (bytes to send, bytes wanted back) and returns the link that it proved.
Dialogue = Generator[tuple[bytes, int], bytes, "Link"]


class Kind(enum.IntEnum):
    """What a connection is for."""

    STORE = 0
    CONTROL = 1
    DATA = 2
    FDS = 3
    REQUEST = 4  # the higher rank is to call; see on_demand.py


@dataclass(frozen=True, slots=True, order=True)
class Link:
    """One connection of the mesh: `src` calls, `dst` answers."""

    kind: Kind
    lane: int
    src: int
    dst: int

    def peer_of(self, rank: int) -> int:
        """Return the rank at the other end."""
        return self.dst if rank == self.src else self.src

    def __str__(self) -> str:
        name = self.kind.name.lower() + (f" lane {self.lane}" if self.kind is Kind.DATA else "")
        return f"{name} connection {self.src} -> {self.dst}"


class Rejected(Exception):
    """The other side is not who it should be; the connection is dropped, nothing else happens."""


@dataclass(frozen=True, slots=True)
class Session:
    """What both sides must share: the key is bound to the group and its generation."""

    key: bytes
    group_id: int
    generation: int

    @classmethod
    def derive(cls, secret: bytes, group_id: int, generation: int) -> Session:
        """Return the session of one group; a key never serves two groups or generations."""
        info = b"hier-allreduce handshake 1" + struct.pack("<IQ", group_id, generation)
        return cls(hmac.digest(secret, info, hashlib.sha256), group_id, generation)

    def proof(self, role: bytes, transcript: bytes) -> bytes:
        """Return the 32-byte proof of `role` over everything said so far."""
        return hmac.digest(self.key, role + transcript, hashlib.sha256)


def call(session: Session, link: Link) -> Dialogue:
    """The caller's side of the handshake."""
    hello = _HELLO.pack(
        MAGIC,
        VERSION,
        link.kind,
        link.lane,
        session.group_id,
        session.generation,
        link.src,
        link.dst,
        secrets.token_bytes(NONCE_BYTES),
    )
    transcript = hello + (yield hello, NONCE_BYTES)
    welcome = yield session.proof(b"caller", transcript), PROOF_BYTES
    if not hmac.compare_digest(welcome, session.proof(b"answerer", transcript)):
        raise Rejected(f"{link}: the answerer does not know the secret")
    return link


def answer(session: Session, expected: set[Link]) -> Dialogue:
    """The answerer's side; only links that are `expected` (and not there yet) are let in."""
    hello = yield b"", HELLO_BYTES
    link = _read_hello(session, hello)
    if link not in expected:
        raise Rejected(f"{link} {NOT_EXPECTED}")
    nonce = secrets.token_bytes(NONCE_BYTES)
    transcript = hello + nonce
    proof = yield nonce, PROOF_BYTES
    if not hmac.compare_digest(proof, session.proof(b"caller", transcript)):
        raise Rejected(f"{link}: the caller does not know the secret")
    yield session.proof(b"answerer", transcript), 0
    if link not in expected:
        raise Rejected(f"{link} came twice and {NOT_EXPECTED}")
    return link


def _read_hello(session: Session, hello: bytes) -> Link:
    magic, version, kind, lane, group_id, generation, src, dst, _nonce = _HELLO.unpack(hello)
    if magic != MAGIC:
        raise Rejected("not a hier-allreduce handshake")
    if version != VERSION:
        raise Rejected(f"handshake version {version}, this side speaks {VERSION}")
    if (group_id, generation) != (session.group_id, session.generation):
        raise Rejected(f"rank {src} belongs to another group or generation ({generation})")
    try:
        return Link(Kind(kind), lane, src, dst)
    except ValueError:
        raise Rejected(f"unknown kind of connection {kind}") from None


# Where no secret was given. It is shorter than any secret may be.
NO_SECRET = b"no secret"


def job_secret(environ: Mapping[str, str] | None = None) -> bytes | None:
    """Return the secret of this job, or None where none was given.

    `ALLREDUCE_SECRET_FILE` names a file that only its owner may read; `ALLREDUCE_SECRET` holds the
    secret itself.

    Raises:
        ValueError: the file is missing or readable by others, the secret is too short, or
            `ALLREDUCE_REQUIRE_AUTH=1` asks for a secret and there is none.
    """
    environ = os.environ if environ is None else environ
    path, secret = environ.get("ALLREDUCE_SECRET_FILE"), environ.get("ALLREDUCE_SECRET")
    if path:
        return _long_enough(_read_secret_file(Path(path)), "ALLREDUCE_SECRET_FILE")
    if secret:
        return _long_enough(secret.encode(), "ALLREDUCE_SECRET")
    if environ.get("ALLREDUCE_REQUIRE_AUTH", "0") not in ("", "0"):
        raise UsageError(
            "ALLREDUCE_REQUIRE_AUTH is set but there is no secret: "
            "set ALLREDUCE_SECRET_FILE to a file of 32 random bytes with mode 0600 on every host"
        )
    return None


def _read_secret_file(path: Path) -> bytes:
    try:
        with path.open("rb") as file:
            status = os.fstat(file.fileno())
            secret = file.read(4096)
    except OSError as error:
        raise UsageError(
            f"ALLREDUCE_SECRET_FILE={path} cannot be read: {error.strerror}"
        ) from error
    if stat.S_IMODE(status.st_mode) & 0o077 or status.st_uid not in (0, os.geteuid()):
        raise UsageError(
            f"ALLREDUCE_SECRET_FILE={path} must belong to this user and be closed to others: chmod "
            f"600 {path}"
        )
    return secret


def _long_enough(secret: bytes, variable: str) -> bytes:
    secret = secret.strip()
    if len(secret) < MIN_SECRET_BYTES:
        raise UsageError(
            f"{variable}: the secret has {len(secret)} bytes, at least {MIN_SECRET_BYTES} are "
            "needed"
        )
    return secret
