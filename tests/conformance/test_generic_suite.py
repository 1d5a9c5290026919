"""torch's generic suite on hier: a part of it in every run, all of it under the marker full."""

import faulthandler
import os
import signal
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest
from conformance.ranks import Result
from conformance.report import Report, failures, skips, table
from conformance.selection import FAST

ROOT = Path(__file__).resolve().parents[2]
DEADLINE = 600  # seconds for one run of the suite

pytest.importorskip("expecttest", reason="torch's suite needs expecttest: pip install expecttest")
pytestmark = pytest.mark.timeout(2 * DEADLINE + 20)

Runner = Callable[..., Report]


@pytest.fixture(scope="module")
def suite(tmp_path_factory: pytest.TempPathFactory) -> Runner:
    """Runs the suite with options of its program, once for the same options."""
    reports: dict[tuple[str, ...], Report] = {}

    def run(*options: str) -> Report:
        if options not in reports:
            reports[options] = run_suite(tmp_path_factory.mktemp("suite"), *options)
        return reports[options]

    return run


def run_suite(folder: Path, *options: str) -> Report:
    # It is quiet for minutes and has deadlines of its own; pytest's would end the whole run.
    faulthandler.cancel_dump_traceback_later()
    file, log = folder / "report.json", folder / "log"
    command = [sys.executable, "-m", "tests.conformance.suite", *options, f"--json={file}"]
    with log.open("w") as output:
        process = subprocess.Popen(
            command, cwd=ROOT, stdout=output, stderr=output, start_new_session=True
        )
        try:
            process.wait(DEADLINE)
        finally:
            if process.poll() is None:
                os.killpg(process.pid, signal.SIGKILL)
                process.wait()
    assert file.exists(), log.read_text()[-4000:]
    return Report.load(file)


@pytest.fixture(scope="module")
def fast(suite: Runner) -> dict[str, Result]:
    return {result.name: result for result in suite("--fast").results}


@pytest.mark.parametrize("name", FAST)
def test_hier_passes(name: str, fast: dict[str, Result]) -> None:
    if fast[name].outcome != "passed":
        pytest.fail(f"{fast[name].outcome}: {fast[name].why}", pytrace=False)


@pytest.mark.full
@pytest.mark.parametrize(("ranks", "nodes"), [(3, 1), (4, 1), (4, 2)])
def test_hier_fails_no_test(ranks: int, nodes: int, suite: Runner) -> None:
    report = suite(*hier(ranks, nodes))
    assert report.names("passed")
    if failed := failures(report):
        pytest.fail("\n".join(failed), pytrace=False)


@pytest.mark.full
@pytest.mark.parametrize("ranks", [3, 4])
def test_hier_passes_what_gloo_passes(ranks: int, suite: Runner) -> None:
    passed = suite(*gloo(ranks), "--open").names("passed")
    assert passed
    if missing := passed - suite(*hier(ranks)).names("passed"):
        pytest.fail("\n".join(sorted(missing)), pytrace=False)


@pytest.mark.full
@pytest.mark.parametrize("ranks", [3, 4])
def test_hier_in_the_place_of_gloo_passes_what_gloo_passes(ranks: int, suite: Runner) -> None:
    passed = suite(*gloo(ranks)).names("passed")
    assert passed
    missing = passed - suite(*gloo(ranks), "--replace-gloo").names("passed")
    # They look for events whose names begin with "gloo:", and for the name in DDP's log.
    ways = ("isend", "send_recv", "send_recv_any_source", "send_recv_with_tag")
    names = {f"test_{way}_{kind}_profiler" for way in ways for kind in ("autograd", "torch")}
    assert missing == names | {"test_ddp_logging_data_cpu"}


@pytest.mark.full
@pytest.mark.parametrize(("ranks", "nodes"), [(3, 1), (4, 2)])
def test_hier_passes_tests_for_gpus_that_gloo_passes_on_the_cpu(
    ranks: int, nodes: int, suite: Runner
) -> None:
    passed = suite(*gloo(ranks), "--open", "--on-cpu").names("passed")
    assert passed
    report = suite(*hier(ranks, nodes), "--on-cpu")
    if missing := passed - report.names("passed"):
        pytest.fail("\n".join([*sorted(missing), *failures(report)]), pytrace=False)


@pytest.mark.full
def test_counts_are_printed(suite: Runner, capsys: pytest.CaptureFixture[str]) -> None:
    runs = [run for n in (3, 4) for run in (gloo(n), (*gloo(n), "--open"), hier(n))]
    reports = [suite(*options) for options in (*runs, hier(4, 2))]
    reasons = [f"{count:5} {why}" for why, count in skips(suite(*hier(4))).most_common()]
    with capsys.disabled():
        print("", table(reports), "skipped by hier at 4 ranks:", *reasons, sep="\n")
    assert len({sum(report.counts()) for report in reports}) == 1


def hier(ranks: int, nodes: int = 1) -> tuple[str, ...]:
    return ("--backend=hier", f"--ranks={ranks}", f"--nodes={nodes}")


def gloo(ranks: int) -> tuple[str, ...]:
    return ("--backend=gloo", f"--ranks={ranks}")
