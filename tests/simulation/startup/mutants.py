"""Planted faults of the start-up, each of which its simulation must find."""

from __future__ import annotations

from ..planting import Mutant  # noqa: TID252 - the folder has two names

MUTANTS = [
    Mutant(
        "rank 0 lets all go before they are ready",
        "allreduce/rendezvous/mesh_builder.py",
        "if self._ready or not self._complete or self._not_ready:",
        "if self._ready or not self._complete:",
    ),
    Mutant(
        "a rank is ready before it has the node's memory",
        "allreduce/rendezvous/mesh_builder.py",
        "self._complete = not self._missing and not self._awaits_fds",
        "self._complete = not self._missing",
    ),
    Mutant(
        "a peer that has closed is not missed",
        "allreduce/rendezvous/mesh_builder.py",
        "        if not self._released:\n            raise PeerError(",
        "        if False:\n            raise PeerError(",
    ),
    Mutant(
        "a listener that is gone is called for ever",
        "allreduce/rendezvous/caller.py",
        "if now - pending.refused_since > self._refused_for:",
        "if False:",
    ),
    Mutant(
        "a call that failed is still watched",
        "allreduce/rendezvous/caller.py",
        "self._loop.forget(pending.sock.fileno())\n        pending.attempt_over",
        "pass\n        pending.attempt_over",
    ),
    Mutant(
        "a call that failed is not made again",
        "allreduce/rendezvous/caller.py",
        "        self.state = state\n        self.retry_at = time.monotonic()",
        "        self.state = state\n        self.retry_at = 1e9 + time.monotonic()",
    ),
    Mutant(
        "what a failed rank had open stays open",
        "allreduce/rendezvous/startup.py",
        "        self._stack.callback(builder.close)\n",
        "",
    ),
    Mutant(
        "listeners are not closed once all are connected",
        "allreduce/rendezvous/mesh_builder.py",
        "        for acceptor in self._acceptors:\n            acceptor.close()\n"
        "        self._loop.close()",
        "        self._loop.close()",
    ),
    Mutant(
        "nobody hears why a rank does not come",
        "allreduce/rendezvous/startup.py",
        "            if several:\n                self._publish_failure(error)\n",
        "            if several:\n                pass\n",
    ),
    Mutant(
        "a short write ends a message",
        "allreduce/rendezvous/acceptor.py",
        "self._to_send = self._to_send[self.sock.send(self._to_send) :]",
        "self._to_send = self._to_send[len(self._to_send) * self.sock.send(self._to_send) :]",
    ),
    Mutant(
        "a part of a message is taken for the whole",
        "allreduce/rendezvous/acceptor.py",
        "if len(self._received) < self._wanted:",
        "if not self._received and self._wanted:",
    ),
    Mutant(
        "silent strangers keep the acceptor busy",
        "allreduce/rendezvous/acceptor.py",
        "if connection.replies == 0 and now >= connection.born + GRACE_SECONDS:",
        "if False:",
    ),
    Mutant(
        "a acceptor that was busy stays closed",
        "allreduce/rendezvous/acceptor.py",
        "        self._loop.forget(connection.sock.fileno())\n        self._resume()",
        "        self._loop.forget(connection.sock.fileno())",
    ),
    Mutant(
        "rank 0 fails where the store dies late",
        "allreduce/rendezvous/exchange.py",
        "with contextlib.suppress(Exception):  # whatever a store raises\n                self",
        "with contextlib.suppress(KeyError):\n                self",
    ),
    Mutant(
        "rank 0 leaves before its error was read",
        "allreduce/rendezvous/exchange.py",
        "_LINGER_SECONDS = 2.0",
        "_LINGER_SECONDS = 0.0",
    ),
    Mutant(
        "an error of an earlier attempt is taken for one of this",
        "allreduce/rendezvous/exchange.py",
        'if table["to"].get(str(self._rank)) != _digest(mine):',
        "if False:",
    ),
]
