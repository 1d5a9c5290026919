"""Handles: the names by which the members of a process group that is made anew know each other."""

from __future__ import annotations

import hashlib
import secrets
from collections.abc import Collection

from allreduce.errors import UsageError
from allreduce.rendezvous.node_layout import node_names, nodes_option

__all__ = ["name_group", "new_handle", "nodes_of", "order_of"]

_PREFIX = "hier:"


def new_handle(rank: int, world_size: int, nodes: list[str] | None) -> str:
    """Returns a handle that no other process group has, on any rank.

    A node of ALLREDUCE_NODES is named in it: it stays the node of this rank, whatever group the
    rank is in. A subgroup knows the nodes of its ranks from the whole job: `nodes`.
    """
    asked = nodes_option(None)
    option = nodes if asked is not None and nodes else asked
    node = "" if option is None else node_names(option, world_size)[rank]
    return f"{_PREFIX}{secrets.token_hex(16)}:{node}"


def order_of(mine: str, handles: Collection[str]) -> list[str]:
    """Returns the handles in rank order, the same on all ranks.

    Raises UsageError where `mine` is not among them, one comes twice, or one is not of ours.
    """
    members = list(handles) if isinstance(handles, list) else sorted(handles)
    for handle in members:
        if not handle.startswith(_PREFIX):
            raise UsageError(
                f"reconfigure: {handle!r} is no handle of hier; give what get_reconfigure_handle() "
                "returns on each member, and let all members use one backend"
            )
        if members.count(handle) > 1:
            raise UsageError(f"reconfigure: the handle {handle} comes twice; give each once")
    if mine not in members:
        raise UsageError(
            "reconfigure: the handle of this rank is not among the handles; a rank that is to be "
            "left out does not call it"
        )
    return members


def nodes_of(members: list[str]) -> list[str] | None:
    """Returns the simulated node of each member; None where there are none."""
    nodes = [handle.split(":", 2)[2] for handle in members]
    return nodes if any(nodes) else None


def name_group(uuid: int, members: list[str]) -> str:
    """Returns the part of the store that belongs to these members under this uuid."""
    digest = hashlib.sha256("\n".join(members).encode()).hexdigest()
    return f"reconfigure/{uuid}/{digest[:16]}"
