"""What a forked child may do with what it inherits: nothing. And what its own groups can do."""

import os
import signal
import sys
import threading
import time

import numpy as np
import pytest
from children import exit_code
from worlds import SANITIZED, run_processes

from allreduce import _C, errors
from allreduce.communicator.communicator import Communicator

pytestmark = pytest.mark.skipif(SANITIZED, reason="processes")


def drop(comm) -> None:
    """Collect the core's group, whoever still holds the communicator."""
    import gc

    comm.__dict__.clear()
    gc.collect()


def leave_in_child(comm, way: str) -> int:
    comm.allreduce(np.ones(10), async_op=True).wait()
    comm.allreduce(np.ones(10), async_op=True)
    time.sleep(0.2)  # the worker has driven, and waits for more
    comm.barrier()
    pid = os.fork()
    if pid == 0:
        if way == "collect":
            drop(comm)
            os._exit(0)
        sys.exit(0)  # runs atexit, and the destructors
    code = exit_code(pid)
    comm.barrier()
    return code


@pytest.mark.parametrize("way", ["collect", "exit"])
def test_a_child_of_a_group_with_a_worker_ends_in_peace(tmp_path, way):
    outcomes = run_processes(2, leave_in_child, tmp_path, way, helpers=(exit_code, drop))
    assert [o.result for o in outcomes] == [0, 0]


def drop_a_work_in_child(comm) -> int:
    work = comm.irecv(np.zeros(3), 1 - comm.rank)
    waiting = threading.Thread(target=work.wait)
    second = threading.Thread(target=work.wait)  # one drives, one waits for the work's end
    waiting.start()
    second.start()
    time.sleep(0.3)
    pid = os.fork()
    if pid == 0:
        del work, waiting, second
        drop(comm)
        os._exit(0)
    code = exit_code(pid)
    comm.send(np.ones(3), 1 - comm.rank)
    waiting.join()
    second.join()
    comm.barrier()
    return code


def test_a_child_drops_a_work_that_a_thread_of_its_parent_waits_for(tmp_path):
    outcomes = run_processes(2, drop_a_work_in_child, tmp_path, helpers=(exit_code, drop))
    assert [o.result for o in outcomes] == [0, 0]


def make_a_group_in_child(comm, folder: str, order: str) -> int:
    from allreduce.rendezvous.store import FileStore

    comm.allreduce(np.ones(10), async_op=True).wait()
    pid = os.fork()
    if pid == 0:
        rank, store = comm.rank, FileStore(folder, 30.0)
        if order == "drop first":
            drop(comm)
        own = allreduce.Communicator.from_store(store, rank, 2, measure=False)  # noqa: F821
        ok = float(own.allreduce(np.ones(5))[0]) == 2.0
        if order == "drop later":
            drop(comm)
        ok &= float(own.allreduce(np.ones(100_000))[0]) == 2.0
        ok &= float(own.allreduce(np.ones(5), async_op=True).wait()[0]) == 2.0
        own.barrier()
        own.close()
        os._exit(0 if ok else 1)
    code = exit_code(pid)
    comm.barrier()
    return code


@pytest.mark.parametrize("order", ["drop first", "drop later", "keep"])
@pytest.mark.parametrize("nodes", [[0, 0], [0, 1]], ids=["1x2", "2x1"])
def test_the_group_of_a_child_outlives_the_one_it_inherits(tmp_path, nodes, order):
    folder = str(tmp_path / "child")
    outcomes = run_processes(
        2, make_a_group_in_child, tmp_path, folder, order, helpers=(exit_code, drop), nodes=nodes
    )
    assert [o.result for o in outcomes] == [0, 0]


def connecting(comm, group) -> dict:
    return {
        "allreduce": lambda: comm.allreduce(np.ones(4)),
        "shrink": comm.shrink,
        "grow": comm.grow,
        "Group.take_requests": group.take_requests,
        "Group.connect": lambda: group.connect(0, []),
        "Group.give_up": lambda: group.give_up(0, "", False, True),
        "Group.pass_on": group.pass_on,
        "Group.gone_ranks": group.gone_ranks,
    }


