"""A process that has imported what programs need, and forks one for each program it is asked for.

torch and its compiler take six seconds of a core to import. A fork of a process that has them
starts in a hundredth of a second, and ends as any program: the interpreter is shut down in order.
"""

from __future__ import annotations

import faulthandler
import gc
import importlib
import json
import os
import selectors
import signal
import socket
import subprocess
import sys
import types
from collections.abc import Mapping, Sequence
from pathlib import Path


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

    def start(self, program: Path, environment: Mapping[str, str], log: Path) -> Forked:
        """Runs `program` as a script, in the folder of `log`, with its output there."""
        request = {"program": str(program), "environment": dict(environment), "log": str(log)}
        ours, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
        with theirs:
            socket.send_fds(self._control, [json.dumps(request).encode()], [theirs.fileno()])
        return Forked(ours)

    def close(self) -> None:
        """Ends the server, and what still runs of the programs."""
        self._control.close()
        self._server.wait(30)


class Forked:
    """A program that a server has forked; the methods are those of subprocess.Popen."""

    def __init__(self, told: socket.socket) -> None:
        self._told = told
        self.pid = self._receive()
        self.returncode: int | None = None

    def poll(self) -> int | None:
        """The exit status if the program has ended, negative if a signal ended it; else None."""
        try:
            return self.wait(0.0)
        except subprocess.TimeoutExpired:
            return None

    def wait(self, timeout: float) -> int:
        """Waits for the end; subprocess.TimeoutExpired after `timeout` seconds."""
        if self.returncode is None:
            with selectors.DefaultSelector() as selector:
                selector.register(self._told, selectors.EVENT_READ)
                if not selector.select(timeout):
                    raise subprocess.TimeoutExpired("a forked program", timeout)
            self.returncode = self._receive()
            self._told.close()
        return self.returncode

    def send_signal(self, number: int) -> None:
        # The server reaps it and says so at once, but a moment may lie between the two.
        if self.poll() is None:
            os.kill(self.pid, number)

    def kill(self) -> None:
        self.send_signal(signal.SIGKILL)

    def _receive(self) -> int:
        number = self._told.recv(32)
        assert number, "the fork server has ended"
        return int(number)


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
                    for pid, _ in running.values():
                        os.kill(pid, signal.SIGKILL)
                    return None
                teller = socket.socket(fileno=descriptors[0])
                pid = os.fork()
                if pid == 0:
                    for fd, (_, other) in running.items():
                        os.close(fd)
                        other.close()
                    teller.close()
                    return json.loads(text)
                teller.send(str(pid).encode())
                fd = os.pidfd_open(pid)
                running[fd] = pid, teller
                selector.register(fd, selectors.EVENT_READ)


def reap(fd: int, pid: int, teller: socket.socket) -> None:
    os.close(fd)
    status = os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1])
    with teller:
        teller.send(str(status).encode())


def run(program: str, environment: dict[str, str], log: str) -> None:
    """Runs the program in the place of this one."""
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
    exec(compile(Path(program).read_text(), program, "exec"), main.__dict__)


if __name__ == "__main__":
    for name in sys.argv[2:]:
        importlib.import_module(name)
    gc.freeze()  # what is imported is nothing that a fork's collector need look at
    request = serve(socket.socket(fileno=int(sys.argv[1])))
    if request is not None:
        run(**request)
