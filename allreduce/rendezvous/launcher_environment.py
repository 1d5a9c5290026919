"""Who this process is in its job: from arguments or from the environment that its launcher left."""

from __future__ import annotations

import hashlib
import os
import re
from collections.abc import Mapping
from dataclasses import dataclass
from datetime import timedelta
from pathlib import Path
from typing import Any, cast

from allreduce.errors import Timeout, UsageError
from allreduce.rendezvous.store import MemoryStore, PrefixStore, Store
from allreduce.rendezvous.tcp_store import TcpStore

__all__ = ["EMULATED", "Launch", "detect_launch", "first_host", "open_store"]

EMULATED = "ALLREDUCE_EMULATED"  # set where the network is emulated: which, in words

# Below the range from which the kernel takes ephemeral ports.
_PORT_BASE, _PORT_COUNT = 15000, 15000
_LOOPBACK = "127.0.0.1"


@dataclass(frozen=True, slots=True, kw_only=True)
class Launch:
    """This process's place in its job, and where rank 0 serves the store.

    `launcher` is one of "arguments", "torchrun" (an agent serves the store), "environment" (RANK
    and the like without an agent), "openmpi", "mpich", "slurm", "single". `job` tells jobs, and
    restarts of one, apart.
    """

    rank: int
    world_size: int
    launcher: str
    local_rank: int | None = None
    local_size: int | None = None
    master_addr: str | None = None
    master_port: int | None = None
    job: str = ""

    def __post_init__(self) -> None:
        if self.world_size < 1 or not 0 <= self.rank < self.world_size:
            raise UsageError(
                f"{self.launcher}: rank {self.rank} of world size {self.world_size}; "
                "the rank must be in 0..world size - 1"
            )
        if self.master_port is not None and not 0 < self.master_port < 65536:
            raise UsageError(f"master port {self.master_port} must be in 1..65535")


def detect_launch(
    *,
    rank: int | None = None,
    world_size: int | None = None,
    local_rank: int | None = None,
    local_size: int | None = None,
    master_addr: str | None = None,
    master_port: int | None = None,
    environ: Mapping[str, str] | None = None,
) -> Launch:
    """Return this process's place: explicit arguments first, then torchrun, Open MPI, MPICH (and
    Intel MPI), SLURM.

    Without arguments and without a launcher this is a world of one rank. MASTER_ADDR and
    MASTER_PORT, where set, say where rank 0 serves the store whatever the launcher. `environ`
    replaces os.environ.

    Raises:
        UsageError: an argument or a variable is missing or makes no sense; the message names it.
    """
    env = _Environment(os.environ if environ is None else environ)
    if (rank is None) != (world_size is None):
        given, missing = ("rank", "world_size") if world_size is None else ("world_size", "rank")
        raise UsageError(
            f"{given} is given without {missing}; give both, or neither under a launcher"
        )
    if rank is not None and world_size is not None:
        launch = Launch(
            rank=rank,
            world_size=world_size,
            launcher="arguments",
            local_rank=local_rank,
            local_size=local_size,
            master_addr=master_addr or env.text("MASTER_ADDR"),
            master_port=master_port or env.integer("MASTER_PORT"),
        )
    else:
        launch = _from_launcher(env)
        if local_rank is not None or local_size is not None:
            raise UsageError(
                "local_rank and local_size need rank and world_size; a launcher gives its own"
            )
        if (master_addr or master_port) and launch.launcher == "single":
            raise UsageError(
                "master_addr or master_port is given, and nothing says which rank this process is; "
                "give rank and world_size, too, or start under a launcher"
            )
        if master_addr or master_port:
            launch = _at(
                launch, master_addr or launch.master_addr, master_port or launch.master_port
            )
    return launch


def open_store(launch: Launch, timeout: float, *, secret: bytes | None = None) -> Store:
    """Return the store of this job: torchrun's own, or one that rank 0 serves; its keys are this
    job's alone.

    A caller who does not make a group with it closes it, where it has `close`. `secret` replaces
    the job's own: b"" for a store that ranks with different secrets can read.

    Raises:
        UsageError: where rank 0 is to be found is not known.
        OSError: rank 0 cannot listen there, for instance since the port is taken.
        TimeoutError: rank 0 did not answer within `timeout` seconds.
    """
    if launch.world_size == 1:
        return MemoryStore(timeout)
    if launch.master_addr is None or launch.master_port is None:
        missing = (
            "master_addr (MASTER_ADDR)"
            if launch.master_addr is None
            else "master_port (MASTER_PORT)"
        )
        raise UsageError(
            f"{launch.launcher}: {missing} is missing: give the host of rank 0 and a free port "
            "there, the same on all ranks, "
            "or pass a store"
        )
    if launch.launcher == "torchrun":
        return PrefixStore(
            _agent_store(launch.master_addr, launch.master_port, timeout), f"allreduce/{launch.job}"
        )
    return TcpStore(
        launch.master_addr,
        launch.master_port,
        is_server=launch.rank == 0,
        timeout=timeout,
        job=launch.job,
        clients=launch.world_size,
        secret=secret,
    )


