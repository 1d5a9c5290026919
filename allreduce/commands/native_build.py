"""How the native code is compiled: shared by setup.py and by the torch backend's first use.

Standard library only and no import of this package, because setup.py loads this file by its path
before anything is installed. A compiled file is up to date when the hash of its command and of
every source it includes is the one recorded beside it: no clock is trusted.
"""

from __future__ import annotations

import concurrent.futures
import dataclasses
import functools
import hashlib
import importlib
import os
import re
import runpy
import shlex
import shutil
import subprocess
import sys
import sysconfig
import warnings
from collections.abc import Iterable, Sequence
from pathlib import Path
from types import ModuleType

CORE_DIRS = (
    *("base", "schedule", "program", "analysis", "reduce", "transport", "local", "engine"),
    *("device", "group", "nccl", "emulation", "python"),
)
CUDA_BINDINGS = ("python/cuda.cc", "python/cuda_kernels.cc")
BACKEND = "torch/backend.cc"
EXT_SUFFIX = str(sysconfig.get_config_var("EXT_SUFFIX"))
# The backend finds the core by this name among the loaded libraries. It is not the file's name:
# a dozen packages, torch among them, have a file called _C.
CORE_SONAME = f"hier_allreduce_core{EXT_SUFFIX}"
# The GPUs that a wheel has machine code for: A100, RTX 30 and A10, H100, B200, RTX 50. PTX of the
# last serves later ones; 8.9 runs the code of 8.6. csrc/cuda/device.cu refuses those before 8.0.
WHEEL_ARCHS = ("80", "86", "90", "100", "120")
DEVELOPER_ARCHS = ("80", "90")  # of a build in place; tests have a baseline of their machine code
_OLDEST_ARCH = 80
_PACKAGE = Path(__file__).resolve().parents[1]
_INCLUDE = re.compile(rb'^[ \t]*#[ \t]*include[ \t]*"([^"\n]+)"', re.MULTILINE)


class BuildError(RuntimeError):
    """A compiler is missing or refused; the message ends with what it said."""


@dataclasses.dataclass(frozen=True, slots=True, kw_only=True)
class Torch:
    """The parts of an installed torch that a compiler needs."""

    folder: Path
    version: str

    @classmethod
    def at(cls, folder: Path) -> Torch:
        """Reads the version from torch's folder without the seconds that importing it takes."""
        return cls(folder=folder, version=runpy.run_path(str(folder / "version.py"))["__version__"])


@dataclasses.dataclass(frozen=True, slots=True, kw_only=True)
class Unit:
    """One call of a compiler or linker: `command` turns `inputs` into `output`."""

    command: tuple[str, ...]
    output: Path
    inputs: tuple[Path, ...]
    salt: str = ""  # what else decides the result: the compiler's and pybind11's versions

    def run(self, csrc: Path) -> bool:
        """Runs the command unless its output is up to date; True if it ran.

        Raises BuildError with the compiler's own words.
        """
        key = self._key(csrc)
        key_file = self.output.with_name(self.output.name + ".key")
        if self.output.exists() and key_file.exists() and key_file.read_text() == key:
            return False
        self.output.parent.mkdir(parents=True, exist_ok=True)
        key_file.unlink(missing_ok=True)
        run(self.command)
        key_file.write_text(key)
        return True

    def _key(self, csrc: Path) -> str:
        files = [file for source in self.inputs for file in include_closure(csrc, source)]
        what = f"{shlex.join(self.command)}\n{self.salt}"
        return digest([what.encode(), *map(_content, files)])


def run(command: Sequence[str]) -> None:
    """Runs a compiler, quietly; raises BuildError with its output if it fails or is missing."""
    try:
        done = subprocess.run(command, capture_output=True, text=True, errors="replace")
    except OSError as error:
        raise BuildError(f"cannot run {command[0]}: {error.strerror}") from error
    if done.returncode != 0:
        said = "\n".join((done.stdout + done.stderr).strip().splitlines()[:60])
        raise BuildError(f"{command[0]} failed:\n{said}\nThe command was: {shlex.join(command)}")
    if done.stderr.strip():
        print(done.stderr.rstrip(), file=sys.stderr)


