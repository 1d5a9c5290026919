"""A process that has imported what programs need, and forks one for each program it is asked for.

torch and its compiler take six seconds of a core to import. A fork of a process that has them
starts in a hundredth of a second, and ends as any program: the interpreter is shut down in order.
Forks are alike in more than programs are: they share the seed of Python's string hashes and the
layout of their addresses. So tests start some ranks as processes of their own as well.
"""

from __future__ import annotations

import contextlib
import faulthandler
import gc
import importlib
import json
import os
import select
import selectors
import signal
import socket
import subprocess
import sys
import types
from collections.abc import Mapping, Sequence
from pathlib import Path

from allreduce.commands.parent_death import die_with_parent

_READY = 90.0  # seconds to import in, on a busy machine


class ForkServer:
    """Starts programs in forks of one process that has imported `modules`.

    A program must not depend on variables that are read when one of them is imported.
    """

    def __init__(self, modules: Sequence[str], environment: Mapping[str, str]) -> None:
        self._control, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
        with theirs:
            self._server = subprocess.Popen(
                [sys.executable, __file__, str(theirs.fileno()), *modules],
                env=environment,
                pass_fds=[theirs.fileno()],
                stdin=subprocess.DEVNULL,
            )
        self._control.settimeout(_READY)
        assert self._control.recv(32) == b"ready", "the fork server cannot import its modules"

    def start(self, program: Path, environment: Mapping[str, str], log: Path) -> Forked:
        """Runs `program` as a script, in the folder of `log`, with its output there."""
        request = {"program": str(program), "environment": dict(environment), "log": str(log)}
        ours, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
        with theirs:
            socket.send_fds(self._control, [json.dumps(request).encode()], [theirs.fileno()])
        return Forked(ours)

    def close(self) -> None:
        """Ends the server; what still runs of the programs ends with it."""
        self._control.close()
        try:
            assert self._server.wait(30) == 0
        finally:
            self._server.kill()


class Forked:
    """A program that a server has forked; the methods are as those of subprocess.Popen."""

    def __init__(self, told: socket.socket) -> None:
        self._told = told
        self.pid = int(told.recv(32) or b"0")
        assert self.pid, "the fork server has ended"
        self.returncode: int | None = None

    def poll(self) -> int | None:
        """The exit status if the program has ended, negative if a signal ended it; else None."""
        with contextlib.suppress(subprocess.TimeoutExpired):
            return self.wait(0.0)
        return None

    def wait(self, timeout: float) -> int:
        """Waits for the end; subprocess.TimeoutExpired after `timeout` seconds."""
        if self.returncode is None:
            if not select.select([self._told], [], [], timeout)[0]:
                raise subprocess.TimeoutExpired("a forked program", timeout)
            # Without a word the server has been killed, and its forks with it.
            self.returncode = int(self._told.recv(32) or str(-signal.SIGKILL))
            self._told.close()
        return self.returncode

    def send_signal(self, number: int) -> None:
        if self.poll() is None:
            with contextlib.suppress(ProcessLookupError):  # it ended just now
                os.kill(self.pid, number)

    def kill(self) -> None:
        self.send_signal(signal.SIGKILL)


def serve(control: socket.socket) -> dict | None:
    """Forks until nobody can ask any more. Returns in each fork what it was asked for."""
    running: dict[int, tuple[int, socket.socket]] = {}  # by the descriptor that tells of the end
    with selectors.DefaultSelector() as selector, control:
        selector.register(control, selectors.EVENT_READ)
        while True:
            for key, _ in selector.select():
                if key.fileobj is not control:
                    selector.unregister(key.fd)
                    reap(key.fd, *running.pop(key.fd))
                    continue
                text, descriptors, _, _ = socket.recv_fds(control, 1 << 20, 1)
                if not text:
                    return None
                teller = socket.socket(fileno=descriptors[0])
                server, pid = os.getpid(), os.fork()
                if pid == 0:
                    die_with_parent(server)
                    for fd, (_, other) in running.items():
                        os.close(fd)
                        other.close()
                    teller.close()
                    return json.loads(text)
                fd = os.pidfd_open(pid)
                running[fd] = pid, teller
                selector.register(fd, selectors.EVENT_READ)
                tell(teller, pid)


def reap(fd: int, pid: int, teller: socket.socket) -> None:
    os.close(fd)
    status = os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1])
    with teller:
        tell(teller, status)


def tell(teller: socket.socket, number: int) -> None:
    with contextlib.suppress(OSError):  # the test has been interrupted, and listens no more
        teller.send(str(number).encode())


def run(program: str, environment: dict[str, str], log: str) -> None:
    """Runs the program in the place of this one."""
    signal.signal(signal.SIGINT, signal.default_int_handler)
    os.environ.clear()
    os.environ.update(environment)
    os.chdir(Path(log).parent)
    output = os.open(log, os.O_WRONLY | os.O_CREAT | os.O_TRUNC)
    for standard in (1, 2):
        os.dup2(output, standard)
    os.close(output)
    faulthandler.enable()
    sys.argv[:] = [program]
    sys.path[0] = str(Path(program).parent)
    main = sys.modules["__main__"] = types.ModuleType("__main__")
    main.__file__ = program
    text = Path(program).read_bytes()
    exec(compile(text, program, "exec", dont_inherit=True), main.__dict__)


if __name__ == "__main__":
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # whoever started this ends it
    for name in sys.argv[2:]:
        importlib.import_module(name)
    gc.freeze()  # what is imported is nothing that a fork's collector need look at
    control = socket.socket(fileno=int(sys.argv[1]))
    control.send(b"ready")
    request = serve(control)
    if request is not None:
        run(**request)
