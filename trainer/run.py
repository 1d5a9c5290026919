"""`python -m trainer.run`: the training job from top to bottom, as in the paper."""

from __future__ import annotations

import os
import sys
from collections.abc import Sequence
from typing import TYPE_CHECKING

from trainer.checks import data_is_there
from trainer.config import parse
from trainer.launch import launch, run_worker
from trainer.options import Config, ConfigError

if TYPE_CHECKING:
    from torch import nn

__all__ = ["main", "work"]


def main(argv: Sequence[str] | None = None) -> int:
    """Starts the job, or is one worker of it where a launcher says so (RANK is set)."""
    try:
        config = parse(sys.argv[1:] if argv is None else argv, os.environ)
        if "TRAINER_LAUNCHER" not in os.environ:  # else our launcher has looked
            data_is_there(config)
        if "RANK" not in os.environ:
            return launch(config)
    except ConfigError as error:
        print(f"trainer: {error}", file=sys.stderr)
        return 2
    return run_worker(lambda: work(config))


def work(config: Config) -> None:
    """What each process does, from joining the group to the table at the end."""
    # Imported here, so that --help and refusals do not wait for torch.
    from allreduce.optim import SGD, split_weight_decay
    from allreduce.torch import DistributedDataParallel
    from trainer.data import open_dataset
    from trainer.data.normalize import Normalize
    from trainer.data.sampler import EpochSampler
    from trainer.evaluation import evaluate
    from trainer.log import open_log
    from trainer.loop import Job, summarize, train_epoch
    from trainer.schedule import Schedule
    from trainer.virtual import VirtualWorkers
    from trainer.worker import join_group, leave_group

    comm = join_group(config)
    dataset = open_dataset(config.source)
    sampler = EpochSampler(
        size=dataset.info.train_images,
        batch=config.batch * config.workers_virtual,
        rank=comm.rank,
        world_size=comm.world_size,
        seed=config.seed,
    )
    model = DistributedDataParallel(
        _network(config, dataset.info.num_classes),
        bucket_bytes=config.bucket_bytes,
        op="sum",  # losses are divided by kn, so gradients are summed (Remark 3)
        algo=config.algo,
    )
    optimizer = SGD(
        split_weight_decay(model.module, config.weight_decay),
        lr=config.lr,
        momentum=config.momentum,
    )
    job = Job(
        config=config,
        comm=comm,
        dataset=dataset,
        normalize=Normalize(dataset.info),
        sampler=sampler,
        model=model,
        virtual=VirtualWorkers(model, count=config.workers_virtual, rank=comm.rank),
        optimizer=optimizer,
        schedule=Schedule.from_config(config, sampler.iterations),
    )
    with open_log(job) as log:
        while job.iteration < job.last_iteration:
            train_epoch(job, log)
            log.test(evaluate(job))
            if job.iteration < job.last_iteration:
                job.epoch, job.offset = job.epoch + 1, 0
        log.finish(summarize(job))
    leave_group()


def _network(config: Config, num_classes: int) -> nn.Module:
    import torch

    from trainer.ghost import ghost
    from trainer.model import build_model

    torch.manual_seed(config.seed)  # the same initial weights on every worker
    network = build_model(config.model, num_classes)
    if config.ghost_bn:
        ghost(network, config.workers_virtual)
    return network


if __name__ == "__main__":
    sys.exit(main())
