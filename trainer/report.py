"""The table at the end of a run; `python -m trainer.report RUN` prints it again."""

from __future__ import annotations

import json
import sys
import textwrap
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

__all__ = ["PHASES", "main", "node_layout", "table"]

# Where an iteration's time goes; "other" is the keeping of metrics.
PHASES = ("data", "forward", "backward", "exposed", "optimizer", "other")
_PHASE_NAMES = {"exposed": "exposed communication"}
_MEGABYTE = 1e6


def table(summary: Mapping[str, Any]) -> str:
    """The end table, as text: what was reached, how fast, where the time and the bytes went.

    `summary` is what a run leaves as summary.json. Images per second are images trained on over
    the time that training took (evaluation is not in it); times are means over workers.
    """
    lines: list[str] = []

    def section(title: str, rows: Sequence[tuple[str, str]]) -> None:
        lines.append(title)
        lines.extend(f"  {name:<24}{text}" for name, text in rows)

    images, error = summary["test_images"], summary["test_error"]
    training, bad = summary["training_seconds"], summary.get("bad_images", 0)
    section(
        "result",
        [
            ("test error", f"{error:.1%} ({round(error * images)} of {images} images)"),
            ("images per second", f"{summary['images_per_second']:,.0f}"),
            ("iterations", f"{summary['iterations']} in {training:.1f} s of training"),
            ("elapsed", f"{summary['elapsed_seconds']:.1f} s, with evaluation"),
            *([("bad images", f"replaced {bad} times")] if bad else []),
        ],
    )
    section(
        "share of training time",
        [
            (_PHASE_NAMES.get(phase, phase), f"{spent / training:6.1%}")
            for phase, spent in summary["phase_seconds"].items()
        ],
    )
    section("sent per rank", _traffic_rows(summary))
    section("what ran", _plan_rows(summary))
    return "\n".join(lines)


def node_layout(sizes: Sequence[int]) -> str:
    """Ranks per node in words: "2 nodes x 2 ranks", or "2 nodes of 3 + 2 ranks"."""
    nodes = f"{len(sizes)} node{'s' if len(sizes) > 1 else ''}"
    if len(set(sizes)) == 1:
        return f"{nodes} x {sizes[0]} rank{'s' if sizes[0] > 1 else ''}"
    return f"{nodes} of {' + '.join(map(str, sizes))} ranks"


def _traffic_rows(summary: Mapping[str, Any]) -> list[tuple[str, str]]:
    rows = []
    for kind, by_rank in sorted(summary["sent_bytes"].items(), reverse=True):
        name = "by " + kind.removesuffix("_bytes").replace("_", " ")
        mean, most = sum(by_rank) / len(by_rank), max(by_rank)
        each = mean / summary["iterations"] / _MEGABYTE
        text = f"{mean / _MEGABYTE:,.1f} MB, {each:,.1f} MB an iteration"
        if most > 1.01 * mean:
            text += f" (the busiest rank {most / _MEGABYTE:,.1f} MB)"
        rows.append((name, text))
    return rows


def _plan_rows(summary: Mapping[str, Any]) -> list[tuple[str, str]]:
    size = summary["gradient_bytes"] / _MEGABYTE
    cap = summary["bucket_bytes"]
    buckets = f"{size:,.1f} MB of gradients in {summary['buckets']} buckets"
    buckets += f" of up to {cap:,} B" if cap else ", one per tensor"
    plan = [part for line in summary["plan"].splitlines() for part in textwrap.wrap(line, 72)]
    return [
        ("algorithm", summary["algo"]),
        *(("", line) for line in plan),
        ("layout", node_layout(summary["node_sizes"])),
        ("buckets", buckets),
    ]


def main(argv: Sequence[str]) -> int:
    """Prints the end table of each run directory in `argv`; 2 if one is not a finished run."""
    for name in argv:
        path = Path(name) / "summary.json"
        try:
            print(f"{name}\n{table(json.loads(path.read_text()))}")
        except (OSError, ValueError, KeyError) as error:
            print(f"trainer.report: {path}: not a finished run ({error})", file=sys.stderr)
            return 2
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
