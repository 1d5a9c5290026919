"""What one rank knows of its own process and host. Nothing is sent, nothing is judged."""

from __future__ import annotations

import contextlib
import dataclasses
import hashlib
import os
import platform
import resource
import socket
import threading
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import TypeVar

import numpy as np

import allreduce
from allreduce import _C
from allreduce.errors import Error
from allreduce.rendezvous.address import dead_after_option, is_loopback, set_congestion_control
from allreduce.rendezvous.connect import checksum_option, connect_option
from allreduce.rendezvous.handshake import job_secret
from allreduce.rendezvous.node_layout import NodeIdentity, my_identity, nodes_option
from allreduce.rendezvous.shared_memory import memory_available
from allreduce.tuning.option import resolve_tuning

__all__ = ["AGREED", "AGREED_LOOSELY", "NO_LIMIT", "Facts", "collect", "unpack"]

NO_LIMIT = 1 << 62
_THREADS_TRIED = 8  # as many as a rank may start besides its own
# Variables that all ranks have to give alike, with the value that an unset one stands for.
AGREED = {
    "ALLREDUCE_NODES": "",
    "ALLREDUCE_CHECKSUM": "1",
    "ALLREDUCE_CONNECT": "",
    "HIER_REPLACE_GLOO": "0",
}
# Ranks may differ in these, but hardly ever on purpose.
AGREED_LOOSELY = {
    "ALLREDUCE_DEAD_AFTER": "4",
    "ALLREDUCE_TCP_CONGESTION": "",
    "ALLREDUCE_REQUIRE_AUTH": "0",
    "ALLREDUCE_DEVICE_LOCAL": "auto",
    "ALLREDUCE_DEVICE_RUNTIME": "cuda",
}
_OF_HOST = ("ALLREDUCE_HOST", "ALLREDUCE_IFACE", "MASTER_ADDR")

Kind = TypeVar("Kind")


@dataclass(frozen=True, slots=True, kw_only=True)
class Facts:
    """What a rank publishes. A field that a rank of another version leaves out has its default."""

    rank: int
    world_size: int = 0
    launcher: str = ""
    host: str = "?"
    boot: str = ""
    network: str = ""  # namespace
    pid: int = 0
    user: int = 0
    python: str = ""
    version: str = ""
    native: str = ""  # hash of the sources of the native code
    code: str = ""  # hash of the package's Python files
    numpy: str = ""
    kernel: str = ""
    descriptors_limit: int = NO_LIMIT  # the hard one: the library raises the soft one to it
    descriptors_open: int = 0
    locked_memory_limit: int = NO_LIMIT  # bytes
    fast_network_cards: bool = False  # InfiniBand or a GPU, whose drivers lock memory
    memory: int = NO_LIMIT  # bytes that the host and the cgroup could give now
    cores: list[int] = field(default_factory=list)  # that this rank may use
    host_cores: int = 1
    quota: float = 0.0  # cores' worth of time of the cgroup; 0: no limit
    numa_nodes: list[int] = field(default_factory=list)  # that `cores` belong to
    name_addresses: list[str] = field(default_factory=list)  # that the host's name resolves to
    congestion: str = ""  # the kernel's default
    send_buffer: int = 0  # bytes, what the kernel lets the library's sockets have; 0: not known
    receive_buffer: int = 0
    variables: dict[str, str] = field(default_factory=dict)
    emulated: str = ""
    tuning: str = ""  # digest of the tuning file
    lanes: int = 2
    secret: bool = False
    problems: dict[str, str] = field(default_factory=dict)  # what cannot work here, in a sentence

    @property
    def identity(self) -> NodeIdentity:
        """Return the node of this rank."""
        return NodeIdentity(boot=self.boot, host=self.host, network=self.network)

    @property
    def descriptors(self) -> str:
        """Return the limit in words."""
        return (
            "any number of" if self.descriptors_limit >= NO_LIMIT else f"{self.descriptors_limit}"
        )

    @property
    def name_is_loopback(self) -> bool:
        """Return whether the host's own name means loopback there."""
        return bool(self.name_addresses) and all(map(is_loopback, self.name_addresses))


def unpack(kind: type[Kind], entry: object) -> Kind:
    """Return a dataclass from JSON; ValueError if it is none. Fields that it lacks are dropped."""
    names = {f.name for f in dataclasses.fields(kind)}  # type: ignore[arg-type]
    if not isinstance(entry, dict):
        raise ValueError("not an object")
    try:
        return kind(**{name: value for name, value in entry.items() if name in names})
    except TypeError as error:
        raise ValueError(str(error)) from error


