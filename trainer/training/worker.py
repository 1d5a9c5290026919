"""What each process of the job does, from top to bottom, as in the paper."""

from __future__ import annotations

import contextlib
import gc
from pathlib import Path

from torch import nn
from torch.optim.swa_utils import AveragedModel

from allreduce import Communicator
from allreduce.optim import SGD
from allreduce.torch import DistributedDataParallel
from trainer.checkpoint.file import Checkpoints
from trainer.checkpoint.memory import Memory, remember
from trainer.checkpoint.restore import restart, take_back
from trainer.checkpoint.states import Holder, RandomStates, States, seed_all
from trainer.checkpoint.writer import Saver
from trainer.config.options import Config
from trainer.data import Dataset, open_dataset
from trainer.data.feed import open_feed
from trainer.data.sampler import EpochSampler
from trainer.launch.members import Members
from trainer.launch.stop_signals import SAVED, StopRequest
from trainer.model.ghost_batch_norm import ghost
from trainer.model.precision import HALF, Precision, make_deterministic
from trainer.model.pretrained import load_weights
from trainer.model.resnet import build_model
from trainer.model.weight_average import open_average
from trainer.output.run_directory import open_log
from trainer.training.elastic import DEATHS, Interrupted, go_on
from trainer.training.learning_rate import Schedule
from trainer.training.loop import train
from trainer.training.loss_guard import Guard
from trainer.training.metrics import summarize
from trainer.training.optimizer import build_optimizer
from trainer.training.profiler import Profiler
from trainer.training.replicas import Replicas
from trainer.training.run_state import Job
from trainer.training.virtual_workers import VirtualWorkers

__all__ = ["work"]


def work(config: Config) -> int:
    """Joins the group, trains, and reports.

    With --elastic it goes on with those alive when a process dies, once training has begun.

    Returns the exit code: 0 for a complete run, `SAVED` for one that a signal ended.
    """
    request = StopRequest()
    request.listen()
    make_deterministic(config)
    members = Members(config)
    dataset = open_dataset(config.source)
    memory, words = None, ""
    with contextlib.ExitStack() as owned:  # what a process owns that becomes rank 0
        while True:
            try:
                complete = _train(config, members.comm, dataset, request, memory, words)
            except Interrupted as interrupted:
                memory = interrupted.memory
            except DEATHS:
                if memory is None:  # nothing has been trained
                    raise
            else:
                members.leave()
                return 0 if complete else SAVED
            config, memory, words = go_on(config, members, memory, owned)
            gc.collect()  # the job before, whose parts know each other


def _train(
    config: Config,
    comm: Communicator,
    dataset: Dataset,
    request: StopRequest,
    memory: Memory | None,
    words: str,
) -> bool:
    """Trains in this group, from `memory` if there is one; whether the run is complete.

    Interrupted if a process died and the job is elastic; what all raise, if not.
    """
    job, states = _job(config, comm, dataset, request)
    began = take_back(job, states, memory, words) if memory else restart(job, states)
    with (
        open_feed(config, dataset, job.sampler) as job.feed,
        open_log(job, Path(config.out), began) as log,
    ):
        try:
            train(job, log)
            if job.complete:
                log.finish(summarize(job))
            if config.elastic:
                comm.barrier()  # should rank 0 die before it has written all, others can
        except DEATHS:
            if not config.elastic:
                raise
            raise Interrupted(remember(job, states)) from None
    return job.complete


def _job(
    config: Config, comm: Communicator, dataset: Dataset, request: StopRequest
) -> tuple[Job, States]:
    """Everything that this process trains with, at the beginning of the run."""
    precision = Precision(config, comm)
    sampler = EpochSampler(
        size=dataset.info.train_images,
        batch=config.batch * config.workers_virtual,
        rank=comm.rank,
        world_size=comm.world_size,
        seed=config.seed,
    )
    seed_all(config.seed)  # the same initial weights on every worker
    network = _network(config, dataset.info.num_classes, precision)
    average = open_average(network, config.ema)
    model = DistributedDataParallel(
        network,
        bucket_bytes=config.bucket_bytes,
        wire_dtype=HALF[config.wire_dtype],
        op="sum",  # losses are divided by kn, so gradients are summed (Remark 3)
        algo=config.algo,
    )
    optimizer = build_optimizer(config, network)
    virtual = VirtualWorkers(model, count=config.workers_virtual, rank=comm.rank)
    precision.speed_up(network, config)
    states = _states(network, optimizer, virtual, average, precision)
    directory = Path(config.out)  # rank 0's, which alone writes there
    job = Job(
        config=config,
        comm=comm,
        dataset=dataset,
        precision=precision,
        normalize=precision.normalize(dataset.info),
        sampler=sampler,
        model=model,
        virtual=virtual,
        average=average,
        optimizer=optimizer,
        schedule=Schedule.from_config(config, sampler.iterations),
        guard=Guard(config, comm, virtual.state_dict().values(), dataset.info.num_classes, request),
        replicas=Replicas(comm, optimizer, config.check_replicas),
        saver=Saver(config, comm, states, Checkpoints(directory)),
        profiler=Profiler(config.profile if comm.rank == 0 else "", directory),
        random=RandomStates(virtual.workers) if config.elastic else None,
    )
    return job, states


def _states(
    network: nn.Module,
    optimizer: SGD,
    virtual: VirtualWorkers,
    average: AveragedModel | None,
    precision: Precision,
) -> States:
    """What checkpoints hold."""
    common: dict[str, Holder] = {"model": network, "optimizer": optimizer}
    if average:
        common["average"] = average
    if precision.scaler.is_enabled():
        common["scaler"] = precision.scaler
    workers: dict[str, Holder] = {
        "statistics": virtual,
        "random": RandomStates(virtual.workers),
    }
    return States(common=common, workers=workers)


def _network(config: Config, num_classes: int, precision: Precision) -> nn.Module:
    network = build_model(config.model, num_classes, config.gamma)
    if config.weights:
        load_weights(network, config.weights)
    precision.place(network)
    if config.ghost_bn:
        ghost(network, config.workers_virtual)
    return network
