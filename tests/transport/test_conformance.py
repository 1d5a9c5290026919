"""What every channel promises, checked alike on every kind of channel."""

import random
import time

import pytest
from channels import KINDS, STREAMS, testing

BYTES = bytes(range(256)) * 16
DEADLINE = 20.0
TINY = ("inproc-tiny", *(f"inproc-{n}" for n in range(1, 8)))  # move a few bytes at once
ENDING = [kind for kind in KINDS if not kind.startswith("shm")]  # a ring has no end


@pytest.fixture(params=KINDS)
def kind(request) -> str:
    return request.param


@pytest.fixture
def pair(kind):
    return KINDS[kind]()


def until(step, done) -> None:
    """Repeats `step` until done() or the deadline."""
    deadline = time.monotonic() + DEADLINE
    while not done():
        assert time.monotonic() < deadline, "no progress"
        step()


def write_all(channel, data: bytes, other=None, sink: bytearray | None = None) -> None:
    """Writes everything, and reads into `sink` at the other end whenever the channel is full."""
    left = data

    def step():
        nonlocal left
        n = channel.try_write(left)
        assert 0 <= n <= len(left)
        left = left[n:]
        if not n and other is not None:
            sink.extend(other.try_read(64))

    until(step, lambda: not left)


def read_exactly(channel, n: int) -> bytes:
    got = bytearray()
    until(lambda: got.extend(channel.try_read(n - len(got))), lambda: len(got) >= n)
    return bytes(got)


def peek_at_least(channel, n: int) -> bytes:
    seen = b""

    def step():
        nonlocal seen
        seen = channel.peek(n)

    until(step, lambda: len(seen) >= n)
    return seen


def test_nothing_arrives_before_it_is_sent(pair):
    a, b = pair
    assert a.try_read(100) == b.try_read(100) == b""
    assert a.peek(8) == b.peek(8) == b""


def test_a_read_of_nothing_gives_nothing(pair):
    a, b = pair
    write_all(a, b"12345678")
    assert b.try_read(0) == b""
    assert read_exactly(b, 8) == b"12345678"


def test_a_write_of_nothing_writes_nothing(pair):
    a, b = pair
    assert a.try_write(b"") == 0
    write_all(a, b"x")
    assert read_exactly(b, 1) == b"x"


@pytest.mark.parametrize("seed", range(3))
def test_both_directions_keep_their_order(pair, seed):
    rng = random.Random(seed)
    sent = [rng.randbytes(3000), rng.randbytes(3000)]
    left = list(sent)
    got = [bytearray(), bytearray()]

    def step():
        side = rng.randrange(2)
        part = left[side][: rng.choice((1, 3, 8, 61, 700))]
        left[side] = left[side][pair[side].try_write(part) :]
        got[1 - side] += pair[1 - side].try_read(rng.choice((1, 5, 8, 64, 300)))

    until(step, lambda: len(got[0]) == len(got[1]) == 3000)
    assert got == [sent[1], sent[0]]


def test_a_full_channel_takes_less_and_loses_nothing(pair):
    a, b = pair
    block = random.Random(1).randbytes(65536)
    sent = bytearray()
    for _ in range(2000):
        n = a.try_write(block)
        sent += block[:n]
        if n == 0:
            break
        if len(sent) > 1 << 22:  # a channel that moves little at once, but never ends
            break
    assert len(sent) < 1 << 26, "a channel without end"
    got = bytearray()
    until(lambda: got.extend(b.try_read(1 << 20)), lambda: len(got) >= len(sent))
    assert got == sent
    assert b.try_read(1) == b""
    write_all(a, b"and on")
    assert read_exactly(b, 6) == b"and on"


@pytest.mark.parametrize("size", [1, 7, 8, 61, 64, 65, 1000])
def test_records_survive_every_place_of_the_wrap_around(pair, size):
    a, b = pair
    for i in range(60):
        record = bytes((i + j) % 251 for j in range(size))
        got = bytearray()
        write_all(a, record, b, got)
        got += read_exactly(b, size - len(got))
        assert bytes(got) == record


def test_peek_takes_nothing(pair):
    a, b = pair
    write_all(a, b"abcdefgh")
    assert peek_at_least(b, 8)[:8] == b"abcdefgh"
    assert b.peek(8)[:8] == b"abcdefgh"
    b.consume(0)
    assert b.peek(1)[:1] == b"a"
    assert read_exactly(b, 8) == b"abcdefgh"


def test_consume_takes_what_was_seen(pair):
    a, b = pair
    write_all(a, b"abcdefgh")
    peek_at_least(b, 8)
    b.consume(3)
    assert peek_at_least(b, 5)[:5] == b"defgh"
    b.consume(1)
    assert read_exactly(b, 4) == b"efgh"
    assert b.peek(1) == b""


@pytest.mark.parametrize("element", [1, 2, 4, 8])
def test_peek_shows_whole_elements_wherever_the_ring_wraps(pair, element):
    a, b = pair
    data = random.Random(element).randbytes(2000 * element)
    got, sent = bytearray(), 0

    def step():
        nonlocal sent
        sent += a.try_write(data[sent : sent + 13])
        seen = b.peek(element)
        whole = len(seen) // element * element
        got.extend(seen[:whole])
        b.consume(whole)

    until(step, lambda: len(got) == len(data))
    assert bytes(got) == data


