"""allreduce.cuda answers on every machine, with or without a GPU, driver or CUDA build."""

import importlib
import os
import subprocess
import sys
from pathlib import Path
from types import ModuleType

import pytest
from fake_nccl import compile_fake

import allreduce.cuda
from allreduce.commands import native_build
from allreduce.cuda.__main__ import rows

pytestmark = pytest.mark.timeout(240)


def test_the_answers_agree() -> None:
    info = allreduce.cuda.info()
    assert info.available == allreduce.cuda.is_available()
    assert info.why_not == allreduce.cuda.why_not()
    assert info.available == (info.why_not is None) == bool(info.devices)


def test_a_reason_is_a_sentence_without_a_python_name() -> None:
    reason = allreduce.cuda.why_not()
    if reason is None:
        pytest.skip("a GPU is available here")
    assert len(reason.split()) > 4
    assert "Error" not in reason


@pytest.mark.parametrize(
    ("error", "words"),
    [
        (ModuleNotFoundError("no", name="allreduce._cuda"), "nvcc was not found"),
        (ImportError("undefined symbol: x"), "cannot be loaded: undefined symbol: x"),
    ],
)
def test_a_build_without_cuda_is_explained(
    monkeypatch: pytest.MonkeyPatch, error: ImportError, words: str
) -> None:
    import_module = importlib.import_module

    def refuse(name: str, package: str | None = None) -> ModuleType:
        if name == "allreduce._cuda":
            raise error
        return import_module(name, package)

    monkeypatch.setattr(importlib, "import_module", refuse)
    reason = allreduce.cuda.why_not()
    assert reason is not None
    assert words in reason
    assert not allreduce.cuda.is_available()
    assert allreduce.cuda.info().devices == ()


def test_torch_is_not_imported() -> None:
    code = "import allreduce.cuda, sys; allreduce.cuda.info(); sys.exit('torch' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], timeout=60).returncode == 0


def table(**environ: str) -> dict[str, str]:
    """What the command prints, by the names of its rows."""
    command = [sys.executable, "-W", "error", "-m", "allreduce.cuda"]
    done = subprocess.run(
        command, env={**os.environ, **environ}, capture_output=True, text=True, timeout=60
    )
    assert done.returncode == 0, done.stderr
    assert done.stderr == ""
    return {line[:12].strip(): line[13:] for line in done.stdout.splitlines()}


def test_the_command_names_the_nccl_that_was_found(tmp_path: Path) -> None:
    fake = compile_fake(tmp_path)
    assert table(NCCL_LIB=str(fake))["NCCL"] == f"2.18.0, by NCCL_LIB: {fake}"
    refused = table(NCCL_LIB=str(fake), FAKE_NCCL_VERSION="21403")["NCCL"]
    assert refused.startswith("none: ")
    assert "is NCCL 2.14.3, which is too old; install NCCL 2.18 or newer" in refused


def test_the_command_answers_with_a_wrong_variable() -> None:
    said = table(NCCL_LIB="/nowhere/libnccl.so.2")
    assert said["NCCL"].startswith("none: NCCL_LIB=/nowhere/libnccl.so.2 cannot be loaded")
    assert said["local stage"].split(":")[0] in ("peer", "host")


def test_an_old_driver_is_named_with_the_remedy(tmp_path: Path) -> None:
    reason = allreduce.cuda.why_not()
    if reason is None or "no NVIDIA driver" not in reason:
        pytest.skip(f"a driver or no CUDA build is here, so no fake driver is asked: {reason}")
    source, built = Path(__file__).parent / "fake_driver.cc", tmp_path / "libcuda.so.1"
    command = [*native_build.cxx(), "-shared", "-fPIC", str(source), "-o", str(built)]
    subprocess.run(command, check=True, timeout=120)
    said = table(LD_LIBRARY_PATH=str(tmp_path))
    assert said["CUDA"].startswith("driver 11.2, ")
    assert "supports CUDA 11.2, but this build needs" in said["GPUs"]
    assert "update the driver" in said["GPUs"]
    assert said["local stage"].startswith("host: no GPU can be used: ")


def test_gpus_are_rows_of_the_table() -> None:
    devices = tuple(
        allreduce.cuda.Device(name="G", capability=(9, 0), memory_bytes=80 << 30, peers=peers)
        for peers in ((1,), ())
    )
    found = allreduce.cuda.CudaInfo(
        available=True,
        why_not=None,
        driver_version=(13, 1),
        runtime_version=(13, 0),
        devices=devices,
        stream_memory_operations=False,
        nccl=None,
        nccl_why_not="not there",
        local_stage=allreduce.cuda.LocalStage(name="host", reason="so"),
    )
    assert list(rows(found)) == [
        ("CUDA", "driver 13.1, runtime 13.0"),
        ("GPU 0", "G, capability 9.0, 80 GiB, reaches GPUs: 1"),
        ("GPU 1", "G, capability 9.0, 80 GiB, reaches GPUs: none"),
        ("flags", "host callbacks"),
        ("NCCL", "none: not there"),
        ("local stage", "host: so"),
    ]


def test_every_gpu_is_asked_about_every_other() -> None:
    if (reason := allreduce.cuda.why_not()) is not None:
        pytest.skip(f"no GPU: {reason}")
    from allreduce import _cuda

    devices = allreduce.cuda.info().devices
    for index, device in enumerate(devices):
        others = [other for other in range(len(devices)) if other != index]
        assert list(device.peers) == [o for o in others if _cuda.can_access_peer(index, o)]