def run_units(units: Sequence[Unit], csrc: Path, jobs: int) -> int:
    """Runs independent units, `jobs` at a time; returns how many were not up to date."""
    with concurrent.futures.ThreadPoolExecutor(max_workers=jobs) as pool:
        return sum(pool.map(lambda unit: unit.run(csrc), units))


def _content(file: Path) -> bytes:
    # An object file stands for the key that it was made from: reading that is quicker.
    key_file = file.with_name(file.name + ".key")
    return key_file.read_bytes() if key_file.exists() else file.read_bytes()


def digest(parts: Iterable[bytes]) -> str:
    """The first 16 hex digits of the SHA-256 of length-prefixed parts."""
    state = hashlib.sha256()
    for part in parts:
        state.update(b"%d:" % len(part) + part)
    return state.hexdigest()[:16]


def include_closure(csrc: Path, source: Path) -> list[Path]:
    """`source` and every file of csrc that it includes, directly or not, sorted."""
    seen: set[Path] = set()
    todo = [source]
    while todo:
        file = todo.pop()
        if file not in seen:
            seen.add(file)
            if file.suffix != ".o":
                names = map(os.fsdecode, _INCLUDE.findall(file.read_bytes()))
                todo += [csrc / name for name in names if (csrc / name).is_file()]
    return sorted(seen)


def csrc_dir() -> Path:
    """The C++ sources: shipped inside an installed package, or the repository's own."""
    shipped = _PACKAGE / "csrc"
    return shipped if shipped.is_dir() else _PACKAGE.parent / "csrc"


def core_sources(csrc: Path) -> list[Path]:
    """The translation units of allreduce._C, sorted."""
    found = (file for name in CORE_DIRS for file in (csrc / name).rglob("*.cc"))
    return sorted(set(found) - {csrc / name for name in CUDA_BINDINGS})


def cuda_sources(csrc: Path) -> list[Path]:
    """The translation units of allreduce._cuda, sorted."""
    folder = csrc / "cuda"
    bindings = (csrc / name for name in CUDA_BINDINGS)
    return sorted([*folder.rglob("*.cu"), *folder.rglob("*.cc"), *bindings])


def source_hash(csrc: Path) -> str:
    """Identifies the sources of allreduce._C: its attribute `source_hash`, if it is not stale."""
    files = {file for source in core_sources(csrc) for file in include_closure(csrc, source)}
    return digest(
        part for f in sorted(files) for part in (os.fsencode(f.relative_to(csrc)), f.read_bytes())
    )


def backend_hash(csrc: Path) -> str:
    """Identifies the torch backend's source and the headers it includes."""
    files = include_closure(csrc, csrc / BACKEND)
    return digest(
        part for f in files for part in (os.fsencode(f.relative_to(csrc)), f.read_bytes())
    )


@functools.cache
def cxx() -> tuple[str, ...]:
    """The C++ compiler: $CXX, else the first of g++, c++, clang++. Raises BuildError."""
    if chosen := shlex.split(os.environ.get("CXX", "")):
        return tuple(chosen)
    for name in ("g++", "c++", "clang++"):
        if shutil.which(name):
            return (name,)
    raise BuildError(
        "no C++ compiler: install g++ 11 or newer (Debian: apt install g++), or set CXX"
    )


@functools.cache
def cxx_version() -> str:
    """The C++ compiler's first line about itself. Raises BuildError."""
    try:
        said = subprocess.run([*cxx(), "--version"], capture_output=True, text=True, check=True)
    except (OSError, subprocess.CalledProcessError) as error:
        raise BuildError(f"the C++ compiler does not run: {error}") from error
    return said.stdout.partition("\n")[0]


def check_python_headers() -> None:
    """Raises BuildError where Python came without its C headers."""
    include = sysconfig.get_paths()["include"]
    if not Path(include, "Python.h").exists():
        raise BuildError(f"no Python.h in {include}: install Python's headers (python3-dev)")


def sanitizer_flags() -> list[str]:
    """Flags of the sanitizers that HIER_SANITIZE names."""
    chosen = os.environ.get("HIER_SANITIZE", "")
    return [f"-fsanitize={chosen}"] if chosen else []


