"""`replace_gloo` and HIER_REPLACE_GLOO: see programs/gloo_replaced.py."""

import importlib.metadata
import os
import signal
import subprocess
import sys
from pathlib import Path

import pytest

from allreduce.commands.local_processes import LocalProcesses

PROGRAM = "gloo_replaced.py"
LAYOUTS = [(2, 1), (4, 2)]
ROOT = Path(__file__).resolve().parents[2]
pytestmark = pytest.mark.timeout(110)

# As somebody writes it who has never heard of hier.
PLAIN = """
import sys, torch, torch.distributed as dist
dist.init_process_group("gloo", init_method="file://" + sys.argv[1], rank=0, world_size=1)
x = torch.ones(3)
dist.all_reduce(x)
dist.monitored_barrier()
print(dist.get_backend(), dist.group.WORLD._get_backend(x.device).name(), x.tolist())
dist.destroy_process_group()
"""

# Runs a script as it is, and writes down how many groups hier has made for it.
COUNTING = """
import atexit, os, runpy, sys
from pathlib import Path
from allreduce.torch.backend import process_group
connect, made = process_group.connect, []
process_group.connect = lambda *a, **k: made.append(k["name"]) or connect(*a, **k)
atexit.register(lambda: Path(os.environ["FOLDER"], f"made{os.getpid()}").write_text(str(len(made))))
runpy.run_path(sys.argv[1], run_name="__main__")
"""


def test_gloo_replaced(check, outcomes, assert_passed) -> None:
    assert_passed(check, outcomes)


@pytest.mark.skipif(
    "hier" not in importlib.metadata.entry_points(group="torch.backends").names,
    reason="the package is not installed",
)
@pytest.mark.parametrize(
    ("value", "maker", "says"),
    [
        ("1", "hier", ""),
        ("0", "gloo", ""),
        ("", "gloo", ""),
        ("yes", "gloo", 'HIER_REPLACE_GLOO="yes": write 1'),
    ],
)
def test_a_variable_replaces_gloo_in_a_program_that_does_not_import_this_package(
    backend: None, tmp_path: Path, value: str, maker: str, says: str
) -> None:
    done = subprocess.run(
        [sys.executable, "-c", PLAIN, str(tmp_path / "store")],
        env={**os.environ, "PYTHONPATH": str(ROOT), "HIER_REPLACE_GLOO": value},
        capture_output=True,
        text=True,
        timeout=90,
    )
    assert done.returncode == 0, done.stderr
    assert done.stdout == f"gloo {maker} [1.0, 1.0, 1.0]\n"
    assert says in done.stderr
    assert done.stderr.count("not replaced") == bool(says)


@pytest.mark.parametrize("script", ["test_ops.py", "test_sync.py"])
def test_accelerates_own_scripts_run_unmodified(backend: None, tmp_path: Path, script: str) -> None:
    reason = "accelerate is not installed"
    scripts = Path(pytest.importorskip("accelerate.test_utils.scripts", reason=reason).__file__)
    (tmp_path / "counting.py").write_text(COUNTING)
    launcher = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node=2"]
    environ = {
        **os.environ,
        "PYTHONPATH": str(ROOT),
        "FOLDER": str(tmp_path),
        "HIER_REPLACE_GLOO": "1",
        "ACCELERATE_USE_CPU": "true",
        "OMP_NUM_THREADS": "1",
    }
    command = [*launcher, str(tmp_path / "counting.py"), str(scripts.with_name(script))]
    with (tmp_path / "output").open("w") as output, LocalProcesses() as processes:
        processes.start(command, environ, stdout=output, stderr=output)
        if not processes.wait(90):
            processes.send_signal(signal.SIGTERM)  # which the launcher passes on to its ranks
            processes.wait(10)
    assert processes.codes() == [0], (tmp_path / "output").read_text()
    assert [file.read_text() for file in tmp_path.glob("made*")] == ["1", "1"]


def test_another_torch_is_refused_in_words() -> None:
    code = (
        "import torch.distributed as dist, allreduce.torch as ours\n"
        "del dist.distributed_c10d._new_process_group_helper\n"
        "try: ours.replace_gloo()\n"
        "except ours.gloo.UsageError as error: print(error)\n"
    )
    done = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, timeout=90, check=True
    )
    assert done.stdout.startswith("replace_gloo does not know torch ")
    assert 'write "hier" where the program says "gloo"' in done.stdout
