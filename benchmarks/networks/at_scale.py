"""SIMULATED: efficiency of ResNet-50's training step on 1 to 1,250 hosts of 8 GPUs.

    python -m benchmarks.networks.at_scale
    python -m benchmarks.report.pictures at_scale - OUT.svg

By the model of a training step (allreduce.tuning.training_step) with the paper's computation, for
networks of three kinds. Then two things that no network cures: hosts whose speed varies, and links
that fail.

Link failures: Meta's training of Llama 3 on 2,048 hosts was interrupted 35 times in 54 days by
switches and cables (QUOTED, "The Llama 3 Herd of Models", section 3.3.4). Each costs the time until
it is noticed, a start, and half of what lies between two checkpoints.
"""

from __future__ import annotations

from allreduce.tuning.cost import NETWORK, Layout, Link
from allreduce.tuning.training_step import slowest
from benchmarks.networks.prediction import iteration_seconds
from benchmarks.networks.training import OURS
from trainer.dry_run.duration import ITERATION, SIGMA

HOSTS = (1, 2, 4, 8, 16, 32, 64, 128, 256, 512, 1024, 1250)
GPUS = 8  # of a host
NETWORKS = {  # seconds of a message, Gbit/s
    "50 Gbit/s, 80 us": (80e-6, 50),
    "25 Gbit/s, 200 us": (200e-6, 25),
    "100 Gbit/s, 20 us": (20e-6, 100),
}
WAYS = ("buckets, halving_doubling", "buckets, ring", "tensors, halving_doubling", "tensors, ring")
_OVERHEAD = 2e-6  # seconds of a further message in a round; emulated hosts have 0.4 to 2.9 us
VARIED, FAILING = "buckets, hosts vary", "buckets, hosts vary and links fail"
_FAILURES = 35 / 54 / 24 / 2048  # of the links of a host, an hour
_LOST = 4 + 60 + 600 / 2  # seconds: noticed, started again, half of 10 minutes between checkpoints


def efficiency(hosts: int, network: str, way: str) -> float:
    """Return the time of an iteration on one host divided by that on so many hosts."""
    computing = ITERATION * (slowest(hosts, SIGMA) if way in (VARIED, FAILING) else 1.0)
    seconds = computing
    if hosts > 1:
        alpha, gigabits = NETWORKS[network]
        layout = Layout(node_of_rank=tuple(range(hosts)))
        link = Link(alpha=alpha, beta=8e-9 / gigabits, gamma=0.0, overhead=_OVERHEAD)
        links = {NETWORK: link}
        bucket_bytes, algo = OURS[WAYS[0] if way in (VARIED, FAILING) else way]
        seconds = iteration_seconds(layout, links, bucket_bytes, algo, computing=computing)
    if way == FAILING:
        seconds *= 1 + _FAILURES * hosts * _LOST / 3600
    return ITERATION / seconds


def main() -> None:
    """Print the table."""
    ways = (*WAYS, VARIED, FAILING)
    for network in NETWORKS:
        print(f"SIMULATED, {network}\n{'hosts':>6}{'GPUs':>7}  " + "   ".join(ways))
        for hosts in HOSTS:
            row = (f"{efficiency(hosts, network, way):>{len(way)}.1%}" for way in ways)
            print(f"{hosts:>6}{hosts * GPUS:>7}  " + "   ".join(row), flush=True)


if __name__ == "__main__":
    main()
