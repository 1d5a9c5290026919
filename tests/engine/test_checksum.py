"""CRC32C: every implementation gives the same, and what others give."""

import random

import pytest

from allreduce import _C

testing = _C.testing


def reference(data: bytes, crc: int = 0) -> int:
    """Bit by bit."""
    state = crc ^ 0xFFFFFFFF
    for byte in data:
        state ^= byte
        for _ in range(8):
            state = state >> 1 ^ (0x82F63B78 if state & 1 else 0)
    return state ^ 0xFFFFFFFF


@pytest.mark.parametrize(
    ("data", "crc"),
    [  # RFC 3720, B.4
        (b"", 0),
        (b"123456789", 0xE3069283),
        (bytes(32), 0x8A9136AA),
        (b"\xff" * 32, 0x62A8AB43),
        (bytes(range(32)), 0x46DD794E),
        (bytes(range(31, -1, -1)), 0x113FDB5C),
    ],
)
def test_known_values(data, crc):
    assert set(testing.crc32c(data).values()) == {crc}
    assert reference(data) == crc


def test_a_table_serves_any_processor():
    assert list(testing.crc32c(b""))[-1] == "table"


@pytest.mark.parametrize("part", range(8))
def test_every_implementation_is_the_reference_at_every_length(part, rng):
    data = rng.bytes(2200)
    for n in range(part, len(data), 8):
        assert len(set(testing.crc32c(data[:n]).values())) == 1, n
    for n in range(part, 64, 8):
        assert set(testing.crc32c(data[1 : 1 + n]).values()) == {reference(data[1 : 1 + n])}


def test_blocks_of_every_size_and_any_part_go_on_from_any_state(rng):
    data = rng.bytes(100_000)
    whole = testing.crc32c(data)["table"]
    for _ in range(300):
        cut = random.randrange(len(data))
        for kind, first in testing.crc32c(data[:cut]).items():
            assert testing.crc32c(data[cut:], first)[kind] == whole, (kind, cut)


def test_any_flipped_bit_changes_it(rng):
    data = bytearray(rng.bytes(40_000))
    whole = testing.crc32c(bytes(data))
    for bit in random.sample(range(8 * len(data)), 500):
        data[bit // 8] ^= 1 << bit % 8
        assert not set(testing.crc32c(bytes(data)).values()) & set(whole.values())
        data[bit // 8] ^= 1 << bit % 8
