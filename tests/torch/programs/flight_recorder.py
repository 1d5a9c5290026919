"""torch's flight recorder on hier: what has ended is told from what timed out."""

import json
from datetime import timedelta

import torch
import torch.distributed as dist
from harness import RANK, WORLD_SIZE, main, raises
from torch._C import _distributed_c10d as c10d

import allreduce


def check_it_tells_the_call_that_timed_out_from_those_that_ended() -> None:
    group = dist.new_group(backend="hier", timeout=timedelta(seconds=1))
    recorder = c10d.FlightRecorderHook.attach(group)
    dist.all_reduce(torch.ones(4), group=group)
    dist.broadcast(torch.ones(7), 0, group=group)
    if RANK < WORLD_SIZE - 1:  # the last one never comes
        raises(allreduce.Error, lambda: dist.all_reduce(torch.ones(5), group=group))
        recorded = json.loads(c10d._dump_fr_trace_json(True, False))["entries"]
        names = [entry["profiling_name"] for entry in recorded][-3:]
        assert names == ["c10d:allreduce", "c10d:broadcast", "c10d:allreduce"], names
        assert [entry["retired"] for entry in recorded][-3:] == [True, True, False], recorded
    recorder.remove()


main(globals())
