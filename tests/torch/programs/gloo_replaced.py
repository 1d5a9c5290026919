"""Programs that say "gloo" on groups that hier makes, and on Gloo's again once that is off."""

import re
import unittest

import torch
import torch.distributed as dist
import torch.testing._internal.distributed.fake_pg  # registers "fake"
from harness import FOLDER, RANK, TIMEOUT, WORLD_SIZE, main, raises
from torch.nn.parallel import DistributedDataParallel as StockDDP

import allreduce
from allreduce.torch import communicator, replace_gloo, restore_gloo

CPU = torch.device("cpu")


def maker(group: dist.ProcessGroup) -> str:
    return group._get_backend(CPU).name()


def assert_sums(group: dist.ProcessGroup) -> None:
    x = torch.full((1000,), RANK + 1.0)
    dist.all_reduce(x, group=group)
    members = [rank + 1.0 for rank in dist.get_process_group_ranks(group)]
    assert x.tolist() == [sum(members)] * 1000


def again(number: int, backend: str | None) -> None:
    """Makes the world anew, for this backend."""
    dist.destroy_process_group()
    dist.init_process_group(
        backend,
        init_method=f"file://{FOLDER}/again{number}",
        rank=RANK,
        world_size=WORLD_SIZE,
        timeout=TIMEOUT,
    )


def check_it_is_off_at_first() -> None:
    assert maker(dist.new_group(backend="gloo")) == "gloo"
    restore_gloo()  # does nothing


def check_a_new_group_is_hiers_under_gloos_name() -> None:
    replace_gloo()
    replace_gloo()
    group = dist.new_group(backend="gloo")
    assert (dist.get_backend(group), maker(group)) == ("gloo", "hier")
    assert group.name() == "custom"  # torch's DDP would take a "gloo" for a ProcessGroupGloo
    assert communicator(group).world_size == WORLD_SIZE
    assert communicator(group).num_nodes == communicator().num_nodes
    assert_sums(group)
    group.barrier()  # the group's default backend
    dist.monitored_barrier(group, timeout=TIMEOUT)
    dist.destroy_process_group(group)


def check_a_part_of_the_world() -> None:
    group = dist.new_group([0], backend="gloo")
    assert (group == dist.GroupMember.NON_GROUP_MEMBER) == (RANK != 0)
    if RANK == 0:
        assert maker(group) == "hier"
        assert_sums(group)
    group = dist.new_group([1, 0], backend="gloo")
    if RANK < 2:
        assert_sums(group)


def check_a_missing_rank_is_named_by_torchs_monitored_barrier() -> None:
    group = dist.new_group(backend="gloo", timeout=TIMEOUT)
    if RANK == 0:
        from datetime import timedelta

        late = timedelta(seconds=0.5)
        said = raises(RuntimeError, lambda: dist.monitored_barrier(group, timeout=late))
        assert re.search(r"\brank 1\b", said, re.IGNORECASE), said


def check_worlds_by_every_name_for_gloo() -> None:
    names = {"gloo": "gloo", None: "undefined", "cpu:gloo": "cpu:gloo", "GLOO": "gloo"}
    if torch.accelerator.is_available():
        del names[None]  # torch would not take Gloo
    for number, (backend, name) in enumerate(names.items()):
        again(number, backend)
        assert dist.get_backend() == name
        assert maker(dist.group.WORLD) == "hier"
        assert_sums(dist.group.WORLD)
        assert_sums(dist.new_group())
        dist.barrier()


def check_other_names_are_left_alone() -> None:
    assert maker(dist.new_group(backend="fake")) == "fake"
    assert maker(dist.new_group(backend="cpu:fake,cuda:gloo")) == "fake"
    with unittest.TestCase().assertLogs("allreduce", "WARNING") as logs:
        assert maker(dist.new_group(backend="cpu:gloo,cuda:fake")) == "gloo"  # both would be one
    assert len(logs.output) == 1
    assert "Gloo stays in a group with fake" in logs.output[0]
    group = dist.new_group(backend="hier")
    assert (dist.get_backend(group), maker(group)) == ("hier", "hier")
    assert_sums(group)


def check_stock_ddp_averages_gradients() -> None:
    model = StockDDP(torch.nn.Linear(7, 3))
    model(torch.full((2, 7), RANK + 1.0)).sum().backward()
    mean = 2 * (WORLD_SIZE + 1) / 2  # of two rows of RANK + 1
    assert model.module.weight.grad.unique().tolist() == [mean]


def check_groups_that_exist_stay() -> None:
    restore_gloo()
    group = dist.new_group(backend="gloo")
    replace_gloo()
    assert (maker(group), group.name()) == ("gloo", "gloo")
    assert_sums(group)


def check_who_took_torchs_function_before_has_gloo() -> None:
    c10d = dist.distributed_c10d
    restore_gloo()
    taken = c10d._new_process_group_helper
    replace_gloo()
    ours, c10d._new_process_group_helper = c10d._new_process_group_helper, taken
    group = dist.new_group(backend="gloo")
    c10d._new_process_group_helper = ours
    assert (maker(group), group.name()) == ("gloo", "gloo")
    assert_sums(group)


def check_another_wrapper_on_top_survives() -> None:
    c10d, calls = dist.distributed_c10d, []
    ours = c10d._new_process_group_helper

    def theirs(*arguments, **named):
        calls.append(named)
        return ours(*arguments, **named)

    c10d._new_process_group_helper = theirs
    restore_gloo()
    assert maker(dist.new_group(backend="gloo")) == "gloo"
    replace_gloo()
    assert maker(dist.new_group(backend="gloo")) == "hier"
    assert len(calls) == 2
    c10d._new_process_group_helper = ours


def check_a_mismatch_is_hiers_error() -> None:
    def differ() -> None:  # a rank may hear of it before it has its group
        dist.all_reduce(torch.ones(4 + RANK), group=dist.new_group(backend="gloo"))

    raises(allreduce.MismatchError, differ)


def check_nothing_remains_once_it_is_off() -> None:
    group = dist.new_group(backend="gloo")
    restore_gloo()
    restore_gloo()
    assert_sums(group)  # stays what it is
    assert maker(group) == "hier"
    stock = dist.new_group(backend="gloo")
    assert maker(stock) == "gloo"
    assert_sums(stock)
    c10d = dist.distributed_c10d
    for function in (c10d._new_process_group_helper, c10d.BackendConfig.get_device_backend_map):
        assert function.__globals__["__name__"] == c10d.__name__
    again(9, "gloo")
    assert maker(dist.group.WORLD) == "gloo"


if __name__ == "__main__":
    main(dict(globals()))
