"""Builds the native code. `pip install .` needs setuptools, pybind11 and a C++ compiler, no more.

Three extensions, each in so far as this machine can:
  allreduce._C               the core; always
  allreduce._cuda            csrc/cuda, where nvcc is found
  allreduce.torch._backend   csrc/torch/backend.cc, where torch is importable while building
                             (pip install --no-build-isolation); otherwise compiled at first use
HIER_CUDA and HIER_TORCH forbid (0) or require (1) the last two; else a failure is one warning.
HIER_CUDA_ARCHS, TORCH_CUDA_ARCH_LIST, HIER_WERROR, HIER_SANITIZE, HIER_JOBS: see CONTRIBUTING.md.
"""

from __future__ import annotations

import concurrent.futures
import fcntl
import importlib.util
import json
import os
import shutil
import sys
import sysconfig
from pathlib import Path

from setuptools import Extension, setup
from setuptools.command.build_ext import build_ext
from setuptools.command.build_py import build_py

ROOT = Path(__file__).resolve().parent
CSRC = ROOT / "csrc"
JOBS = int(os.environ.get("HIER_JOBS") or len(os.sched_getaffinity(0)))


def load_build_module():
    """Loads it by its path: the package cannot be imported before it is built."""
    path = ROOT / "allreduce/commands/native_build.py"
    spec = importlib.util.spec_from_file_location("_hier_build", path)
    module = sys.modules[spec.name] = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


build = load_build_module()


def object_folder() -> Path:
    """Where objects stay between builds: one folder per Python and sanitizer."""
    sanitizer = os.environ.get("HIER_SANITIZE", "").replace(",", "-")
    tag = sysconfig.get_config_var("SOABI")
    return ROOT / "build" / "-".join(filter(None, ["objects", tag, sanitizer]))


def pybind11_include() -> tuple[str, str]:
    """pybind11's header folder and version: the package's, else the copy that torch brings."""
    try:
        import pybind11
    except ImportError:
        spec = importlib.util.find_spec("torch")
        if spec is None:
            raise build.BuildError("pybind11 is missing: pip install pybind11") from None
        return str(Path(spec.origin).parent / "include"), "torch"
    return pybind11.get_include(), pybind11.__version__


def python_includes() -> tuple[list[str], str]:
    """The flags for Python's and pybind11's headers, and a salt that names their versions."""
    build.check_python_headers()
    include, version = pybind11_include()
    folders = [include, sysconfig.get_paths()["include"]]
    flags = [flag for folder in folders for flag in ("-isystem", folder)]  # nvcc wants two words
    return flags, f"{build.cxx_version()} {version}"


def compile_objects(sources: list[Path], compiler: list[str], folder: Path) -> list[Path]:
    """Compiles what is not up to date, the longest files first; returns the objects."""
    includes, salt = python_includes()
    source_hash = build.source_hash(CSRC)
    units = []
    for source in sources:
        name = source.relative_to(CSRC)
        output = folder / name.with_suffix(name.suffix + ".o")
        extra = [f"-I{CSRC}", *build.cuda_gates(source)]
        if name.parts[0] == "python":
            extra += includes
            if build.sanitizer_flags():
                extra.append("-O0")  # a sanitizer's checks make the templates of pybind11 dear
        if name == Path("python/module.cc"):
            extra.append(f'-DHIER_SOURCE_HASH="{source_hash}"')
        command = (*compiler, *extra, "-c", str(source), "-o", str(output))
        units.append(build.Unit(command=command, output=output, inputs=(source,), salt=salt))
    longest_first = sorted(units, key=lambda unit: "python" not in unit.output.parts)
    compiled = build.run_units(longest_first, CSRC, JOBS)
    if compiled:
        print(f"compiled {compiled} of {len(units)} files into {folder.name}")
    return [unit.output for unit in units]


def build_core(folder: Path) -> Path:
    """allreduce._C."""
    sources = build.core_sources(CSRC)
    if not sources:
        raise build.BuildError(f"no C++ sources in {CSRC}")
    objects = compile_objects(sources, [*build.cxx(), *build.core_flags()], folder)
    output = folder / f"_C{build.EXT_SUFFIX}"
    link = build.Unit(
        command=build.core_link(objects, output), output=output, inputs=tuple(objects)
    )
    link.run(CSRC)
    return output


def build_cuda(folder: Path, core: Path, wheel: bool) -> Path:
    """allreduce._cuda. Raises FileNotFoundError where nvcc or the sources are missing."""
    sources, nvcc = build.cuda_sources(CSRC), build.find_nvcc()
    if nvcc is None:
        raise FileNotFoundError("nvcc is not found (CUDA_HOME, PATH, /usr/local/cuda)")
    if not sources:
        raise FileNotFoundError(f"no CUDA sources in {CSRC}")
    flags = build.cuda_flags(wheel=wheel)
    objects = compile_objects(sources, [str(nvcc), *flags], folder)
    output = folder / f"_cuda{build.EXT_SUFFIX}"
    link = (str(nvcc), *flags, "-shared", "-o", str(output), *map(str, objects))
    link = (*link, f"-L{core.parent}", f"-l:{core.name}")
    build.Unit(command=link, output=output, inputs=(*objects, core)).run(CSRC)
    return output


