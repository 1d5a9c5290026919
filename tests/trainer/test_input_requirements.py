"""The calculator of what GPUs need to be fed."""

from __future__ import annotations

import pytest

from trainer.report.input_requirements import WAYS, lines, need


def test_cores_reads_and_memory_follow_from_the_rate() -> None:
    for way in WAYS:
        node = need(way, rate=1000.0, gpus=8)
        assert node.images == 8000
        assert (node.cores - 1) * way.rate < 8000 <= node.cores * way.rate
        assert node.read == 8000 * way.read
        assert node.memory == 1_281_167 * way.read


def test_the_table_of_256_fast_gpus() -> None:
    text = lines(256, 3000)
    assert text[0] == (
        "256 GPUs x 3,000 images/s = 768,000 images/s: 32 nodes of 8, 24,000 images/s each"
    )
    (pillow,) = [line for line in text if line.startswith("folder, Pillow")]
    assert pillow.split()[2:] == [
        "300", "80", "2.6", "GB/s", "21.1", "Gbit/s", "84.5", "GB/s", "141", "GB",
    ]  # fmt: skip
    assert any("0.45 GB/s of uint8" in line for line in text)
    assert max(map(len, text)) <= 100


def test_fewer_gpus_than_a_node_holds_are_one_node() -> None:
    assert "1 nodes of 2, 200 images/s each" in lines(2, 100)[0]


@pytest.mark.parametrize(
    ("arguments", "says"),
    [
        ((0, 100.0), "--gpus 0: give a number above 0"),
        ((1, 0.0), "--rate 0.0: give a number above 0"),
        ((1, float("nan")), "--rate nan: give a number above 0"),
        ((1, 100.0, 0), "--gpus-per-node 0: give a number above 0"),
    ],
)
def test_numbers_that_are_not_above_0_are_refused(arguments, says: str) -> None:
    with pytest.raises(ValueError, match=says):
        lines(*arguments)
