"""Pictures of a schedule, as text and as SVG, drawn from the same symbolic execution."""

from __future__ import annotations

import textwrap
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from html import escape

from allreduce.schedules import Collective, Schedule

Move = tuple[int, int, int, int, bool]  # src, dst, lo, hi, reduce
Cells = list[list[int]]  # by rank and chunk: the set of ranks whose data it holds, a bit a rank

_WIDTH = 120
_BOX, _GAP, _ROW, _LEFT, _TOP = 9, 78, 30, 52, 40  # SVG: px


@dataclass(frozen=True, slots=True, kw_only=True)
class Picture:
    """A schedule, and what is to be written above it."""

    schedule: Schedule
    title: str
    collective: Collective
    root: int = 0

    def ascii(self) -> str:
        """A line a round: its moves, and what each rank holds after it.

        A digit a chunk: how many ranks' data is summed up in it (+ for more than 9); # for all
        that there is to be, . for none. 0+>1[2-3]: rank 0 sends chunks 2 to 3 to rank 1, which
        adds them; => overwrites.
        """
        schedule = self.schedule
        counts = (
            _plural(schedule.world_size, "rank"),
            _plural(schedule.num_chunks, "chunk"),
            _plural(schedule.num_rounds, "round"),
        )
        rounds = schedule.rounds
        moves = [" ".join(map(move_text, moves)) for moves in rounds]
        held = [" ".join(map(self._glyphs, cells)) for cells in self.states()]
        prefix = len(f"  round {max(len(rounds) - 1, 0)}  ")
        column = max(map(len, [*moves, ""]))
        lines = [f"{self.title}  ({', '.join(counts)})"]
        if prefix + column + 3 + len(held[0]) <= _WIDTH:
            lines.append(f"{'  start':{prefix}}{'':{column}}   {held[0]}")
            lines += [
                f"{f'  round {t}':{prefix}}{moves[t]:{column}}   {held[t + 1]}"
                for t in range(len(rounds))
            ]
        else:
            indent = " " * prefix
            lines += _wrap(held[0], "  start".ljust(prefix), indent)
            for t in range(len(rounds)):
                head = f"  round {t}".ljust(prefix)
                lines += _wrap(moves[t], head, indent) + _wrap(held[t + 1], indent, indent)
        return "\n".join(line.rstrip() for line in lines)

    def svg(self) -> str:
        """A space-time diagram: ranks downwards, rounds to the right.

        Boxes are chunks, the fuller the more ranks' data they hold, green when finished. Solid
        arrows are added at their head, dashed ones overwrite.
        """
        schedule = self.schedule
        step = schedule.num_chunks * _BOX + _GAP
        width = _LEFT + schedule.num_rounds * step + schedule.num_chunks * _BOX + 20
        height = _TOP + schedule.world_size * _ROW + 10
        parts = [
            f'<svg xmlns="http://www.w3.org/2000/svg" width="{width}" height="{height}" '
            f'viewBox="0 0 {width} {height}" font-family="sans-serif" font-size="11">',
            _ARROW_HEAD,
            f'<rect width="{width}" height="{height}" fill="#fff"/>',
            f'<text x="8" y="18" font-size="14">{escape(self.title)}</text>',
        ]
        for t, moves in enumerate(schedule.rounds):
            left = _LEFT + t * step + schedule.num_chunks * _BOX
            parts.append(
                f'<text x="{left + _GAP / 2}" y="{_TOP - 6}" text-anchor="middle">round {t}</text>'
            )
            parts += [_svg_arrow(move, left) for move in moves]
        for t, cells in enumerate(self.states()):
            for rank, row in enumerate(cells):
                y = _TOP + rank * _ROW
                if t == 0:
                    parts.append(f'<text x="8" y="{y + 16}">rank {rank}</text>')
                parts += [
                    self._svg_box(_LEFT + t * step + c * _BOX, y + 6, held, c)
                    for c, held in enumerate(row)
                ]
        return "\n".join([*parts, "</svg>", ""])

    def states(self) -> Iterator[Cells]:
        """What each rank holds before the first round and after each."""
        cells = self._start()
        yield [list(row) for row in cells]
        for moves in self.schedule.rounds:
            carried = [cells[src][lo:hi] for src, _, lo, hi, _ in moves]
            for (_, dst, lo, _, reduce), data in zip(moves, carried, strict=True):
                for c, held in enumerate(data, lo):
                    cells[dst][c] = cells[dst][c] | held if reduce else held
            yield [list(row) for row in cells]

    def _start(self) -> Cells:
        what, p = self.collective, self.schedule.world_size
        return [
            [
                1 << r if what.starts_with(r, c, self.root, p) else 0
                for c in range(self.schedule.num_chunks)
            ]
            for r in range(p)
        ]

    def _finished(self, chunk: int) -> int:
        world_size = self.schedule.world_size
        source = self.collective.source_of(chunk, self.root, world_size)
        return (1 << world_size) - 1 if source < 0 else 1 << source

    def _glyphs(self, row: Sequence[int]) -> str:
        return "".join(self._glyph(held, c) for c, held in enumerate(row))

    def _glyph(self, held: int, chunk: int) -> str:
        if held == self._finished(chunk):
            return "#"
        count = held.bit_count()
        return "." if count == 0 else str(count) if count < 10 else "+"

    def _svg_box(self, x: float, y: float, held: int, chunk: int) -> str:
        finished = self._finished(chunk)
        share = held.bit_count() / finished.bit_count()
        fill = "#2a9d5c" if held == finished else "#3b6fb6"
        size = f'width="{_BOX - 1}" height="{_ROW - 14}"'
        return (
            f'<rect x="{x}" y="{y}" {size} fill="{fill}" fill-opacity="{share:.2f}" '
            'stroke="#888" stroke-width="0.5"/>'
        )


_ARROW_HEAD = (
    '<defs><marker id="head" viewBox="0 0 6 6" refX="6" refY="3" markerWidth="6" markerHeight="6" '
    'orient="auto"><path d="M0 0L6 3L0 6z" fill="#444"/></marker></defs>'
)


def _svg_arrow(move: Move, left: float) -> str:
    src, dst, _, _, reduce = move
    y1, y2 = (_TOP + rank * _ROW + _ROW / 2 - 1 for rank in (src, dst))
    dash = "" if reduce else ' stroke-dasharray="4 2"'
    return (
        f'<line x1="{left + 3}" y1="{y1}" x2="{left + _GAP - 4}" y2="{y2}" stroke="#444" '
        f'marker-end="url(#head)"{dash}><title>{escape(move_text(move))}</title></line>'
    )


def move_text(move: Move) -> str:
    """The form "0+>1[2-3]"."""
    src, dst, lo, hi, reduce = move
    chunks = str(lo) if hi == lo + 1 else f"{lo}-{hi - 1}"
    return f"{src}{'+' if reduce else '='}>{dst}[{chunks}]"


def _plural(number: int, noun: str) -> str:
    return f"{number} {noun}{'' if number == 1 else 's'}"


def _wrap(text: str, first: str, indent: str) -> list[str]:
    return textwrap.wrap(text, _WIDTH, initial_indent=first, subsequent_indent=indent)
