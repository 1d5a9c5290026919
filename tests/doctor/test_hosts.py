"""Faults planted on emulated hosts: the doctor names each one, and nothing else."""

from __future__ import annotations

import functools
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
from doctor_cases import Report, on_hosts, sampled
from emulate_cases import why_not

pytestmark = pytest.mark.timeout(100)

_DUMMY = (
    "ip link add docker0 type veth peer name peer0; ip addr add 172.17.0.1/16 dev docker0; "
    "ip link set docker0 up; ip link set peer0 up; export ALLREDUCE_IFACE=docker0"
)
_FILTER = (
    "nft add table ip doctor; nft add chain ip doctor in '{ type filter hook input priority 0; }'; "
    "nft add rule ip doctor in"
)
_MINE = "echo {} > /dev/shm/plant; mount --bind /dev/shm/plant {}"
_AHEAD = (
    "import sys, time; now = time.time_ns; time.time_ns = lambda: now() + 90_000_000_000;"
    "from allreduce.doctor.command import main; sys.exit(main(sys.argv[1:]))"
)
_MEMORY = "/sys/fs/cgroup/memory/memory.limit_in_bytes"
_QUOTA = "/sys/fs/cgroup/cpu/cpu.cfs_quota_us"

# What is planted on which hosts; ranks on each host; the kind, and words of the sentence.
_PLANTS: dict[str, tuple[dict[int, str], int, str, str]] = {
    "an interface that others cannot reach": (
        {1: _DUMMY},
        1,
        "unreachable",
        "rank 1 (host1) listens on docker0 172.17.0.1 port ",
    ),
    "an interface with one address everywhere": (
        {0: _DUMMY, 1: _DUMMY},
        1,
        "same-address",
        "ranks 0, 1 are on several hosts, and all listen on 172.17.0.1 (docker0)",
    ),
    "a firewall that drops": (
        {1: f"{_FILTER} tcp flags syn / syn,ack drop"},
        1,
        "unreachable",
        "which rank 0 cannot reach (no answer)",
    ),
    "a firewall that refuses": (
        {1: f"{_FILTER} tcp flags syn / syn,ack reject with tcp reset"},
        1,
        "unreachable",
        "which rank 0 cannot reach (connection refused)",
    ),
    "large packets lost": (
        {
            1: f"{_FILTER} meta length gt 700 drop; "
            "nft add chain ip doctor out '{ type filter hook output priority 0; }'; "
            "nft add rule ip doctor out meta length gt 700 drop"
        },
        1,
        "large-packets",
        "from rank 0 to rank 1 (host1) small packets pass and large ones are lost (MTU: 9000 on",
    ),
    "another MTU": (
        {1: "ip link set eth0 mtu 1500"},
        1,
        "mtu",
        "eth0 of rank 1 (host1) has MTU 1500, other ranks have 9000",
    ),
    "a small send buffer": (
        {
            1: "echo 4096 16384 65536 > /proc/sys/net/ipv4/tcp_wmem; "
            + _MINE.format("32768", "/proc/sys/net/core/wmem_max")
        },
        1,
        "send-buffer",
        "the send buffer of rank 1 (host1) (64 KiB) limits a stream to ",
    ),
    "a small receive buffer": (
        {1: "echo 4096 16384 65536 > /proc/sys/net/ipv4/tcp_rmem"},
        1,
        "receive-buffer",
        "the receive buffer of rank 1 (host1) (64 KiB) limits a stream to ",
    ),
    "a name that means loopback": (
        {1: "hostname localhost"},
        2,
        "loopback-name",
        "on the host of ranks 2, 3 the name localhost means 127.0.0.1",
    ),
    "one name for two machines": (
        {1: "hostname host0; " + _MINE.format("another-boot", "/proc/sys/kernel/random/boot_id")},
        1,
        "host-name",
        "ranks 0, 1 are on 2 machines that all have the name host0",
    ),
    "containers of one machine": (
        dict.fromkeys((0, 1), "unset ALLREDUCE_EMULATED"),
        1,
        "containers",
        "rank 0 and rank 1 are on one machine, in network namespaces of their own",
    ),
    "a congestion control of its own": (
        {1: "echo bbr > /proc/sys/net/ipv4/tcp_congestion_control"},
        1,
        "congestion",
        "TCP's congestion control is bbr on rank 1 (host1), ",
    ),
    "a clock that is ahead": (
        {1: f'exec {sys.executable} -c "{_AHEAD}" --timeout 20'},
        1,
        "clock",
        "the clock of rank 1 (host1) is 90.0 s ahead of that of rank 0",
    ),
    "nodes across hosts": (
        dict.fromkeys((0, 1), "export ALLREDUCE_NODES=0,1,1,0"),
        2,
        "nodes",
        "ranks 1 and 2 are put on one node but cannot share memory",
    ),
    "little memory": (
        {1: _MINE.format("3000000", _MEMORY)},
        2,
        "memory",
        "ranks 2, 3 (host1) may need 5.012 MiB of shared memory, and 2.861 MiB are free on host1",
    ),
    "little time of the processor": (
        {0: _MINE.format("50000", _QUOTA)},
        2,
        "cpu-quota",
        "ranks 0, 1 (host0) together may use 0.5 cores' worth of time",
    ),
    "no /proc": (
        {1: "while umount /proc 2> /dev/null; do :; done"},
        1,
        "proc",
        "cannot tell on which node this process runs",
    ),
    "several users": (
        {1: "test $LOCAL_RANK = 0 || exec setpriv --reuid 65534 --clear-groups PROGRAM"},
        2,
        "users",
        "rank 3 (host1) runs as user 65534, other ranks of that host as user 0",
    ),
    "no such interface": (
        {1: "export ALLREDUCE_IFACE=eth9"},
        1,
        "address",
        "rank 1 (host1) has no address to listen on: ALLREDUCE_IFACE=eth9: matches no interface",
    ),
    "an address of another host": (
        {1: "export ALLREDUCE_HOST=10.231.0.1"},
        1,
        "address",
        "rank 1 (host1) has no address to listen on: cannot listen: ",
    ),
}

