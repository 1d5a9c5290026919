"""The cost model against the closed forms of the algorithms."""

from math import log2

import pytest

from allreduce.tuning.cost import LOCAL_STAGE, NETWORK, SHARED_MEMORY, Layout, Link, predict
from allreduce.tuning.cost import distinct_algorithms as distinct_of

LINK = Link(alpha=1e-5, beta=1e-9, gamma=1e-10)
N = 1 << 20


def forms(p: int) -> dict[str, tuple[float, float, float]]:
    """Messages, bytes sent and bytes reduced for each byte of the buffer, where p = 2^k."""
    share = (p - 1) / p
    return {
        "ring": (2 * (p - 1), 2 * share, share),
        "halving_doubling": (2 * log2(p), 2 * share, share),
        "recursive_doubling": (log2(p), log2(p), log2(p)),
        "circulant": (2 * log2(p), 2 * share, share),
        "direct": (2 * (p - 1), 2 * share, share),
    }


@pytest.mark.parametrize("p", [2, 4, 8, 16])
def test_predictions_equal_the_closed_forms(p: int) -> None:
    for name, (messages, sent, reduced) in forms(p).items():
        seconds = messages * LINK.alpha + N * (sent * LINK.beta + reduced * LINK.gamma)
        assert predict(name, p, N, LINK) == pytest.approx(seconds), name


def test_the_rounds_of_a_long_message_overlap_by_segments() -> None:
    # Up a tree and down again: each round sends the buffer, and the root's rounds alone are busy.
    for p in (2, 4, 8):
        for nbytes in (1 << 10, 256 << 10, 1 << 20, 1 << 26):
            first = min(nbytes, 256 << 10)
            sent = 2 * log2(p) * first + log2(p) * (nbytes - first)
            seconds = 2 * log2(p) * LINK.alpha + sent * LINK.beta + log2(p) * nbytes * LINK.gamma
            assert predict("binomial", p, nbytes, LINK) == pytest.approx(seconds)


def test_ranks_that_share_cores_take_the_work_of_all() -> None:
    # All ranks of halving/doubling work in each round; of a binomial tree's 8, 4 send at most.
    for ranks_per_core in (1.0, 2.0, 4.0):
        crowded = predict("halving_doubling", 8, N, LINK, ranks_per_core=ranks_per_core)
        assert crowded == pytest.approx(ranks_per_core * predict("halving_doubling", 8, N, LINK))
    # Of a tree of 8, at most 4 send in a round.
    alone = predict("binomial", 8, 1 << 10, LINK)
    assert predict("binomial", 8, 1 << 10, LINK, ranks_per_core=2.0) == pytest.approx(alone)
    assert alone < predict("binomial", 8, 1 << 10, LINK, ranks_per_core=4.0) < 4 * alone


def test_a_hierarchy_adds_its_local_stage_and_splits_the_buffer_over_rails() -> None:
    local, network = Link(1e-6, 1e-10, 0.0), Link(1e-5, 1e-9, 0.0)
    links = {LOCAL_STAGE: local, NETWORK: network}
    nodes = (0, 0, 0, 0, 1, 1, 1, 1)
    inside = 2 * local.alpha + 2 * 3 / 4 * N * local.beta
    for rails, per_rail in [(0, N / 4), (2, N / 2), (1, N)]:
        layout = Layout(node_of_rank=nodes, rails=rails)
        between = 2 * network.alpha + per_rail * network.beta
        seconds = layout.predict("halving_doubling", N, links)
        assert seconds == pytest.approx(inside + between), rails
    whole = Layout(node_of_rank=nodes, local="reduce_bcast").predict("ring", N, links)
    assert whole == pytest.approx(inside + 2 * network.alpha + N * network.beta)


def test_each_layout_has_its_own_classes_of_links() -> None:
    def classes(nodes: tuple[int, ...], local: str = "rs_ag") -> list[str]:
        return list(Layout(node_of_rank=nodes, local=local).demands("ring", N))

    assert classes((0, 0)) == [LOCAL_STAGE]
    assert classes((0, 1)) == [NETWORK]
    assert classes((0, 0, 1)) == [LOCAL_STAGE, NETWORK]
    assert classes((0, 0), "none") == [SHARED_MEMORY]
    assert classes((0, 0, 1), "none") == [NETWORK]


def test_algorithms_of_the_same_moves_are_one() -> None:
    two = distinct_of(2)
    assert two["ring"] == two["circulant"] == two["direct"] == "halving_doubling"
    assert set(two.values()) == {"recursive_doubling", "halving_doubling", "binomial"}
    five = distinct_of(5)
    assert five["ring"] == "ring" != five["halving_doubling"]
    assert five["torus"] == "ring"  # five ranks are a torus of one ring


def test_further_messages_of_a_round_take_the_overhead() -> None:
    link = Link(alpha=1e-2, beta=1e-9, gamma=0.0, overhead=1e-5)
    for p in (4, 8, 32):
        volume = 2 * (p - 1) / p * N * link.beta
        direct = 2 * (1e-2 + (p - 2) * 1e-5) + volume
        assert predict("direct", p, N, link) == pytest.approx(direct)
        ring = 2 * (p - 1) * 1e-2 + volume  # one message each round
        assert predict("ring", p, N, link) == pytest.approx(ring)
    # A core with several ranks is alpha behind once; further messages are its work.
    crowded = predict("ring", 4, 0, link, ranks_per_core=2.0)
    assert crowded == pytest.approx(6 * (1e-2 + 1e-5))
