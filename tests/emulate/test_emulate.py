"""Commands on emulated hosts: what they see, what the network does, and that nothing is left.

No time is asserted, but for one that cannot be undercut: what the network's rate and delay take.
"""

from __future__ import annotations

import os
import re
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
from emulate_cases import DELAY, RATE, command, emulate, why_not

_DEADLINE = 60.0

pytestmark = pytest.mark.timeout(118)


@pytest.fixture(autouse=True)
def hosts() -> None:
    """Skip, and say why, where no hosts can be made."""
    if reason := why_not():
        pytest.skip(f"no emulated hosts here: {reason}")


def _python(code: str) -> tuple[str, ...]:
    return "--", sys.executable, "-c", code


def _dropped(stderr: str) -> tuple[int, int]:
    match = re.search(r"(\d+) lost as asked, (\d+) dropped", stderr)
    assert match, stderr
    return int(match[1]), int(match[2])


def test_a_host_has_a_name_and_processes_and_memory_of_its_own() -> None:
    code = (
        "import os, socket, time; rank = os.environ['RANK'];"
        "open('/dev/shm/mine' + rank, 'w').close(); time.sleep(0.5);"
        'print(f\'{rank} {socket.gethostname()} {socket.gethostbyname("host1")} {os.getpid() < 20}'
        " {os.listdir(\"/dev/shm\")}\\n', end='')"
    )
    done = emulate(*_python(code))
    assert done.returncode == 0, done.stderr
    assert sorted(done.stdout.splitlines()) == [
        "0 host0 10.231.0.2 True ['mine0']",
        "1 host1 10.231.0.2 True ['mine1']",
    ]


def test_ranks_of_a_host_see_what_a_launcher_sets() -> None:
    names = "RANK WORLD_SIZE LOCAL_RANK LOCAL_WORLD_SIZE NODE_RANK NNODES MASTER_ADDR"
    code = (
        f"import os; values = [os.environ[name] for name in '{names}'.split()];"
        "print(' '.join(values) + chr(10), end='')"
    )
    done = emulate("--ranks-per-host", "2", *_python(code))
    assert sorted(done.stdout.splitlines()) == [
        "0 4 0 2 0 2 10.231.0.1",
        "1 4 1 2 0 2 10.231.0.1",
        "2 4 0 2 1 2 10.231.0.1",
        "3 4 1 2 1 2 10.231.0.1",
    ]


def test_the_first_status_that_is_not_zero_counts() -> None:
    done = emulate("--", "sh", "-c", "exit $((3 * RANK))")
    assert done.returncode == 3
    assert "host 1 ended with 3" in done.stderr
    assert emulate("--", "no-such-command").returncode == 127


_ALLREDUCE = """
import time, numpy, allreduce
comm = allreduce.init(measure=False)
x = numpy.full({count}, comm.rank + 1.0, numpy.float32)
comm.barrier()
begin = time.perf_counter()
comm.allreduce(x, algo="ring")
seconds = time.perf_counter() - begin
assert (x == comm.world_size * (comm.world_size + 1) / 2).all()
print(f"{{comm.num_nodes}} {{seconds}}\\n", end="")
"""


@pytest.mark.parametrize("options", [(), ("--loss", "5%"), ("--jitter", "5ms")])
def test_an_allreduce_is_right_and_no_faster_than_the_network(options: tuple[str, ...]) -> None:
    hosts, count = 3, 100_000
    done = emulate(*options, *_python(_ALLREDUCE.format(count=count)), hosts=hosts)
    assert done.returncode == 0, done.stderr
    crossing = 2 * (hosts - 1) / hosts * 4 * count / (RATE / 8)
    for line in done.stdout.splitlines():
        nodes, seconds = line.split()
        assert int(nodes) == hosts
        # The last to enter a barrier leaves it a delay behind the others.
        assert float(seconds) > 0.95 * (crossing + (2 * (hosts - 1) - 2) * DELAY)
    lost, _ = _dropped(done.stderr)
    assert (lost > 0) == ("--loss" in options)


def test_a_slow_host_is_slow() -> None:
    count = 50_000
    slowed = ("--slow-host", "1:0.25")
    done = emulate(*slowed, *_python(_ALLREDUCE.format(count=count)))
    assert done.returncode == 0, done.stderr
    at_least = 0.95 * 4 * count / (0.25 * RATE / 8)
    assert all(float(line.split()[1]) > at_least for line in done.stdout.splitlines())


_FLOOD = """
import os, socket
with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as here:
    for _ in range(100):
        here.sendto(bytes(8000), (os.environ["MASTER_ADDR"], 9))
"""


def test_what_finds_no_room_in_a_queue_is_dropped() -> None:
    done = emulate("--queue", "20K", *_python(_FLOOD + "import time; time.sleep(1)"), hosts=4)
    assert done.returncode == 0, done.stderr
    assert _dropped(done.stderr)[1] > 0


def test_the_network_is_what_was_asked_for() -> None:
    """By the clock of this machine, which other work may hold up: what it prints is looked at."""
    done = emulate("--check", hosts=3)
    rows = re.findall(r"^(.*\S) +[\d.]+ \S+ +[\d.]+ \S+ +([+-][\d.]+)%$", done.stdout, re.MULTILINE)
    assert [row[0] for row in rows] == ["round trip", "one stream", "2 streams into one host"]
    assert all(float(error) < 5 for what, error in rows if "stream" in what)


def _processes_of(mark: str, program: str = "") -> list[int]:
    found = []
    for path in Path("/proc").iterdir():
        if path.name.isdigit():
            try:
                words = (path / "cmdline").read_bytes()
            except OSError:
                continue
            if mark.encode() in words and words.startswith(program.encode()):
                found.append(int(path.name))
    return found


@pytest.mark.parametrize("number", [signal.SIGKILL, signal.SIGTERM, signal.SIGINT])
def test_nothing_is_left_when_it_is_killed(number: signal.Signals) -> None:
    mark = f"{os.getpid()}.{int(number)}"  # in the command lines of all that it starts
    script = f"sleep 1000{mark} & setsid sleep 1001{mark} & wait"
    words = ("--hosts", "2", "--rate", "1Gbit", "--delay", "1ms", "--", "sh", "-c", script)
    with subprocess.Popen(command(*words), stderr=subprocess.DEVNULL) as process:
        deadline = time.monotonic() + _DEADLINE
        while len(_processes_of(mark, "sleep")) < 4:
            assert time.monotonic() < deadline
            time.sleep(0.05)
        process.send_signal(number)
    while _processes_of(mark):
        assert time.monotonic() < deadline, "something is left"
        time.sleep(0.05)
