"""A moving picture of a schedule over nodes: blocks of chunks travel between the ranks' rows."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from html import escape
from itertools import accumulate

from allreduce.schedules import Collective, Schedule
from allreduce.schedules.drawing import Cells, Picture

__all__ = ["animate"]

_CELL, _HEIGHT, _ROW, _LEFT, _TOP, _GAP = 34, 18, 30, 76, 44, 26  # px; _GAP: between nodes
_ROUND = 1.6  # seconds: half of it the blocks travel
_PAUSE = 2.4  # at the end
_STYLE = """
text { font: 12px sans-serif; fill: #57606a; }
.title { font-size: 14px; }
.frame { fill: none; stroke: #8c959f; }
.cell { fill: #2f80ed; stroke: #8c959f; stroke-width: 0.5; }
.move { opacity: 0; stroke: #fff; }
@media (prefers-color-scheme: dark) { text { fill: #adbac7; } }
"""


def animate(schedule: Schedule, node_sizes: Sequence[int], title: str) -> str:
    """Return an SVG of an allreduce, which moves by CSS alone and begins again at its end.

    A row is a rank, a frame a node, a box a chunk: the fuller the more ranks' data it holds. Orange
    blocks are added where they arrive, blue ones overwrite.
    """
    rows = _rows(node_sizes)
    width = _LEFT + schedule.num_chunks * _CELL + 16
    height = rows[-1] + _ROW + 12
    seconds = schedule.num_rounds * _ROUND + _PAUSE
    picture = Picture(
        schedule=schedule, title=title, collective=Collective.__members__["allreduce"]
    )
    styles: list[str] = []
    shapes = [*_frames(node_sizes, rows, width)]
    shapes += _cells(list(picture.states()), rows, seconds, styles)
    shapes += _moves(schedule, rows, seconds, styles)
    return "\n".join(
        [
            f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {width} {height}" '
            f'width="{width}" height="{height}">',
            f"<title>{escape(title)}</title>",
            f"<style>{_STYLE}{''.join(styles)}</style>",
            f'<text class="title" x="8" y="22">{escape(title)}</text>',
            *shapes,
            "</svg>",
            "",
        ]
    )


def _rows(node_sizes: Sequence[int]) -> list[int]:
    """Return where the row of each rank begins."""
    node_of = [node for node, size in enumerate(node_sizes) for _ in range(size)]
    return [_TOP + rank * _ROW + node * _GAP for rank, node in enumerate(node_of)]


def _frames(node_sizes: Sequence[int], rows: Sequence[int], width: int) -> Iterator[str]:
    ends = list(accumulate(node_sizes))
    for node, (first, end) in enumerate(zip([0, *ends], ends, strict=False)):
        top, bottom = rows[first] - 8, rows[end - 1] + _HEIGHT + 8
        yield (
            f'<rect class="frame" x="4" y="{top}" width="{width - 8}" height="{bottom - top}" '
            f'rx="6"><title>node {node}</title></rect>'
        )
    for rank, top in enumerate(rows):
        yield f'<text x="14" y="{top + 13}">rank {rank}</text>'


def _cells(
    states: Sequence[Cells], rows: Sequence[int], seconds: float, styles: list[str]
) -> Iterator[str]:
    """Yield the boxes, and add how each fills up: a step at the end of a round."""
    ranks = len(rows)
    for rank, top in enumerate(rows):
        for chunk in range(len(states[0][rank])):
            filled = [state[rank][chunk].bit_count() / ranks for state in states]
            name = f"c{rank}-{chunk}"
            steps = [f"0%{{fill-opacity:{filled[0]:.3f}}}"]
            for t, share in enumerate(filled[1:], 1):
                at = 100 * t * _ROUND / seconds
                steps.append(f"{at - 0.01:.2f}%{{fill-opacity:{filled[t - 1]:.3f}}}")
                steps.append(f"{at:.2f}%{{fill-opacity:{share:.3f}}}")
            steps.append(f"100%{{fill-opacity:{filled[-1]:.3f}}}")
            styles.append(f"@keyframes {name}{{{''.join(steps)}}}\n")
            yield (
                f'<rect class="cell" x="{_LEFT + chunk * _CELL}" y="{top}" width="{_CELL - 2}" '
                f'height="{_HEIGHT}" fill-opacity="{filled[-1]:.3f}" '
                f'style="animation:{name} {seconds:.1f}s infinite"/>'
            )


def _moves(
    schedule: Schedule, rows: Sequence[int], seconds: float, styles: list[str]
) -> Iterator[str]:
    """Yield a block for each move, and add when and how far it travels."""
    for t, moves in enumerate(schedule.rounds):
        begin, end = (100 * (t + part) * _ROUND / seconds for part in (0.4, 0.95))
        for i, (src, dst, lo, hi, adds) in enumerate(moves):
            name = f"m{t}-{i}"
            way = rows[dst] - rows[src]
            styles.append(
                f"@keyframes {name}{{0%,{begin - 0.01:.2f}%{{opacity:0;transform:none}}"
                f"{begin:.2f}%{{opacity:0.9;transform:none}}"
                f"{end:.2f}%{{opacity:0.9;transform:translateY({way}px)}}"
                f"{end + 0.01:.2f}%,100%{{opacity:0;transform:translateY({way}px)}}}}\n"
            )
            yield (
                f'<rect class="move" x="{_LEFT + lo * _CELL}" y="{rows[src]}" '
                f'width="{(hi - lo) * _CELL - 2}" height="{_HEIGHT}" rx="3" '
                f'fill="{"#e8710a" if adds else "#1f5fbf"}" '
                f'style="animation:{name} {seconds:.1f}s infinite"/>'
            )
