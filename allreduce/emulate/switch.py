"""The switch, a process of its own: it must be on time, whatever the hosts compute."""

from __future__ import annotations

import contextlib
import ctypes
import json
import os
import signal
import socket
import sys
from collections.abc import Sequence
from dataclasses import dataclass
from typing import NoReturn

from allreduce import _C
from allreduce.commands.parent_death import die_with_parent
from allreduce.emulate.network import Network, delay_text

__all__ = ["Report", "Switch"]

_PR_SET_TIMERSLACK = 29  # of linux/prctl.h
_REPORT_BYTES = 4096


@dataclass(frozen=True, slots=True, kw_only=True)
class Report:
    """What a switch has done. `late_*`: seconds by which it handed packets over behind their time;
    the others count packets, and bytes."""

    packets: int
    bytes: int
    lost: int
    overflowed: int
    unknown: int
    late_median: float
    late_99: float
    late_most: float

    def __str__(self) -> str:
        late = [delay_text(seconds) for seconds in (self.late_median, self.late_99, self.late_most)]
        return (
            f"{self.packets} packets, {self.bytes / 1e6:.4g} MB, {self.lost} lost as asked, "
            f"{self.overflowed} dropped by full queues; late by {late[0]} (median), {late[1]} "
            f"(99 %), {late[2]} (most)"
        )


class Switch:
    """Passes packets between the TUN devices of hosts, which it takes."""

    def __init__(self, network: Network, tuns: Sequence[int]) -> None:
        self._line, theirs = socket.socketpair()
        parent = os.getpid()
        self.process = os.fork()
        if self.process == 0:
            self._line.close()
            die_with_parent(parent)
            _serve(network, tuns, theirs)
        theirs.close()
        for tun in tuns:
            os.close(tun)

    def end(self) -> Report | None:
        """End it; return what it did, None where it had failed."""
        with contextlib.suppress(OSError):
            self._line.shutdown(socket.SHUT_WR)
        said = self._line.recv(_REPORT_BYTES)
        self._line.close()
        os.waitpid(self.process, 0)
        return Report(**json.loads(said)) if said else None


def _serve(network: Network, tuns: Sequence[int], line: socket.socket) -> NoReturn:
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    signal.signal(signal.SIGTERM, signal.SIG_DFL)  # the parent's handler is not for this one
    ctypes.CDLL(None).prctl(_PR_SET_TIMERSLACK, 1)
    with contextlib.suppress(OSError):  # without the right for it, it is late more often
        os.sched_setscheduler(0, os.SCHED_FIFO, os.sched_param(1))
    ports = [
        (
            tun,
            int.from_bytes(socket.inet_aton(network.address(host)), "little"),
            network.slowed_rate(host),
        )
        for host, tun in enumerate(tuns)
    ]
    status = 1
    try:
        report = _C.run_switch(
            ports=ports,
            delay=network.slowed_delay(),
            jitter=network.slowed_jitter(),
            loss=network.loss,
            queue=network.queue,
            seed=network.seed,
            stop=line.fileno(),
        )
        line.send(json.dumps(report).encode())
        status = 0
    except BaseException as error:  # nobody else would say it
        print(f"allreduce.emulate: the switch: {error}", file=sys.stderr, flush=True)
    finally:
        os._exit(status)
