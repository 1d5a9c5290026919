"""Whoever else connects during a start-up is dropped without effect."""

import contextlib
import os
import random
import select
import socket
import threading
import time
from collections.abc import Callable, Iterator

import pytest
from rendezvous.ranks import close_wirings, connect_rank, in_threads, nothing_left_open

from allreduce.rendezvous import acceptor, startup
from allreduce.rendezvous.acceptor import Acceptor, EventLoop
from allreduce.rendezvous.caller import Caller, Endpoint
from allreduce.rendezvous.connect import Connections
from allreduce.rendezvous.handshake import Kind, Link, Session, answer, call
from allreduce.rendezvous.store import MemoryStore

WORLD = 4
LINK = Link(Kind.CONTROL, 0, 1, 0)


class Spy:
    """Records every listener of a start-up, so that strangers can find them."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch) -> None:
        self.addresses: list[tuple[int, object]] = []
        self.came = threading.Event()
        real = startup.MeshBuilder

        def builder(**options):
            for listener in options["listeners"]:
                self.addresses.append((listener.family, listener.getsockname()))
            if len(self.addresses) >= 2 * WORLD:
                self.came.set()
            self.came.wait(10)
            time.sleep(0.05)  # strangers come first
            return real(**options)

        monkeypatch.setattr(startup, "MeshBuilder", builder)

    def visit(self, times: int) -> list[socket.socket]:
        assert self.came.wait(10)
        visitors = []
        for _ in range(times):
            for family, address in self.addresses:
                sock = socket.socket(family, socket.SOCK_STREAM)
                sock.setblocking(False)
                with contextlib.suppress(OSError):
                    sock.connect_ex(address)
                visitors.append(sock)
        return visitors


def silent(_sock: socket.socket) -> None:
    pass


def garbage(sock: socket.socket) -> None:
    sock.send(random.Random(5).randbytes(200))


def http(sock: socket.socket) -> None:
    sock.send(b"GET / HTTP/1.1\r\nHost: localhost\r\n\r\n" + b"\0" * 64)


def wrong_secret(sock: socket.socket) -> None:
    hello, _ = next(call(Session.derive(b"wrong", 1, 0), LINK))
    sock.send(hello + b"\0" * 32)


def half_a_hello(sock: socket.socket) -> None:
    sock.send(b"HIER" + b"\x01\x00\x01")


def leaves(sock: socket.socket) -> None:
    sock.close()


@pytest.mark.parametrize(
    "stranger",
    [silent, garbage, http, wrong_secret, half_a_hello, leaves],
    ids=lambda stranger: stranger.__name__,
)
@pytest.mark.parametrize("times", [3, 100])
def test_strangers_do_not_disturb_a_start_up(
    monkeypatch: pytest.MonkeyPatch, stranger: Callable[[socket.socket], None], times: int
) -> None:
    store, spy = MemoryStore(), Spy(monkeypatch)
    visitors: list[socket.socket] = []

    def body(rank: int) -> Connections | None:
        if rank < WORLD:
            return connect_rank(store, rank, WORLD, nodes=2)
        for sock in spy.visit(times):
            visitors.append(sock)
            with contextlib.suppress(OSError):
                stranger(sock)
        return None

    with nothing_left_open():
        results = in_threads(WORLD + 1, body)
        try:
            assert all(isinstance(result, Connections) for result in results[:WORLD]), results
            assert len(visitors) == times * 2 * WORLD
        finally:
            close_wirings(results)
            for sock in visitors:
                sock.close()


# The acceptor alone.


class House:
    """An acceptor on loopback, with what it let in."""

    def __init__(self, budget: float = acceptor.BUDGET_SECONDS) -> None:
        self.loop = EventLoop()
        self.session = Session.derive(b"the secret", 1, 0)
        self.expected = {Link(Kind.DATA, lane, 1, 0) for lane in range(200)}
        self.inside: list[socket.socket] = []
        listener = socket.create_server(("127.0.0.1", 0), backlog=4096)
        listener.setblocking(False)
        self.address = listener.getsockname()
        self.acceptor = Acceptor(self.loop, listener, self.ask, self.welcome, budget)

    def ask(self):
        return answer(self.session, self.expected)

    def welcome(self, link: Link, sock: socket.socket) -> None:
        self.expected.discard(link)
        self.inside.append(sock)

    def run(self, seconds: float, until: Callable[[], bool] = lambda: False) -> None:
        deadline = time.monotonic() + seconds
        while (now := time.monotonic()) < deadline and not until():
            self.acceptor.expire(now)
            self.loop.turn(min(0.02, self.acceptor.next_expiry() - now, deadline - now))

    def close(self) -> None:
        self.acceptor.close()
        self.loop.close()
        for sock in self.inside:
            sock.close()


@pytest.fixture
def house() -> Iterator[House]:
    house = House()
    yield house
    house.close()


def hung_up(sock: socket.socket) -> bool:
    poller = select.poll()
    poller.register(sock, select.POLLRDHUP)
    return bool(poller.poll(0))


def test_who_proves_nothing_is_dropped_when_its_time_is_over() -> None:
    house = House(budget=0.2)
    with contextlib.closing(house), socket.create_connection(house.address) as stranger:
        stranger.send(b"HIER")
        house.run(0.1)
        assert not hung_up(stranger)
        house.run(5, lambda: hung_up(stranger))
        assert hung_up(stranger)
        assert list(house.acceptor.dropped) == ["no handshake within the time allowed"]


def test_a_crowd_of_silent_strangers_makes_room(house: House) -> None:
    crowd = [socket.create_connection(house.address) for _ in range(300)]
    house.run(0.05)
    caller = in_threads_call(house, lane=7)
    house.run(10, lambda: bool(house.inside))
    caller.join(10)
    assert len(house.inside) == 1
    assert len(house.acceptor._pending) <= acceptor.BUDGET_PENDING
    for sock in crowd:
        sock.close()


def test_at_most_the_budget_is_pending(house: House) -> None:
    crowd = [socket.create_connection(house.address) for _ in range(100)]
    house.run(0.01)
    assert len(house.acceptor._pending) == acceptor.BUDGET_PENDING
    for sock in crowd:
        sock.close()


def test_a_flood_of_honest_callers_gets_in(house: House) -> None:
    callers = [in_threads_call(house, lane) for lane in range(150)]
    house.run(20, lambda: len(house.inside) == 150)
    for caller in callers:
        caller.join(10)
    assert len(house.inside) == 150


def test_an_event_of_a_closed_descriptor_is_not_held_against_its_successor() -> None:
    loop = EventLoop()
    heard: list[str] = []
    first, first_end = socket.socketpair()
    second, second_end = socket.socketpair()
    number = second.fileno()
    successor, successor_end = socket.socketpair()

    def replace(_events: int) -> None:
        heard.append("first")
        loop.forget(first.fileno())
        loop.forget(number)
        second.close()
        os.dup2(successor.fileno(), number)
        loop.watch(number, select.EPOLLRDHUP, lambda _e: heard.append("successor hung up"))

    loop.watch(first.fileno(), select.EPOLLIN, replace)
    loop.watch(number, select.EPOLLIN, lambda _e: heard.append("second"))
    first_end.send(b"x")
    second_end.send(b"x")
    loop.turn(1)
    loop.turn(0)
    assert "successor hung up" not in heard
    os.close(number)
    for sock in (first, first_end, second_end, successor, successor_end):
        sock.close()
    loop.close()


def test_other_users_are_not_let_in(monkeypatch: pytest.MonkeyPatch) -> None:
    one, other = socket.socketpair()
    assert acceptor.same_user(one)
    monkeypatch.setattr(os, "geteuid", lambda: 12345)
    assert not acceptor.same_user(one)
    one.close()
    other.close()


def in_threads_call(house: House, lane: int) -> threading.Thread:
    """Call from a thread until let in; the socket stays open until the test ends."""

    def run() -> None:
        deadline = time.monotonic() + 20
        while time.monotonic() < deadline:
            sock = socket.create_connection(house.address)
            sock.setblocking(False)
            try:
                acceptor.handshake_until(
                    sock, call(house.session, Link(Kind.DATA, lane, 1, 0)), deadline
                )
            except OSError:
                sock.close()
                continue
            sock.close()
            return

    thread = threading.Thread(target=run, daemon=True)
    thread.start()
    return thread


@pytest.mark.parametrize("needless", [False, True])
def test_a_call_that_failed_is_made_again_where_it_is_still_needed(needless: bool) -> None:
    with contextlib.ExitStack() as stack:
        listener = stack.enter_context(socket.create_server(("127.0.0.1", 0)))
        loop = EventLoop()
        stack.callback(loop.close)
        connected = False
        caller = Caller(
            loop=loop,
            session=Session.derive(b"the secret", 1, 0),
            endpoints=[Endpoint(address=(socket.AF_INET, listener.getsockname()), name="rank 0")],
            congestion=None,
            loopback=True,
            welcome=lambda link, sock: None,
            refused_proofs=1000,
            needless=lambda _link: needless and connected,
        )
        stack.callback(caller.close)
        link = Link(Kind.DATA, 0, 1, 0)
        caller.call(link)
        dials = 0
        listener.settimeout(0.2)
        for _ in range(3):
            deadline = time.monotonic() + 0.5
            while time.monotonic() < deadline:
                caller.dial(time.monotonic())
                loop.turn(0.005)
                with contextlib.suppress(TimeoutError):
                    listener.settimeout(0.01)
                    listener.accept()[0].close()  # it hangs up
                    dials += 1
                    break
            connected = True
    assert dials == (1 if needless else 3)
