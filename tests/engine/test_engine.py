"""The engine runs any program on any channels, and the bits are the oracle's."""

import contextlib
import itertools
import random
import threading
from collections.abc import Callable, Sequence

import numpy as np
import pytest
from arithmetic import STORAGE
from channels import KINDS, mesh, testing
from oracle import expected
from schedule_cases import ALL, ROOTED

from allreduce import _C
from allreduce.errors import MismatchError, PeerError, Timeout
from allreduce.schedules import (
    Collective,
    Schedule,
    algorithms,
    by_name,
    even_bounds,
    from_moves,
)

DEADLINE = 12.0
SIZES = (2, 3, 4, 5, 7, 8)
SEGMENTS = (1, 17, 64, 1000, 1 << 20)
OPS = {
    "bool": ("sum", "prod", "bxor"),
    **dict.fromkeys(("float64", "float32", "float16", "bfloat16"), ("sum", "min", "max", "prod")),
    **dict.fromkeys(
        ("int64", "int32", "int16", "int8", "uint8"),
        ("sum", "min", "max", "prod", "band", "bor", "bxor"),
    ),
}


def counts(p: int) -> tuple[int, ...]:
    return (0, 1, p - 1, 17, 1000, 997, 2311)


def numbers(rng: np.random.Generator, dtype: str, count: int) -> np.ndarray:
    """Random numbers whose sum depends on the order of the additions, where that can be."""
    if dtype == "bool":
        return rng.random(count) < 0.5
    if dtype == "bfloat16":
        return (rng.standard_normal(count).astype(np.float32).view(np.uint32) >> 16).astype(
            np.uint16
        )
    if dtype.startswith("float"):
        return rng.standard_normal(count).astype(dtype)
    info = np.iinfo(dtype)
    return rng.integers(info.min, info.max, count, dtype, endpoint=True)


