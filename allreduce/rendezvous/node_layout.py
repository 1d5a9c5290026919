"""Which ranks share a node: a host and network namespace, or a simulated part of one."""

from __future__ import annotations

import os
import socket
from collections.abc import Hashable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from allreduce.errors import SystemCallError, UsageError

# An integer n splits the ranks into n nodes; a list gives each rank's node by any name.
NodesOption = int | Sequence[int | str] | None


@dataclass(frozen=True, slots=True, kw_only=True)
class NodeIdentity:
    """What distinguishes the node of a process; equal identities share memory and Unix sockets."""

    boot: str
    host: str
    network: str

    @property
    def loopback(self) -> tuple[str, str]:
        """Return what processes have in common that reach each other by loopback."""
        return self.boot, self.network

    def __str__(self) -> str:
        return f"{self.host} ({self.network}, boot {self.boot[:8]})"


def my_identity() -> NodeIdentity:
    """Return the identity of this process: boot id, host name, network namespace.

    Containers with a network of their own count as nodes of their own.
    """
    try:
        boot = Path("/proc/sys/kernel/random/boot_id").read_text().strip()
        network = os.readlink("/proc/self/ns/net")
    except OSError as error:
        raise SystemCallError(
            error.errno,
            f"cannot tell on which node this process runs: {error.filename}: {error.strerror}; "
            "mount /proc",
        ) from error
    return NodeIdentity(boot=boot, host=socket.gethostname(), network=network)


def nodes_option(
    nodes: NodesOption, environ: Mapping[str, str] | None = None
) -> int | list[str] | None:
    """Return the node layout asked for: the argument, else `ALLREDUCE_NODES` ("2" or "0,0,1,1"),
    else None.

    Raises:
        ValueError: neither a number of nodes nor a node per rank.
    """
    environ = os.environ if environ is None else environ
    text = environ.get("ALLREDUCE_NODES", "").strip()
    if nodes is None and text:
        if "," in text:
            return [part.strip() for part in text.split(",")]
        try:
            nodes = int(text)
        except ValueError:
            raise UsageError(
                f"ALLREDUCE_NODES={text!r}: give a number of nodes (2) or a node for each rank "
                "(0,0,1,1)"
            ) from None
    if nodes is None or (isinstance(nodes, int) and not isinstance(nodes, bool)):
        return nodes
    if isinstance(nodes, (str, bytes, bool)) or not isinstance(nodes, Sequence):
        raise UsageError(
            f"nodes={nodes!r}: give a number of nodes or a list with a node for each rank"
        )
    return [str(node) for node in nodes]


def layout(identities: Sequence[NodeIdentity], option: int | list[str] | None) -> list[int]:
    """Return the node of each rank, numbered by first appearance.

    Args:
        identities: of all ranks, in rank order.
        option: None: as the identities are; n: contiguous ranks split into n nodes as evenly as can
            be (the first ones get one more); a list: the node of each rank, by any name.

    Raises:
        ValueError: the option does not fit the ranks, or joins ranks that cannot share memory.
    """
    world_size = len(identities)
    if option is None:
        return _number(identities)
    node_of_rank = _number(node_names(option, world_size))
    first: dict[int, int] = {}
    for rank, node in enumerate(node_of_rank):
        other = first.setdefault(node, rank)
        if identities[other] != identities[rank]:
            raise UsageError(
                f"nodes: ranks {other} and {rank} are put on one node but cannot share memory: "
                f"rank {other} runs on "
                f"{identities[other]}, rank {rank} on {identities[rank]}; leave nodes "
                "(ALLREDUCE_NODES) unset"
            )
    return node_of_rank


def node_names(option: int | list[str], world_size: int) -> list[str]:
    """Return the name of each rank's node. Raises ValueError if the option does not fit them."""
    if isinstance(option, int):
        if not 1 <= option <= world_size:
            raise UsageError(
                f"nodes={option}: {world_size} ranks can be split into 1 to {world_size} nodes"
            )
        small, larger = divmod(world_size, option)
        return [str(node) for node in range(option) for _ in range(small + (node < larger))]
    if len(option) != world_size:
        raise UsageError(
            f"nodes: {len(option)} entries for {world_size} ranks; give one for each rank"
        )
    return option


def _number(names: Sequence[Hashable]) -> list[int]:
    numbers: dict[Hashable, int] = {}
    return [numbers.setdefault(name, len(numbers)) for name in names]