def collect(rank: int, world_size: int, launcher: str, environ: Mapping[str, str]) -> Facts:
    """Return the facts of this process."""
    problems: dict[str, str] = {}
    boot = network = ""
    try:
        identity = my_identity()
        boot, network = identity.boot, identity.network
    except OSError as error:
        problems["proc"] = str(error)
    secret = _try(problems, "secret", partial(job_secret, environ))
    tuning = resolve_tuning(None, environ)
    if tuning.failure:
        problems["ALLREDUCE_TUNING"] = tuning.failure
    _check_variables(problems, environ, world_size)
    _check_system(problems)
    wanted = {**AGREED, **AGREED_LOOSELY, **dict.fromkeys(_OF_HOST, "")}
    return Facts(
        rank=rank,
        world_size=world_size,
        launcher=launcher,
        host=socket.gethostname()[:255],
        boot=boot,
        network=network,
        pid=os.getpid(),
        user=os.geteuid(),
        python=platform.python_version(),
        version=allreduce.__version__,
        native=_C.source_hash,
        code=_code_hash(Path(allreduce.__file__).parent),
        numpy=np.__version__,
        kernel=platform.release(),
        descriptors_limit=_limit(resource.RLIMIT_NOFILE)[1],
        descriptors_open=_open_descriptors(),
        locked_memory_limit=_limit(resource.RLIMIT_MEMLOCK)[0],
        fast_network_cards=any(
            Path(p).exists() for p in ("/sys/class/infiniband", "/dev/nvidiactl")
        ),
        memory=memory_available(),
        cores=sorted(os.sched_getaffinity(0)),
        host_cores=os.cpu_count() or 1,
        quota=_quota(),
        numa_nodes=_numa_nodes(os.sched_getaffinity(0)),
        name_addresses=_addresses_of_name(),
        congestion=_kernel_text("net/ipv4/tcp_congestion_control"),
        send_buffer=_send_buffer(),
        receive_buffer=_last_number(_kernel_text("net/ipv4/tcp_rmem")),
        variables={name: environ.get(name, unset).strip() for name, unset in wanted.items()},
        emulated=environ.get("ALLREDUCE_EMULATED", ""),
        tuning=tuning.digest,
        lanes=tuning.lanes(None, world_size),
        secret=secret is not None,
        problems=problems,
    )


Value = TypeVar("Value")


def _try(problems: dict[str, str], name: str, ask: Callable[[], Value]) -> Value | None:
    """Return what `ask` returns, or None and note why it cannot."""
    try:
        return ask()
    except (Error, ValueError, OSError, RuntimeError) as error:
        problems[name] = str(error)
        return None


def _check_variables(problems: dict[str, str], environ: Mapping[str, str], world_size: int) -> None:
    def congestion() -> None:
        with socket.socket(socket.AF_INET, socket.SOCK_STREAM) as sock:
            set_congestion_control(sock, environ.get("ALLREDUCE_TCP_CONGESTION") or None, False)

    _try(problems, "ALLREDUCE_NODES", partial(nodes_option, None, environ))
    _try(problems, "ALLREDUCE_CONNECT", partial(connect_option, None, world_size, environ))
    _try(problems, "ALLREDUCE_DEAD_AFTER", partial(dead_after_option, None, environ))
    _try(problems, "ALLREDUCE_CHECKSUM", partial(checksum_option, None, environ))
    _try(problems, "ALLREDUCE_TCP_CONGESTION", congestion)


def _check_system(problems: dict[str, str]) -> None:
    def memfd() -> None:
        os.close(os.memfd_create("allreduce-doctor", os.MFD_CLOEXEC | os.MFD_ALLOW_SEALING))

    def unix_socket() -> None:
        with socket.socket(socket.AF_UNIX, socket.SOCK_STREAM) as here:
            here.bind(f"\0allreduce-doctor-{os.getpid()}".encode())

    _try(problems, "memfd", memfd)
    _try(problems, "unix socket", unix_socket)
    _try(problems, "threads", _start_threads)


def _start_threads() -> None:
    end = threading.Event()
    started = []
    try:
        for _ in range(_THREADS_TRIED):
            thread = threading.Thread(target=end.wait, daemon=True)
            thread.start()
            started.append(thread)
    finally:
        end.set()
        for thread in started:
            thread.join()


def _limit(which: int) -> tuple[int, int]:
    soft, hard = resource.getrlimit(which)
    bounded = [NO_LIMIT if n == resource.RLIM_INFINITY else n for n in (soft, hard)]
    return bounded[0], bounded[1]


def _open_descriptors() -> int:
    with contextlib.suppress(OSError):
        return len(os.listdir("/proc/self/fd"))
    return 0


def _code_hash(package: Path) -> str:
    """Hash the package's Python files: two hosts may have one version number and other files."""
    digest = hashlib.sha256()
    for file in sorted(package.rglob("*.py")):
        digest.update(str(file.relative_to(package)).encode() + b"\0" + file.read_bytes())
    return digest.hexdigest()[:12]


def _quota() -> float:
    """Return the cores' worth of time that the cgroup gives; 0 where it sets no limit."""
    with contextlib.suppress(OSError, ValueError):
        most, period = Path("/sys/fs/cgroup/cpu.max").read_text().split()
        return int(most) / int(period)  # "max" is no number
    with contextlib.suppress(OSError, ValueError):
        folder = Path("/sys/fs/cgroup/cpu")
        most_us = int((folder / "cpu.cfs_quota_us").read_text())
        return max(0.0, most_us / int((folder / "cpu.cfs_period_us").read_text()))
    return 0.0


def _numa_nodes(cores: set[int]) -> list[int]:
    found = []
    for folder in Path("/sys/devices/system/node").glob("node[0-9]*"):
        with contextlib.suppress(OSError, ValueError):
            for part in (folder / "cpulist").read_text().strip().split(","):
                first, _, last = part.partition("-")
                if cores & set(range(int(first), int(last or first) + 1)):
                    found.append(int(folder.name[4:]))
                    break
    return sorted(found)


def _addresses_of_name() -> list[str]:
    try:
        entries = socket.getaddrinfo(socket.gethostname(), 0, type=socket.SOCK_STREAM)
    except OSError:
        return []
    return sorted({str(address[0]) for *_, address in entries})


def _kernel_text(name: str) -> str:
    with contextlib.suppress(OSError):
        return (Path("/proc/sys") / name).read_text().strip()
    return ""


def _last_number(text: str) -> int:
    return int(text.split()[-1]) if text else 0


def _send_buffer() -> int:
    """Return what the library's sockets may have at most: see rendezvous/address.py."""
    asked = _last_number(_kernel_text("net/core/wmem_max"))
    return max(2 * asked, _last_number(_kernel_text("net/ipv4/tcp_wmem")))