def build_backend(folder: Path, core: Path) -> Path:
    """allreduce.torch._backend, with _backend.json beside it, which says what it fits.

    Raises FileNotFoundError where torch or the source is missing.
    """
    spec = importlib.util.find_spec("torch")
    source = CSRC / build.BACKEND
    if spec is None or spec.origin is None:
        raise FileNotFoundError("torch is not importable")
    if not source.exists():
        raise FileNotFoundError(f"no {source}")
    torch = build.Torch.at(Path(spec.origin).parent)
    output = folder / f"_backend{build.EXT_SUFFIX}"
    command = build.backend_command(CSRC, torch, core, output)
    salt = f"{build.cxx_version()} torch {torch.version}"
    build.Unit(command=command, output=output, inputs=(source,), salt=salt).run(CSRC)
    stamp = {"torch": torch.version, "sources": build.backend_hash(CSRC)}
    output.with_name("_backend.json").write_text(json.dumps(stamp))
    return output


def build_optional(what: str, builder, *arguments) -> Path | None:
    """Runs `builder` as HIER_<what> says: "0" never, "1" or fail, otherwise if it can."""
    wish = os.environ.get(f"HIER_{what.upper()}", "")
    if wish == "0":
        return None
    try:
        return builder(*arguments)
    except FileNotFoundError as error:
        if wish == "1":
            raise build.BuildError(f"HIER_{what.upper()}=1, but {error}") from error
        return None
    except build.BuildError as error:
        if wish == "1":
            raise
        print(f"warning: built without {what}: {error}", file=sys.stderr)
        return None


def install(file: Path, folder: Path) -> None:
    """Copies a built file unless the same is there; a process that maps the old one keeps it."""
    target = folder / file.name
    content = file.read_bytes()
    if target.exists() and target.read_bytes() == content:
        return
    folder.mkdir(parents=True, exist_ok=True)
    fresh = target.with_name(f".{target.name}.new")
    fresh.write_bytes(content)
    shutil.copymode(file, fresh)
    fresh.replace(target)


class BuildNative(build_ext):
    """Compiles with our own commands: on HIER_JOBS cores, else on all; only what has changed."""

    def run(self) -> None:
        """Builds all extensions into the tree (editable) or the build directory."""
        folder = object_folder()
        folder.mkdir(parents=True, exist_ok=True)
        package = (ROOT if self.inplace else Path(self.build_lib)) / "allreduce"
        with (folder / "lock").open("w") as lock:
            fcntl.flock(lock, fcntl.LOCK_EX)
            try:
                self.build_all(folder, package)
            except build.BuildError as error:
                raise SystemExit(f"hier-allreduce: {error}") from None

    def build_all(self, folder: Path, package: Path) -> None:
        """Builds, then copies each result to its place in the package."""
        core = build_core(folder)
        install(core, package)
        # The backend is one large file, which leaves the other cores to CUDA's.
        with concurrent.futures.ThreadPoolExecutor(min(2, JOBS)) as pool:
            building_cuda = pool.submit(
                build_optional, "cuda", build_cuda, folder, core, not self.inplace
            )
            building_backend = pool.submit(build_optional, "torch", build_backend, folder, core)
        if cuda := building_cuda.result():
            install(cuda, package)
        if backend := building_backend.result():
            install(backend, package / "torch")
            install(backend.with_name("_backend.json"), package / "torch")


class BuildPython(build_py):
    """Ships the sources that the backend's first use compiles: all headers and backend.cc."""

    def run(self) -> None:
        """Copies the Python files, and csrc into the package unless the install is editable."""
        target = Path(self.build_lib)
        if not self.editable_mode:
            for package in ("allreduce", "trainer"):  # no file of an earlier build may linger
                shutil.rmtree(target / package, ignore_errors=True)
        super().run()
        if not self.editable_mode:
            headers = [*CSRC.rglob("*.h"), *CSRC.rglob("*.cuh")]
            backend = CSRC / build.BACKEND
            for file in [*headers, *([backend] if backend.exists() else [])]:
                copy = target / "allreduce/csrc" / file.relative_to(CSRC)
                copy.parent.mkdir(parents=True, exist_ok=True)
                shutil.copyfile(file, copy)


setup(
    ext_modules=[Extension("allreduce._C", sources=[])],  # tells setuptools that we are not pure
    cmdclass={"build_ext": BuildNative, "build_py": BuildPython},
)
