"""The words that collectives take: operations, dtypes, forms of the local stage; and others'."""

from __future__ import annotations

from typing import Literal, TypeAlias

__all__ = ["KNOWN_AS", "DType", "LocalForm", "ReduceOp"]

# avg: of floats. band, bor, bxor: of integers and bool.
ReduceOp: TypeAlias = Literal["sum", "avg", "min", "max", "prod", "band", "bor", "bxor"]
DType: TypeAlias = Literal[
    "float64",
    "float32",
    "float16",
    "bfloat16",
    "int64",
    "int32",
    "int16",
    "int8",
    "uint8",
    "bool",
]
# rs_ag: reduce-scatter and allgather inside a node. reduce_bcast: the paper's own form, a sum to
# one buffer per node and a broadcast. none: no hierarchy.
LocalForm: TypeAlias = Literal["rs_ag", "reduce_bcast", "none"]

# What users of torch, MPI and NCCL look for, and what it is called here.
KNOWN_AS = {
    **{"size": "world_size", "Get_size": "world_size", "Get_rank": "rank"},
    **{"all_reduce": "allreduce", "Allreduce": "allreduce", "all_gather": "allgather"},
    **{"all_to_all": "alltoall", "bcast": "broadcast", "Split": "split"},
}
