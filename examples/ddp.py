"""torch's own DistributedDataParallel over the backend "hier", on real digits.

    bash examples/launch/torchrun.sh examples/ddp.py

Only the name of the backend differs from a program for Gloo.
"""

import torch
import torch.distributed as dist
import torch.nn.functional as F
from digits import datasets, loss_of, network, report
from torch.nn.parallel import DistributedDataParallel
from torch.utils.data import DataLoader, DistributedSampler

dist.init_process_group("hier")  # where hier-allreduce is installed, torch knows this name

train, test = datasets()
sampler = DistributedSampler(train)  # each rank has its own part of every epoch
loader = DataLoader(train, batch_size=32, sampler=sampler)
model = network()
parallel = DistributedDataParallel(model)
optimizer = torch.optim.SGD(model.parameters(), lr=0.2, momentum=0.9)

before = loss_of(model, train)
for epoch in range(5):
    sampler.set_epoch(epoch)
    for images, labels in loader:
        optimizer.zero_grad()
        F.cross_entropy(parallel(images), labels).backward()  # averages the gradients meanwhile
        optimizer.step()
after = loss_of(model, train)

images, labels = test[dist.get_rank() :: dist.get_world_size()]  # each rank tests a part
right = (model(images).argmax(1) == labels).sum()
dist.all_reduce(right)
report(model, before, after, right.item() / len(test))
dist.destroy_process_group()
