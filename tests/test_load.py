"""First use of the torch backend, on a copy of the package whose backend compiles in seconds.

Compilers, locks, caches and processes are real; only backend.cc is a small one.
"""

import json
import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from allreduce.commands import native_build

torch = pytest.importorskip("torch")
PACKAGE = Path(native_build.__file__).parents[1]
SECONDS = 240.0  # four times a compilation on a busy machine
BACKEND = """// A backend that says what it was built for.
#include <pybind11/pybind11.h>
PYBIND11_MODULE(TORCH_EXTENSION_NAME, m) { m.attr("built_for") = TORCH_BUILT_FOR; }
"""
PROGRAM = """
from allreduce.torch.backend.load import load
backend = load()
print(backend.built_for, backend.__file__)
"""

pytestmark = pytest.mark.timeout(2 * SECONDS)


def copy_package(folder: Path, backend: str = BACKEND) -> Path:
    """A package tree as an isolated `pip install` leaves it: the core, no backend, the sources."""
    target = folder / "allreduce"
    ignored = shutil.ignore_patterns("__pycache__", "_backend*", "csrc")
    shutil.copytree(PACKAGE, target, ignore=ignored)
    (target / "torch/__init__.py").write_text('"""Nothing but the loader."""\n')
    (target / "csrc/torch").mkdir(parents=True)
    (target / "csrc/torch/backend.cc").write_text(backend)
    return target


def start(tree: Path, cache: Path, **environ: str) -> subprocess.Popen[str]:
    environ = {**os.environ, "PYTHONPATH": str(tree), "XDG_CACHE_HOME": str(cache), **environ}
    return subprocess.Popen(
        [sys.executable, "-c", PROGRAM],
        cwd=tree,
        env=environ,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )


def finish(process: subprocess.Popen[str]) -> tuple[int, str, str]:
    try:
        out, err = process.communicate(timeout=SECONDS)
    finally:
        process.kill()
    return process.returncode, out, err


@pytest.fixture(scope="module")
def used(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Path, list[tuple[int, str, str]]]:
    """A tree and a cache after three processes have asked for the backend at once."""
    tree, cache = tmp_path_factory.mktemp("tree"), tmp_path_factory.mktemp("cache")
    copy_package(tree)
    return tree, cache, [finish(p) for p in [start(tree, cache) for _ in range(3)]]


def test_processes_that_start_at_once_compile_once(used) -> None:
    _, cache, results = used
    for code, out, err in results:
        assert code == 0, err
        assert out.startswith(f"{torch.__version__} {cache}")
    said = [err.strip() for _, _, err in results if err.strip()]
    assert len(said) == 1, said
    assert "\n" not in said[0]
    assert f"compiling the torch backend for torch {torch.__version__}" in said[0]


def test_a_compiled_backend_needs_no_compiler(used) -> None:
    tree, cache, _ = used
    code, out, err = finish(start(tree, cache, CXX="/nowhere/g++"))
    assert (code, err) == (0, "")
    assert str(cache) in out


def test_changed_sources_are_compiled_again(used, tmp_path: Path) -> None:
    _, cache, _ = used
    copy_package(tmp_path, BACKEND + "// changed\n")
    code, _, err = finish(start(tmp_path, cache, CXX="/nowhere/g++"))
    assert code != 0
    assert "ImportError: the torch backend cannot be compiled" in err
    assert "cannot run /nowhere/g++: No such file or directory" in err


def test_without_a_compiler_one_error_says_what_to_install(tmp_path: Path) -> None:
    copy_package(tmp_path)
    empty = tmp_path / "empty"
    empty.mkdir()
    code, out, err = finish(start(tmp_path, tmp_path / "cache", PATH=str(empty), CXX=""))
    assert (code != 0, out) == (True, "")
    *_, last = err.splitlines()
    assert last.startswith("ImportError: the torch backend cannot be compiled for torch")
    assert "no C++ compiler: install g++" in last
    assert "half a minute" not in err, "it announces what it cannot do"


def test_a_failed_compilation_leaves_nothing_that_looks_finished(tmp_path: Path) -> None:
    tree, cache = tmp_path / "tree", tmp_path / "cache"
    copy_package(tree, "// Broken.\nint f() { return nothing; }\n")
    code, _, err = finish(start(tree, cache))
    assert code != 0
    assert "backend.cc:2" in err
    assert [file.name for file in cache.rglob("*") if file.is_file()] == ["lock"]


def test_a_cache_that_cannot_be_made_is_named_with_the_remedy(tmp_path: Path) -> None:
    copy_package(tmp_path)
    code, _, err = finish(start(tmp_path, Path("/proc/nowhere")))
    assert code != 0
    assert "/proc/nowhere" in err
    assert "set XDG_CACHE_HOME" in err


@pytest.mark.parametrize(("version", "fits"), [(torch.__version__, True), ("2.0.0", False)])
def test_a_backend_built_with_the_package_is_used_if_it_fits(
    used, tmp_path: Path, version: str, fits: bool
) -> None:
    _, cache, results = used
    package = copy_package(tmp_path)
    compiled = Path(results[0][1].split()[-1])
    shutil.copy(compiled, package / "torch" / compiled.name)
    stamp = {"torch": version, "sources": native_build.backend_hash(package / "csrc")}
    (package / "torch/_backend.json").write_text(json.dumps(stamp))
    code, out, err = finish(start(tmp_path, cache))
    assert (code, err) == (0, "")
    assert out.split()[-1].startswith(str(package if fits else cache))
