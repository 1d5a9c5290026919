"""What k GPUs need of cores, disks and networks to be fed: arithmetic, for `trainer.report input`.

Rates are those of benchmarks/suite/test_decoding.py (MEASURED, images per second and core);
bytes per photo are ImageNet's (QUOTED: 140 GB / 1.28 M training images).
"""

from __future__ import annotations

import math
from dataclasses import dataclass

from trainer.data import IMAGENET

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
    Way(name="folder, simplejpeg", rate=335.0, read=JPEG_BYTES),
    Way(name="packed 256x256", rate=1150.0, read=PACKED_BYTES),
)


@dataclass(frozen=True, slots=True, kw_only=True)
class Need:
    """What one node needs, in whole cores, bytes per second and bytes."""

    images: float  # per second
    cores: int
    read: float
    memory: float  # of all training images of ImageNet: with less, each epoch reads them again


def need(way: Way, *, rate: float, gpus: int) -> Need:
    """The need of a node of `gpus` GPUs that train `rate` images a second each."""
    images = rate * gpus
    return Need(
        images=images,
        cores=math.ceil(images / way.rate),
        read=images * way.read,
        memory=IMAGENET.train_images * way.read,
    )


def lines(gpus: int, rate: float, gpus_per_node: int = 8) -> list[str]:
    """The text of `trainer.report input`, a row for each way to keep the images.

    `rate` is in images per second and GPU, as a run with --data synthetic measures it. ValueError
    that names the option for a number that is not above 0.
    """
    for option, value in (("gpus", gpus), ("rate", rate), ("gpus-per-node", gpus_per_node)):
        if not 0 < value < float("inf"):
            raise ValueError(f"--{option} {value}: give a number above 0")
    local = min(gpus, gpus_per_node)
    nodes = -(-gpus // local)
    widths = (20, 10, 8, 11, 15, 12, 13)
    rows = [
        ("ImageNet at 224x224", "images/s", "cores", "read", "network", "read", "page cache"),
        ("", "per core", "a node", "a node", "a node", "the job", "a node"),
    ]
    for way in WAYS:
        node = need(way, rate=rate, gpus=local)
        rows.append(
            (
                way.name,
                f"{way.rate:,.0f}",
                f"{node.cores:,}",
                f"{node.read / 1e9:,.1f} GB/s",
                f"{8 * node.read / 1e9:,.1f} Gbit/s",
                f"{gpus * rate * way.read / 1e9:,.1f} GB/s",
                f"{node.memory / 1e9:,.0f} GB",
            )
        )
    travel = rate * TRAVEL_BYTES / 1e9
    return [
        f"{gpus:,} GPUs x {rate:,.0f} images/s = {gpus * rate:,.0f} images/s: "
        f"{nodes:,} nodes of {local}, {rate * local:,.0f} images/s each",
        "",
        *(
            f"{row[0]:<{widths[0]}}"
            + "".join(f"{cell:>{width}}" for cell, width in zip(row[1:], widths[1:], strict=True))
            for row in rows
        ),
        "",
        f"to each GPU {travel:.2f} GB/s of uint8 (float32 would be {4 * travel:.2f})",
        "cores: besides those that the training processes and the allreduce keep busy",
        "network: if the images come over it; it adds to the gradients' traffic",
        "page cache: a node with less reads its images anew in each epoch",
        "images/s per core: MEASURED (benchmarks/suite/test_decoding.py); 110 kB a photo: QUOTED",
    ]
