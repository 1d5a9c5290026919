"""How ranks are laid out on nodes in a benchmark, and who plays there."""

from __future__ import annotations

from dataclasses import dataclass

OURS = ("hier", "core", "core-sym")
AVERAGING = ("hier", "core", "gloo", "gloo-cubic", "openmpi", "openmpi-tcp")
_GLOO = ("gloo", "gloo-cubic")
_MPI = ("openmpi", "openmpi+", "mpich", "impi", "impi+")
_MPI_TCP = ("openmpi-tcp", "openmpi-tcp+", "mpich-tcp", "mpich-tcp+", "impi-tcp", "impi-tcp+")


@dataclass(frozen=True, slots=True)
class Layout:
    """`ranks` on `nodes` nodes of this machine: shared memory inside a node, TCP between.

    local: as of a communicator; "none": schedules run over all ranks.
    """

    ranks: int
    nodes: int
    local: str = "rs_ag"

    @property
    def kind(self) -> str:
        """Return "one node", "TCP" (every rank on a node of its own), "both" or "flat"."""
        if self.local == "none":
            return "flat"
        if self.nodes == 1:
            return "one node"
        return "TCP" if self.nodes == self.ranks else "both"

    @property
    def players(self) -> tuple[str, ...]:
        """Return whom we measure there.

        hier: `dist.all_reduce`; core: the same allreduce from C++, as MPI's is from C; core-sym: of
        a buffer in symmetric memory; gloo: through torch as it is; -cubic: with cubic in place of
        the kernel's congestion control; ring: written by hand over sockets, with cubic as ours.
        Others are MPI, with its defaults and, "+", with the best settings that we found
        (peers/settings.py).
        MPI takes this machine as one node and cannot play where there are "both".
        """
        return {
            "one node": (*OURS, *_GLOO, *_MPI),
            "TCP": ("hier", "core", *_GLOO, *_MPI_TCP, "ring"),
            "both": (*OURS, *_GLOO),
            "flat": ("core",),
        }[self.kind]

    def __str__(self) -> str:
        return f"{self.ranks}r{self.nodes}n" + ("flat" if self.local == "none" else "")

    def words(self) -> str:
        """Return the layout as a table's title says it."""
        if self.local == "none":
            return f"{self.ranks} ranks on {self.nodes} node(s), local='none' (channels only)"
        if self.nodes == 1:
            return f"{self.ranks} ranks on one node (shared memory)"
        if self.nodes == self.ranks:
            return f"{self.ranks} ranks on nodes of their own (TCP)"
        return f"{self.nodes} nodes x {self.ranks // self.nodes} ranks (shared memory and TCP)"
