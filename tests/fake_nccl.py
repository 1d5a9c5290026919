"""Compiles tests/nccl/fake_nccl.cc, a libnccl.so.2 whose ranks are threads."""

import subprocess
from pathlib import Path

from allreduce import _build

SOURCE = Path(__file__).parent / "nccl/fake_nccl.cc"


def compile_fake(
    folder: Path, *, soname: str = "libnccl.so.2", flags: tuple[str, ...] = ()
) -> Path:
    """The library in `folder`. Another soname keeps it from being taken for NCCL later on."""
    folder.mkdir(parents=True, exist_ok=True)
    built = folder / "libnccl.so.2"
    options = ["-std=c++20", "-O1", "-fPIC", "-shared", "-pthread", f"-Wl,-soname,{soname}"]
    command = [*_build.cxx(), *options, *flags, str(SOURCE), "-o", str(built)]
    subprocess.run(command, check=True, timeout=240)
    return built
