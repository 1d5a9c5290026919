"""Ray Train over the backend "hier", on real digits: two workers, on this machine or a Ray cluster.

    pip install 'hier-allreduce[torch,clients]'
    PYTHONPATH=examples python3 examples/engines/ray_train.py

Only TorchConfig(backend="hier") differs from a program for Gloo. With --kill rank 1 kills itself
once, in the third epoch. Rank 0 then gets a PeerError, and Ray starts both workers again.
"""

import os
import secrets
import signal
import sys
import tempfile
from pathlib import Path

import ray
import ray.train
import ray.train.torch
import torch
import torch.nn.functional as F
from digits import datasets, loss_of, network, report
from torch.utils.data import DataLoader, DistributedSampler


def train(config: dict[str, Path]) -> None:
    """Trains on each worker, in the group that Ray has made."""
    rank = ray.train.get_context().get_world_rank()
    data, test = datasets()
    sampler = DistributedSampler(data)
    loader = DataLoader(data, batch_size=32, sampler=sampler)
    model = network()
    parallel = ray.train.torch.prepare_model(model)  # torch's DistributedDataParallel
    optimizer = torch.optim.SGD(model.parameters(), lr=0.2, momentum=0.9)

    before = loss_of(model, data)
    for epoch in range(5):
        if epoch == 2 and rank == 1 and "killed" in config and not config["killed"].exists():
            config["killed"].touch()
            os.kill(os.getpid(), signal.SIGKILL)
        sampler.set_epoch(epoch)
        for images, labels in loader:
            optimizer.zero_grad()
            F.cross_entropy(parallel(images), labels).backward()
            optimizer.step()
    images, labels = test.tensors
    right = (model(images).argmax(1) == labels).float().mean().item()
    report(model, before, loss_of(model, data), right)


with tempfile.TemporaryDirectory() as folder:
    secret = os.environ.get("ALLREDUCE_SECRET") or secrets.token_hex(16)
    workers_have = {"ALLREDUCE_SECRET": secret, "ALLREDUCE_REQUIRE_AUTH": "1"}
    ray.init(runtime_env={"env_vars": workers_have})
    ray.train.torch.TorchTrainer(
        train,
        train_loop_config={"killed": Path(folder, "killed")} if "--kill" in sys.argv else {},
        torch_config=ray.train.torch.TorchConfig(backend="hier"),
        scaling_config=ray.train.ScalingConfig(num_workers=2),
        run_config=ray.train.RunConfig(
            storage_path=folder,  # on a cluster: a folder that all hosts share
            failure_config=ray.train.FailureConfig(max_failures=1),
        ),
    ).fit()
    ray.shutdown()
