"""Data that cannot be trained on: one line before any worker is started, and without torch."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
from photo_trees import write_tree

TABLE = [
    ("--data=folder", "--data folder: give its folder by --data-dir"),
    ("--data=folder --data-dir=/nowhere", "--data-dir /nowhere: there is no such folder"),
    ("--data=folder --data-dir=EMPTY", "there is no folder train in it"),
    ("--data=folder --data-dir=TREE --batch=5", "--batch 5 x --workers 4 = 20 images, but --data"),
    ("--data=packed", "--data packed: give its file by --data-dir"),
    ("--data=packed --data-dir=/nowhere", "--data-dir /nowhere: there is no such file"),
    ("--data=packed --data-dir=TREE", "there is no such file"),
    ("--data=packed --data-dir=TEXT", "is no packed file"),
    ("--data=fashion --data-dir=EMPTY", "apt install dataset-fashion-mnist"),
    ("--data=fashion --side=9", "--side 9: --data fashion is shown at 32, 28 or 14"),
    ("--side=64", "--side 64: --data digits is shown at 32 only"),
    ("--side=-1", "--side -1: give a whole number from 0 up"),
    ("--data=dali --data-dir=TREE", "--data dali needs NVIDIA DALI: pip install"),
    ("--data=cifar", "--data: invalid choice: 'cifar'"),
    ("--data-workers=-2", "--data-workers -2: give a whole number from -1 up"),
    ("--bad-images=ignore", "--bad-images: invalid choice: 'ignore'"),
    ("--bn-eval=median", "--bn-eval: invalid choice: 'median'"),
]

PROGRAM = """
import contextlib, io, json, sys
sys.modules["torch"] = sys.modules["nvidia"] = None
from trainer.run import main
answers = []
for argv in json.loads(sys.argv[1]):
    out, error = io.StringIO(), io.StringIO()
    with contextlib.redirect_stdout(out), contextlib.redirect_stderr(error):
        code = main(argv)
    answers.append([code, out.getvalue(), error.getvalue()])
print(json.dumps(answers))
"""


@pytest.fixture(scope="module")
def answers(tmp_path_factory) -> list[tuple[int, str, str]]:
    """What `trainer.run` answers to each line of the table, in a process without torch."""
    places = tmp_path_factory.mktemp("data")
    write_tree(places / "TREE")
    (places / "EMPTY").mkdir()
    (places / "TEXT").write_text("no header")
    lines = [[place(places, word) for word in line.split()] for line, _ in TABLE]
    lines = [[*line, f"--out={places / 'run'}"] for line in lines]
    root = Path(__file__).resolve().parents[2]
    environ = {**os.environ, "PYTHONPATH": str(root), "XDG_CACHE_HOME": str(places / "cache")}
    done = subprocess.run(
        [sys.executable, "-c", PROGRAM, json.dumps(lines)],
        capture_output=True, text=True, timeout=60, env=environ, check=True,
    )  # fmt: skip
    assert not (places / "run").exists()
    return [tuple(answer) for answer in json.loads(done.stdout)]


def place(places: Path, word: str) -> str:
    option, _, value = word.partition("=")
    return f"{option}={places / value}" if value.isupper() else word


@pytest.mark.parametrize("number", range(len(TABLE)), ids=[line for line, _ in TABLE])
def test_data_that_cannot_be_trained_on_are_refused_in_one_line(answers, number: int) -> None:
    code, out, error = answers[number]
    assert (code, out) == (2, "")
    assert error.startswith("trainer: ")
    assert error.count("\n") == 1
    assert TABLE[number][1] in error