def first_host(nodelist: str) -> str:
    """Return the first host of a SLURM node list: "node[003-005,9],gpu1" gives "node003"."""
    match = re.match(r"((?:[^,\[\]\s]|\[[^\[\]]*\])+)(?:,|$)", nodelist.strip())
    host = re.sub(r"\[([0-9A-Za-z]+)[^\]]*\]", r"\1", match[1]) if match else ""
    if not re.fullmatch(r"[0-9A-Za-z._-]+", host):
        raise UsageError(
            f"cannot read the node list {nodelist!r}; set MASTER_ADDR to the host of rank 0"
        )
    return host


class _Environment:
    """Variables with their errors in words."""

    def __init__(self, environ: Mapping[str, str]) -> None:
        self._environ = environ

    def text(self, *names: str) -> str | None:
        """Return the first of `names` that is set and not empty."""
        return next(
            (value for name in names if (value := self._environ.get(name, "").strip())), None
        )

    def integer(self, name: str) -> int | None:
        """Return a variable as an integer, None where it is not set."""
        value = self.text(name)
        if value is None:
            return None
        try:
            return int(value)
        except ValueError:
            raise UsageError(f"{name}={value!r} must be an integer") from None

    def need(self, name: str, launcher: str, remedy: str) -> int:
        """Return a variable that the launcher should have set."""
        value = self.integer(name)
        if value is None:
            raise UsageError(f"{launcher}: the variable {name} is missing; {remedy}")
        return value


def _from_launcher(env: _Environment) -> Launch:
    if env.text("RANK") or (env.text("WORLD_SIZE") and env.text("MASTER_ADDR")):
        return _torchrun(env)
    if env.text("OMPI_COMM_WORLD_RANK", "OMPI_COMM_WORLD_SIZE"):
        return _open_mpi(env)
    if env.text("PMI_RANK", "PMI_SIZE") and not _same_place_by_slurm(env):
        return _mpich(env)
    if env.text("SLURM_PROCID"):
        return _slurm(env)
    return Launch(rank=0, world_size=1, launcher="single", local_rank=0, local_size=1)


def _torchrun(env: _Environment) -> Launch:
    agent = env.text("TORCHELASTIC_USE_AGENT_STORE") == "True"
    launcher = "torchrun" if agent else "environment"
    remedy = (
        "start with torchrun, or set RANK, WORLD_SIZE, MASTER_ADDR and MASTER_PORT on every rank"
    )
    rank, world_size = env.need("RANK", launcher, remedy), env.need("WORLD_SIZE", launcher, remedy)
    address, port = env.text("MASTER_ADDR"), env.integer("MASTER_PORT")
    if world_size > 1 and (address is None or port is None):
        missing = "MASTER_ADDR" if address is None else "MASTER_PORT"
        raise UsageError(f"{launcher}: the variable {missing} is missing; {remedy}")
    run, attempt = (
        env.text("TORCHELASTIC_RUN_ID") or "",
        env.text("TORCHELASTIC_RESTART_COUNT") or "0",
    )
    return Launch(
        rank=rank,
        world_size=world_size,
        launcher=launcher,
        local_rank=env.integer("LOCAL_RANK"),
        local_size=env.integer("LOCAL_WORLD_SIZE"),
        master_addr=address,
        master_port=port,
        job=f"{run}/{attempt}" if agent else "",
    )


def _open_mpi(env: _Environment) -> Launch:
    remedy = "start with Open MPI's mpirun"
    return _placed(
        env,
        rank=env.need("OMPI_COMM_WORLD_RANK", "openmpi", remedy),
        world_size=env.need("OMPI_COMM_WORLD_SIZE", "openmpi", remedy),
        launcher="openmpi",
        local_rank=env.integer("OMPI_COMM_WORLD_LOCAL_RANK"),
        local_size=env.integer("OMPI_COMM_WORLD_LOCAL_SIZE"),
        job=env.text("PMIX_NAMESPACE", "OMPI_MCA_ess_base_jobid", "OMPI_MCA_orte_ess_jobid"),
    )


def _mpich(env: _Environment) -> Launch:
    remedy = "start with mpiexec (hydra)"
    world_size = env.need("PMI_SIZE", "mpich", remedy)
    local_size = env.integer("MPI_LOCALNRANKS")
    return _placed(
        env,
        rank=env.need("PMI_RANK", "mpich", remedy),
        world_size=world_size,
        launcher="mpich",
        local_rank=env.integer("MPI_LOCALRANKID"),
        local_size=local_size,
        job=env.text("PMI_JOBID") or (_hydra_proxy() if local_size == world_size else None),
    )


