"""The three MPIs as peers: how the driver mpi.c is compiled against each, and started.

Open MPI and MPICH come from Debian, Intel MPI from PyPI into an environment of its own, since its
`mpiexec` would hide others'. Each is set up through environment variables alone, which its launcher
hands to the ranks: OMPI_MCA_*, MPIR_CVAR_* and UCX_*, I_MPI_*. What is better than the defaults is
in settings.py.
"""

from __future__ import annotations

import shutil
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

from benchmarks import peers

INTEL = peers.BUILT / "impi"
_INTEL_REMEDY = (
    f"python -m venv {INTEL.relative_to(peers.ROOT)}"
    f" && {INTEL.relative_to(peers.ROOT)}/bin/pip install impi-rt impi-devel"
)


@dataclass(frozen=True, slots=True, kw_only=True)
class Library:
    """One MPI: where it is, what to do if it is not there, and how it goes over one way.

    shared_memory, tcp: variables that leave the ranks this way alone; else as it comes.
    """

    launcher: tuple[str, ...]
    remedy: str
    compiler: str = ""  # its own; "": the C compiler and its library
    shared_memory: Mapping[str, str]
    tcp: Mapping[str, str]

    def driver(self) -> str:
        """Return the path of the driver.

        Raises:
            Absent: the library is not installed; says how it is.
        """
        if not shutil.which(self.launcher[0]):
            raise peers.Absent(self.remedy)
        if self.compiler:
            if not shutil.which(self.compiler):
                raise peers.Absent(self.remedy)
            return peers.compiled("mpi.c", self.compiler)
        library = INTEL / "lib"
        linked = (str(library / "libmpi.so"), f"-Wl,-rpath,{library}")
        flags = (f"-I{INTEL / 'include'}",)
        return peers.compiled("mpi.c", peers.c_compiler(), *flags, libraries=linked, suffix="impi")


LIBRARIES: Mapping[str, Library] = {
    "openmpi": Library(
        launcher=("mpiexec.openmpi", "--allow-run-as-root", "--oversubscribe"),
        compiler="mpicc.openmpi",
        remedy="apt install openmpi-bin libopenmpi-dev",
        shared_memory={},
        tcp={"OMPI_MCA_btl": "tcp,self", "OMPI_MCA_btl_tcp_if_include": "lo"},
    ),
    "mpich": Library(
        launcher=("mpiexec.mpich",),
        compiler="mpicc.mpich",
        remedy="apt install mpich libmpich-dev",
        shared_memory={},
        tcp={"UCX_TLS": "tcp,self", "MPIR_CVAR_NOLOCAL": "1"},
    ),
    "impi": Library(
        launcher=(str(INTEL / "bin" / "mpiexec.hydra"), "-bootstrap", "fork"),
        remedy=_INTEL_REMEDY,
        shared_memory={"I_MPI_FABRICS": "shm", "I_MPI_ROOT": str(INTEL)},
        tcp={
            "I_MPI_FABRICS": "ofi",
            "I_MPI_COLL_INTRANODE": "pt2pt",  # else it uses shared memory all the same
            "I_MPI_OFI_PROVIDER": "tcp",
            "FI_TCP_IFACE": "lo",
            "FI_PROVIDER_PATH": str(INTEL / "lib"),
            "I_MPI_ROOT": str(INTEL),
        },
    ),
}


def command(name: str, size: int, folder: Path) -> list[str]:
    """Return the command that starts `size` ranks of a library."""
    library = LIBRARIES[name]
    driver = library.driver()
    return [*library.launcher, "-n", str(size), driver, str(folder)]


def environ(name: str, *, tcp: bool) -> dict[str, str]:
    """Return the variables of a library that goes over shared memory, or over TCP alone."""
    library = LIBRARIES[name]
    return dict(library.tcp if tcp else library.shared_memory)
