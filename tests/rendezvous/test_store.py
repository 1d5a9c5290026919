"""Stores: one conformance suite for all, then what each promises beyond it."""

import contextlib
import random
import socket
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
from rendezvous.ranks import nothing_left_open

from allreduce.rendezvous import address
from allreduce.rendezvous.store import FileStore, MemoryStore, PrefixStore, Store, add, wait_for
from allreduce.rendezvous.tcp_store import TcpStore

SHORT = 0.3


@pytest.fixture(params=["memory", "file", "tcp", "prefix", "torch_hash", "torch_file"])
def make(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[Callable[[], Store]]:
    """A function that opens one more handle of the same store."""
    opened: list[TcpStore] = []

    def tcp() -> TcpStore:
        server = not opened
        port = 0 if server else opened[0].port
        opened.append(TcpStore("127.0.0.1", port, server, 1.0, secret=b""))
        return opened[-1]

    kind = request.param
    if kind.startswith("torch"):
        distributed = pytest.importorskip("torch.distributed")
        shared = distributed.HashStore()
        file = str(tmp_path / "torch")
        yield {"torch_hash": lambda: shared, "torch_file": lambda: distributed.FileStore(file, 2)}[
            kind
        ]
    else:
        memory = MemoryStore(1.0)
        yield {
            "memory": lambda: memory,
            "file": lambda: FileStore(tmp_path, 1.0),
            "tcp": tcp,
            "prefix": lambda: PrefixStore(memory, "part"),
        }[kind]
    for store in reversed(opened):
        store.close()


def test_a_value_set_by_one_is_got_by_another(make) -> None:
    one, other = make(), make()
    value = bytes(range(256)) * 40
    one.set("key/of\u00e4 any kind", value)
    assert other.get("key/of\u00e4 any kind") == value


def test_a_second_value_replaces_the_first(make) -> None:
    store = make()
    store.set("a", b"1")
    store.set("a", b"22")
    assert store.get("a") == b"22"


def test_check_wants_all_keys(make) -> None:
    store = make()
    store.set("a", b"")
    assert store.check(["a"])
    assert not store.check(["a", "b"])
    store.set("b", b"x")
    assert store.check(["a", "b"])


def test_get_waits_for_the_key(make) -> None:
    one, other = make(), make()
    timer = threading.Timer(0.1, lambda: one.set("late", b"came"))
    timer.start()
    assert other.get("late") == b"came"
    timer.join()


def test_sums_are_of_all_who_add(make) -> None:
    stores = [make() for _ in range(4)]
    sums: list[int] = []

    def main(store: Store) -> None:
        sums.extend(add(store, "sum", 1) for _ in range(25))

    threads = [threading.Thread(target=main, args=(store,)) for store in stores]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert sorted(sums) == list(range(1, 101))
    assert add(stores[0], "sum", -50) == 50
    assert stores[1].get("sum") == b"50"


def test_a_deleted_key_is_gone(make) -> None:
    store = make()
    store.set("a", b"1")
    store.delete_key("a")
    assert not store.check(["a"])


@pytest.mark.parametrize("kind", ["memory", "file", "tcp"])
def test_get_ends_at_the_timeout_and_names_the_key(kind: str, tmp_path: Path) -> None:
    if kind == "tcp":
        store = TcpStore("127.0.0.1", 0, True, SHORT, secret=b"")
    else:
        store = MemoryStore(SHORT) if kind == "memory" else FileStore(tmp_path, SHORT)
    with pytest.raises(TimeoutError, match="'nobody'"):
        store.get("nobody")
    if isinstance(store, TcpStore):
        store.close()


def test_prefixes_keep_groups_apart() -> None:
    shared = MemoryStore(SHORT)
    PrefixStore(shared, "a").set("key", b"1")
    assert not PrefixStore(shared, "b").check(["key"])
    assert shared.get("a/key") == b"1"


def test_wait_for_returns_values_by_rank() -> None:
    store = MemoryStore()
    for rank in range(3):
        store.set(f"k{rank}", b"%d" % rank)
    values = wait_for(store, {2: "k2", 0: "k0"}, time.monotonic() + 5, "cards")
    assert values == {2: b"2", 0: b"0"}


def test_wait_for_names_the_ranks_that_never_came() -> None:
    store = MemoryStore()
    store.set("k1", b"")
    start = time.monotonic()
    with pytest.raises(TimeoutError, match=r"ranks 0, 5 never came.*card of 3 ranks"):
        wait_for(store, {0: "k0", 1: "k1", 5: "k5"}, start + SHORT, "card")
    assert time.monotonic() - start >= SHORT


def test_wait_for_turns_a_dead_foreign_store_into_a_connection_error() -> None:
    class Dead(MemoryStore):
        def check(self, keys: list[str], /) -> bool:
            raise RuntimeError("Connection reset by peer")  # as torch does

    with pytest.raises(ConnectionError, match="Connection reset by peer"):
        wait_for(Dead(), {0: "k"}, time.monotonic() + 5, "card")


def test_a_file_store_keeps_nothing_but_its_keys(tmp_path: Path) -> None:
    store = FileStore(tmp_path)
    for i in range(20):
        store.set(f"k{i % 3}", b"x" * i)
    assert len(list(tmp_path.iterdir())) == 3
    for i in range(3):
        store.delete_key(f"k{i}")
    assert list(tmp_path.iterdir()) == []


def test_file_store_readers_see_whole_values(tmp_path: Path) -> None:
    store, reader = FileStore(tmp_path), FileStore(tmp_path)
    store.set("k", b"0" * 100_000)
    done = threading.Event()

    def write() -> None:
        for i in range(100):
            store.set("k", (b"%d" % (i % 10)) * 100_000)
        done.set()

    thread = threading.Thread(target=write)
    thread.start()
    while not done.is_set():
        value = reader.get("k")
        assert len(value) == 100_000
        assert len(set(value)) == 1
    thread.join()


# The TCP store.


@pytest.fixture
def server() -> Iterator[TcpStore]:
    store = TcpStore("127.0.0.1", 0, True, 5.0, secret=b"")
    yield store
    store.close()


def raw(store: TcpStore) -> socket.socket:
    return socket.create_connection(("127.0.0.1", store.port), timeout=5)


def closes(sock: socket.socket) -> bool:
    """Whether the other side hangs up; whatever it said before is read away."""
    try:
        while sock.recv(4096):
            pass
    except ConnectionResetError:
        pass
    sock.close()
    return True


def test_a_busy_port_is_named_with_its_remedy(server: TcpStore) -> None:
    with pytest.raises(
        OSError, match=rf"port {server.port} on 127.0.0.1 is in use; set MASTER_PORT"
    ):
        TcpStore("127.0.0.1", server.port, True, 5.0)


def test_an_address_of_another_machine_is_refused() -> None:
    with pytest.raises(OSError, match="not this machine; set MASTER_ADDR"):
        TcpStore("198.51.100.7", 0, True, 5.0)


def test_an_absent_server_is_a_timeout_that_says_where() -> None:
    with socket.socket() as sock:
        sock.bind(("127.0.0.1", 0))
        port = sock.getsockname()[1]
        with pytest.raises(TimeoutError, match=rf"rank 0 never answered at 127.0.0.1:{port}"):
            TcpStore("127.0.0.1", port, False, SHORT)


def test_clients_may_come_before_the_server() -> None:
    with socket.socket() as sock:
        sock.bind(("127.0.0.1", 0))
        port = sock.getsockname()[1]
    clients: list[TcpStore] = []
    thread = threading.Thread(
        target=lambda: clients.append(TcpStore("127.0.0.1", port, False, 20.0, secret=b""))
    )
    thread.start()
    time.sleep(0.1)
    server = TcpStore("127.0.0.1", port, True, 5.0, secret=b"")
    thread.join()
    server.set("a", b"1")
    assert clients[0].get("a") == b"1"
    clients[0].close()
    server.close()


def test_it_listens_on_one_address_only(server: TcpStore) -> None:
    rows = [line.split() for line in Path("/proc/net/tcp").read_text().splitlines()[1:]]
    rows += [line.split() for line in Path("/proc/net/tcp6").read_text().splitlines()[1:]]
    listening = [row[1] for row in rows if row[3] == "0A"]
    assert [a for a in listening if a.endswith(f":{server.port:04X}")] == [
        f"0100007F:{server.port:04X}"
    ]


def test_garbage_changes_nothing(server: TcpStore) -> None:
    server.set("a", b"1")
    generator = random.Random(1)
    for size in (1, 64, 96, 5000):
        sock = raw(server)
        with contextlib.suppress(OSError):  # it may have hung up on us already
            sock.sendall(generator.randbytes(size))
            sock.shutdown(socket.SHUT_WR)
        assert closes(sock)
    sock = raw(server)
    sock.sendall(b"GET / HTTP/1.1\r\nHost: x\r\n\r\n" + b"x" * 64)
    assert closes(sock)
    assert server.get("a") == b"1"


def test_an_oversized_frame_ends_its_connection_alone(server: TcpStore) -> None:
    other = TcpStore("127.0.0.1", server.port, False, 5.0, secret=b"")
    assert other._sock is not None
    other._sock.sendall(b"\x01\xff\xff\xff\xff\xff\xff")
    with pytest.raises(ConnectionError):
        other.get("a")
    server.set("a", b"1")
    assert server.get("a") == b"1"
    other.close()


@pytest.mark.parametrize("difference", [{"job": "another"}, {"secret": b"another secret 16"}])
def test_another_job_or_secret_is_not_let_in(difference: dict[str, object]) -> None:
    options: dict[str, object] = {"job": "one", "secret": b"sixteen bytes is it"}
    server = TcpStore("127.0.0.1", 0, True, 5.0, **options)
    with pytest.raises(TimeoutError, match="same job and secret"):
        TcpStore("127.0.0.1", server.port, False, SHORT, **{**options, **difference})
    server.close()


def test_the_port_closes_when_all_clients_are_there() -> None:
    server = TcpStore("127.0.0.1", 0, True, 5.0, clients=2, secret=b"")
    client = TcpStore("127.0.0.1", server.port, False, 5.0, secret=b"")
    client.set("a", b"1")
    assert server.get("a") == b"1"
    with pytest.raises(ConnectionRefusedError):
        raw(server)
    client.close()
    server.close()


def test_a_dead_server_is_a_connection_error(server: TcpStore) -> None:
    client = TcpStore("127.0.0.1", server.port, False, 5.0, secret=b"")
    server.close()
    with pytest.raises(ConnectionError, match="rank 0, which serves it, has probably died"):
        client.get("a")
    client.close()


def test_close_leaves_no_descriptor_and_no_thread() -> None:
    before = threading.active_count()
    with nothing_left_open():
        server = TcpStore("127.0.0.1", 0, True, 5.0, secret=b"")
        clients = [TcpStore("127.0.0.1", server.port, False, 5.0, secret=b"") for _ in range(5)]
        stranger = raw(server)
        server.set("a", b"1")
        for store in (*clients, server, server):
            store.close()
        stranger.close()
    assert threading.active_count() == before


def test_a_host_name_that_means_loopback_leads_all_ranks_to_one_address(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """Debian maps the host's own name to 127.0.1.1."""
    resolve = address.resolve
    monkeypatch.setattr(
        address,
        "resolve",
        lambda host, port: resolve("127.0.1.1" if host == "own-name" else host, port),
    )
    with contextlib.closing(TcpStore("own-name", 0, True, 10.0, secret=b"")) as served:
        with contextlib.closing(
            TcpStore("own-name", served.port, False, 10.0, secret=b"")
        ) as other:
            other.set("key", b"value")
        assert served.get("key") == b"value"