def core_flags() -> list[str]:
    """Compiler flags of the core. HIER_WERROR=1 makes warnings errors.

    No -march=native (the wheel must run elsewhere), no -ffast-math and no contraction to fused
    multiply-add: the same bits on every machine are a promise.
    """
    flags = ["-std=c++20", "-fPIC", "-pthread", "-fno-semantic-interposition", "-ffp-contract=off"]
    flags += ["-Wall", "-Wextra", "-Wconversion"]
    if "clang" not in cxx_version():
        # gcc 12 sees an overlap in "text" + std::to_string(i), its bug, and warns of every fence
        # under ThreadSanitizer; ours order atomics only.
        flags += ["-Wno-restrict", "-Wno-tsan"]
    if sanitizers := sanitizer_flags():
        flags += ["-O1", "-g1", "-fno-omit-frame-pointer", "-fno-sanitize-recover=all", *sanitizers]
    else:
        flags += ["-O3", "-g0"]
        if os.environ.get("HIER_WERROR") == "1":
            flags += ["-Werror"]
    return flags + shlex.split(os.environ.get("CXXFLAGS", ""))


def core_link(objects: Sequence[Path], output: Path) -> tuple[str, ...]:
    """The command that links allreduce._C. Its symbols stay visible: the backend uses them."""
    flags = ["-shared", "-pthread", f"-Wl,-soname,{CORE_SONAME}", *sanitizer_flags()]
    return (*cxx(), *flags, "-o", str(output), *map(str, objects))


def backend_command(csrc: Path, torch: Torch, core: Path, output: Path) -> tuple[str, ...]:
    """Compiles and links csrc/torch/backend.cc against torch and the core's extension file.

    pybind11 is torch's own copy: its bindings share torch's registry of types, which another
    release of pybind11 does not. torch's libraries need no rpath, since torch is imported first.
    """
    include = torch.folder / "include"
    system = [include, include / "torch/csrc/api/include", sysconfig.get_paths()["include"]]
    flags = ["-std=c++20", "-O2", "-g0", "-fPIC", "-pthread", "-shared", "-Wall", "-Wextra"]
    flags += ["-DTORCH_EXTENSION_NAME=_backend", f'-DTORCH_BUILT_FOR="{torch.version}"']
    libraries = ["-lc10", "-ltorch", "-ltorch_cpu", "-ltorch_python"]
    return (
        *(*cxx(), *flags, f"-I{csrc}", *(f"-isystem{folder}" for folder in system)),
        *(str(csrc / BACKEND), "-o", str(output)),
        *(f"-L{core.parent}", f"-l:{core.name}", f"-L{torch.folder / 'lib'}", *libraries),
    )


def find_nvcc() -> Path | None:
    """nvcc, wherever find_cuda_tool finds it."""
    return find_cuda_tool("nvcc")


def find_cuda_tool(name: str) -> Path | None:
    """A tool of $CUDA_HOME, $CUDA_PATH, the PATH, /usr/local/cuda or pip's nvidia packages."""
    roots = [os.environ.get("CUDA_HOME"), os.environ.get("CUDA_PATH")]
    found = [Path(root, "bin", name) for root in roots if root]
    if on_path := shutil.which(name):
        found.append(Path(on_path))
    found.append(Path("/usr/local/cuda/bin", name))
    found += [Path(entry, "nvidia/cu13/bin", name) for entry in sys.path if entry]
    return next((tool for tool in found if os.access(tool, os.X_OK)), None)


def _archs_for_torch(text: str) -> tuple[str, ...]:
    """What TORCH_CUDA_ARCH_LIST names, such as "7.5;8.0 9.0a+PTX", less what is too old for us."""
    archs = []
    for name in re.split(r"[\s;]+", text.strip()):
        match = re.fullmatch(r"(\d+)\.(\d)([af]?)(\+PTX)?", name)
        if match is None:
            raise BuildError(
                f'TORCH_CUDA_ARCH_LIST="{text}": {name!r} is no version such as 9.0; set '
                'HIER_CUDA_ARCHS="80 90", which goes before it'
            )
        if int(match[1] + match[2]) >= _OLDEST_ARCH:
            archs.append(match[1] + match[2] + match[3])
    if not archs:
        raise BuildError(f'TORCH_CUDA_ARCH_LIST="{text}" names no GPU from 8.0 on, and we need one')
    return tuple(sorted(archs, key=lambda arch: (int(arch.rstrip("af")), arch)))


