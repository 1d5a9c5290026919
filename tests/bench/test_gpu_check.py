"""The check for one GPU, as it runs without one: to its end, every row honest about where."""

import importlib
import json
import os
import re
import subprocess
import sys
from pathlib import Path
from types import SimpleNamespace

import pytest

from allreduce.errors import CudaError
from benchmarks import gpu_check
from benchmarks.gpu import place, report, rows, section_processes
from benchmarks.gpu.place import Place
from benchmarks.gpu.rows import Row, Rows, Section

pytestmark = pytest.mark.timeout(180)  # the first of a run has the whole check to make

ROOT = Path(__file__).resolve().parents[2]
ON_CPU = {"", *(getattr(place, name) for name in ("CPU", "CPU_RUNTIME", "CPU_TABLE", "STAND_IN"))}
NO_GPU = Place(gpu=None, why="a test")


@pytest.fixture(scope="module")
def whole(tmp_path_factory):
    """The smallest complete run: its report, and what it printed."""
    out = tmp_path_factory.mktemp("out")
    command = [sys.executable, "-m", "benchmarks.gpu_check", "--quick", "--out", str(out)]
    done = subprocess.run(
        [*command, "--skip", "build"],
        cwd=ROOT,
        env={**os.environ, "ALLREDUCE_DEVICE_RUNTIME": "cpu"},
        capture_output=True,
        text=True,
        timeout=170,
    )
    assert done.returncode == 0, done.stdout + done.stderr
    (file,) = out.iterdir()
    return json.loads(file.read_text()), done.stdout


def test_every_section_runs_to_its_end_or_says_why_not(whole):
    found, _ = whole
    names = [name for name, _, _ in gpu_check.SECTIONS if name != "build"]
    assert [section["name"] for section in found["sections"]] == names
    states = {section["name"]: section["state"] for section in found["sections"]}
    assert states.pop("sanitizers") == rows.IMPOSSIBLE
    assert set(states.values()) == {rows.OK}
    assert found["sections"][-1]["reason"] == "there is no GPU to run the kernels on"


def test_the_report_has_its_shape(whole):
    found, _ = whole
    assert found["schema"] == report.SCHEMA
    assert found["exit_status"] == 0
    assert re.fullmatch(r"unknown|[0-9a-f]{12}(-dirty)?", found["commit"])
    for section in found["sections"]:
        assert 0 < section["seconds"] <= section["budget"] + 10
        for row in section["rows"]:
            assert set(row) == set(Row.__slots__)
            assert row["state"] in (rows.OK, rows.ABSENT)
            if row["value"] is not None:
                assert row["unit"]
                assert row["on"], f"{row['name']} does not say what it ran on"


def test_nothing_is_said_to_have_run_on_a_gpu(whole):
    found, printed = whole
    assert found["gpu"] is None
    assert found["why_no_gpu"] == "ALLREDUCE_DEVICE_RUNTIME=cpu"
    everything = [row for section in found["sections"] for row in section["rows"]]
    assert {row["on"] for row in everything} <= ON_CPU
    assert all(row["met"] is None for row in everything)
    assert "[GPU" not in printed
    assert "met" not in printed.split()


def test_the_overhead_of_one_rank_is_that_of_hooks_and_buckets(whole):
    """At world size 1 our DDP does without them, and a network would be compared with itself."""
    found, _ = whole
    (section,) = [section for section in found["sections"] if section["name"] == "resnet"]
    notes = [row["note"] for row in section["rows"] if "our DDP, 1 rank" in row["name"]]
    assert len(notes) == 3
    for note in notes:
        assert int(re.search(r"buckets: (\d+)", note)[1]) > 0


def test_a_figure_of_others_is_labelled(whole):
    found, _ = whole
    (section,) = [section for section in found["sections"] if section["name"] == "resnet"]
    assert section["rows"][0]["note"].endswith("beside 2470 of an A100-80GB, QUOTED")


def test_a_row_that_claims_a_gpu_is_refused(tmp_path):
    with pytest.raises(AssertionError, match="not where this runs"):
        Rows(tmp_path / "rows", NO_GPU, quick=True).add("x", 1.0, "us", on="GPU: H100")
    section = Section(name="x", checks=True, budget=1)
    section.rows.append(Row(name="x", state=rows.OK, on="GPU: H100"))
    with pytest.raises(AssertionError, match="there is none"):
        report.write(tmp_path / "x.json", NO_GPU, [section], when="", commit="")


