"""Some ranks of a training of a tiny network on the shipped digits, forked after the imports.

    python digits_job.py RANKS_OF_THIS_HOST STEPS

The environment says which host this is: python -m allreduce.emulate sets NODE_RANK and the like.
The network is a layer of 16 units and a layer of 10, in NumPy: 256 ranks with torch do not fit into
24 GiB. Each rank checks that its parameters have the bits of rank 0's at the end; rank 0 prints the
losses.
"""

from __future__ import annotations

import os
import sys
from pathlib import Path

import numpy as np
import numpy.typing as npt

from allreduce.communicator.init import init

_BATCH, _RATE, _MOMENTUM = 4, 0.2, 0.9
_INPUTS, _UNITS, _CLASSES = 64, 16, 10
_DIGITS = Path(__file__).parents[2] / "trainer/data/digits.npz"

Floats = npt.NDArray[np.float32]


def gradient(
    weights: Floats, images: Floats, labels: npt.NDArray[np.uint8]
) -> tuple[float, Floats]:
    """Return the loss of a batch, and its gradient by the weights of both layers."""
    first, second = _layers(weights)
    hidden = np.maximum(images @ first, 0)
    scores = hidden @ second
    scores -= scores.max(axis=1, keepdims=True)
    chances = np.exp(scores) / np.exp(scores).sum(axis=1, keepdims=True)
    rows = np.arange(len(labels))
    loss = -np.log(chances[rows, labels]).mean()
    chances[rows, labels] -= 1
    chances /= len(labels)
    of_first = images.T @ ((chances @ second.T) * (hidden > 0))
    return float(loss), np.concatenate([of_first.ravel(), (hidden.T @ chances).ravel()])


def _layers(weights: Floats) -> tuple[Floats, Floats]:
    first, second = np.split(weights, [_INPUTS * _UNITS])
    return first.reshape(_INPUTS, _UNITS), second.reshape(_UNITS, _CLASSES)


def train(rank: int, world_size: int, steps: int) -> None:
    """Be one rank."""
    comm = init(
        rank=rank,
        world_size=world_size,
        master_addr=os.environ["MASTER_ADDR"],
        master_port=int(os.environ["MASTER_PORT"]),
    )
    count = _INPUTS * _UNITS + _UNITS * _CLASSES
    weights = np.random.default_rng(rank).normal(0, 0.05, count).astype(np.float32)
    comm.broadcast(weights, root=0)  # rank 0's must count
    velocity = np.zeros_like(weights)
    digits = np.load(_DIGITS)
    images, labels = digits["images"].reshape(-1, _INPUTS).astype(np.float32), digits["labels"]
    losses = []
    for step in range(steps):
        first = (step * world_size + rank) * _BATCH
        chosen = np.arange(first, first + _BATCH) % len(labels)
        loss, mine = gradient(weights, images[chosen] / 16, labels[chosen])
        velocity = _MOMENTUM * velocity + comm.allreduce(mine.astype(np.float32), "avg")
        weights -= np.float32(_RATE) * velocity
        losses.append(float(comm.allreduce(np.array([loss]), "avg")[0]))
    others = comm.broadcast(weights.copy(), root=0)
    assert np.array_equal(weights, others), f"rank {rank} has other parameters than rank 0"
    comm.barrier()
    if rank == 0:
        print(world_size, *losses, flush=True)
    comm.close()


def main() -> int:
    """Fork the ranks of this host; return 1 if one failed."""
    local_size, steps = int(sys.argv[1]), int(sys.argv[2])
    host, hosts = int(os.environ["NODE_RANK"]), int(os.environ["NNODES"])
    children = []
    for local_rank in range(local_size):
        child = os.fork()
        if child == 0:
            status = 1
            try:
                train(host * local_size + local_rank, hosts * local_size, steps)
                status = 0
            except BaseException as error:  # a traceback of each of many ranks would hide it
                print(f"host {host}, rank {local_rank} there: {error}", file=sys.stderr)
            finally:
                sys.stdout.flush()
                os._exit(status)
        children.append(child)
    statuses = [os.waitpid(child, 0)[1] for child in children]
    return int(any(statuses))


if __name__ == "__main__":
    sys.exit(main())