def on_threads(body: Callable[[int], object], world_size: int) -> list[object]:
    """Runs body(rank) on a thread each; an exception takes the place of a result."""
    results: list[object] = [None] * world_size

    def main(rank: int) -> None:
        try:
            results[rank] = body(rank)
        except BaseException as error:
            results[rank] = error

    threads = [threading.Thread(target=main, args=(r,), daemon=True) for r in range(world_size)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(2 * DEADLINE)
        assert not thread.is_alive(), "a rank hangs"
    return results


def run(
    schedule: Schedule,
    channels: list[dict],
    buffers: Sequence[np.ndarray],
    segment: int,
    *,
    dtype: str = "float32",
    op: str = "sum",
    headers: Sequence[object] | None = None,
    timeout: float = DEADLINE,
) -> list[object]:
    """Runs the schedule in place on all ranks' buffers; returns their exceptions."""
    bounds = even_bounds(len(buffers[0]), schedule.num_chunks)

    def body(rank: int) -> None:
        testing.run_program(
            channels[rank],
            _C.lower(schedule, rank, bounds, segment),
            buffers[rank].ctypes.data,
            dtype,
            op,
            headers[rank] if headers else None,
            timeout,
        )

    return on_threads(body, len(buffers))


def headers(world_size: int, count: int = 1000, **different: dict) -> list[object]:
    """A header per rank, all alike but for `different={rank: changes}`."""
    result = []
    for rank in range(world_size):
        fields = {
            "collective": Collective.allreduce,
            "dtype": "float32",
            "op": "sum",
            "count": count,
            "rank": rank,
            "algorithm": "ring",
            "run": 41,
        }
        fields.update(different.get(f"rank{rank}", {}))
        result.append(testing.RunHeader(**fields))
    return result


def cases() -> list[tuple]:
    """The whole product, shuffled by a fixed seed: any part of it is a fair sample."""
    product = [
        (collective, name, p, kind, segment, place, dtype)
        for (collective, name), p, kind, segment, place, dtype in itertools.product(
            ALL, SIZES, KINDS, SEGMENTS, range(len(counts(2))), OPS
        )
    ]
    random.Random(20).shuffle(product)
    return product


def check_case(case: tuple) -> None:
    collective, name, p, kind, segment, place, dtype = case
    rng = np.random.default_rng([p, segment, place])
    count = counts(p)[place]
    op = OPS[dtype][place % len(OPS[dtype])]
    root = place % p if collective in ROOTED else 0
    if kind.startswith("inproc") and count * p > 3000:
        count %= 200  # a few bytes at a time
    schedule = by_name(name, p, collective=collective, root=root)
    buffers = [numbers(rng, dtype, count) for _ in range(p)]
    want = expected(schedule, buffers, dtype=dtype, op=op)
    assert buffers[0].dtype == STORAGE[dtype]
    use_headers = headers(p, count) if place % 2 else None
    errors = run(schedule, mesh(kind, p), buffers, segment, dtype=dtype, op=op, headers=use_headers)
    assert errors == [None] * p
    for rank in range(p):
        assert buffers[rank].tobytes() == want[rank].tobytes(), f"rank {rank}"


@pytest.mark.parametrize(
    "case", cases()[:240], ids=lambda case: "-".join(str(part) for part in case)
)
def test_the_bits_are_the_oracles(case):
    check_case(case)


@pytest.mark.full
@pytest.mark.timeout(3600)
@pytest.mark.parametrize("part", range(20))
def test_the_bits_are_the_oracles_in_a_large_sample(part):
    for case in cases()[240 + part :: 400]:
        check_case(case)


@pytest.mark.parametrize("kind", KINDS)
def test_runs_of_any_dtype_follow_each_other_on_the_same_channels(kind, rng):
    # Each run begins at a multiple of 8 bytes, so no element lies across the end of a ring.
    p = 4
    channels = mesh(kind, p)
    schedules = [by_name(name, p) for name in ("ring", "halving_doubling", "direct", "binomial")]
    dtypes = ("uint8", "float64", "float16", "int64", "bool", "float32")
    sequence = [
        (schedules[i % 4], dtypes[i % 6], count)
        for i, count in enumerate((1, 3, 5, 0, 17, 101, 7, 2, 13, 33, 1, 40))
    ]
    inputs = [[numbers(rng, dtype, count) for _ in range(p)] for _, dtype, count in sequence]
    buffers = [[x.copy() for x in row] for row in inputs]

    def body(rank: int) -> None:  # ranks are at different runs at the same time
        for i, (schedule, dtype, count) in enumerate(sequence):
            program = _C.lower(schedule, rank, even_bounds(count, schedule.num_chunks), 4)
            header = headers(p, count)[rank] if i % 2 else None
            address = buffers[i][rank].ctypes.data
            testing.run_program(channels[rank], program, address, dtype, "sum", header, DEADLINE)

    assert on_threads(body, p) == [None] * p
    for row, results, (schedule, dtype, _) in zip(inputs, buffers, sequence, strict=True):
        want = expected(schedule, row, dtype=dtype)
        assert [x.tobytes() for x in results] == [x.tobytes() for x in want]


@pytest.mark.parametrize("kind", ["inproc", "shm", "tcp"])
def test_a_large_buffer_flows_in_many_quanta(kind, rng):
    p, count = 3, 1 << 18
    schedule = by_name("ring", p)
    buffers = [numbers(rng, "float32", count) for _ in range(p)]
    want = expected(schedule, buffers)
    assert run(schedule, mesh(kind, p), buffers, 1 << 14) == [None] * p
    assert [x.tobytes() for x in buffers] == [x.tobytes() for x in want]


@pytest.mark.parametrize("kind", ["inproc-tiny", "shm-tiny", "shm"])
@pytest.mark.parametrize("name", algorithms("allreduce"))
def test_an_exchange_of_more_than_the_channels_hold(name, kind, rng):
    # Both ends send at once, and neither may wait until the other has taken all of it.
    for p in (2, 3, 4):
        schedule = by_name(name, p)
        buffers = [numbers(rng, "float32", 40_000 if kind == "shm" else 300) for _ in range(p)]
        want = expected(schedule, buffers)
        assert run(schedule, mesh(kind, p), buffers, 1 << 20, timeout=5.0) == [None] * p
        assert [x.tobytes() for x in buffers] == [x.tobytes() for x in want]


@pytest.mark.parametrize("kind", ["inproc-tiny", "shm-tiny", "tcp-narrow"])
def test_exchanges_behind_other_messages_of_their_round(kind, rng):
    # Each rank receives into what it sends second; what it sends first waits for the next rank,
    # which is in the same place.
    moves = [
        (0, src, (src + 1) % 3, chunk, chunk + 1, 1)
        for src in range(3)
        for chunk in (src, (src + 2) % 3)
    ]
    schedule = from_moves(3, 3, moves)
    count = 100_000 if kind == "tcp-narrow" else 600
    buffers = [numbers(rng, "float32", count) for _ in range(3)]
    want = expected(schedule, buffers)
    assert run(schedule, mesh(kind, 3), buffers, 1 << 20, timeout=5.0) == [None] * 3
    assert [x.tobytes() for x in buffers] == [x.tobytes() for x in want]


@pytest.mark.parametrize(
    ("change", "words"),
    [
        ({"count": 999}, ("float32[1000]", "float32[999]")),
        ({"dtype": "float64"}, ("float32[1000]", "float64[1000]")),
        ({"op": "max"}, ("sum", "max")),
        ({"algorithm": "bcube"}, ("ring", "bcube")),
        ({"run": 42}, ("#41", "#42")),
        ({"collective": Collective.reduce_scatter}, ("allreduce(", "reduce_scatter(")),
    ],
    ids=lambda value: next(iter(value)) if isinstance(value, dict) else "",
)
@pytest.mark.parametrize("kind", ["inproc-3", "shm-tiny", "tcp"])
def test_headers_that_differ_are_a_mismatch_in_words(kind, change, words):
    buffers = [np.ones(1000, np.float32) for _ in range(2)]
    both = headers(2, rank1=change)
    errors = run(by_name("ring", 2), mesh(kind, 2), buffers, 64, headers=both, timeout=3.0)
    mismatches = [e for e in errors if isinstance(e, MismatchError)]
    assert mismatches, errors
    for error in mismatches:
        for word in ("rank 0 called", "rank 1 called", *words):
            assert word in str(error)


@pytest.mark.parametrize("kind", ["inproc", "shm-tiny", "tcp"])
def test_a_crossed_connection_is_a_mismatch(kind):
    channels = mesh(kind, 3)
    channels[0][1], channels[0][2] = channels[0][2], channels[0][1]
    buffers = [np.ones(99, np.float32) for _ in range(3)]
    errors = run(by_name("ring", 3), channels, buffers, 64, headers=headers(3), timeout=3.0)
    assert isinstance(errors[0], MismatchError), errors
    assert "rank 0 received, as of rank 1, the run header of rank 2" in str(errors[0])


@pytest.mark.parametrize("bit", range(8 * 64))
def test_every_bit_of_a_header_is_compared(bit):
    mine, theirs = headers(2)
    assert mine.disagreement(theirs, from_rank=1) is None
    theirs.flip(bit)
    with contextlib.suppress(UnicodeDecodeError):  # told, with a name that is no text any more
        assert mine.disagreement(theirs, from_rank=1)


def test_a_header_that_is_none_is_a_mismatch():
    channels = mesh("inproc", 2)
    channels[1][0].try_write(bytes(64))
    program = _C.lower(by_name("ring", 2), 0, even_bounds(100, 2), 64)
    x = np.ones(100, np.float32)
    with pytest.raises(MismatchError, match="corrupted data"):
        testing.run_program(
            channels[0], program, x.ctypes.data, "float32", "sum", headers(2)[0], 3.0
        )


@pytest.mark.parametrize("after", [0, 63, 64, 65, 300, 1000])
def test_a_broken_stream_is_a_peer_error_that_says_where(after):
    p = 3
    channels = mesh("inproc", p)
    channels[0][1], channels[1][0] = testing.inproc_pair(cut_after=after)
    buffers = [np.ones(1000, np.float32) for _ in range(p)]
    errors = run(by_name("ring", p), channels, buffers, 64, headers=headers(p), timeout=1.0)
    assert isinstance(errors[1], PeerError), errors
    assert errors[1].rank == 0
    text = str(errors[1])
    assert "receive from rank 0" in text
    assert "(round 0, chunk 2" in text
    assert "allreduce(float32[1000], sum, ring) #41" in text
    assert text.endswith(("closed by the peer", "channel cut"))


def test_a_silent_peer_is_a_timeout_that_says_where():
    channels = mesh("shm", 2)
    program = _C.lower(by_name("halving_doubling", 2), 0, even_bounds(100, 2), 64)
    x = np.ones(100, np.float32)
    with pytest.raises(Timeout, match=r"receive from rank 1 of 192 B \(round 0, chunk 0, 0 B done"):
        testing.run_program(channels[0], program, x.ctypes.data, "float32", timeout=0.1)


def test_a_program_needs_its_channels():
    program = _C.lower(by_name("ring", 3), 0, even_bounds(100, 3), 64)
    x = np.ones(100, np.float32)
    channels = {1: mesh("inproc", 2)[0][1]}
    with pytest.raises(ValueError, match="needs a connection to rank 2"):
        testing.run_program(channels, program, x.ctypes.data, "float32", timeout=1.0)


def test_an_algorithms_name_fits_the_header():
    with pytest.raises(ValueError, match="24 characters"):
        headers(1, rank0={"algorithm": "x" * 25})
