"""Start-ups across real nodes: two network namespaces joined by a cable, as two hosts would be."""

import os
import shutil
import subprocess
import sys
from collections.abc import Iterator

import pytest

RANK_MAIN = """
import logging, os, socket, sys
from allreduce.rendezvous.launcher_environment import detect_launch, open_store
from allreduce.rendezvous.connect import connect
logging.basicConfig(stream=sys.stdout)
launch, timeout = detect_launch(), float(os.environ.get("TEST_TIMEOUT", 30))
try:
    store = open_store(launch, timeout)
    ours = connect(
        store, launch.rank, launch.world_size, arena_bytes=lambda n: 4096, timeout=timeout
    )
    names = {p: socket.socket(fileno=fds[0]).getpeername() for p, fds in ours.data.items()}
    peers = {peer: name[0] for peer, name in names.items()}
    print(ours.node_of_rank, peers, ours.congestion, sorted({name[1] for name in names.values()}))
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


def run_ranks(
    hosts: dict[str, str], only: dict[str, dict[str, str]] | None = None, **environ: str
) -> list[str]:
    """Returns what the four ranks say. `only` has more variables for the ranks of a namespace."""
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
            env={**common, "RANK": str(rank), **(only or {}).get(place, {})},
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


def add_interface(host: str, name: str, address: str) -> None:
    """Give a host one more interface that is up and leads nowhere."""
    ip("-n", host, "link", "add", name, "type", "bridge")
    ip("-n", host, "addr", "add", address, "dev", name)
    ip("-n", host, "link", "set", name, "up")


@pytest.mark.parametrize(
    "environ",
    [
        {"ALLREDUCE_IFACE": "10.231.77.0/24"},
        {"ALLREDUCE_IFACE": "v*,!docker*"},
        {"ALLREDUCE_IFACE": "!docker0,!10.9.0.0/16"},
        {"GLOO_SOCKET_IFNAME": "va,vb"},
        {"NCCL_SOCKET_IFNAME": "^docker,lo"},
    ],
    ids=str,
)
def test_words_that_fit_all_hosts(hosts: dict[str, str], environ: dict[str, str]) -> None:
    for name in hosts.values():
        add_interface(name, "docker0", "172.17.0.1/16")
    for rank, text in enumerate(run_ranks(hosts, **environ)):
        far = ADDRESS["b" if PLACES[rank] == "a" else "a"]
        assert text.startswith("[0, 0, 1, 1]"), text
        assert far in text, text


def test_a_bridge_that_every_host_has_is_refused_at_once(hosts: dict[str, str]) -> None:
    for name in hosts.values():
        add_interface(name, "docker0", "172.17.0.1/16")
    for text in run_ranks(hosts, ALLREDUCE_IFACE="docker0"):
        assert text.startswith("UsageError"), text
        assert "ranks 0 and 2 run on different hosts" in text
        assert "docker0 172.17.0.1 port " in text


def test_a_host_that_listens_on_a_bridge_of_its_own_is_named(hosts: dict[str, str]) -> None:
    for name in hosts.values():
        add_interface(name, "docker0", "172.17.0.1/16")
    said = run_ranks(hosts, {"a": {"ALLREDUCE_IFACE": "docker0"}})
    # Ranks 2 and 3 call ranks 0 and 1, which hear of it long before their deadline.
    assert all("PeerError start-up failed on rank" in text for text in said[:2]), said
    assert any("docker0 of this rank's own host has the same address" in text for text in said), (
        said
    )


def test_an_interface_that_others_do_not_reach_is_named(hosts: dict[str, str]) -> None:
    add_interface(hosts["a"], "docker0", "172.17.0.1/16")
    said = run_ranks(hosts, {"a": {"ALLREDUCE_IFACE": "docker0"}})
    assert all("PeerError start-up failed on rank" in text for text in said[:2]), said
    assert "cannot connect to rank" in said[2] + said[3], said
    assert "docker0 172.17.0.1 port " in said[2] + said[3]


def test_a_network_that_swallows_calls_is_named_early(hosts: dict[str, str]) -> None:
    if shutil.which("nft") is None:
        pytest.skip("dropping packets needs nftables")
    add_interface(hosts["a"], "docker0", "172.17.0.1/16")
    ip("-n", hosts["b"], "route", "add", "172.17.0.0/16", "via", ADDRESS["a"])
    swallow = (
        "table ip t { chain c { type filter hook input priority 0; ip daddr 172.17.0.1 drop; }; }"
    )
    subprocess.run(["ip", "netns", "exec", hosts["a"], "nft", swallow], check=True, timeout=20)
    said = run_ranks(hosts, {"a": {"ALLREDUCE_IFACE": "docker0"}}, TEST_TIMEOUT="8")
    assert "no connection" in said[2] + said[3], said
    assert "rank 2 cannot reach rank 0 (pid " in said[2]
    assert "docker0 172.17.0.1 port " in said[2]


def test_ports_come_from_the_range(hosts: dict[str, str]) -> None:
    said = run_ranks(hosts, ALLREDUCE_PORTS="29610-29611")
    for rank, text in enumerate(said):
        ports = [port for port in ("29610", "29611") if port in text]
        # The higher rank calls: it knows the other one's port.
        assert ports if PLACES[rank] == "b" else not ports, said


def test_ipv6(hosts: dict[str, str]) -> None:
    for number, (place, name) in enumerate(hosts.items()):
        ip("-n", name, "addr", "add", f"fd77::{number + 1}/64", "dev", f"v{place}", "nodad")
    for rank, text in enumerate(run_ranks(hosts, MASTER_ADDR="fd77::1")):
        far = "fd77::2" if PLACES[rank] == "a" else "fd77::1"
        assert text.startswith("[0, 0, 1, 1]"), text
        assert far in text, text


def test_a_host_behind_a_translator_is_called_at_its_advertised_address(
    hosts: dict[str, str],
) -> None:
    """Host a plays a container, whose network only its translator knows."""
    if shutil.which("nft") is None:
        pytest.skip("the translation of addresses needs nftables")
    put_behind_translator(hosts)
    said = run_ranks(
        hosts,
        {"a": {"ALLREDUCE_ADVERTISE": PUBLIC}},
        MASTER_ADDR=PUBLIC,
        ALLREDUCE_PORTS="29610-29613",
    )
    assert all(text.startswith("[0, 0, 1, 1]") for text in said), said
    assert all(PUBLIC in text for text in said[2:]), said


PUBLIC, INNER = "203.0.113.5", "10.99.0.2"
TRANSLATION = f"""
table ip translate {{
  chain inwards {{ type nat hook prerouting priority -100;
    ip daddr {PUBLIC} tcp dport {{ 29400, 29610-29613 }} dnat to {INNER}; }}
  chain outwards {{ type nat hook postrouting priority 100; masquerade; }}
}}
"""


def put_behind_translator(hosts: dict[str, str]) -> None:
    """Joins host a (10.99.0.2) and host b (203.0.113.9) by a router that is 203.0.113.5 to b."""
    router = hosts["router"] = f"hier-{os.getpid()}-router"  # the fixture removes it
    ip("netns", "add", router)
    ip("-n", hosts["a"], "link", "del", "va")  # and vb with it
    for place, own, others in (("a", INNER, "10.99.0.1"), ("b", "203.0.113.9", PUBLIC)):
        ends = [f"name v{place} netns {hosts[place]}", f"name r{place} netns {router}"]
        ip("link", "add", *ends[0].split(), "type", "veth", "peer", *ends[1].split())
        for host, device, address in (
            (hosts[place], f"v{place}", own),
            (router, f"r{place}", others),
        ):
            ip("-n", host, "addr", "add", f"{address}/24", "dev", device)
            ip("-n", host, "link", "set", device, "up")
        ip("-n", hosts[place], "route", "add", "default", "via", others)
    on_router = ["ip", "netns", "exec", router]
    subprocess.run([*on_router, "sysctl", "-qw", "net.ipv4.ip_forward=1"], check=True, timeout=20)
    subprocess.run(
        [*on_router, "nft", "-f", "-"], input=TRANSLATION, text=True, check=True, timeout=20
    )
