"""Groups of more ranks than most tests have."""

import pytest
from worlds import SANITIZED

from benchmarks.many_ranks import parse, run

pytestmark = pytest.mark.skipif(SANITIZED, reason="processes")


@pytest.mark.timeout(120)
def test_64_ranks_on_8_nodes():
    ranks = run(parse(["64", "8"]))
    # Node mates, rails and control links; not 63 peers with four connections each.
    assert max(rank.descriptors for rank in ranks) < 160, ranks


@pytest.mark.full
@pytest.mark.timeout(300)
@pytest.mark.parametrize("shape", [(256, 32), (256, 256), (96, 1)], ids=str)
def test_the_size_of_the_paper_and_more(shape, record_property):
    ranks = run(parse([str(n) for n in shape]))
    record_property("seconds until the last rank had started", max(r.started for r in ranks))
    assert max(rank.memory_done for rank in ranks) < 32  # MiB
