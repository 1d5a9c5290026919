"""What allreduce._cuda refuses before it launches anything: no GPU is needed."""

import pytest

from allreduce import _build

_build.require_core()  # its symbols are used by the other
_cuda = pytest.importorskip("allreduce._cuda", reason="built without CUDA")

pytestmark = pytest.mark.timeout(60)

SGD = {"lr": 0.1, "momentum": 0.9, "nesterov": True}


@pytest.mark.parametrize(
    ("arguments", "options", "says"),
    [
        ((0, 0, 0, "float64", []), SGD, "gradients must be of dtype float32"),
        ((16, 0, 16, "float32", []), SGD, "needs an array of momenta"),
        ((16, 16, 2, "float32", []), SGD, "not aligned"),
        ((16, 16, 16, "float32", []), {**SGD, "momentum": 1.0}, "momentum lie in"),
        ((16, 16, 16, "float32", []), {**SGD, "form": "other"}, "form must be"),
    ],
)
def test_sgd_names_what_cannot_work(arguments, options, says) -> None:
    with pytest.raises(ValueError, match=says):
        _cuda.sgd(*arguments, **options)


@pytest.mark.parametrize("name", ["pack", "unpack"])
def test_pack_names_what_cannot_work(name: str) -> None:
    function = getattr(_cuda, name)
    with pytest.raises(ValueError, match="tensors must be of dtype"):
        function([(16, 1)], "int32", 16, "float32")
    with pytest.raises(ValueError, match="the flat array must be of dtype"):
        function([(16, 1)], "float32", 16, "bool")
    with pytest.raises(ValueError, match="not aligned"):
        function([(18, 1)], "float32", 16, "float32")


def test_nothing_to_do_is_done_without_a_gpu() -> None:
    _cuda.sgd(16, 16, 16, "bfloat16", [(0, 1.0)], **SGD)
    _cuda.pack([(16, 0)], "float32", 16, "float16")
    _cuda.unpack([], "float32", 16, "float16")


GROUP = {"signals": [64, 128], "rank": 0, "timeout": 1.0}


@pytest.mark.parametrize(
    ("change", "says"),
    [
        ({"signals": [64]}, "2 to 8 ranks"),
        ({"rank": 2}, "2 to 8 ranks"),
        ({"timeout": 0.0}, "timeout must be"),
        ({"inputs": [16]}, "one array for each of the 2 ranks"),
        ({"dtype": "int32"}, "must be of dtype"),
        ({"shard": 2}, "not aligned"),
    ],
)
def test_a_group_of_gpus_names_what_cannot_work(change: dict[str, object], says: str) -> None:
    arguments = {**GROUP, "inputs": [16, 32], "dtype": "float32", "shard": 16, "count": 1, **change}
    with pytest.raises(ValueError, match=says):
        _cuda.reduce_scatter(**arguments)


def test_shards_cover_the_array() -> None:
    ends = [_cuda.shard_of(count=1000, num_ranks=3, rank=rank) for rank in range(3)]
    assert ends == [(0, 336), (336, 672), (672, 1000)]
    assert _cuda.signals_bytes() > 0