def _placed(
    env: _Environment,
    *,
    rank: int,
    world_size: int,
    launcher: str,
    local_rank: int | None,
    local_size: int | None,
    job: str | None,
) -> Launch:
    """An MPI launcher says nothing about where rank 0 is, unless all ranks are on this host."""
    address, port = env.text("MASTER_ADDR"), env.integer("MASTER_PORT")
    if address is None and world_size > 1:
        if local_size != world_size:
            raise UsageError(
                f"{launcher}: ranks run on several hosts and the variable MASTER_ADDR is missing; "
                "set it to the host of rank 0 "
                "(and pass it on: mpirun -x MASTER_ADDR, mpiexec -genv MASTER_ADDR host)"
            )
        address = _LOOPBACK
    if port is None and world_size > 1:
        if job is None:
            raise UsageError(
                f"{launcher}: the variable MASTER_PORT is missing and there is no job id to derive "
                "it from; "
                "set it to a free port on the host of rank 0"
            )
        port = _port_of(job)
    return Launch(
        rank=rank,
        world_size=world_size,
        launcher=launcher,
        local_rank=local_rank,
        local_size=local_size,
        master_addr=address,
        master_port=port,
        job=job or "",
    )


def _slurm(env: _Environment) -> Launch:
    remedy = "start the ranks with srun, one task for each"
    rank = env.need("SLURM_PROCID", "slurm", remedy)
    name = "SLURM_STEP_NUM_TASKS" if env.text("SLURM_STEP_NUM_TASKS") else "SLURM_NTASKS"
    world_size = env.need(name, "slurm", remedy)
    nodes = env.integer("SLURM_STEP_NUM_NODES") or env.integer("SLURM_NNODES")
    job_id = env.text("SLURM_JOB_ID", "SLURM_JOBID")
    step = env.text("SLURM_STEP_ID", "SLURM_STEPID") or "0"
    job = f"slurm {job_id}.{step}.{env.text('SLURM_RESTART_COUNT') or '0'}"
    address, port = env.text("MASTER_ADDR"), env.integer("MASTER_PORT")
    if world_size > 1 and address is None:
        nodelist = env.text("SLURM_STEP_NODELIST", "SLURM_JOB_NODELIST", "SLURM_NODELIST")
        if nodes == 1:
            address = _LOOPBACK
        elif nodelist is None:
            raise UsageError(
                f"slurm: the variable SLURM_JOB_NODELIST is missing; {remedy}, or set MASTER_ADDR"
            )
        else:
            address = first_host(nodelist)
    if world_size > 1 and port is None:
        if job_id is None:
            raise UsageError(
                f"slurm: the variable SLURM_JOB_ID is missing; {remedy}, or set MASTER_PORT"
            )
        port = _port_of(job)
    return Launch(
        rank=rank,
        world_size=world_size,
        launcher="slurm",
        local_rank=env.integer("SLURM_LOCALID"),
        local_size=world_size if nodes == 1 else None,
        master_addr=address,
        master_port=port,
        job=job if job_id else "",
    )


def _same_place_by_slurm(env: _Environment) -> bool:
    """Tell whether both agree, as under srun --mpi=pmi2: then SLURM's say where rank 0 is."""
    return env.text("SLURM_PROCID") is not None and (
        env.integer("SLURM_PROCID"),
        env.integer("SLURM_STEP_NUM_TASKS") or env.integer("SLURM_NTASKS"),
    ) == (env.integer("PMI_RANK"), env.integer("PMI_SIZE"))


def _port_of(job: str) -> int:
    digest = hashlib.sha256(job.encode()).digest()
    return _PORT_BASE + int.from_bytes(digest[:4], "little") % _PORT_COUNT


def _hydra_proxy() -> str | None:
    """Return what hydra's ranks on a host have in common, for want of a job id: their proxy."""
    pid = os.getppid()
    while pid > 1:
        try:
            stat = Path(f"/proc/{pid}/stat").read_text()
        except OSError:
            return None
        name, _, rest = stat.partition("(")[2].rpartition(")")
        fields = rest.split()
        if "pmi_proxy" in name or "bstrap_proxy" in name:
            return f"hydra {pid} {fields[19]}"  # its start time: process ids come again
        pid = int(fields[1])
    return None


def _at(launch: Launch, address: str | None, port: int | None) -> Launch:
    return Launch(
        rank=launch.rank,
        world_size=launch.world_size,
        launcher=launch.launcher,
        local_rank=launch.local_rank,
        local_size=launch.local_size,
        master_addr=address,
        master_port=port,
        job=launch.job,
    )


def _agent_store(host: str, port: int, timeout: float) -> Store:
    try:
        from torch import distributed
    except ImportError as error:
        raise UsageError(
            "torchrun serves the store, and only torch can read it: "
            "pip install hier-allreduce[torch], or start the ranks with another launcher"
        ) from error
    try:
        # Typed as str where torch takes bytes.
        store: Any = distributed.TCPStore(  # type: ignore[attr-defined,unused-ignore]
            host, port, None, False, timedelta(seconds=timeout)
        )
    except (RuntimeError, OSError) as error:
        raise Timeout(f"torchrun's store at {host}:{port} does not answer: {error}") from error
    return cast(Store, store)
