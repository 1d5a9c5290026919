"""Finds the torch backend, one C++ file, or compiles it at first use.

torch promises no stable C++ interface, so a compiled backend fits one release of torch. The one
built with the package is used if it fits. Otherwise csrc/torch/backend.cc is compiled once, into
the user's cache directory, under a name made of all that it depends on.
"""

from __future__ import annotations

import contextlib
import errno
import fcntl
import functools
import importlib.util
import json
import logging
import os
import shutil
import sys
import tempfile
import time
from collections.abc import Iterator
from importlib.machinery import ExtensionFileLoader
from pathlib import Path
from types import ModuleType

from allreduce.commands import native_build

__all__ = ["load"]

_NAME = "allreduce.torch._backend"
_LOCK_SECONDS = 600.0  # four times the compilation on a busy machine
_logger = logging.getLogger("allreduce")


@functools.cache
def load() -> ModuleType:
    """Imports and returns the backend module `_backend`, compiled for the torch that is installed.

    The first use of a release of torch compiles for about half a minute and logs one line that says
    so. Raises ImportError with one sentence if torch is missing or too old, no compiler is found,
    the compilation fails, or the cache directory cannot be written.
    """
    core = Path(str(native_build.require_core().__file__))
    torch = _installed_torch()
    file = _built(torch)
    if file is None:
        try:
            file = _cached(torch, core)
        except OSError as error:
            text = f"the torch backend cannot be kept in the cache directory ({error})"
            raise ImportError(f"{text}; set XDG_CACHE_HOME to one that can be written") from None
        except native_build.BuildError as error:
            text = f"the torch backend cannot be compiled for torch {torch.version}"
            raise ImportError(f"{text}: {error}") from None
    return _import(file)


def _installed_torch() -> native_build.Torch:
    try:
        import torch
    except ImportError as error:
        raise ImportError(
            f"torch cannot be imported ({error}); pip install 'hier-allreduce[torch]'"
        ) from None
    if not torch.compiled_with_cxx11_abi():
        raise ImportError(
            f"torch {torch.__version__} uses an old C++ library interface; use torch 2.7 or newer"
        )
    return native_build.Torch(folder=Path(torch.__file__).parent, version=str(torch.__version__))


def _built(torch: native_build.Torch) -> Path | None:
    """The backend that was built with the package, if it fits this torch and these sources."""
    folder = Path(__file__).resolve().parents[1]
    file = folder / f"_backend{native_build.EXT_SUFFIX}"
    try:
        stamp = json.loads(file.with_name("_backend.json").read_text())
    except (OSError, ValueError):
        return None
    wanted = {"torch": torch.version, "sources": native_build.backend_hash(native_build.csrc_dir())}
    return file if file.exists() and stamp == wanted else None


def _cached(torch: native_build.Torch, core: Path) -> Path:
    """The backend in the cache directory, compiled now if it is not there yet."""
    csrc = native_build.csrc_dir()
    target = _cache_folder(torch, csrc) / f"_backend{native_build.EXT_SUFFIX}"
    if target.exists():
        return target
    target.parent.mkdir(parents=True, exist_ok=True)
    with _locked(target.with_name("lock")):
        if target.exists():  # another process of this job was first
            return target
        native_build.cxx()  # what is missing is named before anything is announced
        native_build.check_python_headers()
        _logger.warning(
            "compiling the torch backend for torch %s: about half a minute, once; kept in %s",
            torch.version,
            target.parent,
        )
        _compile(csrc, torch, core, target)
    return target


def _cache_folder(torch: native_build.Torch, csrc: Path) -> Path:
    # Not by the core's place: the backend finds the core by name among the loaded libraries, and
    # any core with the same headers fits.
    cache = os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache"
    name = f"torch-{torch.version}-{sys.implementation.cache_tag}-{native_build.backend_hash(csrc)}"
    return Path(cache, "hier-allreduce", name)


def _compile(csrc: Path, torch: native_build.Torch, core: Path, target: Path) -> None:
    # Renamed into place when it is whole: a killed compiler leaves nothing that looks finished.
    folder = Path(tempfile.mkdtemp(dir=target.parent))
    try:
        output = folder / target.name
        native_build.run(native_build.backend_command(csrc, torch, core, output))
        output.replace(target)
    finally:
        shutil.rmtree(folder, ignore_errors=True)


@contextlib.contextmanager
def _locked(file: Path) -> Iterator[None]:
    """Holds an exclusive lock, which the system releases if this process dies.

    Raises OSError (ETIMEDOUT) if another process holds it for ten minutes.
    """
    deadline = time.monotonic() + _LOCK_SECONDS
    with file.open("a") as handle:
        while True:
            try:
                fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
                break
            except BlockingIOError:
                if time.monotonic() > deadline:
                    text = "another process holds this lock and has not finished compiling"
                    raise OSError(errno.ETIMEDOUT, text, str(file)) from None
                time.sleep(0.1)
        yield


def _import(file: Path) -> ModuleType:
    loader = ExtensionFileLoader(_NAME, str(file))
    spec = importlib.util.spec_from_file_location(_NAME, file, loader=loader)
    assert spec is not None
    module = importlib.util.module_from_spec(spec)
    sys.modules[_NAME] = module
    try:
        loader.exec_module(module)
    except BaseException:
        del sys.modules[_NAME]
        raise
    return module
