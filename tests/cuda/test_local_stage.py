"""Which local stage is chosen, and the reason that is given for it."""

from typing import Any

import pytest

from allreduce.cuda.local_stage import LocalStage, choose, expandable_segments

ALL = ((1, 2), (0, 2), (0, 1))
GOOD: dict[str, Any] = {
    "why_not": None,
    "peers": ALL,
    "stream_memory_operations": True,
    "nccl_why_not": None,
    "environ": {},
}
EXPANDABLE = {"PYTORCH_CUDA_ALLOC_CONF": "max_split_size_mb:128, expandable_segments:True"}


def chosen(**change: Any) -> LocalStage:
    return choose(**{**GOOD, **change})


def test_gpus_that_reach_each_other_use_their_memory() -> None:
    assert chosen().name == "peer"
    assert chosen(peers=((),)).name == "peer", "ranks that share a GPU reach it"


@pytest.mark.parametrize(
    ("change", "words"),
    [
        ({"peers": ((1, 2), (0, 2), (0,))}, "GPU 2 cannot reach the memory of GPU 1"),
        ({"stream_memory_operations": False}, "the driver has no stream memory operations: update"),
    ],
)
def test_nccl_comes_next_and_the_host_last(change: dict[str, Any], words: str) -> None:
    with_nccl = chosen(**change)
    assert with_nccl.name == "nccl"
    assert words in with_nccl.reason
    without = chosen(**change, nccl_why_not="NCCL is not found; pip install it")
    assert without.name == "host"
    assert words in without.reason
    assert "pip install it" in without.reason


def test_expandable_segments_are_told_but_no_obstacle() -> None:
    stage = chosen(environ=EXPANDABLE)
    assert stage.name == "peer"
    assert "tensors cannot be shared: PYTORCH_CUDA_ALLOC_CONF has expandable" in stage.reason


def test_ranks_that_share_a_gpu_cannot_use_nccl() -> None:
    stage = chosen(peers=((),), stream_memory_operations=False)
    assert stage.name == "host"
    assert "a GPU for each rank" in stage.reason


@pytest.mark.parametrize(
    ("asked", "change", "name", "words"),
    [
        ("nccl", {}, "nccl", "ALLREDUCE_DEVICE_LOCAL=nccl asks for another"),
        ("peer", {}, "peer", "every GPU reaches"),
        ("peer", {"stream_memory_operations": False}, "host", "=peer asks for another"),
        ("host", {}, "host", "ALLREDUCE_DEVICE_LOCAL=host asks for it"),
        ("fastest", {}, "host", "=fastest is none of auto, peer, nccl, host"),
    ],
)
def test_the_variable_decides(asked: str, change: dict[str, Any], name: str, words: str) -> None:
    stage = chosen(**change, environ={"ALLREDUCE_DEVICE_LOCAL": asked})
    assert stage.name == name
    assert words in stage.reason


def test_without_a_gpu_there_is_the_host() -> None:
    stage = chosen(why_not="no driver", peers=())
    assert stage == LocalStage(name="host", reason="no GPU can be used: no driver")


@pytest.mark.parametrize("variable", ["PYTORCH_ALLOC_CONF", "PYTORCH_CUDA_ALLOC_CONF"])
def test_the_variable_with_expandable_segments_is_named(variable: str) -> None:
    said = expandable_segments({variable: "expandable_segments:True"})
    assert said is not None
    assert said.startswith(f"{variable} ")
    assert "take that option away" in said
    assert expandable_segments({variable: "expandable_segments:False,backend:native"}) is None
    assert expandable_segments({}) is None
