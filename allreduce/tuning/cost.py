"""The cost model: what an allreduce takes on links of given alpha, overhead, beta and gamma.

alpha is seconds per message, beta seconds per byte sent, gamma seconds per byte reduced. A round of
a schedule takes what its busiest rank needs for its messages, in or out, and for its reductions
(Hockney's model, as in Thakur, Rabenseifner and Gropp 2005). Where a rank has several messages in a
round, alpha is that of one, and each further one takes the overhead: they are under way at the same
time (LogP; Culler et al. 1993). The rounds of a long message overlap, segment by segment: all but
its first segment take what its busiest rank needs in all.
Where ranks share cores, nothing takes less than the work of all of them by the number of cores.
docs/tuning.md has the formulas.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass
from functools import lru_cache
from itertools import pairwise

import numpy as np
import numpy.typing as npt

from allreduce import _C
from allreduce.schedules import algorithms

__all__ = [
    "LOCAL_STAGE",
    "NETWORK",
    "SHARED_MEMORY",
    "Demand",
    "Layout",
    "Link",
    "distinct_algorithms",
    "predict",
]

# Classes of links: the stages inside a node, and what schedules run over between nodes, or inside
# one where there are no such stages.
LOCAL_STAGE, NETWORK, SHARED_MEMORY = "local_stage", "network", "shared_memory"
_LARGE = 1 << 30  # bytes
_SYNCHRONISATIONS = 2  # of the local stage: contributions are there, shards are final


@dataclass(frozen=True, slots=True)
class Link:
    """How fast ranks exchange messages: seconds per message, per byte, per byte reduced.

    overhead: seconds for each further message of a rank in a round; None: alpha.
    """

    alpha: float
    beta: float
    gamma: float
    overhead: float | None = None

    def seconds(self, demand: Demand) -> float:
        """Return what a critical path takes."""
        further = self.alpha if self.overhead is None else self.overhead
        return (
            demand.rounds * self.alpha
            + demand.further_messages * further
            + demand.sent * self.beta
            + demand.reduced * self.gamma
        )

    def __str__(self) -> str:
        """Return the figures in the units that people use."""
        further = (
            "" if self.overhead is None else f"overhead {self.overhead * 1e6:.1f} us/message, "
        )
        return (
            f"alpha {self.alpha * 1e6:.1f} us/message, {further}beta {self.beta * 1e9:.3f} ns/B, "
            f"gamma {self.gamma * 1e9:.3f} ns/B"
        )


@dataclass(frozen=True, slots=True)
class Demand:
    """What the critical path of an allreduce asks of a class of links.

    further_messages: of the busiest rank of each round, besides one. sent, reduced: bytes.
    """

    rounds: float
    further_messages: float
    sent: float
    reduced: float


@dataclass(frozen=True, slots=True, kw_only=True)
class Layout:
    """Where the ranks of a group are, and how they work together.

    rails: ranks of a node that talk to other nodes; 0: all that can.
    segment_bytes: most bytes of a step of a schedule.
    ranks_per_core: on the busiest machine.
    """

    node_of_rank: tuple[int, ...]
    local: str = "rs_ag"
    rails: int = 0
    segment_bytes: int = 256 << 10
    ranks_per_core: float = 1.0

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

    def demands(self, algorithm: str, nbytes: int) -> dict[str, Demand]:
        """Return what the critical path demands, by class of links."""
        found: dict[str, Demand] = {}
        if self.has_local_stage:
            others = nbytes * (1 - 1 / max(self.nodes))
            found[LOCAL_STAGE] = Demand(_SYNCHRONISATIONS, 0, 2 * others, others)
        if self.ranks_of_schedule > 1:
            path = _path(algorithm, self.ranks_of_schedule, self.ranks_per_core)
            shard = nbytes / self.shards
            first = min(shard, self.segment_bytes)
            found[self.schedule_link] = Demand(
                path.rounds,
                path.further_messages,
                path.sent.of(first, shard),
                path.reduced.of(first, shard),
            )
        return found

    def predict(self, algorithm: str, nbytes: int, links: Mapping[str, Link]) -> float:
        """Return the predicted seconds of an allreduce of `nbytes`; KeyError without its links."""
        return sum(
            links[kind].seconds(demand) for kind, demand in self.demands(algorithm, nbytes).items()
        )

    def seconds_per_byte(self, algorithm: str, links: Mapping[str, Link]) -> float:
        """Return what each further byte of a large buffer takes; KeyError without its links."""
        return (
            self.predict(algorithm, 2 * _LARGE, links) - self.predict(algorithm, _LARGE, links)
        ) / _LARGE

    def __str__(self) -> str:
        """Return the layout in words."""
        sizes = Counter(self.nodes)
        nodes = " and ".join(f"{many} x {size}" for size, many in sorted(sizes.items()))
        return f"{len(self.node_of_rank)} ranks, nodes x ranks {nodes}, local {self.local}"


@dataclass(frozen=True, slots=True)
class _Volume:
    """Shares of the buffer: of each round's busiest rank, added up; of the rank busiest in all."""

    by_round: float
    in_all: float

    def of(self, first: float, nbytes: float) -> float:
        """Return the bytes of a buffer whose first segment passes the rounds one by one."""
        return self.by_round * first + self.in_all * (nbytes - first)


