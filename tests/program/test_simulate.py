"""The simulator loses no byte, shares ports, and agrees with the closed forms where nothing is."""

from dataclasses import replace
from itertools import pairwise

import numpy as np
import pytest
from schedule_cases import ALLREDUCES, ceil_lg, floor_lg, hierarchical

from allreduce.schedules import Schedule, by_name, from_moves
from allreduce.schedules.simulate import PRESETS, Link, Network, Timeline, simulate

ALPHA, BETA, GAMMA = 10e-6, 1e-9, 0.25e-9
LINK = Link(alpha=ALPHA, beta=BETA)
FLAT = Network(local=LINK, inter=LINK, gamma=GAMMA)
ELEMENT = 4
POWERS = (2, 4, 8, 32)


def seconds(schedule: Schedule, count: int, network: Network = FLAT) -> float:
    return simulate(schedule, count, network=network, element_size=ELEMENT).seconds


@pytest.mark.parametrize("p", [2, 3, 5, 8, 32])
def test_a_ring_takes_the_cost_model_s_time(p):
    count = 16 * p * 50
    part = count * ELEMENT * (p - 1) / p
    model = 2 * (p - 1) * ALPHA + 2 * part * BETA + part * GAMMA
    assert seconds(by_name("ring", p), count) == pytest.approx(model, rel=1e-12)


@pytest.mark.parametrize("p", POWERS)
def test_halving_doubling_takes_the_cost_model_s_time(p):
    count = 16 * p * 50
    part = count * ELEMENT * (p - 1) / p
    model = 2 * floor_lg(p) * ALPHA + 2 * part * BETA + part * GAMMA
    assert seconds(by_name("halving_doubling", p), count) == pytest.approx(model, rel=1e-12)


@pytest.mark.parametrize("p", POWERS)
def test_recursive_doubling_and_binomial_broadcast_take_the_cost_model_s_time(p):
    nbytes = 1600 * ELEMENT
    model = floor_lg(p) * (ALPHA + nbytes * (BETA + GAMMA))
    assert seconds(by_name("recursive_doubling", p), 1600) == pytest.approx(model, rel=1e-12)
    broadcast = by_name("binomial", p, collective="broadcast")
    model = floor_lg(p) * (ALPHA + nbytes * BETA)
    assert seconds(broadcast, 1600) == pytest.approx(model, rel=1e-12)


@pytest.mark.parametrize("p", [2, 3, 7, 12, 44])
def test_staggered_exchanges_take_the_cost_model_s_time(p):
    count = 16 * p * 50
    network = replace(FLAT, gamma=0.0)
    bandwidth = 2 * count * ELEMENT * (p - 1) / p * BETA
    for schedule in (by_name("bcube", p), by_name("direct", p)):
        model = schedule.num_rounds * ALPHA + bandwidth
        assert seconds(schedule, count, network) == pytest.approx(model, rel=1e-12)


@pytest.mark.parametrize("p", [2, 3, 7, 8, 12, 32, 44])
def test_circulant_takes_about_the_cost_model_s_time(p):
    """Not exactly: a rank whose next message does not depend on the last one runs ahead."""
    count = 16 * p * 50
    bandwidth = 2 * count * ELEMENT * (p - 1) / p * BETA
    model = 2 * ceil_lg(p) * ALPHA + bandwidth
    time = seconds(by_name("circulant", p), count, replace(FLAT, gamma=0.0))
    assert bandwidth < time < 1.1 * model


def test_binary_blocks_add_no_latency():
    network = replace(FLAT, inter=Link(alpha=ALPHA, beta=0.0), gamma=0.0)
    for p in range(2, 65):
        schedule = by_name("halving_doubling", p)
        model = 2 * floor_lg(p) * ALPHA
        assert seconds(schedule, 16 * p, network) == pytest.approx(model, rel=1e-12), p


def crossing_bytes(schedule: Schedule, count: int, node_of: np.ndarray, column: int) -> np.ndarray:
    """Bytes that leave (column 1) or enter (2) each node."""
    per_chunk = count // schedule.num_chunks * ELEMENT
    moves = schedule.moves()
    moves = moves[node_of[moves[:, 1]] != node_of[moves[:, 2]]]
    weights = (moves[:, 4] - moves[:, 3]) * per_chunk
    return np.bincount(node_of[moves[:, column]], weights=weights, minlength=node_of[-1] + 1)