def wrong_answers(comm, work) -> str:
    """Call all that an inherited communicator, group and works have but what is `free` to use."""
    x, group = np.ones(4), comm._group
    plain = {"collective": _C.Collective.allreduce, "address": x.ctypes.data, "count": 4}
    plain["dtype"] = "float64"
    message = {"send": True, "peer": 1 - comm.rank, "tag": 0, "timeout": 1.0, "wait": True}
    message |= {"address": x.ctypes.data, "count": 4, "dtype": "float64"}
    schedule = allreduce.schedules.by_name("ring", 2)  # noqa: F821
    refused = {
        **connecting(comm, group),
        "async allreduce": lambda: comm.allreduce(x, async_op=True),
        "broadcast": lambda: comm.broadcast(x),
        "barrier": comm.barrier,
        "send": lambda: comm.send(x, 1 - comm.rank),
        "irecv": lambda: comm.irecv(x, 1 - comm.rank),
        "split": lambda: comm.split(0),
        "symmetric_empty": lambda: comm.symmetric_empty(4),
        "traffic": comm.traffic,
        "abort": lambda: comm.abort("of the child"),
        "explain": lambda: comm.explain(1000),
        "work.wait": work.wait,
        "work.wait briefly": lambda: work.wait(0.1),
        "work.done": work.done,
        "work.source": lambda: work.source,
        "work.tag": lambda: work.tag,
        "Group.run": lambda: group.run(**plain),
        "Group.start": lambda: group.start(**plain),
        "Group.allreduce": lambda: group.allreduce(x, "sum", "auto", -1.0),
        "Group.time_allreduce": lambda: group.time_allreduce(x, "sum", "auto", 1),
        "Group.transfer": lambda: group.transfer(**message),
        "Group.choose": lambda: group.choose(_C.Collective.allreduce, 4),
        "Group.wait": lambda: group.wait(work._work, -1.0),
        "Group.set_choices": lambda: group.set_choices([]),
        "Group.add_schedule": lambda: group.add_schedule("x", _C.Collective.allreduce, schedule),
        "Group.set_timeout": lambda: group.set_timeout(1.0),
        "Group.add_symmetric": lambda: group.add_symmetric(0, 64),
        "Group.set_device_local_stage": lambda: group.set_device_local_stage(None),
        "Group.raise_on_failure": lambda: group.raise_on_failure(None, 0),
        "Group.set_host_path_bytes": lambda: group.set_host_path_bytes(1),
        "Group.known_symmetric": lambda: group.known_symmetric,
        "Group.settle": lambda: group.settle(x.ctypes.data, 32),
        "Group.traffic": group.traffic,
        "Group.abort": lambda: group.abort("of the child"),
    }
    free = {"close", "take_error_at_close", "capsule", "inherited", "timeout", "host_path_bytes"}
    known = {name.removeprefix("Group.") for name in refused if name.startswith("Group.")}
    public = {name for name in dir(type(group)) if not name.startswith("_")}
    wrong = [f"{name} is not tried" for name in sorted(public - known - free)]
    for name, call in refused.items():
        signal.alarm(10)  # whoever waits for a lock of the parent's dies here
        try:
            call()
            wrong.append(f"{name} is accepted")
        except errors.UsageError as error:
            if "forked" not in str(error):
                wrong.append(f"{name}: {error}")
        except BaseException as error:
            wrong.append(f"{name}: {type(error).__name__}: {error}")
    comm.close()
    return "; ".join(wrong)


def try_everything_in_child(comm, out: str) -> int:
    from pathlib import Path

    work = comm.irecv(np.zeros(3), 1 - comm.rank)
    # While it cuts a call into millions of steps, a thread holds the group's lock.
    big = np.ones(30_000_000, np.int8)
    busy = threading.Thread(target=lambda: comm.allreduce(big, algo="ring"))
    comm.barrier()
    busy.start()
    time.sleep(0.1)
    pid = os.fork()
    if pid == 0:
        try:
            text = wrong_answers(comm, work)
        except BaseException as error:
            text = f"{type(error).__name__}: {error}"
        Path(f"{out}{comm.rank}").write_text(text)
        os._exit(0)
    code = exit_code(pid)
    busy.join()
    comm.send(np.ones(3), 1 - comm.rank)
    work.wait()
    comm.barrier()
    return code


def test_everything_inherited_refuses_at_once_even_what_another_thread_has_locked(tmp_path):
    out = str(tmp_path / "answers")
    helpers = (exit_code, wrong_answers, connecting)
    options = {"local": "none", "segment_bytes": 64}
    outcomes = run_processes(2, try_everything_in_child, tmp_path, out, helpers=helpers, **options)
    assert [o.result for o in outcomes] == [0, 0]
    assert [(tmp_path / f"answers{rank}").read_text() for rank in range(2)] == ["", ""]


def fork_in_a_handler(comm, way: str) -> int:
    children = []

    def handler(*_args) -> None:
        pid = os.fork()
        if pid:
            children.append(pid)
        elif way == "exit":
            sys.exit(0)

    signal.signal(signal.SIGUSR1, handler)
    if comm.rank == 0:
        threading.Timer(0.5, os.kill, (os.getpid(), signal.SIGUSR1)).start()
    else:
        time.sleep(1.5)
    x, parent = np.ones(1000), os.getpid()
    try:
        comm.allreduce(x)
        if os.getpid() != parent:
            os._exit(2)
    except errors.UsageError as error:  # in the child that goes on
        os._exit(0 if "forked" in str(error) else 1)
    except SystemExit:
        os._exit(0)
    except BaseException:
        os._exit(3)
    codes = [exit_code(pid) for pid in children]
    comm.barrier()
    return int(codes != ([0] if comm.rank == 0 else []) or float(x[0]) != 2.0)


@pytest.mark.parametrize("way", ["go on", "exit"])
@pytest.mark.parametrize("nodes", [[0, 0], [0, 1]], ids=["1x2", "2x1"])
def test_a_signal_handler_may_fork_inside_a_collective(tmp_path, nodes, way):
    outcomes = run_processes(2, fork_in_a_handler, tmp_path, way, helpers=(exit_code,), nodes=nodes)
    assert [o.result for o in outcomes] == [0, 0]


def test_a_group_of_this_process_is_not_inherited():
    from allreduce.rendezvous.store import MemoryStore

    comm = Communicator.from_store(MemoryStore(10.0), 0, 1)
    assert not comm._group.inherited
    comm.close()