@dataclass(frozen=True, slots=True)
class _Path:
    rounds: int
    further_messages: float
    sent: _Volume
    reduced: _Volume


@lru_cache(maxsize=256)
def _path(algorithm: str, num_ranks: int, ranks_per_core: float) -> _Path:
    """Return what the critical path of a schedule demands."""
    schedule = _C.build(_C.Collective.allreduce, algorithm, num_ranks)
    moves = np.asarray(schedule.moves())
    sent = np.zeros((len(schedule.rounds), 2, num_ranks))  # and received
    reduced = np.zeros((len(schedule.rounds), 1, num_ranks))
    messages = np.zeros_like(sent)
    begins = np.searchsorted(moves[:, 0], range(len(schedule.rounds) + 1))
    for number, (begin, end_of_round) in enumerate(pairwise(begins)):
        rows = moves[begin:end_of_round]
        share = (rows[:, 4] - rows[:, 3]) / schedule.num_chunks
        senders, receivers = divmod(_distinct(rows[:, 1] * num_ranks + rows[:, 2]), num_ranks)
        for end, ranks in enumerate((senders, receivers)):
            messages[number, end] = np.bincount(ranks, minlength=num_ranks)
            sent[number, end] = np.bincount(rows[:, 1 + end], share, num_ranks)
        adding = rows[:, 5] == 1
        reduced[number, 0] = np.bincount(rows[adding, 2], share[adding], num_ranks)

    def busiest(work: npt.NDArray[np.float64]) -> float:
        return float(max(work.max(), work.mean(axis=-1).max() * ranks_per_core))

    def volume(work: npt.NDArray[np.float64]) -> _Volume:
        return _Volume(sum(map(busiest, work)), busiest(work.sum(axis=0)))

    rounds = len(schedule.rounds)
    further = volume(messages).by_round - rounds
    return _Path(rounds, further, volume(sent), volume(reduced))


def _distinct(values: npt.NDArray[np.int32]) -> npt.NDArray[np.int32]:
    """Return the values in order, each once. (np.unique would import numpy.ma: 20 ms of `init`.)"""
    ordered = np.sort(values)
    first: npt.NDArray[np.int32] = ordered[np.diff(ordered, prepend=-1) != 0]
    return first


@lru_cache(maxsize=64)
def distinct_algorithms(num_ranks: int) -> Mapping[str, str]:
    """Return for each algorithm of an allreduce the preferred one that makes the same moves.

    Among two ranks, say, a ring is halving and doubling. Of equals the first of the table is taken.
    The first two of the table add in canonical order, so that bits depend on no layout.
    """
    first: dict[bytes, str] = {}
    found = {}
    for name in algorithms("allreduce"):
        schedule = _C.build(_C.Collective.allreduce, name, num_ranks)
        moves = schedule.num_chunks.to_bytes(4, "little") + np.asarray(schedule.moves()).tobytes()
        found[name] = first.setdefault(moves, name)
    return found


def predict(
    algorithm: str, num_ranks: int, nbytes: int, link: Link, *, ranks_per_core: float = 1.0
) -> float:
    """Return the predicted seconds of an allreduce of `nbytes` among ranks on nodes of their own.

    ranks_per_core: on the busiest machine.
    """
    if num_ranks == 1:
        return 0.0
    layout = Layout(node_of_rank=tuple(range(num_ranks)), ranks_per_core=ranks_per_core)
    return layout.predict(algorithm, nbytes, {NETWORK: link})
