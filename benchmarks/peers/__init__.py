"""The peers written in C, and how each is compiled: mpi.py starts MPI, settings.py tunes it.

What is missing is an absence with its reason, which the tables show.
"""

from __future__ import annotations

import functools
import secrets
import shutil
import socket
import subprocess
from pathlib import Path

SOURCES = Path(__file__).parent
ROOT = SOURCES.parent.parent
BUILT = ROOT / "build" / "peers"
_FLAGS = ("-O3", "-march=native", "-Wall", "-Wextra")


class Absent(Exception):
    """Why a peer cannot be measured, and what to do."""


@functools.cache
def compiled(
    source: str,
    compiler: str = "cc",
    *flags: str,
    libraries: tuple[str, ...] = (),
    suffix: str = "",
) -> str:
    """Return the path of what `compiler` makes of a source of this folder.

    suffix: of the file's name, in place of the compiler's.
    """
    output = BUILT / f"{Path(source).stem}-{suffix or compiler}"
    BUILT.mkdir(parents=True, exist_ok=True)
    # By no process id: emulated hosts count processes alike.
    unfinished = output.with_suffix(f".{secrets.token_hex(4)}")
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
