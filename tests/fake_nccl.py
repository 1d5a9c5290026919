"""Compiles tests/nccl/fake_nccl.cc, a libnccl.so.2 whose ranks are threads."""

import os
import subprocess
from pathlib import Path

from allreduce.commands import native_build

SOURCE = Path(__file__).parent / "nccl/fake_nccl.cc"
# A sanitizer has to see the fake's locks and counts, or it misjudges what they order.
SANITIZERS = {"asan": "address,undefined", "tsan": "thread"}


def compile_fake(
    folder: Path, *, soname: str = "libnccl.so.2", flags: tuple[str, ...] = ()
) -> Path:
    """The library in `folder`. Another soname keeps it from being taken for NCCL later on."""
    folder.mkdir(parents=True, exist_ok=True)
    built = folder / "libnccl.so.2"
    options = ["-std=c++20", "-O1", "-fPIC", "-shared", "-pthread", f"-Wl,-soname,{soname}"]
    if sanitizer := SANITIZERS.get(os.environ.get("HIER_SANITIZED", "")):
        options += ["-g", f"-fsanitize={sanitizer}"]
    command = [*native_build.cxx(), *options, *flags, str(SOURCE), "-o", str(built)]
    environment = os.environ | {"LD_PRELOAD": ""}  # the compiler itself needs no sanitizer
    subprocess.run(command, check=True, timeout=240, env=environment)
    return built
