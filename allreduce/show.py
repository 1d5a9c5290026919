"""Shows a schedule: `python -m allreduce.show halving_doubling 6` prints its picture.

--svg writes it as a drawing, --simulate a trace of a simulated run for ui.perfetto.dev.
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Sequence
from pathlib import Path

from allreduce.schedules import Collective, Schedule, algorithms, by_name, parse_collective
from allreduce.schedules.animation import animate
from allreduce.schedules.docs_page import generate
from allreduce.schedules.drawing import Picture
from allreduce.schedules.simulate import PRESETS, simulate

__all__ = ["main"]

_ELEMENT_SIZE = 4
_COLLECTIVES = tuple(Collective.__members__)


def _sizes(text: str) -> list[int]:
    return [int(part) for part in text.split(",")]


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="python -m allreduce.show",
        description="Prints the picture of a schedule, and writes drawings and simulated traces.",
    )
    parser.add_argument(
        "algorithm", nargs="?", help="a name (see --list), or hierarchical[:LOCAL]:INTER"
    )
    parser.add_argument("world_size", nargs="?", type=int, help="number of ranks")
    parser.add_argument("--collective", choices=_COLLECTIVES, default="allreduce")
    parser.add_argument(
        "--root", type=int, default=0, help="of a broadcast, reduce, gather or scatter"
    )
    parser.add_argument("--nodes", type=_sizes, metavar="4,4", help="ranks of each node")
    parser.add_argument("--rails", type=int, help="ranks of a node that use the network")
    parser.add_argument("--list", action="store_true", help="list the algorithms and stop")
    parser.add_argument(
        "-o",
        "--svg",
        nargs="?",
        const="",
        metavar="FILE",
        help="write an SVG; by default ALGORITHM_RANKS.svg",
    )
    parser.add_argument(
        "--animate", metavar="FILE", help="write an SVG that moves; of an allreduce over --nodes"
    )
    group = parser.add_argument_group("simulation")
    group.add_argument(
        "--simulate",
        nargs="?",
        const="",
        metavar="FILE",
        help="write a Perfetto/Chrome trace; by default ALGORITHM_RANKS.json",
    )
    group.add_argument("--bytes", type=int, default=1 << 20, help="of the buffer (1 MiB)")
    group.add_argument("--segment", type=int, default=1 << 20, help="most bytes a step (1 MiB)")
    group.add_argument("--network", choices=sorted(PRESETS), default="big_basin")
    group = parser.add_argument_group("documentation")
    group.add_argument("--docs", type=Path, metavar="FILE", help="write docs/algorithms.md")
    group.add_argument(
        "--check", action="store_true", help="with --docs: write nothing, fail if FILE is stale"
    )
    return parser


def main(arguments: Sequence[str] | None = None) -> int:
    """Runs the command line; returns the exit status."""
    parser = _parser()
    options = parser.parse_args(arguments)
    if options.docs is not None:
        return _docs(options.docs, check=options.check)
    if options.list:
        for collective in _COLLECTIVES:
            print(f"{collective}: {', '.join(algorithms(collective))}")
        return 0
    if options.algorithm is None:
        parser.error("name an algorithm, or use --list")
    try:
        _show(options)
    except (ValueError, OSError) as error:
        print(f"allreduce.show: {error}", file=sys.stderr)
        return 2
    return 0


def _show(options: argparse.Namespace) -> None:
    kind: Collective = parse_collective(options.collective)
    schedule = by_name(
        options.algorithm,
        options.world_size,
        collective=kind,
        root=options.root,
        node_sizes=options.nodes,
        rails=options.rails,
    )
    stem = f"{options.algorithm.replace(':', '_')}_{schedule.world_size}"
    title = f"{options.algorithm}({schedule.world_size})"
    if kind.name != "allreduce":
        title = f"{kind.name} {title}"
        stem = f"{kind.name}_{stem}"
    picture = Picture(schedule=schedule, title=title, collective=kind, root=options.root)
    print(picture.ascii())
    if options.svg is not None:
        _write(Path(options.svg or f"{stem}.svg"), picture.svg())
    if options.animate is not None:
        if kind.name != "allreduce" or not options.nodes:
            raise ValueError("--animate draws an allreduce over nodes; give --nodes, as 4,4")
        _write(Path(options.animate), animate(schedule, options.nodes, title))
    if options.simulate is not None:
        trace = _simulate(schedule, options)
        _write(Path(options.simulate or f"{stem}.json"), trace)


def _simulate(schedule: Schedule, options: argparse.Namespace) -> str:
    timeline = simulate(
        schedule,
        options.bytes // _ELEMENT_SIZE,
        network=PRESETS[options.network],
        node_sizes=options.nodes,
        element_size=_ELEMENT_SIZE,
        segment=max(1, options.segment // _ELEMENT_SIZE),
    )
    print(f"{options.bytes} bytes take {timeline.seconds * 1e6:.1f} us on {options.network}")
    return timeline.to_chrome_trace()


def _docs(path: Path, *, check: bool) -> int:
    page = generate()
    if not check:
        _write(path, page)
        return 0
    if path.exists() and path.read_text(encoding="ascii") == page:
        return 0
    print(
        f"{path} is stale; run: python -m allreduce.show --docs {path}",
        file=sys.stderr,
    )
    return 1


def _write(path: Path, text: str) -> None:
    path.write_text(text, encoding="ascii")
    print(f"wrote {path}")


if __name__ == "__main__":
    sys.exit(main())
