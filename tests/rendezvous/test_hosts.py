"""Start-ups across real nodes: two network namespaces joined by a cable, as two hosts would be."""

import os
import shutil
import subprocess
import sys
from collections.abc import Iterator

import pytest

RANK_MAIN = """
import os, socket
from allreduce.rendezvous.launcher_environment import detect_launch, open_store
from allreduce.rendezvous.connect import connect
launch = detect_launch()
try:
    store = open_store(launch, 30)
    ours = connect(store, launch.rank, launch.world_size, arena_bytes=lambda n: 4096, timeout=30)
    peers = {p: socket.socket(fileno=fds[0]).getpeername()[0] for p, fds in ours.data.items()}
    print(ours.node_of_rank, peers, ours.congestion)
except Exception as error:
    print(type(error).__name__, error)
"""
PLACES = "aabb"  # the namespace of each rank
ADDRESS = {"a": "10.231.77.1", "b": "10.231.77.2"}


def ip(*arguments: str) -> None:
    subprocess.run(["ip", *arguments], check=True, capture_output=True, timeout=20)


@pytest.fixture
def hosts() -> Iterator[dict[str, str]]:
    """Two namespaces with an address each; gone after the test."""
    if os.geteuid() != 0 or shutil.which("ip") is None:
        pytest.skip("network namespaces need root and iproute2")
    names = {place: f"hier-{os.getpid()}-{place}" for place in ADDRESS}
    try:
        try:
            for name in names.values():
                ip("netns", "add", name)
            ends = [f"name v{place} netns {names[place]}".split() for place in "ab"]
            ip("link", "add", *ends[0], "type", "veth", "peer", *ends[1])
        except subprocess.CalledProcessError as error:
            pytest.skip(f"no network namespaces here: {error.stderr!r}")
        for place, name in names.items():
            ip("-n", name, "addr", "add", f"{ADDRESS[place]}/24", "dev", f"v{place}")
            ip("-n", name, "link", "set", f"v{place}", "up")
            ip("-n", name, "link", "set", "lo", "up")
        yield names
    finally:
        for name in names.values():
            subprocess.run(["ip", "netns", "del", name], capture_output=True, timeout=20)


def run_ranks(hosts: dict[str, str], **environ: str) -> list[str]:
    common = {
        **os.environ,
        "PYTHONPATH": os.pathsep.join(filter(None, sys.path)),
        "WORLD_SIZE": str(len(PLACES)),
        "MASTER_ADDR": ADDRESS["a"],
        "MASTER_PORT": "29400",
        **environ,
    }
    ranks = [
        subprocess.Popen(
            ["ip", "netns", "exec", hosts[place], sys.executable, "-c", RANK_MAIN],
            env={**common, "RANK": str(rank)},
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
        )
        for rank, place in enumerate(PLACES)
    ]
    try:
        return [process.communicate(timeout=50)[0].strip() for process in ranks]
    finally:
        for process in ranks:
            process.kill()


def test_each_namespace_is_a_node_and_tcp_takes_the_cable(hosts: dict[str, str]) -> None:
    said = run_ranks(hosts)
    for rank, text in enumerate(said):
        far = "b" if PLACES[rank] == "a" else "a"
        peers = {peer: ADDRESS[far] for peer in range(4) if PLACES[peer] == far}
        assert text.startswith(f"[0, 0, 1, 1] {peers} "), said


def test_an_interface_may_be_named(hosts: dict[str, str]) -> None:
    said = run_ranks({**hosts, "b": hosts["a"]}, ALLREDUCE_NODES="2", ALLREDUCE_IFACE="va")
    assert all(ADDRESS["a"] in text for text in said), said


def test_loopback_is_refused_between_hosts(hosts: dict[str, str]) -> None:
    said = run_ranks(hosts, ALLREDUCE_HOST="127.0.0.1")
    for text in said:
        assert text.startswith("UsageError"), said
        assert "loopback address 127.0.0.1, but the ranks run on several hosts" in text


def test_ranks_of_two_hosts_are_not_put_on_one_node(hosts: dict[str, str]) -> None:
    for text in run_ranks(hosts, ALLREDUCE_NODES="1"):
        assert "ranks 0 and 2 are put on one node but cannot share memory" in text
