"""Images per second and core that the input pipeline makes, beside published figures.

The photos are those that scikit-learn and scikit-image ship, where these are installed, else
made-up ones (the table says which), at ImageNet's usual size. Rates are per second of CPU time.
"""

from __future__ import annotations

import io
import time
from collections.abc import Iterator
from importlib import resources
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from benchmarks.conftest import Report
from trainer.data import Source, packed_file, photos
from trainer.data.decoding import DecodingDataset
from trainer.data.folder import Folder
from trainer.data.packed import PackedPhotos
from trainer.pack import pack

PIL = pytest.importorskip("PIL.Image", reason="Pillow decodes")

SIZE, COPIES = (500, 375), 4  # ImageNet's usual size; files of each photo and class
SHIPPED = {
    "sklearn.datasets": ("images/china.jpg", "images/flower.jpg"),
    "skimage": ("data/astronaut.png", "data/coffee.png", "data/chelsea.png", "data/rocket.jpg"),
}
QUOTED = (
    "QUOTED  torchvision 393 images/s/core decoded at 551x676 (pytorch/vision issue 8468)",
    "QUOTED  FFCV 326 images/s/vCPU from JPEG of 512, 1,800 from raw 256, with crop (ffcv.io)",
)

pytestmark = [
    pytest.mark.timeout(300),
    pytest.mark.benchmark(timer=time.process_time, min_rounds=5, warmup=True),
]


def sample_photos() -> tuple[str, list[Any]]:
    """Where the photos are from, and they, at `SIZE`."""
    found = []
    for package, names in SHIPPED.items():
        try:
            root = resources.files(package)
        except ImportError:
            continue
        found += [
            PIL.open(io.BytesIO((root / n).read_bytes())) for n in names if (root / n).is_file()
        ]
    if found:
        return f"{len(found)} photos shipped with scikit-learn and scikit-image", [
            photo.convert("RGB").resize(SIZE) for photo in found
        ]
    rng = np.random.default_rng(0)
    coarse = [PIL.fromarray(rng.integers(256, size=(24, 32, 3), dtype=np.uint8)) for _ in range(6)]
    grain = rng.integers(-12, 13, (SIZE[1], SIZE[0], 3))
    return "made-up photos: smooth colours with grain", [
        PIL.fromarray((np.asarray(c.resize(SIZE)) + grain).clip(0, 255).astype(np.uint8))
        for c in coarse
    ]


@pytest.fixture(scope="module")
def tree(tmp_path_factory: pytest.TempPathFactory, report: Report) -> Path:
    """Return an image folder of the photos."""
    root = tmp_path_factory.mktemp("photos")
    words, pictures = sample_photos()
    for split in ("train", "val"):
        for number in range(COPIES):
            folder = root / split / f"class{number}"
            folder.mkdir(parents=True)
            for i, picture in enumerate(pictures):
                picture.save(folder / f"{i}.JPEG", quality=92 + number)
    files = list(root.rglob("*.JPEG"))
    mean = sum(file.stat().st_size for file in files) / len(files)
    report.row(header(), f"{words}, {SIZE[0]}x{SIZE[1]}, {mean / 1e3:.0f} kB a file")
    return root


def header() -> str:
    return "INPUT PIPELINE, images/s per core (by CPU time)"


@pytest.fixture(scope="module", autouse=True)
def quoted(report: Report) -> Iterator[None]:
    yield
    for line in QUOTED:
        report.row(header(), line)


@pytest.fixture
def measure(benchmark: Any, report: Report):
    """Return a function that times a call which makes `count` images."""

    def run(name: str, count: int, call: Any) -> None:
        benchmark(call)
        if benchmark.stats is not None:  # there are none with --benchmark-disable
            rate = count / benchmark.stats.stats.median
            report.row(header(), f"MEASURED  {name:<44}{rate:8,.0f}")

    return run


@pytest.fixture(params=["Pillow", "simplejpeg"])
def decoder(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> str:
    if request.param == "Pillow":
        monkeypatch.setattr(photos, "simplejpeg", None)
    elif photos.simplejpeg is None:
        pytest.skip("simplejpeg is not installed")
    return str(request.param)


def filled(dataset: DecodingDataset, split: Any) -> tuple[int, Any]:
    """A call that makes all images of a split, and how many they are."""
    info = dataset.info
    count = info.train_images if split == "train" else info.test_images
    out = np.empty((count, info.side, info.side, 3), np.uint8)
    indices = np.arange(count)

    def call() -> None:
        assert dataset.plan(split, indices, seed=0, epoch=0).fill(out) == []

    return count, call


def test_decode(measure: Any, tree: Path, decoder: str) -> None:
    paths = [str(path) for path in sorted((tree / "train").rglob("*.JPEG"))]
    measure(f"decode, {decoder}", len(paths), lambda: [photos.decode(p).load() for p in paths])


def test_folder_training_crop(measure: Any, tree: Path, decoder: str) -> None:
    folder = Folder(Source(name="folder", folder=str(tree)))
    measure(f"decode and random crop to 224, {decoder}", *filled(folder, "train"))


def test_folder_test_crop(measure: Any, tree: Path, decoder: str) -> None:
    folder = Folder(Source(name="folder", folder=str(tree)))
    measure(f"decode and middle crop to 224, {decoder}", *filled(folder, "test"))


def test_packed_training_crop(measure: Any, tree: Path, tmp_path: Path) -> None:
    file = tmp_path / "packed"
    pack(Source(name="folder", folder=str(tree)), file, side=256, workers=1)
    source = Source(name="packed", folder=str(file))
    _, images, labels = packed_file.open_arrays(str(file))
    dataset = PackedPhotos(packed_file.describe(source), images, labels)
    measure("packed 256x256, random crop to 224", *filled(dataset, "train"))


def test_normalising_on_the_host_instead(measure: Any) -> None:
    """What is saved by sending uint8: the same work on a core of the host."""
    images = np.random.default_rng(0).integers(256, size=(16, 224, 224, 3), dtype=np.uint8)

    def normalise() -> np.ndarray:
        return ((images.transpose(0, 3, 1, 2) / np.float32(255)) - 0.5).astype(np.float32) / 0.25

    measure("normalisation on the host (we do it on the device)", 16, normalise)