def test_a_target_is_met_or_missed_on_a_gpu_alone(tmp_path):
    found = []
    for here, on in ((Place(gpu="H100"), "GPU: H100"), (NO_GPU, place.CPU)):
        file = tmp_path / here.device
        writer = Rows(file, here, quick=True)
        for value in (84.0, 85.0):
            writer.judge("share", value, "%", on=on, at_least=85)
        section = Section(name="x", checks=False, budget=1)
        rows.read(file, section)
        found.append([row.met for row in section.rows])
    assert found == [[False, True], [None, None]]


@pytest.mark.parametrize(
    ("body", "state", "reason"),
    [
        ("def run(rows): raise OSError('of no use')", rows.FAILED, "OSError: of no use"),
        ("def run(rows):\n import os\n os._exit(7)", rows.FAILED, "status 7"),
        ("def run(rows):\n import time\n time.sleep(60)", rows.TIMED_OUT, "did not end within 3 s"),
        ("def run(rows): rows.check('x', False, on='CPU')", rows.FAILED, "1 checks failed"),
    ],
)
def test_a_section_that_fails_says_how(tmp_path, monkeypatch, body, state, reason):
    package = tmp_path / "benchmarks"
    (package / "gpu").mkdir(parents=True)
    (package / "__init__.py").touch()
    for file in (ROOT / "benchmarks/gpu").glob("*.py"):
        (package / "gpu" / file.name).write_text(file.read_text())
    (package / "gpu/planted.py").write_text(
        body.replace("def run(rows):", "def run(rows):\n rows.fact('first', 'kept')\n", 1)
        if "\n" in body
        else body.replace("def run(rows): ", "def run(rows):\n rows.fact('first', 'kept')\n ")
    )
    monkeypatch.setattr(section_processes, "ROOT", tmp_path)
    monkeypatch.setenv("PYTHONPATH", str(ROOT))
    section = Section(name="planted", checks=True, budget=3)
    section_processes.run_apart(section, NO_GPU, quick=True, seconds=3)
    assert section.state == state
    assert reason in section.reason
    assert section.rows[0].note == "kept"
    assert report.exit_status([section]) == 1


def test_kernels_are_called_as_the_module_wants_it(monkeypatch):
    """Without a GPU a call that fits raises CudaError, and one that does not a TypeError."""
    torch = pytest.importorskip("torch")
    importlib.import_module("allreduce._C")  # its symbols are used by the other
    module = pytest.importorskip("allreduce._cuda", reason="built without CUDA")
    if module.is_available():
        pytest.skip("there is a GPU: the check itself calls them")
    from benchmarks.gpu import stand_ins, virtual_ranks

    monkeypatch.setattr(stand_ins, "_stream", lambda: 0)
    monkeypatch.setattr(virtual_ranks, "_stream", lambda: 0)
    monkeypatch.setattr(torch.cuda, "Stream", object)
    here = SimpleNamespace(device="cpu", on=lambda other: other)
    ours = stand_ins.Kernels(here)
    x, half = torch.ones(64), torch.ones(64, dtype=torch.bfloat16)
    ranges = [(64, 0.1)]
    flat = stand_ins.Flat(parameters=x, momenta=x, gradients=half, copy=half)
    param = torch.nn.Parameter(torch.ones(8, 8))
    param.grad = torch.ones(8, 8)
    layers = stand_ins.Layers(params=[param], decays=[0.1])
    calls = {
        "reduce_many": lambda: ours.reduce_many([x], [x, x]),
        "pack": lambda: ours.pack([x], half, 0.5),
        "unpack": lambda: ours.unpack([x], half, 0.5),
        "sgd": lambda: ours.sgd(flat, ranges, **stand_ins.REFERENCE)(),
        "lars": lambda: ours.lars(layers, 0.01, lr=0.1, momentum=0.9, nesterov=True)(),
    }
    if virtual_ranks.Peers.are_in(ours):
        peers = virtual_ranks.Peers(ours, here, 2)
        both, step = [half, half], virtual_ranks.FUSED_STEP
        calls |= {
            "reduce_scatter": lambda: peers.reduce_scatter(0, both, x[:32], 0.5),
            "allgather": lambda: peers.allgather(0, x[:32], both),
            "reduce_scatter_sgd_allgather": lambda: peers.fused(
                0, both, both, x[:32], x[32:], ranges, step
            ),
        }
    for name, call in calls.items():
        if ours.has(name):
            with pytest.raises(CudaError):
                call()