def _known_archs(nvcc: Path) -> set[str]:
    said = subprocess.run([str(nvcc), "--list-gpu-arch"], capture_output=True, text=True)
    return set(re.findall(r"compute_(\d+)", said.stdout))


def cuda_archs(*, wheel: bool) -> tuple[str, ...]:
    """The GPUs to compile for: HIER_CUDA_ARCHS, else TORCH_CUDA_ARCH_LIST, else our own list.

    Of the wheels' list, what this nvcc knows: one of CUDA 12.4 does not know 100. Raises
    BuildError.
    """
    if chosen := tuple(os.environ.get("HIER_CUDA_ARCHS", "").split()):
        return chosen
    if (text := os.environ.get("TORCH_CUDA_ARCH_LIST", "")).strip():
        return _archs_for_torch(text)
    nvcc = find_nvcc() if wheel else None
    if nvcc is None:
        return DEVELOPER_ARCHS
    known = _known_archs(nvcc)
    archs = tuple(arch for arch in WHEEL_ARCHS if arch in known)
    if not archs:
        raise BuildError(f"{nvcc} knows none of the GPUs {' '.join(WHEEL_ARCHS)}: use CUDA 12 on")
    return archs


def cuda_flags(*, wheel: bool = False) -> list[str]:
    """nvcc's flags: machine code for each of `cuda_archs`, and PTX of the last."""
    archs = cuda_archs(wheel=wheel)
    flags = ["-std=c++20", "-O3", "-cudart=static"]
    flags += [f"-gencode=arch=compute_{arch},code=sm_{arch}" for arch in archs]
    flags += [f"-gencode=arch=compute_{archs[-1]},code=compute_{archs[-1]}"]
    flags += ["-Xcompiler=-fPIC,-pthread,-Wall,-Wextra,-Wno-restrict"]
    if os.environ.get("HIER_WERROR") == "1":
        flags += ["-Xcompiler=-Werror"]
    if os.environ.get("CXX"):
        flags += [f"-ccbin={[word for word in cxx() if not word.startswith('-')][-1]}"]
    return flags


def cuda_gates(source: Path) -> list[str]:
    """Flags that make ptxas refuse what costs a kernel its speed, where warnings are errors.

    Spills and other local memory, anywhere; double arithmetic, but in the files that are named
    *_f64.cu.
    """
    if os.environ.get("HIER_WERROR") != "1" or source.suffix != ".cu":
        return []
    gates = ["--warn-on-local-memory-usage", "--warn-on-spills", "--warning-as-error"]
    if not source.stem.endswith("_f64"):
        gates.append("--warn-on-double-precision-use")
    return [f"-Xptxas={gate}" for gate in gates]


def require_core() -> ModuleType:
    """Imports and returns allreduce._C.

    Raises ImportError with one sentence if it is missing or does not load. In a source tree, warns
    if csrc has changed since it was built.
    """
    try:
        core = importlib.import_module("allreduce._C")
    except ImportError as error:
        raise ImportError(missing_core_message(error)) from None
    csrc = csrc_dir()
    in_tree = csrc.parent != _PACKAGE
    if in_tree and csrc.is_dir() and core.source_hash != source_hash(csrc):
        text = f"allreduce._C is stale: {csrc} has changed since it was built; run `make build`"
        warnings.warn(text, RuntimeWarning, stacklevel=3)
    return core


def missing_core_message(error: ImportError) -> str:
    """One sentence: why allreduce._C cannot be imported, and what to do."""
    remedy = "reinstall it: pip install --force-reinstall --no-deps hier-allreduce"
    where = f"the installed package {_PACKAGE}"
    if (_PACKAGE.parent / "pyproject.toml").exists():
        where = f"the source tree {_PACKAGE.parent}, which Python found before any installed copy,"
        remedy = "run `make build` there, or start Python in another directory"
    if (_PACKAGE / f"_C{EXT_SUFFIX}").exists():
        return f"allreduce: the C++ core in {where} does not load ({error}); {remedy}"
    others = sorted(file.name for file in _PACKAGE.glob("_C.*.so"))
    built = f" (only {', '.join(others)}, for another Python)" if others else ""
    return f"allreduce: {where} has no C++ core for this Python, _C{EXT_SUFFIX}{built}; {remedy}"
