"""The best settings that we found for each MPI, by ranks and size: for players that end in "+".

Found by measuring each candidate beside the defaults, turn by turn. What did not help is not in the
table:

- Open MPI: single copy off (btl_vader_single_copy_mechanism), mpi_yield_when_idle (8.5 us against
  0.9 at 2 ranks), two links (btl_tcp_links), larger buffers (btl_tcp_sndbuf), other algorithms for
  large buffers, coll_sm from 4 ranks on (up to 100 times slower).
- Intel MPI: I_MPI_THREAD_YIELD=3 where ranks exceed cores is 1000 times slower.
- MPICH where ranks exceed cores: it spins without giving up its core, whatever
  MPIR_CVAR_POLLS_BEFORE_YIELD, binding and algorithm say.
- Gloo, through torch: one thread (6 times slower for small calls) or four, the device `lo`. It has
  no other transport in torch's wheels, and torch always asks it for its ring. So its best is cubic.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field

from benchmarks import peers

_ANY = 1 << 62
_KIB = 1 << 10
_MPICH_RANKS = 4
_SPINS = (
    f"spins without giving up its core, 8 to 50 ms a call at {_MPICH_RANKS} ranks; more would take"
    " the time of the others"
)
BEST = "+"  # the last letter of a player with its best settings


@dataclass(frozen=True, slots=True)
class Player:
    """An MPI over shared memory or TCP; settings: environment variables beyond its defaults."""

    library: str
    tcp: bool
    settings: tuple[tuple[str, str], ...] = ()


@dataclass(frozen=True, slots=True, kw_only=True)
class Row:
    """What is set for a library up to so many ranks and bytes; `why` is what was seen."""

    library: str
    tcp: bool
    ranks: int = _ANY
    up_to: int = _ANY
    variables: Mapping[str, str] = field(default_factory=dict)
    cubic: bool = False
    why: str


def _tuned(algorithm: int) -> dict[str, str]:
    """Return what makes Open MPI's coll_tuned take an algorithm."""
    return {
        "OMPI_MCA_coll_tuned_use_dynamic_rules": "1",
        "OMPI_MCA_coll_tuned_allreduce_algorithm": str(algorithm),
    }


_BOUND = {"OMPI_MCA_hwloc_base_binding_policy": "core:overload-allowed"}
_EAGER = {"OMPI_MCA_btl_vader_eager_limit": str(64 * _KIB)}
_DOUBLING = _tuned(3)  # recursive doubling

# The first row that fits decides; the last one of a player has no `up_to`. Times are in us.
ROWS: tuple[Row, ...] = (
    Row(
        library="openmpi",
        tcp=False,
        ranks=2,
        up_to=4 * _KIB,
        variables={"OMPI_MCA_coll_sm_priority": "100"},
        why="coll_sm: 0.74 against 0.87 at 1 KiB",
    ),
    Row(
        library="openmpi",
        tcp=False,
        ranks=2,
        variables=_EAGER,
        why="no handshake to 64 KiB: 4.0 against 6.6 at 16 KiB, 11.2 against 14.7 at 64 KiB",
    ),
    Row(
        library="openmpi",
        tcp=False,
        up_to=16 * _KIB,
        variables=_BOUND | _EAGER | _DOUBLING,
        why="ranks stay on a core: 16 against 26 at 1 KiB (4 ranks), 51 against 84 (8), 167 against"
        " 209 (16); recursive doubling: 29 against 39 at 16 KiB (4)",
    ),
    Row(
        library="openmpi",
        tcp=False,
        variables=_BOUND | _EAGER,
        why="67 against 115 at 64 KiB (4), 231 against 396 (8), 595 against 928 (16)",
    ),
    Row(
        library="openmpi",
        tcp=True,
        ranks=2,
        up_to=16 * _KIB,
        variables=_DOUBLING,
        cubic=True,
        why="21 against 31 at 16 KiB",
    ),
    Row(
        library="openmpi",
        tcp=True,
        ranks=2,
        cubic=True,
        why="1996 against 2111 at 4 MiB; all else within 5 %",
    ),
    Row(
        library="openmpi",
        tcp=True,
        up_to=16 * _KIB,
        variables=_BOUND | _DOUBLING,
        cubic=True,
        why="recursive doubling: 109 against 235 at 16 KiB (4), 391 against 592 (8), 1025 against"
        " 1610 (16)",
    ),
    Row(
        library="openmpi",
        tcp=True,
        variables=_BOUND,
        cubic=True,
        why="262 against 368 at 64 KiB (4), 688 against 829 (8), 1640 against 2420 (16)",
    ),
    Row(library="mpich", tcp=True, ranks=2, cubic=True, why="11.9 ms against 12.8 at 16 MiB"),
    Row(
        library="impi",
        tcp=False,
        up_to=1024 * _KIB,
        why="its defaults: thread yield, algorithms and waiting of other kinds are no better",
    ),
    Row(
        library="impi",
        tcp=False,
        variables={"I_MPI_COLL_INTRANODE": "pt2pt", "I_MPI_ADJUST_ALLREDUCE": "2"},
        why="Rabenseifner: 8.7 ms against 12.0 at 16 MiB (2 ranks), 17 against 24 (4)",
    ),
    Row(library="impi", tcp=True, cubic=True, why="36 ms against 38 at 16 MiB (4)"),
)


def player(name: str, ranks: int, nbytes: int) -> Player:
    """Return the player of a name like "openmpi", "openmpi-tcp+" at a number of ranks and bytes.

    Raises:
        Absent: the kernel refuses what its settings need.
    """
    plain = name.removesuffix(BEST)
    library, _, way = plain.partition("-")
    tcp = way == "tcp"
    if plain == name:
        return Player(library, tcp)
    row = next(row for row in _rows(library, tcp, ranks) if nbytes <= row.up_to)
    found = dict(row.variables) | (peers.cubic() if row.cubic else {})
    return Player(library, tcp, tuple(sorted(found.items())))


def without(names: Iterable[str], ranks: int) -> dict[str, str]:
    """Return the players that are not measured at so many ranks, and the reason."""
    plain = {name: name.removesuffix(BEST).partition("-") for name in names if name.endswith(BEST)}
    reason = "nothing better than its defaults is known (benchmarks/peers/settings.py)"
    none = {
        name: reason
        for name, (library, _, way) in plain.items()
        if not _rows(library, way == "tcp", ranks)
    }
    if ranks > _MPICH_RANKS:
        none |= {name: _SPINS for name in names if name.startswith("mpich")}
    return none


def _rows(library: str, tcp: bool, ranks: int) -> list[Row]:
    return [row for row in ROWS if (row.library, row.tcp) == (library, tcp) and ranks <= row.ranks]
