"""Runs the suite that torch ships for its own backends, for one backend and world size.

python -m tests.conformance.suite --backend hier --ranks 3 -k all_reduce
"""

from __future__ import annotations

import argparse
import os
import re
import sys
import time
from collections.abc import Iterator, Sequence
from pathlib import Path
from types import ModuleType
from typing import Any

from .gates import REPLACEMENTS, import_suite
from .on_cpu import is_gated
from .ranks import Launcher, Result, Run
from .report import Report, text
from .selection import FAST


def main() -> int:
    options = _options()
    _set_environment(options)
    opened = options.open or options.backend != "gloo"
    suite = _import(options, opened=opened)
    for replace in REPLACEMENTS if opened else ():
        print(f"opened: {replace.__doc__}")
    begin = time.monotonic()
    results = _run_all(_launcher(suite, options), _names(_case(suite), options), options.jobs)
    report = Report(
        backend=options.backend,
        ranks=options.ranks,
        nodes=options.nodes,
        opened=opened,
        results=tuple(sorted(results, key=lambda result: result.name)),
        seconds=round(time.monotonic() - begin, 1),
    )
    print(text(report))
    if options.json:
        report.save(options.json)
    return 1 if report.of("failed") else 0


def _options() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--backend", default="hier")
    parser.add_argument("--ranks", type=int, default=3)
    parser.add_argument("--nodes", type=int, default=1, help="pretended nodes (hier)")
    parser.add_argument("--open", action="store_true", help="open gates by name for gloo too")
    parser.add_argument("--replace-gloo", action="store_true", help="let hier make gloo's groups")
    parser.add_argument("--on-cpu", action="store_true", help="only tests for GPUs, on the CPU")
    parser.add_argument("--fast", action="store_true", help="only the tests of every CI run")
    parser.add_argument("-k", metavar="REGEX", help="only tests whose name has a match")
    parser.add_argument("--jobs", type=int, default=3, help="tests at a time; they often sleep")
    parser.add_argument("--deadline", type=float, default=100, help="seconds for a test")
    parser.add_argument("--json", type=Path, metavar="FILE", help="write the results")
    return parser.parse_args()


def _set_environment(options: argparse.Namespace) -> None:
    os.environ |= {
        "BACKEND": options.backend,
        "WORLD_SIZE": str(options.ranks),
        "INIT_METHOD": "file:///",  # each test gets a place of its own
        "ALLREDUCE_NODES": str(options.nodes),
        "CUDA_VISIBLE_DEVICES": "",  # with fewer GPUs than ranks the suite would run nothing
        "OMP_NUM_THREADS": "1",
        "PYTORCH_PRINT_REPRO_ON_FAILURE": "0",
    }


def _import(options: argparse.Namespace, *, opened: bool) -> ModuleType:
    suite = import_suite(options.backend, opened=opened, on_cpu=options.on_cpu)
    if options.backend == "hier" or options.replace_gloo:
        from allreduce.torch.backend.load import load  # its package registers hier

        load()  # compiles, if need be, before the ranks want it
    if options.replace_gloo:
        from allreduce.torch import replace_gloo

        replace_gloo()
        suite.PROFILING_SUPPORTED_BACKENDS.remove("gloo")  # the events begin with "hier:"
    threads = len(os.listdir("/proc/self/task"))
    assert threads == 1, f"{threads} threads: the ranks could not be forked"
    return suite


def _case(suite: ModuleType) -> Any:
    class GenericSuite(suite.TestDistBackend, suite.DistributedTest._DistTestBase):
        pass

    GenericSuite.setUpClass()
    return GenericSuite


def _launcher(suite: ModuleType, options: argparse.Namespace) -> Launcher:
    skips = {skip.exit_code: skip.message for skip in suite.TEST_SKIPS.values()}
    return Launcher(
        suite=suite,
        case=_case(suite),
        ranks=options.ranks,
        deadline=options.deadline,
        skips=skips,
    )


def _names(case: Any, options: argparse.Namespace) -> list[str]:
    names = [name for name in dir(case) if name.startswith("test_")]
    if options.on_cpu:
        names = [name for name in names if is_gated(getattr(case, name))]
    if options.fast:
        assert set(FAST) <= set(names), f"torch has no {set(FAST) - set(names)}"
        names = list(FAST)
    return [name for name in names if not options.k or re.search(options.k, name)]


def _run_all(launcher: Launcher, names: Sequence[str], jobs: int) -> Iterator[Result]:
    waiting, running = list(reversed(names)), []
    try:
        while waiting or running:
            while waiting and len(running) < jobs:
                name = waiting.pop()
                test = getattr(launcher.case, name)
                if getattr(test, "__unittest_skip__", False):
                    yield Result(name=name, outcome="skipped", why=test.__unittest_skip_why__)
                else:
                    running.append(Run(launcher, name))
            for run in list(running):
                if result := run.poll():
                    running.remove(run)
                    print(f"{result.outcome} {result.seconds:6.2f} s {result.name}", flush=True)
                    yield result
            time.sleep(0.01)
    finally:
        for run in running:
            run.stop()


if __name__ == "__main__":
    sys.exit(main())
