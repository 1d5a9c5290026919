"""The handshake as a pure dialogue: who gets in, and who does not."""

import random
from collections.abc import Generator
from pathlib import Path

import pytest

from allreduce.rendezvous.handshake import (
    HELLO_BYTES,
    NOT_EXPECTED,
    Dialogue,
    Kind,
    Link,
    Rejected,
    Session,
    answer,
    call,
    job_secret,
)

SECRET = b"a secret of some length"
LINK = Link(Kind.DATA, 1, 3, 0)


def session(secret: bytes = SECRET, group_id: int = 7, generation: int = 0) -> Session:
    return Session.derive(secret, group_id, generation)


def converse(caller: Dialogue, answerer: Dialogue, flip: int | None = None) -> tuple[Link, Link]:
    """Run both sides against each other; bit `flip` of all that is said is inverted on its way."""
    said = 0

    def carry(message: bytes) -> bytes:
        nonlocal said
        start, said = said, said + 8 * len(message)
        if flip is None or not start <= flip < said:
            return message
        damaged = bytearray(message)
        damaged[(flip - start) // 8] ^= 1 << (flip - start) % 8
        return bytes(damaged)

    hello, _ = next(caller)
    next(answerer)
    nonce, _ = answerer.send(carry(hello))
    proof, _ = caller.send(carry(nonce))
    welcome, _ = answerer.send(carry(proof))
    return finish(answerer, b""), finish(caller, carry(welcome))


def finish(dialogue: Generator[tuple[bytes, int], bytes, Link], last: bytes) -> Link:
    with pytest.raises(StopIteration) as end:
        dialogue.send(last)
    link: Link = end.value.value
    return link


def test_both_sides_agree_on_the_link() -> None:
    assert converse(call(session(), LINK), answer(session(), {LINK})) == (LINK, LINK)


@pytest.mark.parametrize(
    "other",
    [session(b"another secret, as long"), session(group_id=8), session(generation=1)],
    ids=["secret", "group", "generation"],
)
def test_a_different_session_is_rejected(other: Session) -> None:
    with pytest.raises(Rejected):
        converse(call(other, LINK), answer(session(), {LINK}))


@pytest.mark.parametrize(
    "link",
    [
        Link(Kind.DATA, 2, 3, 0),
        Link(Kind.CONTROL, 1, 3, 0),
        Link(Kind.DATA, 1, 2, 0),
        Link(Kind.DATA, 1, 3, 1),
    ],
    ids=["lane", "kind", "source", "destination"],
)
def test_an_unexpected_link_is_rejected(link: Link) -> None:
    with pytest.raises(Rejected, match="not expected"):
        converse(call(session(), link), answer(session(), {LINK}))


def test_a_link_that_came_meanwhile_is_rejected() -> None:
    expected = {LINK}
    caller, answerer = call(session(), LINK), answer(session(), expected)
    hello, _ = next(caller)
    next(answerer)
    nonce, _ = answerer.send(hello)
    proof, _ = caller.send(nonce)
    answerer.send(proof)
    expected.clear()
    with pytest.raises(Rejected, match="twice and " + NOT_EXPECTED):
        answerer.send(b"")


def test_garbage_is_rejected_at_the_hello() -> None:
    generator = random.Random(2)
    for text in (b"GET / HTTP/1.1\r\n", b"\0" * 64, generator.randbytes(64)):
        answerer = answer(session(), {LINK})
        next(answerer)
        with pytest.raises(Rejected):
            answerer.send(text.ljust(HELLO_BYTES, b"\0")[:HELLO_BYTES])


@pytest.mark.parametrize("flip", random.Random(3).sample(range(60 * 8), 40))
def test_any_flipped_bit_of_the_hello_is_noticed(flip: int) -> None:
    with pytest.raises(Rejected):
        converse(call(session(), LINK), answer(session(), {LINK}), flip)


@pytest.mark.parametrize("flip", random.Random(4).sample(range(64 * 8, (64 + 96) * 8), 40))
def test_any_flipped_bit_of_nonce_and_proofs_is_noticed(flip: int) -> None:
    with pytest.raises(Rejected):
        converse(call(session(), LINK), answer(session(), {LINK}), flip)


def test_a_replayed_proof_is_worth_nothing() -> None:
    caller, answerer = call(session(), LINK), answer(session(), {LINK})
    hello, _ = next(caller)
    next(answerer)
    proof, _ = caller.send(answerer.send(hello)[0])
    again = answer(session(), {LINK})
    next(again)
    again.send(hello)
    with pytest.raises(Rejected, match="does not know the secret"):
        again.send(proof)


def test_a_reflected_proof_is_worth_nothing() -> None:
    caller = call(session(), LINK)
    next(caller)
    proof, _ = caller.send(b"n" * 32)
    with pytest.raises(Rejected, match="answerer does not know"):
        caller.send(proof)


def test_a_secret_file_is_read(tmp_path: Path) -> None:
    file = tmp_path / "secret"
    file.write_bytes(SECRET + b"\n")
    file.chmod(0o600)
    assert job_secret({"ALLREDUCE_SECRET_FILE": str(file)}) == SECRET


def test_a_secret_file_open_to_others_is_refused(tmp_path: Path) -> None:
    file = tmp_path / "secret"
    file.write_bytes(SECRET)
    file.chmod(0o640)
    with pytest.raises(ValueError, match="chmod 600"):
        job_secret({"ALLREDUCE_SECRET_FILE": str(file)})


@pytest.mark.parametrize(
    ("environ", "says"),
    [
        ({"ALLREDUCE_SECRET_FILE": "/nowhere/at/all"}, "cannot be read"),
        ({"ALLREDUCE_SECRET": "short"}, "at least 16"),
        ({"ALLREDUCE_REQUIRE_AUTH": "1"}, "there is no secret"),
    ],
)
def test_a_bad_secret_is_named(environ: dict[str, str], says: str) -> None:
    with pytest.raises(ValueError, match=says):
        job_secret(environ)


def test_no_secret_is_none() -> None:
    assert job_secret({}) is None
