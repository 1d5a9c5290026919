"""The sizes and layouts of the sweeps, and the few of them that a smoke run visits."""

from __future__ import annotations

from benchmarks.harness.layouts import Layout

_KIB, _MIB = 1 << 10, 1 << 20

SIZES = tuple(k * _KIB for k in (1, 16, 64, 256)) + tuple(m * _MIB for m in (1, 4, 16, 100))
_FEW = (_KIB, 64 * _KIB, _MIB, 16 * _MIB)

SWEEP: dict[Layout, tuple[int, ...]] = {
    Layout(2, 1): SIZES,
    Layout(2, 2): SIZES,
    Layout(3, 1): _FEW,
    Layout(3, 3): _FEW,
    Layout(4, 1): SIZES,
    Layout(4, 2): SIZES,
    Layout(4, 4): SIZES,
    Layout(8, 1): SIZES,
    Layout(8, 2): _FEW,
    Layout(8, 8): SIZES,
    Layout(16, 1): (*_FEW, 100 * _MIB),
    Layout(16, 16): _FEW,
}
DTYPES: dict[Layout, tuple[int, ...]] = {
    Layout(2, 1): (64 * _KIB, _MIB, 16 * _MIB),
    Layout(4, 1): (64 * _KIB, _MIB, 16 * _MIB),
    Layout(2, 2): (64 * _KIB, _MIB),
}
AVERAGES: dict[Layout, tuple[int, ...]] = {
    Layout(2, 1): (64 * _KIB, _MIB, 16 * _MIB),
    Layout(2, 2): (64 * _KIB, _MIB, 16 * _MIB),
    Layout(4, 1): (64 * _KIB, 16 * _MIB),
    Layout(4, 2): (64 * _KIB, 16 * _MIB),
    Layout(8, 8): (64 * _KIB,),
}
ALGORITHMS: dict[Layout, tuple[int, ...]] = {
    Layout(2, 2): (_KIB, 16 * _KIB, 64 * _KIB, _MIB, 16 * _MIB),
    Layout(3, 3): _FEW,
    Layout(4, 4): (_KIB, 16 * _KIB, 64 * _KIB, _MIB, 16 * _MIB),
    Layout(8, 8): (_KIB, 16 * _KIB, 64 * _KIB, _MIB, 16 * _MIB),
    Layout(4, 2): _FEW,
    Layout(8, 2): _FEW,
    Layout(2, 1, "none"): _FEW,
    Layout(4, 1, "none"): _FEW,
}
SMOKE_SIZES = (_KIB, _MIB)
_SMOKE = (Layout(2, 2), Layout(2, 1))


def pairs(full: dict[Layout, tuple[int, ...]], *, smoke: bool) -> list[tuple[Layout, int]]:
    """Return (layout, bytes) of a sweep, one layout after the other."""
    chosen = {layout: SMOKE_SIZES for layout in _SMOKE if layout in full} if smoke else full
    return [(layout, nbytes) for layout, sizes in chosen.items() for nbytes in sizes]
