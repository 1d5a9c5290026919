"""The cost model: what an allreduce takes on links of given alpha, beta and gamma.

alpha is seconds per message, beta seconds per byte sent, gamma seconds per byte reduced. A round of
a schedule takes what its busiest rank needs for its messages, in or out, and for its reductions
(Hockney's model, as in Thakur, Rabenseifner and Gropp 2005). Where ranks share cores, it takes no
less than the work of all of them by the number of cores. docs/tuning.md has the formulas.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass
from functools import lru_cache

import numpy as np

from allreduce import _C

__all__ = [
    "LOCAL_STAGE",
    "NETWORK",
    "SHARED_MEMORY",
    "Layout",
    "Link",
    "predict",
    "representatives",
]

# Classes of links: the stages inside a node, and what schedules run over between nodes, or inside
# one where there are no such stages.
LOCAL_STAGE, NETWORK, SHARED_MEMORY = "local_stage", "network", "shared_memory"
_PREFERENCE = (
    *("recursive_doubling", "halving_doubling", "circulant", "bcube", "ring"),
    *("torus", "direct", "binomial"),
)
_SYNCHRONISATIONS = 2  # of the local stage: contributions are there, shards are final


@dataclass(frozen=True, slots=True)
class Link:
    """How fast ranks exchange messages: seconds per message, per byte, per byte reduced."""

    alpha: float
    beta: float
    gamma: float

    def __str__(self) -> str:
        """Return the three figures in the units that people use."""
        return (
            f"alpha {self.alpha * 1e6:.1f} us/message, beta {self.beta * 1e9:.3f} ns/B, "
            f"gamma {self.gamma * 1e9:.3f} ns/B"
        )


@dataclass(frozen=True, slots=True, kw_only=True)
class Layout:
    """Where the ranks of a group are, and how they work together.

    rails: ranks of a node that talk to other nodes; 0: all that can.
    crowd: ranks of a machine by its cores.
    """

    node_of_rank: tuple[int, ...]
    local: str = "rs_ag"
    rails: int = 0
    crowd: float = 1.0

    @property
    def nodes(self) -> tuple[int, ...]:
        """Return the ranks of each node."""
        counts = Counter(self.node_of_rank)
        return tuple(counts[node] for node in sorted(counts))

    @property
    def has_local_stage(self) -> bool:
        """Say whether the ranks of a node add in shared memory before any schedule runs."""
        return self.local != "none" and max(self.nodes) > 1

    @property
    def ranks_of_schedule(self) -> int:
        """Return how many ranks a schedule of this layout has; 1: there is none."""
        return len(self.nodes) if self.has_local_stage else len(self.node_of_rank)

    @property
    def schedule_link(self) -> str:
        """Return the class of the links that schedules run over."""
        return NETWORK if len(self.nodes) > 1 else SHARED_MEMORY

    @property
    def shards(self) -> int:
        """Return into how many parts the buffer is split, each of which travels on a rail."""
        if not self.has_local_stage:
            return 1
        most = min(self.nodes)
        return 1 if self.local == "reduce_bcast" else min(self.rails or most, most)

    def demands(self, algorithm: str) -> dict[str, tuple[float, float, float]]:
        """Return (messages, share of the buffer sent, share reduced) by class of links.

        They are those of the critical path.
        """
        found: dict[str, tuple[float, float, float]] = {}
        if self.has_local_stage:
            others = 1 - 1 / max(self.nodes)
            found[LOCAL_STAGE] = (float(_SYNCHRONISATIONS), 2 * others, others)
        ranks, shards = self.ranks_of_schedule, self.shards
        if ranks > 1:
            messages, sent, reduced = _demands(algorithm, ranks, self.crowd)
            found[self.schedule_link] = (messages, sent / shards, reduced / shards)
        return found

    def predict(self, algorithm: str, nbytes: int, links: Mapping[str, Link]) -> float:
        """Return the predicted seconds of an allreduce of `nbytes`; KeyError without its links."""
        return sum(
            messages * links[kind].alpha
            + nbytes * (sent * links[kind].beta + reduced * links[kind].gamma)
            for kind, (messages, sent, reduced) in self.demands(algorithm).items()
        )

    def seconds_per_byte(self, algorithm: str, links: Mapping[str, Link]) -> float:
        """Return what each further byte takes by the model; KeyError without its links."""
        return self.predict(algorithm, 1, links) - self.predict(algorithm, 0, links)

    def __str__(self) -> str:
        """Return the layout in words."""
        sizes = Counter(self.nodes)
        nodes = " and ".join(f"{many} x {size}" for size, many in sorted(sizes.items()))
        return f"{len(self.node_of_rank)} ranks, nodes x ranks {nodes}, local {self.local}"


@lru_cache(maxsize=256)
def _demands(algorithm: str, num_ranks: int, crowd: float) -> tuple[float, float, float]:
    """Return (messages, share of the buffer sent, share reduced) on the critical path."""
    schedule = _C.build(_C.Collective.allreduce, algorithm, num_ranks)
    messages = sent = reduced = 0.0
    moves = np.asarray(schedule.moves())

    def busiest(ranks: np.ndarray[tuple[int], np.dtype[np.int32]], share: object = None) -> float:
        work = np.bincount(ranks, weights=share, minlength=num_ranks)  # type: ignore[arg-type]
        return float(max(work.max(), work.mean() * crowd))

    for number in range(len(schedule.rounds)):
        rows = moves[moves[:, 0] == number]
        share = (rows[:, 4] - rows[:, 3]) / schedule.num_chunks
        pairs = np.unique(rows[:, 1:3], axis=0)
        messages += max(busiest(pairs[:, column]) for column in (0, 1))
        sent += max(busiest(rows[:, column], share) for column in (1, 2))
        adding = rows[:, 5] == 1
        if adding.any():
            reduced += busiest(rows[adding, 2], share[adding])
    return messages, sent, reduced


@lru_cache(maxsize=64)
def representatives(num_ranks: int) -> Mapping[str, str]:
    """Return for each algorithm of an allreduce the preferred one that makes the same moves.

    Among two ranks, say, a ring is halving and doubling. In order of preference: of equals the
    first is taken, and the first two add in canonical order, so that bits depend on no layout.
    """
    names = _C.algorithms(_C.Collective.allreduce)
    names.sort(key=lambda name: _PREFERENCE.index(name) if name in _PREFERENCE else len(names))
    first: dict[bytes, str] = {}
    found = {}
    for name in names:
        schedule = _C.build(_C.Collective.allreduce, name, num_ranks)
        moves = schedule.num_chunks.to_bytes(4, "little") + np.asarray(schedule.moves()).tobytes()
        found[name] = first.setdefault(moves, name)
    return found


def predict(
    algorithm: str, num_ranks: int, nbytes: int, link: Link, *, crowd: float = 1.0
) -> float:
    """Return the predicted seconds of an allreduce of `nbytes` among ranks on nodes of their own.

    crowd: ranks of a machine by its cores.
    """
    if num_ranks == 1:
        return 0.0
    layout = Layout(node_of_rank=tuple(range(num_ranks)), crowd=crowd)
    return layout.predict(algorithm, nbytes, {NETWORK: link})