@pytest.mark.parametrize("segment", [16, 100, 1 << 40])
@pytest.mark.parametrize("name", ALLREDUCES)
def test_nics_are_busy_for_exactly_the_bytes_that_cross(name, segment):
    sizes = [3, 2, 4]
    node_of = np.repeat(np.arange(3), sizes)
    for schedule in (by_name(name, 9), hierarchical(sizes, name, 2)):
        count = 16 * schedule.num_chunks * 3
        timeline = simulate(
            schedule, count, network=FLAT, node_sizes=sizes, element_size=ELEMENT, segment=segment
        )
        out = crossing_bytes(schedule, count, node_of, 1) * BETA
        into = crossing_bytes(schedule, count, node_of, 2) * BETA
        np.testing.assert_allclose(timeline.nic_out_busy, out, rtol=1e-9)
        np.testing.assert_allclose(timeline.nic_in_busy, into, rtol=1e-9)
        total = (schedule.moves()[:, 4] - schedule.moves()[:, 3]).sum() * 48 * ELEMENT * BETA
        local = timeline.local_out_busy.sum()
        assert local + timeline.nic_out_busy.sum() == pytest.approx(total, rel=1e-9)
        assert timeline.local_in_busy.sum() == pytest.approx(local, rel=1e-9)
        assert timeline.seconds >= max(timeline.nic_out_busy.max(), timeline.nic_in_busy.max())


def test_reductions_occupy_their_rank():
    schedule = by_name("direct", 6)
    timeline = simulate(schedule, 16 * 6, network=FLAT, element_size=ELEMENT)
    np.testing.assert_allclose(timeline.rank_reducing, 5 * 16 * ELEMENT * GAMMA)


def test_overhead_occupies_the_sender_once_a_message():
    link = replace(LINK, overhead=3e-6)
    network = replace(FLAT, inter=link, gamma=0.0)
    timeline = simulate(by_name("direct", 5), 80, network=network, element_size=ELEMENT)
    nbytes = 2 * 4 * 16 * ELEMENT
    np.testing.assert_allclose(timeline.nic_out_busy, 2 * 4 * 3e-6 + nbytes * BETA)
    np.testing.assert_allclose(timeline.nic_in_busy, nbytes * BETA)


def port_spans(timeline: Timeline, node: list[int], *, outgoing: bool) -> list[tuple[float, float]]:
    spans = timeline.spans
    inside = np.isin(spans["rank"], node) & ((spans["kind"] == 0) == outgoing)
    return sorted(zip(spans["start"][inside], spans["end"][inside], strict=True))


def test_two_sends_never_share_a_nic_at_one_time():
    schedule = by_name("direct", 8)  # nodes of two: all but one message in seven cross
    network = replace(FLAT, local=Link(alpha=0.0, beta=0.0))
    timeline = simulate(schedule, 16 * 8, network=network, node_sizes=[2] * 4, element_size=ELEMENT)
    for node in ([0, 1], [2, 3], [4, 5], [6, 7]):
        spans = [s for s in port_spans(timeline, node, outgoing=True) if s[1] > s[0]]
        assert len(spans) == 2 * 2 * 6
        assert all(a[1] <= b[0] + 1e-15 for a, b in pairwise(spans))


def test_many_senders_to_one_receiver_queue_at_its_port():
    gather = by_name("direct", 9, collective="gather")
    nbytes = 16 * ELEMENT
    assert seconds(gather, 16 * 9) == pytest.approx(ALPHA + 8 * nbytes * BETA, rel=1e-12)


def test_directions_of_a_nic_do_not_share():
    swap = from_moves(2, 2, [(0, 0, 1, 0, 1, 0), (0, 1, 0, 1, 2, 0)])
    one_way = from_moves(2, 2, [(0, 0, 1, 0, 1, 0)])
    assert seconds(swap, 3200) == seconds(one_way, 3200)


def test_every_step_is_on_the_timeline_after_what_it_waits_for():
    schedule = by_name("halving_doubling", 6)
    timeline = simulate(schedule, 16 * 4 * 6, network=FLAT, element_size=ELEMENT, segment=40)
    spans = timeline.spans
    assert spans.dtype.names is not None
    assert (spans["start"] <= spans["end"]).all()
    assert (np.diff(spans["end"]) >= 0).all()
    assert spans["end"].max() == timeline.seconds
    sends, receives = (spans[(spans["kind"] == 0) == flag] for flag in (True, False))
    assert len(sends) == len(receives)
    assert sends["bytes"].sum() == receives["bytes"].sum()
    first_send = {(s["rank"], s["peer"]): s["start"] for s in sends[::-1]}
    for r in receives:
        assert r["start"] >= first_send[r["peer"], r["rank"]] + ALPHA - 1e-15


