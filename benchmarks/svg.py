"""Charts as SVG, written by hand: they need no library, and a change of one can be read."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from html import escape

# Okabe and Ito's: told apart by everybody.
COLOURS = (
    "#0072b2",
    "#d55e00",
    "#009e73",
    "#cc79a7",
    "#56b4e9",
    "#e69f00",
    "#000000",
    "#882255",
    "#999933",
    "#6b6b6b",
)
_LEFT, _RIGHT, _TOP, _BOTTOM = 74, 16, 34, 46  # px around a panel's field
_LEGEND_ROW = 18


def decades(low: float, high: float) -> list[float]:
    """Return the powers of ten from at most `low` to at least `high`."""
    return [10.0**k for k in range(math.floor(math.log10(low)), math.ceil(math.log10(high)) + 1)]


def steps(high: float) -> list[float]:
    """Return four to eight round values from 0 to at least `high`."""
    rough = max(high, 1e-12) / 6
    power = 10.0 ** math.floor(math.log10(rough))
    step = next(power * k for k in (1, 2, 2.5, 5, 10) if power * k >= rough)
    return [step * k for k in range(math.ceil(high / step) + 1)]


@dataclass(kw_only=True)
class Panel:
    """One field with axes. The largest tick is at the top; `place` puts a value between 0 and 1."""

    title: str
    x_title: str
    y_title: str
    y_ticks: Sequence[float]
    y_log: bool = False
    width: int = 420
    height: int = 300
    parts: list[str] = field(default_factory=list)

    def __post_init__(self) -> None:
        """Draw what every chart has."""
        middle = _LEFT + self._field_width / 2
        self._text(middle, 20, self.title, size=13, weight="bold")
        self._text(middle, self.height - 8, self.x_title)
        y = _TOP + self._field_height / 2
        turned = f'transform="rotate(-90 14 {y:.1f})"'
        self.parts.append(
            f'<text x="14" y="{y:.1f}" text-anchor="middle" {turned}>{escape(self.y_title)}</text>'
        )
        for tick in self.y_ticks:
            y = self.y(tick)
            self._line([(_LEFT, y), (self.width - _RIGHT, y)], "#ddd", 1)
            self._text(_LEFT - 6, y + 4, f"{tick:,.10g}", "end")

    @property
    def _field_width(self) -> float:
        return self.width - _LEFT - _RIGHT

    @property
    def _field_height(self) -> float:
        return self.height - _TOP - _BOTTOM

    def y(self, value: float) -> float:
        """Return the height of a value, in px from above."""
        place: Callable[[float], float] = math.log10 if self.y_log else float
        low, high = place(self.y_ticks[0]), place(self.y_ticks[-1])
        return _TOP + self._field_height * (high - place(value)) / (high - low)

    def x(self, share: float) -> float:
        """Return the place of 0 (left) to 1 (right), in px."""
        return _LEFT + self._field_width * share

    def lines(
        self, values_of_x: Mapping[str, float], series: Mapping[str, Sequence[float | None]]
    ) -> None:
        """Draw a line with dots for each series over a logarithmic x axis, from the left.

        values_of_x: by the names that stand under the axis; at least two.
        """
        places = self._log_places(list(values_of_x.values()))
        for place, name in zip(places, values_of_x, strict=True):
            self._text(place, self.height - _BOTTOM + 18, name)
        for number, values in enumerate(series.values()):
            colour = COLOURS[number % len(COLOURS)]
            points = [(x, self.y(v)) for x, v in zip(places, values, strict=True) if v is not None]
            self._line(points, colour, 3 if number == 0 else 1.5)
            self.parts += [
                f'<circle cx="{x:.1f}" cy="{y:.1f}" r="{4 if number == 0 else 3}" fill="{colour}"/>'
                for x, y in points
            ]

    def whiskers(
        self, values_of_x: Mapping[str, float], ranges: Sequence[tuple[float, float] | None]
    ) -> None:
        """Draw vertical bars from low to high at the places of `lines`, in its first colour."""
        places = self._log_places(list(values_of_x.values()))
        for x, ends in zip(places, ranges, strict=True):
            if ends is None:
                continue
            bottom, top = (min(max(end, self.y_ticks[0]), self.y_ticks[-1]) for end in ends)
            self._line([(x, self.y(bottom)), (x, self.y(top))], COLOURS[0], 2)

    def curves(self, width: float, curves: Mapping[str, Sequence[tuple[float, float]]]) -> None:
        """Draw named curves of (x, y) over a linear x axis from 0 to `width`."""
        for tick in steps(width):
            if tick <= width:
                self._text(self.x(tick / width), self.height - _BOTTOM + 18, f"{tick:g}")
        for number, (name, points) in enumerate(curves.items()):
            colour = COLOURS[number % len(COLOURS)]
            self._line([(self.x(x / width), self.y(y)) for x, y in points], colour, 1.5)
            self._text(self.x(0.98), _TOP + 14 * (number + 1), name, "end", colour=colour)

    def bars(self, names: Sequence[str], series: Mapping[str, Sequence[float | None]]) -> None:
        """Draw groups of bars with their values; names: of the groups. Less than 0 is nothing."""
        bar = self._field_width / len(names) * 0.86 / len(series)
        for group, name in enumerate(names):
            self._text(self.x((group + 0.5) / len(names)), self.height - _BOTTOM + 18, name)
            left = self.x((group + 0.07) / len(names))
            for number, values in enumerate(series.values()):
                value = values[group]
                if value is None:
                    continue
                y, base = self.y(max(value, 0.0)), self.y(self.y_ticks[0])
                x, colour = left + number * bar, COLOURS[number % len(COLOURS)]
                self.parts.append(
                    f'<rect x="{x + 1:.1f}" y="{y:.1f}" width="{bar - 2:.1f}"'
                    f' height="{base - y:.1f}" fill="{colour}"/>'
                )
                self._text(x + bar / 2, y - 3, f"{value:.0f}", size=9)

    def _log_places(self, values: Sequence[float]) -> list[float]:
        logs = [math.log(value) for value in values]
        spread = (logs[-1] - logs[0]) / 0.86
        return [self.x(0.07 + (log - logs[0]) / spread) for log in logs]

    def _line(self, points: Sequence[tuple[float, float]], colour: str, width: float) -> None:
        path = " ".join(f"{x:.1f},{y:.1f}" for x, y in points)
        stroke = f'stroke="{colour}" stroke-width="{width:g}"'
        self.parts.append(f'<polyline points="{path}" fill="none" {stroke}/>')

    def _text(
        self, x: float, y: float, text: str, anchor: str = "middle", *, size: int = 11,
        weight: str = "normal", colour: str = "#222",
    ) -> None:  # fmt: skip
        self.parts.append(
            f'<text x="{x:.1f}" y="{y:.1f}" text-anchor="{anchor}" font-size="{size}"'
            f' font-weight="{weight}" fill="{colour}">{escape(text)}</text>'
        )


def document(panels: Sequence[Panel], legend: Sequence[str], notes: Sequence[str]) -> str:
    """Return panels side by side, under them what the colours mean, and notes."""
    width = sum(panel.width for panel in panels)
    top = max(panel.height for panel in panels)
    height = top + _LEGEND_ROW * (1 + len(notes)) + 10
    parts = [
        f'<svg xmlns="http://www.w3.org/2000/svg" width="{width}" height="{height}"'
        f' viewBox="0 0 {width} {height}" font-family="sans-serif" font-size="11" fill="#222">',
        f'<rect width="{width}" height="{height}" fill="#fff"/>',
    ]
    left = 0
    for panel in panels:
        parts += [f'<g transform="translate({left} 0)">', *panel.parts, "</g>"]
        left += panel.width
    column = (width - 2 * _RIGHT) / len(legend)
    y = top + _LEGEND_ROW - 4
    for number, name in enumerate(legend):
        x, colour = _RIGHT + number * column, COLOURS[number % len(COLOURS)]
        parts += [
            f'<rect x="{x:.1f}" y="{y - 9}" width="12" height="10" fill="{colour}"/>',
            f'<text x="{x + 17:.1f}" y="{y}">{escape(name)}</text>',
        ]
    for number, note in enumerate(notes, 1):
        y = top + _LEGEND_ROW * (1 + number) - 4
        parts.append(f'<text x="{_RIGHT}" y="{y}" font-size="10" fill="#666">{escape(note)}</text>')
    return "\n".join([*parts, "</svg>", ""])
