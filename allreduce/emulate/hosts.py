"""Hosts: processes in namespaces of their own, which end with the process that started them.

Each host is two processes besides its commands. The first lives in the old process namespace and
makes the new namespaces. The second is the first process of the new one: when it ends, in whatever
way, the kernel kills all that the commands have started. Both die with their parent. Namespaces
have no names: nothing is left of them then.
"""

from __future__ import annotations

import contextlib
import os
import signal
import socket
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import NoReturn

from allreduce.commands.parent_death import die_with_parent
from allreduce.emulate import system_calls as system
from allreduce.emulate.network import Network
from allreduce.errors import SystemCallError
from allreduce.rendezvous.launcher_environment import EMULATED

__all__ = ["Host", "shell_status"]

DEVICE = "eth0"
_PORT = "29500"  # of rank 0's store
_SPACES = (
    system.NEW_NETWORK
    | system.NEW_MOUNTS
    | system.NEW_HOST_NAME
    | system.NEW_IPC
    | system.NEW_PROCESSES
)
_TCP = Path("/proc/sys/net/ipv4")  # of this network namespace
_RETRANSMIT_AFTER, _RETRANSMIT_AFTER_MAX = 0.2, 100  # seconds: TCP's least, and below its most
# A late timer must not cost a part of the rate, and a packet must pass whole.
_BURST_SECONDS, _BURST_BYTES = 0.005, 80_000
_HOST_QUEUE_BYTES = 256 << 20
_GO = b"g"
_FAILED = 125  # status of a host that could not be made, as of other tools that run commands
_NOT_FOUND = 127


class Host:
    """A host of a network. It waits until it is told to run its commands."""

    def __init__(
        self, network: Network, number: int, command: Sequence[str], ranks: int = 1
    ) -> None:
        """Make it.

        Raises:
            SystemCallError: there can be no such namespaces or devices.
        """
        self.number = number
        self._line, theirs = socket.socketpair()
        parent = os.getpid()
        sys.stdout.flush()
        self.process = os.fork()
        if self.process == 0:
            self._line.close()
            _Keeper(network, number, command, ranks).live(theirs, parent)
        theirs.close()
        said, tuns, _, _ = socket.recv_fds(self._line, 4096, 1)
        if not tuns:
            reason = said.decode() or "it ended while it was made"
            os.waitpid(self.process, 0)
            raise SystemCallError(f"host {number} cannot be made: {reason}")
        self.tun = tuns[0]

    def go(self) -> None:
        """Run the commands."""
        with contextlib.suppress(BrokenPipeError):  # it has ended, and its status says why
            self._line.send(_GO)

    def kill(self) -> None:
        """End it, and all that runs on it."""
        with contextlib.suppress(ProcessLookupError):
            os.kill(self.process, signal.SIGKILL)


