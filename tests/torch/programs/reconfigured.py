"""A process group whose members change: `dist._reconfigure`, which torch 2.14 brought.

Ranks find each other as the tests of any backend do: their handles go through a store.
"""

import threading
import time
from datetime import timedelta

import torch
import torch.distributed as dist
from harness import FOLDER, RANK, TIMEOUT, WORLD_SIZE, main, raises

import allreduce
from allreduce.torch import communicator

EVERYONE = list(range(WORLD_SIZE))
SHORT = timedelta(seconds=2)
store = dist.FileStore(str(FOLDER / "handles"), WORLD_SIZE)
rounds = 0


def make_world(**options: bool) -> None:
    """Makes the world anew."""
    global rounds
    rounds += 1
    if dist.is_initialized():
        dist.destroy_process_group()
    dist.init_process_group(
        "hier",
        init_method=f"file://{FOLDER}/world{rounds}",
        rank=RANK,
        world_size=WORLD_SIZE,
        timeout=TIMEOUT,
        **options,
    )


def init_unconnected() -> None:
    make_world(enable_reconfigure=True)


def handles() -> list[str]:
    """Those of all processes, by the rank that each had at first."""
    global rounds
    rounds += 1
    store.set(f"{rounds}/{RANK}", dist._get_reconfigure_handle())
    return [store.get(f"{rounds}/{rank}").decode() for rank in EVERYONE]


def become(members: list[int], uuid: int = 0) -> None:
    """All processes call it; those named are the members then."""
    everyone = handles()
    if RANK in members:
        uuid = uuid or 1000 * rounds + members[0]
        dist._reconfigure(uuid, [everyone[rank] for rank in members]).wait()


def assert_group(members: list[int]) -> None:
    """The group has these members, in this order, and sums over them."""
    if RANK not in members:
        return
    assert dist.get_world_size() == len(members)
    assert dist.get_rank() == members.index(RANK)
    for count in (1, 100_000):
        x = torch.full((count,), RANK + 1.0)
        dist.all_reduce(x)
        assert x.unique().tolist() == [sum(rank + 1.0 for rank in members)]
    x = torch.full((4,), float(RANK))
    dist.broadcast(x, group_src=len(members) - 1)
    assert x.tolist() == [float(members[-1])] * 4


def check_nobody_is_connected_before() -> None:
    init_unconnected()
    assert dist._supports_reconfigure()
    assert dist.get_rank() == RANK
    calls = {
        dist.barrier: allreduce.AbortedError,
        dist.group.WORLD.monitored_barrier: allreduce.AbortedError,
        lambda: dist.all_reduce(torch.ones(3)): allreduce.AbortedError,
        communicator: allreduce.AbortedError,
    }
    for call, kind in calls.items():
        said = raises(kind, call)
        assert "reconfigure" in said, said
    become(EVERYONE)
    assert_group(EVERYONE)


def check_messages() -> None:
    right, left = (RANK + 1) % WORLD_SIZE, (RANK - 1) % WORLD_SIZE
    got = torch.zeros(1000)
    work = dist.isend(torch.full((1000,), float(RANK)), right)
    dist.recv(got, left)
    work.wait()
    assert got.tolist() == [float(left)] * 1000


def check_the_last_one_is_left_out_and_comes_back() -> None:
    become(EVERYONE[:-1])
    assert_group(EVERYONE[:-1])
    become(EVERYONE)
    assert_group(EVERYONE)


def check_one_in_the_middle_is_left_out() -> None:
    members = [rank for rank in EVERYONE if rank != 1]
    become(members)
    assert_group(members)
    become(EVERYONE)


def check_the_ranks_are_in_the_order_of_the_list() -> None:
    become(EVERYONE[::-1])
    assert_group(EVERYONE[::-1])
    become(EVERYONE)


def check_groups_apart_are_made_one() -> None:
    become([RANK])
    assert_group([RANK])
    half = EVERYONE[:2] if RANK < 2 else EVERYONE[2:]
    become(half)
    assert_group(half)
    become(EVERYONE)
    assert_group(EVERYONE)


def check_a_set_of_handles_gives_ranks_to_all_alike() -> None:
    dist._reconfigure(7, set(handles())).wait()
    x = torch.zeros(WORLD_SIZE)
    x[dist.get_rank()] = 1
    dist.all_reduce(x)
    assert x.tolist() == [1.0] * WORLD_SIZE
    become(EVERYONE)


