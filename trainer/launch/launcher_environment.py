"""Processes that MPI or SLURM started: who they are, in the variables that torchrun sets.

Needs neither torch nor the native core.
"""

from __future__ import annotations

from collections.abc import Mapping

from trainer.config.checks import ConfigError

__all__ = ["as_torchrun"]

_SIGNS = ("OMPI_COMM_WORLD_RANK", "PMI_RANK", "SLURM_STEP_NUM_TASKS")


def as_torchrun(environ: Mapping[str, str]) -> dict[str, str]:
    """RANK, WORLD_SIZE, LOCAL_RANK, LOCAL_WORLD_SIZE, MASTER_ADDR and MASTER_PORT of this process.

    Nothing where RANK is set already, or no launcher started several processes: a batch script of
    SLURM, or a step of one task, starts its own workers. ConfigError where variables are missing.
    """
    if "RANK" in environ or not any(environ.get(sign) for sign in _SIGNS):
        return {}
    from allreduce import UsageError, detect_launch

    try:
        found = detect_launch(environ=environ)
    except UsageError as error:
        raise ConfigError(str(error)) from None
    if found.world_size == 1:
        return {}
    local_rank, local_size = found.local_rank or 0, found.local_size
    if local_size is None:  # SLURM on several nodes
        nodes = int(environ.get("SLURM_STEP_NUM_NODES") or environ.get("SLURM_NNODES") or 1)
        local_size = -(-found.world_size // nodes)
    return {
        "RANK": str(found.rank),
        "WORLD_SIZE": str(found.world_size),
        "LOCAL_RANK": str(local_rank),
        "LOCAL_WORLD_SIZE": str(local_size),
        "MASTER_ADDR": found.master_addr or "",
        "MASTER_PORT": str(found.master_port or ""),
    }