def test_a_slower_network_is_never_faster():
    schedule = hierarchical([2, 2, 2], "halving_doubling", 2)
    times = [
        simulate(
            schedule,
            16 * 96,
            network=replace(FLAT, inter=Link(alpha=ALPHA, beta=factor * BETA)),
            node_sizes=[2, 2, 2],
            segment=16,
        ).seconds
        for factor in (1, 2, 4, 8)
    ]
    assert times == sorted(times)
    assert times[-1] > times[0]


@pytest.mark.parametrize("p", [4, 8, 16, 32])
@pytest.mark.parametrize("algorithm", ["halving_doubling", "ring", "circulant", "torus"])
def test_segments_cost_nothing_where_all_links_are_busy(algorithm, p):
    """What leaves a rank leaves in the order of rounds, whoever the peers are."""
    nbytes = 16 << 20
    timeline = simulate(
        by_name(algorithm, p),
        nbytes // ELEMENT,
        network=replace(FLAT, inter=Link(alpha=1e-6, beta=8e-9), gamma=0.0),
        segment=(256 << 10) // ELEMENT,
    )
    assert timeline.seconds < 1.02 * 2 * (p - 1) / p * nbytes * 8e-9


def test_a_tree_serves_its_peers_in_turns():
    """One thing goes to all of them: none has to wait until another one has it all."""
    segments, segment = 100, 16
    tree = from_moves(4, 1, [(0, 3, 0, 0, 1, 0), (1, 0, 1, 0, 1, 0), (2, 0, 2, 0, 1, 0)])
    spans = simulate(tree, segments * segment, network=FLAT, segment=segment).spans
    assert spans is not None
    sends = spans[(spans["kind"] == 0) & (spans["rank"] == 0)]
    first, last = (sends[sends["peer"] == peer]["start"] for peer in (2, 1))
    assert first.min() < last.max()


def test_segments_flow_down_a_chain():
    chain = from_moves(4, 1, [(t, t, t + 1, 0, 1, 0) for t in range(3)])
    count, segment = 6400, 64
    timeline = simulate(chain, count, network=FLAT, element_size=ELEMENT, segment=segment)
    model = 3 * ALPHA + (count + 2 * segment) * ELEMENT * BETA
    assert timeline.seconds == pytest.approx(model, rel=1e-12)


def test_segments_let_the_stages_of_a_hierarchy_overlap():
    schedule = by_name("hierarchical:reduce_bcast:ring", node_sizes=[8] * 4)
    whole, cut = (
        simulate(
            schedule,
            (102 << 20) // ELEMENT,
            network=PRESETS["big_basin"],
            node_sizes=[8] * 4,
            segment=segment,
        ).seconds
        for segment in (1 << 40, 1 << 17)
    )
    assert cut < 0.8 * whole


def test_halving_doubling_is_three_times_as_fast_as_the_ring_on_the_paper_s_32_servers():
    times = {}
    for inter in ("ring", "halving_doubling"):
        schedule = by_name(f"hierarchical:{inter}", node_sizes=[8] * 32)
        times[inter] = simulate(
            schedule, (1 << 20) // ELEMENT, network=PRESETS["big_basin"], node_sizes=[8] * 32
        ).seconds
    assert 2.5 < times["ring"] / times["halving_doubling"] < 3.5


def test_the_same_run_gives_the_same_timeline():
    runs = [
        simulate(by_name("bcube", 12), 4000, network=FLAT, node_sizes=[4] * 3, segment=32)
        for _ in range(2)
    ]
    assert (runs[0].spans == runs[1].spans).all()


@pytest.mark.parametrize("count", [0, 1])
def test_empty_chunks_take_no_time(count):
    timeline = simulate(by_name("ring", 4), count, network=FLAT)
    hops = 6 if count else 0  # the one chunk goes around, and around again
    assert timeline.seconds == pytest.approx(hops * (ALPHA + 4 * BETA) + count * 3 * 4 * GAMMA)


@pytest.mark.parametrize("sizes", [[2, 3], [2, 1], [4, 0], []])
def test_nodes_that_do_not_hold_the_ranks_are_refused(sizes):
    with pytest.raises(ValueError, match="do not hold 4 ranks"):
        simulate(by_name("ring", 4), 100, network=FLAT, node_sizes=sizes)
