"""Section: what it takes to build the native code, from nothing."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
import sysconfig
import tempfile
import time
from pathlib import Path

from benchmarks.gpu.place import COMPILER
from benchmarks.gpu.rows import Impossible, Rows
from benchmarks.gpu.section_processes import ROOT

_COPIED = ("setup.py", "pyproject.toml", "README.md", "LICENSE", "allreduce", "csrc")


def run(rows: Rows) -> None:
    """Build in place what is missing or stale; if nothing was, build a copy from nothing."""
    cores = len(os.sched_getaffinity(0))
    if why := _why_in_place():
        output, seconds = _build(ROOT, cores)
        told = [
            line for line in output.splitlines() if line.startswith(("compiled", "warning: built"))
        ]
        note = "; ".join([why, *told, f"{cores} cores"])[:600]
        rows.add("build in place", seconds, "s", on=COMPILER, note=note)
        return
    rows.fact("build in place", "not needed: the core is of these sources")
    if rows.quick:
        return
    if not _has_nvcc():
        raise Impossible("nvcc is not found: there is no CUDA extension to build")
    with tempfile.TemporaryDirectory() as folder:
        for name in _COPIED:
            _copy(ROOT / name, Path(folder, name))
        _, seconds = _build(Path(folder), cores, HIER_CUDA="1", HIER_TORCH="0")
        note = f"_C and _cuda, HIER_CUDA_ARCHS={os.environ.get('HIER_CUDA_ARCHS', 'as by default')}"
        rows.add("build from nothing", seconds, "s", on=COMPILER, note=f"{note}; {cores} cores")


def _why_in_place() -> str:
    """What this Python lacks; "" with a core of these sources and, where nvcc is, its CUDA side."""
    asked = "from allreduce.commands.native_build import require_core; require_core()"
    command = [sys.executable, "-W", "error::RuntimeWarning", "-c", asked]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True)
    if done.returncode:
        return done.stderr.strip().splitlines()[-1][:200]
    if _has_nvcc() and not list((ROOT / "allreduce").glob(f"_cuda{_suffix()}")):
        return "there is nvcc, and no allreduce._cuda"
    return ""


def _suffix() -> str:
    return str(sysconfig.get_config_var("EXT_SUFFIX"))


def _has_nvcc() -> bool:
    from allreduce.commands import native_build

    return native_build.find_nvcc() is not None


def _copy(source: Path, target: Path) -> None:
    if source.is_dir():
        ignored = shutil.ignore_patterns("__pycache__", "*.so", "_backend.json")
        shutil.copytree(source, target, ignore=ignored)
    elif source.exists():
        shutil.copyfile(source, target)


def _build(root: Path, jobs: int, **variables: str) -> tuple[str, float]:
    """Return what a build said, and its seconds."""
    command = [sys.executable, str(root / "setup.py"), "--quiet", "build_ext", "--inplace"]
    began = time.monotonic()
    # From another folder: an older setuptools does not understand our pyproject.toml.
    with tempfile.TemporaryDirectory() as folder:
        done = subprocess.run(
            command,
            cwd=folder,
            env={"HIER_JOBS": str(jobs), **os.environ, **variables},
            capture_output=True,
            text=True,
        )
    if done.returncode:
        said = (done.stdout + done.stderr)[-1500:]
        raise RuntimeError(f"the build ended with status {done.returncode}: {said}")
    return done.stdout + done.stderr, time.monotonic() - began
