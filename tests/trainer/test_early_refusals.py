"""What a machine cannot give is refused before any process is started."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch

from trainer.config.checks import ConfigError, gpus_are_there
from trainer.config.options import Config
from trainer.model.pretrained import check_weights
from trainer.model.resnet import build_model

CASES = [  # GPUs here, processes here (None: another launcher's), options, words
    (0, 2, {"device": "cuda"}, "--device cuda: torch finds no GPU here; leave it out, or give cpu"),
    (0, None, {"device": "cuda"}, "--device cuda: torch finds no GPU here"),
    (2, 4, {"device": "cuda"}, "--device cuda: 4 processes on this machine have 2 GPUs between"),
    (1, 2, {"device": "cuda"}, "--device cuda: 2 processes on this machine have 1 GPU between"),
    (0, 1, {"cuda_graphs": True, "workers": 1}, "--cuda-graphs: there is no GPU here; leave it"),
    (8, 2, {"cuda_graphs": True, "workers": 2}, "--cuda-graphs: is for jobs of one process so far"),
    (
        0,
        2,
        {"precision": "fp16"},
        "--precision fp16: a CPU has to emulate it, some 20 times slower",
    ),
    (8, 2, {"precision": "fp16", "device": "cpu"}, "--precision fp16: a CPU has to emulate it"),
    (2, 4, {"precision": "fp16"}, "--precision fp16: a CPU has to emulate it"),
]


@pytest.mark.parametrize(("gpus", "local", "options", "says"), CASES)
def test_what_gpus_cannot_give_is_refused(monkeypatch, gpus, local, options, says) -> None:
    monkeypatch.setattr("trainer.config.checks.usable_gpus", lambda: gpus)
    with pytest.raises(ConfigError) as caught:
        gpus_are_there(Config(**options), local)
    assert str(caught.value).startswith(says)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize(
    ("gpus", "local", "options"),
    [
        (0, 4, {}),
        (0, 4, {"precision": "bf16"}),
        (4, 4, {"device": "cuda", "precision": "fp16"}),
        (1, None, {"device": "cuda", "workers": 8}),  # a scheduler shows each task its own
        (1, 1, {"cuda_graphs": True, "workers": 1}),
        (2, 4, {"device": "cpu"}),
    ],
)
def test_what_they_can_is_not(monkeypatch, gpus, local, options) -> None:
    monkeypatch.setattr("trainer.config.checks.usable_gpus", lambda: gpus)
    gpus_are_there(Config(**options), local)


def test_weights_of_another_network_are_refused_without_making_one(tmp_path: Path) -> None:
    file = tmp_path / "weights.pth"
    torch.save(build_model("resnet8", 10).state_dict(), file)
    config = Config(model="resnet8", weights=str(file))
    check_weights(config, 10)
    with pytest.raises(ConfigError, match=r"fc.weight is \[10, 32\], not \[100, 32\]"):
        check_weights(config, 100)


@pytest.mark.timeout(400)
@pytest.mark.parametrize("options", [["--weights=FILE"], ["--precision=fp16", "--device=cpu"]])
def test_the_program_refuses_in_one_line_and_makes_no_directory(tmp_path: Path, options) -> None:
    (tmp_path / "broken.pth").write_bytes(b"PK no weights")
    options = [option.replace("FILE", str(tmp_path / "broken.pth")) for option in options]
    out = tmp_path / "run"
    done = subprocess.run(
        [sys.executable, "-m", "trainer.run", "--model=resnet8", *options, f"--out={out}"],
        capture_output=True, text=True, timeout=360, check=False, env={**os.environ},
    )  # fmt: skip
    assert done.returncode == 2
    (line,) = (text for text in done.stderr.splitlines() if text.startswith("trainer: "))
    assert line.startswith(f"trainer: {options[0].replace('=', ' ')}: ")
    assert "Traceback" not in done.stderr
    assert not out.exists()