_LEFT_TO_FULL = {
    "a congestion control of its own",
    "a firewall that refuses",
    "a small receive buffer",
    "an address of another host",
    "an interface with one address everywhere",
    "little time of the processor",
    "no such interface",
    "nodes across hosts",
    "several users",
}


@pytest.fixture(autouse=True)
def hosts() -> None:
    """Skip, and say why, where no hosts can be made."""
    if reason := why_not():
        pytest.skip(f"no emulated hosts here: {reason}")


@functools.cache
def _nft_problem() -> str:
    trial = _FILTER + " meta length gt 1400 drop"
    if shutil.which("nft") is None:
        return "no nft: apt install nftables"
    done = subprocess.run(
        ["unshare", "--net", "sh", "-c", f"set -e; {trial}"],
        capture_output=True,
        text=True,
        timeout=20,
        check=False,
    )
    return done.stderr.strip() if done.returncode else ""


def _skip_what_cannot_be_planted(script: str) -> None:
    if "nft" in script and (problem := _nft_problem()):
        pytest.skip(f"no firewall can be planted: {problem}")
    for file in (_MEMORY, _QUOTA):
        if file in script and not Path(file).exists():
            pytest.skip(f"no {file} here")
    if "echo bbr" in script:
        file = Path("/proc/sys/net/ipv4/tcp_available_congestion_control")
        if "bbr" not in file.read_text().split():
            pytest.skip("the kernel has no bbr")
    if "setpriv" in script:
        words = ["setpriv", "--reuid", "65534", "--clear-groups", sys.executable, "-c", ""]
        if shutil.which("setpriv") is None or subprocess.run(words, check=False).returncode:
            pytest.skip("another user cannot run this Python")


def _check(report: Report, kind: str, text: str) -> None:
    # Another user may find another Python.
    allowed = {"python", "numpy"} if kind == "users" else set()
    assert set(report.kinds) - allowed == {kind}, (report.text, report.output)
    assert text in report.text, report.text
    wrong = any(finding["severity"] == "error" for finding in report.findings)
    assert report.codes == [int(wrong)]


@pytest.mark.parametrize("name", sampled(_PLANTS, _LEFT_TO_FULL))
def test_a_planted_fault_is_named_alone(name: str, tmp_path: Path) -> None:
    scripts, ranks, kind, text = _PLANTS[name]
    program = f"{sys.executable} -m allreduce.doctor --timeout 20"
    scripts = {host: script.replace("PROGRAM", program) for host, script in scripts.items()}
    _skip_what_cannot_be_planted("".join(scripts.values()))
    slow = kind in ("send-buffer", "receive-buffer")
    options = () if slow else ("--quick",)
    delay = "20ms" if slow else "1ms"
    _check(on_hosts(tmp_path, scripts, *options, ranks=ranks, delay=delay), kind, text)


@pytest.mark.full
def test_a_slow_host_among_three_is_named(tmp_path: Path) -> None:
    report = on_hosts(tmp_path, {}, emulation=("--slow-host", "2:0.1"), hosts=3, rate="800Mbit")
    _check(report, "slow-link", "links from and to rank 2 (host2) are slow: ")
    assert len(report.findings) == 1


def test_a_link_that_is_slow_in_one_direction_is_named(tmp_path: Path) -> None:
    slow = "tc qdisc replace dev eth0 root tbf rate 20mbit burst 80k limit 4m"
    report = on_hosts(tmp_path, {1: slow})
    _check(report, "slow-link", "the link from rank 1 (host1) to rank 0 (host0) is slow: ")


@pytest.mark.full
def test_two_faults_are_both_named(tmp_path: Path) -> None:
    scripts = {0: "export ALLREDUCE_CHECKSUM=0", 1: "ip link set eth0 mtu 1500"}
    report = on_hosts(tmp_path, scripts)
    assert sorted(report.kinds) == ["mtu", "variable"]


def test_a_healthy_job_of_4_ranks_on_2_hosts_has_nothing_wrong(tmp_path: Path) -> None:
    report = on_hosts(tmp_path, {}, ranks=2)
    assert report.codes == [0], report.output
    assert report.findings == []
    assert "\nnothing wrong was found\n" in report.output
    assert "connections between hosts: 2 of 2 tried" in report.output


@pytest.mark.full
def test_a_rank_that_dies_on_another_host_is_named_though_nobody_sees_its_process(
    tmp_path: Path,
) -> None:
    dies = (
        "import os; import allreduce.doctor.steps as steps; steps.reach_all = lambda *a: "
        "os._exit(0); from allreduce.doctor.command import main; main([])"
    )
    plants = {1: f'exec {sys.executable} -c "{dies}"'}
    _check(
        on_hosts(tmp_path, plants, "--step", "5", hosts=3),
        "silent",
        "rank 1 (host1) came, and fell silent in the step 'reach'",
    )
