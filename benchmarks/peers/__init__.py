"""The peers written in C, and how each is compiled and started.

Open MPI and MPICH come from Debian: apt install openmpi-bin libopenmpi-dev mpich libmpich-dev.
What is missing is an absence with its reason, which the tables show.
"""

from __future__ import annotations

import functools
import os
import shutil
import socket
import subprocess
from pathlib import Path

SOURCES = Path(__file__).parent
_BUILT = SOURCES.parent.parent / "build" / "peers"
_FLAGS = ("-O3", "-march=native", "-Wall", "-Wextra")


class Absent(Exception):
    """Why a peer cannot be measured, and what to do."""


@functools.cache
def compiled(
    source: str, compiler: str = "cc", *flags: str, libraries: tuple[str, ...] = ()
) -> str:
    """Return the path of what `compiler` makes of a source of this folder."""
    output = _BUILT / f"{Path(source).stem}-{compiler}"
    _BUILT.mkdir(parents=True, exist_ok=True)
    unfinished = output.with_suffix(f".{os.getpid()}")
    command = [compiler, *_FLAGS, *flags, "-o", str(unfinished), str(SOURCES / source), *libraries]
    done = subprocess.run(command, capture_output=True, text=True, timeout=120, check=False)
    if done.returncode != 0:
        raise Absent(f"{source} does not compile: {done.stderr.strip()[-300:]}")
    unfinished.replace(output)
    return str(output)


def c_compiler() -> str:
    """Return the name of a C compiler."""
    for name in ("cc", "gcc", "clang"):
        if shutil.which(name):
            return name
    raise Absent("apt install gcc")


def cubic() -> dict[str, str]:
    """Return the environment in which new TCP sockets use cubic."""
    with socket.socket(socket.AF_INET, socket.SOCK_STREAM) as probe:
        try:
            probe.setsockopt(socket.IPPROTO_TCP, socket.TCP_CONGESTION, b"cubic")
        except OSError as error:
            raise Absent(f"the kernel refuses cubic ({error.strerror}); run as root") from None
    flags = ("-shared", "-fPIC")
    library = compiled("congestion.c", c_compiler(), *flags, libraries=("-ldl",))
    return {"LD_PRELOAD": library, "PEER_CONGESTION": "cubic"}


def open_mpi(size: int, folder: Path, *, tcp: bool = False, congestion: bool = False) -> list[str]:
    """Return the command that starts `size` ranks of Open MPI."""
    driver = _mpi_driver("openmpi", "apt install openmpi-bin libopenmpi-dev")
    command = ["mpiexec.openmpi", "--allow-run-as-root", "--oversubscribe", "-np", str(size)]
    if tcp:
        command += ["--mca", "btl", "tcp,self", "--mca", "btl_tcp_if_include", "lo"]
    if congestion:
        command += [part for name, value in cubic().items() for part in ("-x", f"{name}={value}")]
    return [*command, driver, str(folder)]


def mpich(size: int, folder: Path, *, tcp: bool = False) -> list[str]:
    """Return the command that starts `size` ranks of MPICH (its channel: UCX)."""
    driver = _mpi_driver("mpich", "apt install mpich libmpich-dev")
    command = ["mpiexec.mpich", "-n", str(size)]
    if tcp:
        command += ["-env", "UCX_TLS", "tcp,self", "-env", "MPIR_CVAR_NOLOCAL", "1"]
    return [*command, driver, str(folder)]


def _mpi_driver(name: str, remedy: str) -> str:
    compiler = f"mpicc.{name}"
    if not shutil.which(compiler) or not shutil.which(f"mpiexec.{name}"):
        raise Absent(remedy)
    return compiled("mpi.c", compiler)
