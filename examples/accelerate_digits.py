"""Hugging Face accelerate over the backend "hier", on real digits.

    pip install 'hier-allreduce[clients]'
    bash examples/launch/torchrun.sh examples/accelerate_digits.py

The group is made first, and accelerate takes the one that it finds. Its own way to name a backend,
InitProcessGroupKwargs(backend=...), admits none but gloo and mpi on CPUs (accelerate 1.15). And
cpu=True is needed: without it, and without a GPU, accelerate would train each rank by itself.
"""

import torch
import torch.distributed as dist
import torch.nn.functional as F
from accelerate import Accelerator
from digits import datasets, loss_of, network, report
from torch.utils.data import DataLoader

dist.init_process_group("hier")
accelerator = Accelerator(cpu=True)

train, test = datasets()
model = network()
optimizer = torch.optim.SGD(model.parameters(), lr=0.2, momentum=0.9)
parallel, optimizer, loader, test_loader = accelerator.prepare(
    model, optimizer, DataLoader(train, batch_size=32, shuffle=True), DataLoader(test, 64)
)

before = loss_of(model, train)
for _ in range(5):
    for images, labels in loader:
        optimizer.zero_grad()
        accelerator.backward(F.cross_entropy(parallel(images), labels))
        optimizer.step()
after = loss_of(model, train)

right = 0
for images, labels in test_loader:  # each rank tests a part
    hits = model(images).argmax(1) == labels
    right += int(accelerator.gather_for_metrics(hits).sum())
report(model, before, after, right / len(test))
accelerator.end_training()
