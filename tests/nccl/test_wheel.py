"""NVIDIA's own NCCL, which loads without a GPU, too: version, unique id, errors, header.

Runs where the wheel is installed. ALLREDUCE_NCCL_WHEEL=1 lets the test fetch it (200 MB) into a
temporary folder; ALLREDUCE_NCCL_WHEEL=FOLDER uses one that `pip install --target FOLDER` filled.
"""

import os
import subprocess
import sys
from pathlib import Path

import pytest

from allreduce import cuda
from allreduce.commands import native_build
from allreduce.cuda import nccl

pytestmark = pytest.mark.timeout(480)

ROOT = Path(__file__).parents[2]
REQUIREMENT = "nvidia-nccl-cu13==2.28.9"
VARIABLE = "ALLREDUCE_NCCL_WHEEL"

PROGRAM = """
import sys
from allreduce import _C, errors
library = _C.find_nccl("", sys.argv[1:])
print(library.source, library.path, library.version)
unique_id = _C.nccl_unique_id(library)
print(len(unique_id), unique_id != _C.nccl_unique_id(library))
try:
    comm = _C.NcclCommunicator(library, unique_id, 0, 1, timeout=60)
    comm.check()
    comm.close()
    print("joined")
except errors.Error as error:
    print(type(error).__name__, error)
"""


@pytest.fixture(scope="module")
def wheel(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The folder nvidia/nccl of a wheel."""
    for path in map(Path, nccl.wheels()):
        if path.exists():
            return path.parents[1]
    wish = os.environ.get(VARIABLE, "")
    if not wish:
        pytest.skip(f"NCCL's wheel is not installed; {VARIABLE}=1 fetches {REQUIREMENT} (200 MB)")
    if wish != "1":
        return Path(wish, "nvidia/nccl")
    target = tmp_path_factory.mktemp("wheel")
    pip = [sys.executable, "-m", "pip", "install", "-q", "--no-deps", "--target", str(target)]
    subprocess.run([*pip, REQUIREMENT], check=True, timeout=400)
    return target / "nvidia/nccl"


@pytest.fixture(scope="module")
def said(wheel: Path) -> list[str]:
    """What the program prints, in a process that has loaded no other NCCL."""
    path = wheel / "lib/libnccl.so.2"
    command = [sys.executable, "-c", PROGRAM, str(path)]
    done = subprocess.run(command, capture_output=True, text=True, timeout=120)
    assert done.returncode == 0, done.stderr
    print(done.stdout)
    return done.stdout.splitlines()


def test_the_wheel_is_loaded_and_tells_its_version(wheel: Path, said: list[str]) -> None:
    source, path, version = said[0].split()
    assert (source, path) == ("wheel", str(wheel / "lib/libnccl.so.2"))
    assert version.startswith("2.")
    assert int(version.split(".")[1]) >= 18


def test_unique_ids_differ(said: list[str]) -> None:
    assert said[1] == "128 True"


def test_joining_without_a_driver_is_an_error_in_nccls_words(said: list[str]) -> None:
    if cuda.is_available():
        pytest.skip("a GPU is available here")
    assert said[2].startswith("CudaError joining NCCL communicator (rank 0 of 1): unhandled cuda")
    assert "nvidia-smi shows driver and GPUs" in said[2]


def test_one_rank_joins_on_a_gpu(said: list[str]) -> None:
    if (reason := cuda.why_not()) is not None:
        pytest.skip(f"no GPU: {reason}")
    assert said[2] == "joined"


def test_our_declarations_are_those_of_nccl_h(wheel: Path, tmp_path: Path) -> None:
    # nccl.h needs two names of CUDA's headers, which need not be here.
    stream = "#include <stddef.h>\ntypedef struct CUstream_st* cudaStream_t;\n"
    (tmp_path / "cuda_runtime.h").write_text(stream)
    (tmp_path / "cuda_fp16.h").write_text("")
    folders = [f"-I{tmp_path}", f"-I{wheel / 'include'}", f"-I{ROOT / 'csrc'}"]
    source = ROOT / "tests/nccl/nccl_h.cc"
    command = [*native_build.cxx(), "-std=c++20", "-fsyntax-only", *folders, str(source)]
    done = subprocess.run(command, capture_output=True, text=True, timeout=120)
    assert done.returncode == 0, done.stderr
