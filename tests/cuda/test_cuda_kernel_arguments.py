"""What allreduce._cuda refuses before it launches anything: no GPU is needed."""

import pytest

from allreduce.commands import native_build

native_build.require_core()  # its symbols are used by the other
_cuda = pytest.importorskip("allreduce._cuda", reason="built without CUDA")

pytestmark = pytest.mark.timeout(60)

SGD = {"lr": 0.1, "momentum": 0.9, "nesterov": True}


def tensor(parameters: int, momenta: int, gradients: int, count: int = 0, last: float = 1.0):
    return (parameters, momenta, gradients, count, 0.0, last)


@pytest.mark.parametrize(
    ("tensors", "dtype", "change", "says"),
    [
        ([], "float64", {}, "gradients must be of dtype float32"),
        ([tensor(16, 0, 16)], "float32", {}, "needs an array of momenta"),
        ([tensor(16, 16, 16), tensor(16, 16, 2)], "float32", {}, "not aligned"),
        ([], "float32", {"momentum": 1.0}, "momentum lie in"),
        ([], "float32", {"lr": -0.1}, "lr must be at least 0"),
    ],
)
def test_optimizers_name_what_cannot_work(tensors, dtype, change, says) -> None:
    with pytest.raises(ValueError, match=says):
        _cuda.sgd(tensors, dtype, **{**SGD, **change})
    with pytest.raises(ValueError, match=says):
        _cuda.lars(tensors, dtype, 64, **{**SGD, **change})


def test_what_one_optimizer_alone_is_told_is_checked() -> None:
    with pytest.raises(ValueError, match="form must be"):
        _cuda.sgd([], "float32", **SGD, form="other")
    with pytest.raises(ValueError, match="trust must be at least 0"):
        _cuda.lars([tensor(16, 16, 16, last=-1.0)], "float32", 64, **SGD)
    with pytest.raises(ValueError, match="not aligned"):
        _cuda.lars([], "float32", 4, **SGD)


def test_the_workspace_of_lars_grows_with_the_tensors() -> None:
    none, one, two = (_cuda.lars_workspace([4096 * n, 0]) for n in range(3))
    assert none < one < two


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
    _cuda.sgd([tensor(16, 16, 16)], "bfloat16", **SGD)
    _cuda.lars([tensor(16, 16, 16)], "float16", 64, **SGD)
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
