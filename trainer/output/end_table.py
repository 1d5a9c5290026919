"""The table at the end of a run, and its words."""

from __future__ import annotations

import textwrap
from collections.abc import Mapping, Sequence
from typing import Any

__all__ = ["PHASES", "PHASE_NAMES", "counted", "node_layout", "table"]

# Where an iteration's time goes; "other" is the keeping of metrics.
PHASES = ("data", "forward", "backward", "exposed", "optimizer", "other")
PHASE_NAMES = {"exposed": "exposed communication"}
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
            (PHASE_NAMES.get(phase, phase), f"{spent / training:6.1%}")
            for phase, spent in summary["phase_seconds"].items()
        ],
    )
    section("sent per rank", _traffic_rows(summary))
    section("what ran", _plan_rows(summary))
    return "\n".join(lines)


def counted(count: int, what: str) -> str:
    """ "1 node", "2 nodes"."""
    plural = what if count == 1 else f"{what}es" if what.endswith("s") else f"{what}s"
    return f"{count} {plural}"


def _amount(nbytes: float) -> str:
    """Bytes in words of three or four digits."""
    if nbytes >= _MEGABYTE:
        return f"{nbytes / _MEGABYTE:,.1f} MB"
    return f"{nbytes / 1e3:,.1f} kB" if nbytes >= 1e3 else f"{nbytes:.0f} B"


def node_layout(sizes: Sequence[int]) -> str:
    """Ranks per node in words: "2 nodes x 2 ranks", or "2 nodes of 3 + 2 ranks"."""
    nodes = counted(len(sizes), "node")
    if len(set(sizes)) == 1:
        return f"{nodes} x {counted(sizes[0], 'rank')}"
    return f"{nodes} of {' + '.join(map(str, sizes))} ranks"


def _traffic_rows(summary: Mapping[str, Any]) -> list[tuple[str, str]]:
    rows = []
    for kind, by_rank in sorted(summary["sent_bytes"].items(), reverse=True):
        name = "by " + kind.removesuffix("_bytes").replace("_", " ")
        mean, most = sum(by_rank) / len(by_rank), max(by_rank)
        each = mean * summary["minibatch"] / max(summary["traffic_images"], 1)
        text = f"{_amount(mean)}, {_amount(each)} an iteration"
        if most > 1.01 * mean:
            text += f" (the busiest rank {_amount(most)})"
        rows.append((name, text))
    return rows


def _plan_rows(summary: Mapping[str, Any]) -> list[tuple[str, str]]:
    cap, count = summary["bucket_bytes"], summary["buckets"]
    buckets = f"{_amount(summary['gradient_bytes'])} of gradients in {counted(count, 'bucket')}"
    if "largest_bucket_bytes" in summary and count:
        largest = summary["largest_bucket_bytes"]
        buckets += f", the largest of {largest:,} B"
    elif cap:
        buckets += f" of up to {cap:,} B"
    buckets += "" if cap else ", one per tensor"
    plan = [part for line in summary["plan"].splitlines() for part in textwrap.wrap(line, 72)]
    return [
        ("algorithm", summary["algo"]),
        *(("", line) for line in plan),
        ("layout", node_layout(summary["node_sizes"])),
        ("buckets", buckets),
    ]
