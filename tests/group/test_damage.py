"""Every bit that a network flips is noticed: no collective and no message is silently wrong."""

import random
import time

import numpy as np
import pytest
from flipping_relays import Flip, run_relayed, tcp_pair, unix_pair
from worlds import run_threads

from allreduce.errors import AbortedError, Error, IntegrityError, MismatchError, UsageError

LARGE = 33_000  # float32 elements of a message that is announced before it is sent


def traffic(comm) -> None:
    """Collectives and messages of every form, checked: on all lanes, in all directions."""
    p, rank = comm.world_size, comm.rank
    for algo, count, dtype in (
        ("ring", 3001, "float32"),
        ("recursive_doubling", 7, "int8"),
        ("halving_doubling", 999, "float64"),
        ("recursive_doubling", 3000, "float32"),
    ):
        x = np.full(count, rank + 1, dtype)
        assert (comm.allreduce(x, algo=algo) == p * (p + 1) // 2).all()
    works = [comm.allreduce(np.full(500 + i, rank, np.int32), async_op=True) for i in range(4)]
    assert all((work.wait() == p * (p - 1) // 2).all() for work in works)
    assert (comm.broadcast(np.full(77, rank, np.int16), root=p - 1) == p - 1).all()
    assert (comm.allgather(np.full(33, rank)).reshape(p, 33) == np.arange(p)[:, None]).all()
    assert (comm.alltoall(np.full((p, 5), rank)).reshape(p, 5) == np.arange(p)[:, None]).all()
    to, source = (rank + 1) % p, (rank - 1) % p
    for tag, count in enumerate((0, 1, 500, LARGE)):
        sent = comm.isend(np.full(count, rank, np.float32), to, tag)
        got = np.full(count, -1, np.float32)
        comm.recv(got, source, tag)
        assert (got == source).all()
        sent.wait()
    comm.barrier()


def then_fail(comm) -> None:
    """The traffic, and after it calls without end: a rank whose part was whole hears, too."""
    traffic(comm)
    while True:
        comm.barrier()
        time.sleep(0.001)


def random_flip(world_size: int, lengths: dict, rng: random.Random) -> Flip:
    """A bit of any stream; streams are drawn alike, so that short ones are met as well."""
    stream = rng.choice([stream for stream, length in sorted(lengths.items()) if length > 0])
    return Flip(stream, rng.randrange(8 * lengths[stream]))


def lengths_of(world_size: int, pair) -> dict:
    """The bytes of each stream in a run that nobody disturbs."""
    results, relay = run_relayed(world_size, traffic, pair=pair)
    assert results == [None] * world_size, results
    return relay.passed


def check_flips(world_size: int, count: int, seed: int, pair=unix_pair) -> None:
    lengths = lengths_of(world_size, pair)
    for number in range(count):
        flip = random_flip(world_size, lengths, random.Random(f"{seed} {number}"))
        errors, relay = run_relayed(world_size, then_fail, flip=flip, pair=pair)
        assert relay.flipped, flip
        source, target, _ = flip.stream
        for error in errors:  # aborted: an asynchronous call noticed, and this is a later call's
            assert isinstance(error, IntegrityError | AbortedError), (flip, errors)
            assert "the checksum differs" in str(error), (flip, error)
            assert f"from rank {source} to rank {target} " in str(error), (flip, error)


@pytest.mark.parametrize("part", range(4))
@pytest.mark.parametrize("world_size", [2, 3])
def test_every_flipped_bit_is_an_error_on_every_rank(world_size, part):
    check_flips(world_size, 40, part)


@pytest.mark.parametrize("world_size", [2, 3])
def test_every_bit_that_is_flipped_on_tcp_is_an_error_on_every_rank(world_size):
    check_flips(world_size, 20, 99, tcp_pair)


@pytest.mark.full
@pytest.mark.timeout(7200)
@pytest.mark.parametrize("part", range(100, 120))
@pytest.mark.parametrize("world_size", [2, 3])
def test_ten_thousand_flipped_bits_are_all_noticed(world_size, part):
    check_flips(world_size, 250, part)
    print("250 flips, 250 noticed")


@pytest.mark.parametrize("lane", range(3))
def test_without_checksums_a_flip_goes_unnoticed(lane):
    """The relay does damage, and the option is what notices it."""

    def body(comm):
        x = np.zeros(1000, np.uint8)
        if lane < 2:
            for _ in range(2):
                comm.allreduce(x, "max", algo="ring")
        elif comm.rank == 0:
            comm.send(x, 1)
        else:
            comm.recv(x, 0)
        return int(x.sum())

    flip = Flip((0, 1, lane), 8 * 300 + 3)
    results, relay = run_relayed(2, body, flip=flip, checksum=False)
    assert relay.flipped
    assert results[1] == 8


def test_the_error_names_sender_receiver_run_and_step():
    def body(comm):
        comm.allreduce(np.ones(10, np.float32))
        comm.allreduce(np.ones(9000, np.float32), algo="ring")
        comm.allreduce(np.ones(10, np.float32))
        comm.barrier()

    flip = Flip((0, 1, 1), 8 * (64 + 8 + 4096 + 8 + 100))
    errors, _ = run_relayed(2, body, flip=flip)
    for error in errors:
        assert isinstance(error, IntegrityError)
        assert isinstance(error, MismatchError)
        assert "from rank 0 to rank 1 were damaged" in str(error)
        assert "of 4096 B (round 0, chunk" in str(error)
        assert "allreduce(float32[9000], sum, ring) #1" in str(error)


def test_the_error_names_the_message():
    def body(comm):
        if comm.rank == 0:
            comm.send(np.ones(100, np.float32), 1, tag=7)
        else:
            comm.recv(np.ones(100, np.float32), 0, tag=7)
        comm.barrier()
        comm.barrier()

    errors, _ = run_relayed(2, body, flip=Flip((0, 1, 2), 8 * (40 + 8 + 100)))
    for error in errors:
        assert isinstance(error, IntegrityError)
        assert "a message from rank 0 to rank 1 was damaged on the way" in str(error)
        assert "float32[100], tag 7" in str(error)


def test_a_damaged_group_cannot_be_used_any_more():
    def body(comm):
        with pytest.raises(IntegrityError):
            then_fail(comm)
        with pytest.raises(AbortedError, match="checksum differs"):
            comm.barrier()

    assert run_relayed(2, body, flip=Flip((1, 0, 0), 999))[0] == [None] * 2


@pytest.mark.parametrize("value", [True, False])
def test_the_option_reaches_every_group(value, monkeypatch):
    def body(comm):
        part = comm.split(0)
        return (
            comm._connections.checksum,
            part._connections.checksum,
            float(comm.allreduce(np.ones(9))[0]),
        )

    assert run_threads(2, body, nodes=2, checksum=value) == [(value, value, 2.0)] * 2
    monkeypatch.setenv("ALLREDUCE_CHECKSUM", str(int(value)))
    assert run_threads(2, body, nodes=2) == [(value, value, 2.0)] * 2


def test_ranks_that_differ_in_the_option_are_told():
    errors = run_threads(
        2, lambda comm: None, errors=True, per_rank=lambda rank: {"checksum": rank == 0}
    )
    for error in errors:
        assert isinstance(error, UsageError)
        assert "checksum is True on rank 0 but False on rank 1" in str(error)


@pytest.mark.parametrize("value", ["", "2", "yes"])
def test_a_bad_value_of_the_variable_is_named(value, monkeypatch):
    monkeypatch.setenv("ALLREDUCE_CHECKSUM", value)
    (error,) = run_threads(1, lambda comm: None, errors=True)
    assert isinstance(error, UsageError)
    assert "ALLREDUCE_CHECKSUM" in str(error)


def test_a_bad_value_of_the_option_is_named():
    (error,) = run_threads(1, lambda comm: None, errors=True, checksum="no")
    assert isinstance(error, Error)
    assert "checksum='no'" in str(error)
