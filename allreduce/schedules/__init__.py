"""Algorithms as data: schedules by name, and schedules of your own.

A schedule lists, round by round, which chunks travel between which ranks; it knows no bytes and no
devices. Its laws are printed in csrc/schedule/schedule.h, its pictures in docs/algorithms.md.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import TypeAlias

import numpy as np
import numpy.typing as npt

from allreduce import _C
from allreduce.schedules import user_schedules

__all__ = [
    "Collective",
    "Schedule",
    "algorithms",
    "aliases",
    "by_name",
    "even_bounds",
    "from_moves",
    "parse_collective",
    "register",
    "stages",
]

Schedule: TypeAlias = _C.Schedule
Collective: TypeAlias = _C.Collective

HIERARCHICAL = "hierarchical"
_LOCAL_FORMS = ("rs_ag", "reduce_bcast")


def parse_collective(collective: Collective | str) -> Collective:
    """Returns the collective of that name. Raises ValueError if there is none."""
    if isinstance(collective, _C.Collective):
        return collective
    members = _C.Collective.__members__
    if collective not in members:
        raise ValueError(f"no collective {collective!r}; there are {', '.join(members)}")
    return members[collective]


def algorithms(collective: Collective | str = "allreduce") -> list[str]:
    """Returns the names that `by_name` knows for a collective, without the hierarchical ones.

    They are in order of preference: of algorithms that make the same moves the first is meant.
    """
    return [row.name for row in _C.algorithms(parse_collective(collective))]


def aliases() -> dict[str, str]:
    """Returns for each alias the name of the algorithm that it stands for."""
    return _C.algorithm_aliases()


def by_name(
    name: str,
    world_size: int | None = None,
    *,
    collective: Collective | str = "allreduce",
    root: int = 0,
    node_sizes: Sequence[int] | None = None,
    rails: int | None = None,
) -> Schedule:
    """Builds the schedule of an algorithm.

    Args:
        name: one of `algorithms(collective)`; "bucket", the paper's word for "ring"; or
            "hierarchical:INTER" or "hierarchical:LOCAL:INTER", where INTER is the algorithm
            between the nodes and LOCAL is "rs_ag" (default) or "reduce_bcast" (one rail).
        world_size: number of ranks; may be left out where node_sizes tells it.
        collective: what the schedule promises.
        root: of a broadcast, reduce, gather or scatter.
        node_sizes: ranks of each node, for hierarchical algorithms; ranks are contiguous in a node.
        rails: how many ranks of each node talk to the other nodes; all of the smallest node's, if
            None.

    Raises:
        ValueError: for an unknown name, or a world size, root, node size or rails out of range.
    """
    kind = parse_collective(collective)
    if name.split(":")[0] == HIERARCHICAL:
        sizes = _checked_sizes(name, world_size, node_sizes)
        return _hierarchical(kind, name, sizes, rails, root)
    if node_sizes is not None and world_size is None:
        world_size = sum(node_sizes)
    if world_size is None:
        raise ValueError(f"{name} needs a world_size")
    return _C.build(kind, name, world_size, root)


def stages(collective: Collective | str) -> list[tuple[str, Collective]]:
    """Returns what a collective over nodes consists of, in order.

    Each stage is ("node", collective), among the ranks of each node, or ("rail", collective), among
    the ranks of one shard, one of each node. No stages: it has no such form.
    """
    return _C.stages_of(parse_collective(collective))


def _checked_sizes(
    name: str, world_size: int | None, node_sizes: Sequence[int] | None
) -> Sequence[int]:
    if not node_sizes:
        raise ValueError(f"{name} needs node_sizes, the number of ranks of each node")
    if min(node_sizes) < 1:
        raise ValueError(f"node_sizes {list(node_sizes)}: a node needs at least one rank")
    if world_size is not None and world_size != sum(node_sizes):
        raise ValueError(
            f"node_sizes {list(node_sizes)} hold {sum(node_sizes)} ranks, not {world_size}"
        )
    return node_sizes


def _hierarchical(
    kind: Collective, name: str, node_sizes: Sequence[int], rails: int | None, root: int
) -> Schedule:
    if not _C.stages_of(kind):
        raise ValueError(f"{kind.name} has no form over nodes")
    parts = name.split(":")
    if len(parts) == 2:
        parts.insert(1, _LOCAL_FORMS[0])
    if len(parts) != 3:
        raise ValueError(
            f"{name!r} should be hierarchical:INTER or hierarchical:LOCAL:INTER, "
            "as in hierarchical:halving_doubling"
        )
    if parts[1] not in _LOCAL_FORMS:
        raise ValueError(f"local must be {' or '.join(_LOCAL_FORMS)}, not {parts[1]!r}")
    node_of = [node for node, size in enumerate(node_sizes) for _ in range(size)]
    if not 0 <= root < len(node_of):
        raise ValueError(f"root must be 0 to {len(node_of) - 1}, not {root}")
    between = _C.build(kind, parts[2], len(node_sizes), node_of[root])
    one_rail = parts[1] == "reduce_bcast"
    rails = 1 if one_rail else min(node_sizes) if rails is None else rails
    return _C.hierarchical(kind, node_of, between, rails, root)


def from_moves(
    world_size: int,
    num_chunks: int,
    moves: npt.ArrayLike,
    *,
    collective: Collective | str | None = None,
    root: int = 0,
) -> Schedule:
    """Makes a schedule of your own moves.

    Args:
        world_size: number of ranks.
        num_chunks: number of chunks that the buffer is cut into.
        moves: integers of shape [n, 6], rows (round, src, dst, lo, hi, reduce): in that round,
            chunks [lo, hi) travel from rank src to rank dst and overwrite its own (reduce = 0) or
            are added to them (1). Rounds ascend; every move reads the state before its round.
        collective: if given, the schedule must also keep this collective's promise.
        root: of a broadcast, reduce, gather or scatter.

    Raises:
        ValueError: names the first move that cannot be, or what the schedule fails to do.
    """
    rows = np.asarray(moves)
    if not rows.size:
        rows = np.empty((0, 6), np.int32)
    if not np.issubdtype(rows.dtype, np.integer):
        raise ValueError(f"moves must be integers, not {rows.dtype}")
    schedule = _C.Schedule.from_moves(world_size, num_chunks, rows)
    if collective is not None:
        kind = parse_collective(collective)
        wrong = schedule.check(kind, root)
        if wrong:
            raise ValueError(f"the moves are no {kind.name}: {wrong}")
    return schedule


def register(
    name: str,
    schedule: Schedule,
    collective: Collective | str = "allreduce",
    *,
    scope: str = "world",
    root: int = 0,
) -> None:
    """Make a schedule an algorithm: collectives run it with `algo=name`, on every transport.

    All ranks of a group register the same; a group whose ranks differ in it is told so. A name can
    be registered again, and for several collectives, roots and numbers of ranks; all of a
    collective's have one scope. With "rail", a group on one node does as with "auto".

    Args:
        name: at most 23 bytes, not an algorithm's.
        schedule: of your own, from `from_moves` or composed of others.
        collective: what it does.
        scope: "world", it runs between all ranks, in place of the shared-memory stage too; or
            "rail", it runs between the nodes, with one of its ranks for each node.
        root: of a broadcast, reduce, gather or scatter: the rank ("world") or node ("rail") that
            the schedule has it at.

    Raises:
        ValueError: the name is taken or too long, or the schedule does not keep the collective's
            promise: at which move, or what is missing at the end.
    """
    kind = parse_collective(collective)
    user_schedules.check_name(name, kind)
    if scope not in ("world", "rail"):
        raise ValueError(f'scope must be "world" or "rail", not {scope!r}')
    if scope == "rail" and (not stages(kind) or kind is Collective.alltoall):
        raise ValueError(f"{kind.name} takes schedules of all ranks alone: scope must be 'world'")
    if root != 0 and not kind.rooted:
        raise ValueError(f"{kind.name} has no root: leave it out")
    wrong = schedule.check(kind, root)
    if wrong:
        raise ValueError(f"schedule {name!r} is no {kind.name}: {wrong}")
    user_schedules.register(name, kind, schedule, scope, root)


def even_bounds(count: int, num_chunks: int) -> list[int]:
    """Returns the num_chunks + 1 element offsets at which `count` elements are cut into chunks.

    All but the last are multiples of 16 elements; chunks may be empty.
    """
    bounds: list[int] = _C.even_bounds(count, num_chunks)
    return bounds