class _Keeper:
    """What the processes of a host do."""

    def __init__(self, network: Network, number: int, command: Sequence[str], ranks: int) -> None:
        self._network, self._number = network, number
        self._command, self._ranks = command, ranks

    def live(self, line: socket.socket, parent: int) -> NoReturn:
        """Make the namespaces, and end as the commands do."""
        signal.signal(signal.SIGINT, signal.SIG_IGN)  # the commands hear of it themselves
        signal.signal(signal.SIGTERM, signal.SIG_DFL)
        status = _FAILED
        try:
            tun = self._make(parent)
            alive, of_keeper = os.pipe()  # ends with this process
            first = os.fork()
            if first == 0:
                os.close(of_keeper)
                os.close(tun)
                status = self._be_first(line, alive)
            else:
                socket.send_fds(line, [b"made"], [tun])
                os.close(tun)
                line.close()
                status = shell_status(os.waitpid(first, 0)[1])
        except BaseException as error:  # whatever it is, nobody else would say it
            with contextlib.suppress(OSError):
                line.send(str(error).encode()[:4000])
        finally:
            os._exit(status)  # never back into what the parent was doing

    def _be_first(self, line: socket.socket, alive: int) -> int:
        """Be the first process of the new namespace; return the status."""
        # The parent is in another process namespace: seen from here it has no number. So the pipe
        # tells whether it has ended before this process was tied to it.
        die_with_parent(0)
        os.set_blocking(alive, False)
        with contextlib.suppress(BlockingIOError):
            if os.read(alive, 1) == b"":
                return _FAILED
        try:
            self._mount()
        except OSError as error:
            print(f"allreduce.emulate: host {self._number}: {error}", file=sys.stderr, flush=True)
            return _FAILED
        if line.recv(1) != _GO:  # whoever started this has ended
            return _FAILED
        line.close()
        return self._run_commands()

    def _make(self, parent: int) -> int:
        try:
            system.unshare(_SPACES)
        except PermissionError:
            _become_root_of_a_user_namespace()
            system.unshare(_SPACES)
        die_with_parent(parent)  # after that: new rights would forget it
        system.set_host_name(f"host{self._number}")
        tun = system.open_tun(DEVICE, segments=not self._network.loss)
        system.set_address(DEVICE, self._network.address(self._number), self._network.mtu)
        system.bring_up("lo")
        self._limit_rate()
        with contextlib.suppress(FileNotFoundError):  # a kernel without it
            Path("/proc/sys/net/ipv6/conf/all/disable_ipv6").write_text("1")
        (_TCP / "tcp_congestion_control").write_text(self._network.congestion)
        # The kernel's clock runs as it does. Without this a connection would seem to have rested,
        # and TCP would look for the rate anew, after a time that is short on the network.
        least = _TCP / "tcp_rto_min_us"
        if least.exists():  # from Linux 6.11 on
            dilated = int(_RETRANSMIT_AFTER * 1e6 * self._network.dilation)
            least.write_text(str(min(dilated, _RETRANSMIT_AFTER_MAX * 1_000_000)))
        return tun

    def _limit_rate(self) -> None:
        """Keep what a host sends in the kernel until it can leave.

        The switch has the same rate. But what waits in front of it has left TCP's sight: TCP would
        go on until its window is full, and acknowledgements would wait behind all of that.
        """
        rate = self._network.slowed_rate(self._number)
        burst = max(_BURST_BYTES, int(rate * _BURST_SECONDS))
        system.limit_rate(DEVICE, rate, burst, _HOST_QUEUE_BYTES)

    def _mount(self) -> None:
        """Give the host its own view of processes and shared memory, and names of all hosts."""
        system.mount("none", "/", "", system.RECURSIVE | system.PRIVATE)
        system.mount("proc", "/proc", "proc")
        system.mount("tmpfs", "/dev/shm", "tmpfs")
        names = Path("/dev/shm/hosts")
        lines = [f"{self._network.address(i)} host{i}" for i in range(self._network.hosts)]
        names.write_text("\n".join(["127.0.0.1 localhost", *lines, ""]))
        system.mount(str(names), "/etc/hosts", "", system.BIND)
        names.unlink()

    def _run_commands(self) -> int:
        ranks = {os.fork() or self._exec(rank) for rank in range(self._ranks)}
        status = 0
        while ranks:
            process, ended = os.wait()  # of orphans too
            if process in ranks:
                ranks.remove(process)
                status = status or shell_status(ended)
        return status

    def _exec(self, local_rank: int) -> NoReturn:
        for number in (
            signal.SIGINT,
            signal.SIGPIPE,
            signal.SIGXFSZ,
        ):  # Python ignores the last two
            signal.signal(number, signal.SIG_DFL)
        environment = os.environ | self._variables(local_rank)
        try:
            os.execvpe(self._command[0], list(self._command), environment)
        except OSError as error:
            print(f"allreduce.emulate: {self._command[0]}: {error.strerror}", file=sys.stderr)
            os._exit(_NOT_FOUND)

    def _variables(self, local_rank: int) -> Mapping[str, str]:
        """Return what launchers set, and what says that this is an emulation."""
        return {
            "RANK": str(self._number * self._ranks + local_rank),
            "WORLD_SIZE": str(self._network.hosts * self._ranks),
            "LOCAL_RANK": str(local_rank),
            "LOCAL_WORLD_SIZE": str(self._ranks),
            "NODE_RANK": str(self._number),
            "NNODES": str(self._network.hosts),
            "MASTER_ADDR": self._network.address(0),
            "MASTER_PORT": _PORT,
            EMULATED: str(self._network),
            "ALLREDUCE_DILATION": f"{self._network.dilation:g}",
        }


def _become_root_of_a_user_namespace() -> None:
    user, group = os.geteuid(), os.getegid()
    system.unshare(system.NEW_USER)
    Path("/proc/self/setgroups").write_text("deny")
    Path("/proc/self/uid_map").write_text(f"0 {user} 1")
    Path("/proc/self/gid_map").write_text(f"0 {group} 1")


def shell_status(ended: int) -> int:
    """Return what a shell would: the exit status, or 128 and the signal."""
    code = os.waitstatus_to_exitcode(ended)
    return 128 - code if code < 0 else code
