"""Registration with torch: through the entry point, without loading anything native of ours."""

import importlib.metadata
import os
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]
pytestmark = pytest.mark.timeout(110)

entry_points = importlib.metadata.entry_points(group="torch.backends")


def python(code: str, **environment: str) -> str:
    env = dict(os.environ, PYTHONPATH=str(ROOT)) | environment
    done = subprocess.run(
        [sys.executable, "-c", code], env=env, capture_output=True, text=True, timeout=90
    )
    assert done.returncode == 0, done.stderr
    return done.stdout


@pytest.mark.skipif("hier" not in entry_points.names, reason="the package is not installed")
def test_import_torch_alone_registers_the_backend() -> None:
    said = python(
        "import sys, torch, torch.distributed as dist\n"
        "print('HIER' in vars(dist.Backend), 'allreduce.torch._backend' in sys.modules)"
    )
    assert said.split() == ["True", "False"]


def test_torch_finds_the_backend_by_its_name_where_import_torch_loads_nothing() -> None:
    """From torch 2.14 on; here the call that it makes."""
    points = importlib.metadata.entry_points(group="torch.distributed.backends")
    if "hier" not in points.names:
        pytest.skip("the package is not installed")
    said = python(
        "from importlib.metadata import entry_points\n"
        "import torch.distributed as dist\n"
        "(point,) = entry_points(group='torch.distributed.backends', name='hier')\n"
        "print(hasattr(dist.Backend, 'HIER'))\n"
        "point.load()()\n"
        "point.load()()\n"
        "print(dist.Backend('hier'), dist.Backend.backend_list.count('hier'))",
        TORCH_DEVICE_BACKEND_AUTOLOAD="0",
    )
    assert said.split() == ["False", "hier", "1"]


def test_importing_the_package_registers_once() -> None:
    said = python(
        "import allreduce.torch as ours, sys, torch.distributed as dist\n"
        "from allreduce.torch import _autoload\n"
        "_autoload.autoload()\n"
        "_autoload.register()\n"
        "print(dist.Backend.HIER, dist.Backend.backend_list.count('hier'), ours.__all__)\n"
        "assert 'allreduce.torch._backend' not in sys.modules\n",
        TORCH_DEVICE_BACKEND_AUTOLOAD="0",
    )
    assert said.startswith("hier 1 ")


def test_a_failure_to_register_does_not_break_import_torch() -> None:
    said = python(
        "import torch.distributed as dist\n"
        "def broken(*_, **__): raise RuntimeError('on purpose')\n"
        "dist.Backend.register_backend = broken\n"
        "import allreduce.torch\n"
        "print(hasattr(dist.Backend, 'HIER'))",
        TORCH_DEVICE_BACKEND_AUTOLOAD="0",
    )
    assert said.split() == ["False"]


def test_autoload_imports_nothing_native_and_needs_no_core() -> None:
    said = python(
        "import sys\n"
        "sys.modules['allreduce._C'] = None  # as if it had not been built\n"
        "import torch, allreduce.torch._autoload, torch.distributed as dist\n"
        "print(dist.Backend.HIER)\n"
        "try:\n"
        "    import allreduce\n"
        "    allreduce.init()\n"
        "except ImportError as error:\n"
        "    print(error)"
    )
    registered, sentence = said.strip().splitlines()
    assert registered == "hier"
    assert "core" in sentence
