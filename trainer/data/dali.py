"""Photos decoded and scaled by NVIDIA DALI on the GPU: files, order and crops are `folder`'s.

DALI does the pixels alone, so that an image is a pure function of (seed, epoch, index) here too.
Needs no torch until a batch is made.
"""

from __future__ import annotations

import functools
import importlib
import io
import os
from typing import TYPE_CHECKING, Any

import numpy as np

from trainer.data import DataError, DatasetInfo, Source, photos
from trainer.data.decoding import Indices, Split
from trainer.data.folder import describe as describe_folder
from trainer.data.folder_index import FOLDERS, load_index

if TYPE_CHECKING:
    from torch import Tensor

__all__ = ["Dali", "describe", "load"]

_THREADS = 4


def describe(source: Source) -> DatasetInfo:
    """As `folder`. DataError, too, if DALI is not installed."""
    _dali("fn")
    return describe_folder(source)


def load(source: Source) -> Dali:
    """The folder as a data set. DataError as `describe`, and where there is no GPU."""
    import torch

    if not torch.cuda.is_available():
        raise DataError("--data dali decodes on a GPU, and torch sees none: choose --data folder")
    return Dali(source)


def _dali(module: str) -> Any:
    try:
        return importlib.import_module(f"nvidia.dali.{module}")
    except ImportError:
        raise DataError(
            "--data dali needs NVIDIA DALI: pip install nvidia-dali-cuda120, or the release for "
            "your CUDA; or choose --data folder"
        ) from None


class Dali:
    """Photos of a folder; batches come from the GPU, and stay there."""

    def __init__(self, source: Source) -> None:
        self._info, self._root = describe(source), source.folder
        self._index = load_index(source.folder)
        self._pipeline = functools.cache(self._build)  # one for each size of batch

    @property
    def info(self) -> DatasetInfo:
        """Sizes and classes."""
        return self._info

    def train_batch(self, indices: Indices, *, seed: int, epoch: int) -> tuple[Tensor, Tensor]:
        """Augmented images, on the GPU."""
        crops = photos.crops((indices, seed, epoch), len(indices), self._info.side)
        return self._run("train", indices, crops)

    def test_batch(self, indices: Indices) -> tuple[Tensor, Tensor]:
        """Test images, on the GPU."""
        return self._run("test", indices, photos.crops(None, len(indices), self._info.side))

    def _run(
        self, split: Split, indices: Indices, crops: list[photos.Crop]
    ) -> tuple[Tensor, Tensor]:
        import torch
        from PIL import Image
        from torch.utils.dlpack import from_dlpack

        data, anchors, shapes, mirrors = [], [], [], []
        for name, crop in zip(self._index.names[split][indices].tolist(), crops, strict=True):
            path = os.path.join(self._root, FOLDERS[split], os.fsdecode(name))
            with open(path, "rb") as stream:
                data.append(np.frombuffer(stream.read(), np.uint8))
            with Image.open(io.BytesIO(data[-1].tobytes())) as head:
                (left, top, right, bottom), mirror = crop(*head.size)
            anchors.append(np.array([left, top], np.float32))
            shapes.append(np.array([right - left, bottom - top], np.float32))
            mirrors.append(np.array(int(mirror), np.int32))
        pipeline = self._pipeline(len(indices))
        fed = {"jpegs": data, "anchors": anchors, "shapes": shapes, "mirrors": mirrors}
        for name, values in fed.items():
            pipeline.feed_input(name, values)
        (images,) = pipeline.run()
        pixels = from_dlpack(images.as_tensor()).permute(0, 3, 1, 2).clone()
        return pixels, torch.from_numpy(self._index.labels[split][indices]).to(pixels.device)

    def _build(self, batch: int) -> Any:
        import torch

        fn, types = _dali("fn"), _dali("types")
        pipeline = _dali("pipeline").Pipeline(batch, _THREADS, torch.cuda.current_device())
        with pipeline:
            jpegs, anchors, shapes, mirrors = (
                fn.external_source(name=name) for name in ("jpegs", "anchors", "shapes", "mirrors")
            )
            images = fn.decoders.image_slice(
                jpegs, anchors, shapes, device="mixed", output_type=types.RGB, axis_names="WH",
                normalized_anchor=False, normalized_shape=False,
            )  # fmt: skip
            side = self._info.side
            images = fn.resize(images, size=(side, side), interp_type=types.INTERP_LINEAR)
            pipeline.set_outputs(fn.flip(images, horizontal=mirrors))
        pipeline.build()
        return pipeline
