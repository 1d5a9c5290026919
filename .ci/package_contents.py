"""Fails if a wheel or source distribution has what it must not, or lacks what users need.

python .ci/package_contents.py FILE.whl FILE.tar.gz
"""

from __future__ import annotations

import re
import sys
import tarfile
import zipfile
from pathlib import Path

BYTES_MAX = 5_000_000
BUILT = re.compile(r"\.(so|o|a|pyc|key)$|/__pycache__/|_backend\.json$")
CORE = re.compile(r"^allreduce/_C\.cpython-[\w-]+\.so$")
# The first use of the torch backend compiles backend.cc and the headers that it includes.
WHEEL_NEEDS = (
    *("allreduce/__init__.py", "allreduce/_C.pyi", "allreduce/py.typed", "trainer/py.typed"),
    *("allreduce/csrc/torch/backend.cc", "allreduce/csrc/base/error.h"),
    *("trainer/data/digits.npz", "trainer/data/NOTICE"),
)
SOURCE_NEEDS = (
    *("setup.py", "pyproject.toml", "LICENSE", "PKG-INFO", "Makefile", "mkdocs.yml", ".ci/run"),
    *(
        "csrc/python/module.cc",
        "csrc/torch/backend.cc",
        "csrc/cuda/device.cu",
        "tests/test_build.py",
    ),
)


def wheel_errors(wheel: Path) -> list[str]:
    """What is wrong with a wheel: one sentence each."""
    with zipfile.ZipFile(wheel) as file:
        names = file.namelist()
        errors = [f"no {name}" for name in WHEEL_NEEDS if name not in names]
        cores = [name for name in names if CORE.match(name)]
        if len(cores) != 1:
            errors.append(f"{len(cores)} cores, where one belongs: {cores}")
        debug = [name for name in cores if b".debug_info" in file.read(name)]
    errors += [f"{name} has debug information: it was built without -g0" for name in debug]
    if "-manylinux_" not in wheel.name:
        errors.append("the platform is not manylinux: auditwheel has not repaired it")
    for name in sorted(set(names) - set(cores)):
        top = name.partition("/")[0]
        if BUILT.search(name):
            errors.append(f"{name} is a built file that belongs to one machine")
        elif top not in ("allreduce", "trainer") and not top.endswith(".dist-info"):
            errors.append(f"{name} is of no package of ours")
    return errors


def source_errors(archive: Path) -> list[str]:
    """What is wrong with a source distribution: one sentence each."""
    with tarfile.open(archive) as file:
        names = [name.partition("/")[2] for name in file.getnames()]
    errors = [f"no {name}" for name in SOURCE_NEEDS if name not in names]
    errors += [f"{name} is a built file" for name in names if BUILT.search(name)]
    return errors


def main(files: list[Path]) -> int:
    """Prints each file with its size, or what is wrong with it; 1 if anything is."""
    wrong = 0
    for file in files:
        errors = wheel_errors(file) if file.suffix == ".whl" else source_errors(file)
        size = file.stat().st_size
        if size > BYTES_MAX:
            errors.append(f"{size} bytes, at most {BYTES_MAX}")
        for error in errors:
            sys.stderr.write(f"error: {file.name}: {error}\n")
        sys.stdout.write(f"{file.name}: {size} bytes, {len(errors)} errors\n")
        wrong += len(errors)
    return 1 if wrong else 0


if __name__ == "__main__":
    sys.exit(main([Path(name) for name in sys.argv[1:]]))