@pytest.mark.parametrize("wanted", [8, 64])
def test_peek_shows_all_that_is_wanted_and_there(pair, kind, wanted):
    if kind in TINY and wanted > 8:
        pytest.skip("this channel moves less at once")
    a, b = pair
    for _ in range(40):  # wherever it stands in its ring or buffer
        write_all(a, BYTES[: wanted // 2])
        peek_at_least(b, wanted // 2)
        write_all(a, BYTES[wanted // 2 : wanted])
        assert peek_at_least(b, wanted)[:wanted] == BYTES[:wanted]
        b.consume(wanted)


@pytest.mark.parametrize("seed", range(4))
def test_bytes_are_aligned_in_memory_as_they_are_in_the_stream(pair, seed):
    a, b = pair
    rng = random.Random(seed)
    consumed = looked = 0

    def step():
        nonlocal consumed, looked
        a.try_write(bytes(rng.choice((1, 4, 8, 60, 5001))))
        seen = b.peek(8)
        if seen and consumed % 8 == 0:
            assert b.peek_address(8) % 8 == 0
            looked += 1
        n = rng.choice((len(seen), rng.randrange(min(len(seen), 70) + 1)))
        b.consume(n)
        consumed += n
        if rng.random() < 0.3:
            consumed += len(b.try_read(rng.choice((3, 8, 4999))))

    until(step, lambda: looked > 200)


def test_a_channel_counts_what_it_has_sent(pair):
    a, b = pair
    write_all(a, BYTES[:1000], b, bytearray())
    assert (a.bytes_sent, b.bytes_sent) == (1000, 0)


def test_only_sockets_cross_the_network(pair, kind):
    assert [channel.over_network for channel in pair] == [kind in STREAMS] * 2


@pytest.mark.parametrize("kind", ENDING)
def test_the_end_of_a_stream_comes_after_its_last_byte(kind):
    a, b = KINDS[kind]()
    data = BYTES[:8] if kind == "inproc-tiny" else BYTES[:1000]
    write_all(a, data)
    del a
    got = bytearray()
    with pytest.raises(testing.ChannelBroken, match="closed"):
        until(lambda: got.extend(b.try_read(100)), lambda: False)
    assert bytes(got) == data


@pytest.mark.parametrize("kind", ENDING)
def test_a_peek_meets_the_end_of_the_stream(kind):
    a, b = KINDS[kind]()
    write_all(a, b"12345678")
    del a
    assert peek_at_least(b, 8) == b"12345678"
    b.consume(8)
    with pytest.raises(testing.ChannelBroken, match="closed"):
        until(lambda: b.peek(1), lambda: False)


@pytest.mark.parametrize("kind", ENDING)
def test_a_stream_that_ends_within_an_element_breaks(kind):
    a, b = KINDS[kind]()
    write_all(a, b"123")
    del a
    with pytest.raises(testing.ChannelBroken, match="closed"):
        until(lambda: b.peek(4), lambda: False)


@pytest.mark.parametrize("kind", ENDING)
def test_writing_to_a_closed_peer_breaks(kind):
    a, b = KINDS[kind]()
    del b
    with pytest.raises(testing.ChannelBroken, match="send"):
        until(lambda: a.try_write(BYTES), lambda: False)


@pytest.mark.parametrize("transfer", [1, 7, 1 << 20])
@pytest.mark.parametrize("after", [0, 1, 64, 1000])
def test_a_cut_lets_exactly_so_many_bytes_pass(after, transfer):
    a, b = testing.inproc_pair(cut_after=after, max_transfer=transfer)
    sent, got = 0, bytearray()

    def write():
        nonlocal sent
        sent += a.try_write(BYTES[sent : sent + 100])

    with pytest.raises(testing.ChannelBroken):
        until(write, lambda: False)
    with pytest.raises(testing.ChannelBroken):
        until(lambda: got.extend(b.try_read(100)), lambda: False)
    assert sent == after
    assert bytes(got) == BYTES[:after]


def test_a_late_channel_delivers_no_earlier():
    a, b = testing.inproc_pair(delay=0.05)
    begin = time.monotonic()
    write_all(a, b"slow")
    assert read_exactly(b, 4) == b"slow"
    assert time.monotonic() - begin >= 0.05


@pytest.mark.parametrize("most", range(1, 8))
def test_a_slow_channel_moves_few_bytes_at_once(most):
    a, b = testing.inproc_pair(max_transfer=most)
    assert a.try_write(BYTES) == most
    write_all(a, BYTES[most:100])
    assert len(b.try_read(100)) == most
    assert len(b.peek(8)) == 8  # never less than an element that is there


@pytest.mark.parametrize("capacity", [0, 56, 63, 65])
def test_a_ring_of_odd_capacity_is_refused(capacity):
    with pytest.raises(ValueError, match="multiple of 8"):
        testing.shm_pair(capacity=capacity)