def check_nodes_stay_the_nodes_of_their_ranks() -> None:
    nodes = communicator().node_of_rank
    members = EVERYONE[1:]
    become(members)
    if RANK in members:
        ours = communicator().node_of_rank
        for i, a in enumerate(members):
            for j, b in enumerate(members):
                assert (ours[i] == ours[j]) == (nodes[a] == nodes[b])
    become(EVERYONE)


def check_a_group_that_was_aborted_is_made_anew() -> None:
    handles()  # all have left the last barrier: an abort may overtake its end
    if RANK == 0:
        dist.group.WORLD._get_backend(torch.device("cpu")).abort()
    raises(allreduce.Error, lambda: [dist.all_reduce(torch.ones(9)) for _ in range(1000)])
    become(EVERYONE)
    assert_group(EVERYONE)


def check_what_is_in_flight_ends_and_who_stayed_behind_hears_of_it() -> None:
    everyone = handles()
    x = torch.ones(50_000)
    if RANK == 0:
        work = dist.all_reduce(x, async_op=True)
    if RANK != WORLD_SIZE - 1:
        dist._reconfigure(31, everyone[:-1]).wait()
    else:  # a call of the group as it was
        said = raises(allreduce.PeerError, lambda: dist.all_reduce(x))
        assert "left the group" in said, said
    if RANK == 0:
        raises(allreduce.AbortedError, work.wait)
    assert_group(EVERYONE[:-1])
    become(EVERYONE)
    assert_group(EVERYONE)


def check_bad_arguments_leave_the_group_as_it_is() -> None:
    mine = dist._get_reconfigure_handle()
    bad = {
        "not among the handles": [mine[:-2] + "00:"],
        "comes twice": [mine, mine],
        "no handle of hier": [mine, "gloo"],
    }
    for says, given in bad.items():
        said = raises(allreduce.UsageError, lambda given=given: dist._reconfigure(32, given))
        assert says in said, said
    said = raises(allreduce.UsageError, lambda: dist._reconfigure(33, [mine], timeout=-SHORT))
    assert "timeout" in said, said
    said = raises(allreduce.UsageError, lambda: dist._reconfigure(7, [mine]))
    assert "already used" in said, said
    assert_group(EVERYONE)


def check_one_that_never_comes_is_named_and_the_others_try_again() -> None:
    everyone = handles()
    if RANK != 1:
        said = raises(allreduce.Timeout, lambda: dist._reconfigure(41, everyone, timeout=SHORT))
        assert "rank 1 never came" in said, said
        raises(allreduce.AbortedError, lambda: dist.all_reduce(torch.ones(1)))
        assert dist.get_rank() == RANK  # that of the last group
        error = dist.group.WORLD._get_backend(torch.device("cpu")).get_error()
        assert str(error) == "ErrorType.COMM_ERROR", error
        members = [rank for rank in EVERYONE if rank != 1]
        dist._reconfigure(42, [everyone[rank] for rank in members]).wait()
        assert_group(members)
    become(EVERYONE)
    assert_group(EVERYONE)


def check_the_timeout_to_connect_is_not_that_of_calls() -> None:
    dist._reconfigure(51, handles(), timeout=SHORT).get_future().wait()
    if RANK == 1:
        time.sleep(2 * SHORT.total_seconds())
    assert_group(EVERYONE)


def check_two_threads_reconfigure_at_once() -> None:
    everyone = handles()
    mine = [dist._get_reconfigure_handle()]
    said = []

    def other_thread() -> None:
        try:
            dist._reconfigure(62, mine)
        except allreduce.UsageError as error:
            said.append(str(error))

    if RANK == 0:
        thread = threading.Thread(target=lambda: dist._reconfigure(61, everyone))
        thread.start()
        time.sleep(0.5)
        other_thread()
        handles()
        thread.join()
        assert "another thread is reconfiguring" in said[0], said
    else:
        handles()
        dist._reconfigure(61, everyone)
    assert_group(EVERYONE)


def check_a_group_that_was_made_as_always_can_change_too() -> None:
    make_world()
    assert_group(EVERYONE)
    become(EVERYONE[1:])
    assert_group(EVERYONE[1:])
    become(EVERYONE)


def check_parts_of_a_changed_group() -> None:
    become(EVERYONE[::-1])
    part = dist.new_group([0, 1])
    if dist.get_rank() in (0, 1):
        x = torch.full((10,), RANK + 1.0)
        dist.all_reduce(x, group=part)
        assert x.tolist() == [2.0 * WORLD_SIZE - 1] * 10
    become(EVERYONE)


def check_an_unconnected_group_can_be_destroyed() -> None:
    init_unconnected()
    dist.destroy_process_group()
    init_unconnected()
    become(EVERYONE)


main(globals())
