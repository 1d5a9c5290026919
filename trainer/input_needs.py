"""What k GPUs need of cores, disks and networks to be fed: arithmetic, for `trainer.report input`.

Rates are those of benchmarks/test_decoding.py (MEASURED, images per second and core); bytes per
photo are ImageNet's (QUOTED: 140 GB / 1.28 M training images).
"""

from __future__ import annotations

from dataclasses import dataclass

__all__ = ["WAYS", "Need", "Way", "lines", "need"]

JPEG_BYTES = 110_000
PACKED_BYTES = 256 * 256 * 3
TRAVEL_BYTES = 224 * 224 * 3  # uint8, from the host to the GPU


@dataclass(frozen=True, slots=True, kw_only=True)
class Way:
    """A way to keep the images: `rate` in images per second and core, `read` in bytes an image."""

    name: str
    rate: float
    read: int


WAYS = (
    Way(name="folder, Pillow", rate=300.0, read=JPEG_BYTES),
    Way(name="folder, simplejpeg", rate=350.0, read=JPEG_BYTES),
    Way(name="packed 256x256", rate=1000.0, read=PACKED_BYTES),
)


@dataclass(frozen=True, slots=True, kw_only=True)
class Need:
    """What one node needs (and the job, where it says so); bytes and images per second."""

    way: Way
    images: float
    cores: float
    read: float
    read_by_job: float
    network_gbit: float  # if the images come over the network
    memory: float  # bytes: of all training images of ImageNet, to read them from a disk only once


def need(way: Way, *, gpus: int, rate: float, gpus_per_node: int = 8) -> Need:
    """The need of `gpus` GPUs that train `rate` images a second each.

    ValueError for numbers that are not above 0.
    """
    if gpus < 1 or gpus_per_node < 1 or not 0 < rate < float("inf"):
        raise ValueError("--gpus, --rate and --gpus-per-node: give numbers above 0")
    per_node = min(gpus, gpus_per_node)
    images = rate * per_node
    return Need(
        way=way,
        images=images,
        cores=images / way.rate,
        read=images * way.read,
        read_by_job=rate * gpus * way.read,
        network_gbit=images * way.read * 8 / 1e9,
        memory=1_281_167 * way.read,
    )


def lines(gpus: int, rate: float, gpus_per_node: int = 8) -> list[str]:
    """The table of `trainer.report input`: one row for each way to keep the images.

    `rate` is images per second and GPU, as `trainer.run --data synthetic` measures it.
    """
    needs = [need(way, gpus=gpus, rate=rate, gpus_per_node=gpus_per_node) for way in WAYS]
    per_node = min(gpus, gpus_per_node)
    nodes = -(-gpus // per_node)
    text = [
        f"{gpus} GPUs x {rate:,.0f} images/s = {gpus * rate:,.0f} images/s; "
        f"{nodes} nodes of {per_node} GPUs, {needs[0].images:,.0f} images/s each",
        "",
        f"{'ImageNet at 224x224':<20}{'images/s':>9}{'cores':>7}{'read':>10}{'network':>13}"
        f"{'read':>10}{'page cache':>12}",
        f"{'':<20}{'per core':>9}{'a node':>7}{'a node':>10}{'a node':>13}{'the job':>10}"
        f"{'a node':>12}",
    ]
    text += [
        f"{n.way.name:<20}{n.way.rate:>9,.0f}{n.cores:>7,.0f}{n.read / 1e9:>5.1f} GB/s"
        f"{n.network_gbit:>6,.1f} Gbit/s{n.read_by_job / 1e9:>5,.1f} GB/s{n.memory / 1e9:>9,.0f} GB"
        for n in needs
    ]
    travel = rate * TRAVEL_BYTES
    text += [
        "",
        f"to each GPU {travel / 1e9:.2f} GB/s of uint8 (float32 would be {4 * travel / 1e9:.2f})",
        "cores beyond those that the allreduce and the training processes keep busy themselves;",
        "a node with less page cache than that reads from its disk or network in each epoch",
        "images/s per core: MEASURED on one core of an AMD EPYC; bytes per photo: QUOTED",
    ]
    return text
