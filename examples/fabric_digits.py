"""Lightning Fabric over the backend "hier", on real digits.

    pip install 'hier-allreduce[clients]'
    bash examples/launch/torchrun.sh examples/fabric_digits.py

Only `process_group_backend` differs from a program for Gloo.
"""

import torch
import torch.distributed as dist
import torch.nn.functional as F
from digits import datasets, loss_of, network, report
from lightning_fabric import Fabric
from lightning_fabric.strategies import DDPStrategy
from torch.utils.data import DataLoader

strategy = DDPStrategy(process_group_backend="hier")
fabric = Fabric(accelerator="cpu", devices=2, num_nodes=2, strategy=strategy)
fabric.launch()

train, test = datasets()
model = network()
optimizer = torch.optim.SGD(model.parameters(), lr=0.2, momentum=0.9)
parallel, optimizer = fabric.setup(model, optimizer)
loader = fabric.setup_dataloaders(DataLoader(train, batch_size=32, shuffle=True))

before = loss_of(model, train)
for _ in range(5):
    for images, labels in loader:
        optimizer.zero_grad()
        fabric.backward(F.cross_entropy(parallel(images), labels))
        optimizer.step()
after = loss_of(model, train)

images, labels = test[fabric.global_rank :: fabric.world_size]  # each rank tests a part
right = fabric.all_reduce((model(images).argmax(1) == labels).sum(), reduce_op="sum")
report(model, before, after, right.item() / len(test))
dist.destroy_process_group()
