"""allreduce.cuda answers on every machine, with or without a GPU, driver or CUDA build."""

import importlib
import subprocess
import sys
from types import ModuleType

import pytest

import allreduce.cuda

pytestmark = pytest.mark.timeout(60)


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
