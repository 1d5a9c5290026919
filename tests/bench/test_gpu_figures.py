"""What README.md and docs/gpu.md say of a GPU is in the rows of the report that they name."""

import json
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]
REPORT = "gpu_2026-11-27.json"
README = (ROOT / "README.md").read_text()
GPU = (ROOT / "docs/gpu.md").read_text()
FIRST_SCREEN = 40  # lines
PARAMETERS = 25_557_032
NEVER = ("several GPUs", "several physical machines", "ImageNet itself")


@pytest.fixture(scope="module")
def report():
    found = json.loads((ROOT / "benchmarks/results" / REPORT).read_text())
    rows = {row["name"]: row["value"] for s in found["sections"] for row in s["rows"]}
    return found, rows


@pytest.mark.parametrize("place", NEVER)
def test_where_it_never_ran_is_said_once_on_the_first_screen(place):
    assert README.count(place) == 1
    top = "\n".join(README.splitlines()[:FIRST_SCREEN])
    assert "Never run so far" in top
    assert place in top


@pytest.mark.parametrize("text", [README, GPU], ids=["README", "gpu"])
def test_the_exit_status_of_the_report_is_told(report, text):
    found, _ = report
    unfinished = [s["name"] for s in found["sections"] if s["checks"] and s["state"] != "ok"]
    assert (found["exit_status"], unfinished) == (1, ["processes"])
    assert "xit status" in text
    assert "every check passed" not in text.lower()


@pytest.mark.parametrize("text", [README, GPU], ids=["README", "gpu"])
def test_the_share_of_a_step_is_that_of_its_row(report, text):
    _, rows = report
    step = 20 * PARAMETERS / rows["allreduce.optim.SGD.step"] / rows["copy rate"] / 10
    (line,) = [line for line in text.splitlines() if f"{step:.1f} %" in line]
    assert "step of `allreduce.optim.SGD`" in line


def test_an_overhead_without_buckets_is_not_cited(report):
    _, rows = report
    claims = README + GPU
    assert "0.02 %" not in claims
    assert f"{rows['overhead of our DDP, 1 rank']:.3f}" not in claims


def test_a_quoted_figure_names_its_machine():
    (line,) = [line for line in GPU.splitlines() if "4,729" in line]
    assert "2,470 of an A100-80GB, QUOTED" in line
    assert "2,470" not in README
