"""--dry-run: what the paper's configuration comes to, by numbers that can be worked out by hand."""

from __future__ import annotations

import re

import pytest

from trainer.config.command_line import parse
from trainer.dry_run import dry_run
from trainer.run import main


@pytest.fixture(scope="module")
def paper() -> str:
    return dry_run(parse(["--dry-run", "--world", "256"], {}))


def number(text: str, name: str) -> float:
    """The first number in the line of that name."""
    (line,) = (line for line in text.splitlines() if line.strip().startswith(name))
    found = re.search(r"[\d,]*\d\.?\d*", line.strip().removeprefix(name))
    assert found, line
    return float(found[0].replace(",", ""))


def test_a_world_alone_is_the_recipe_of_the_paper(paper: str) -> None:
    assert "resnet50, 25,557,032 parameters" in paper
    assert "k = 256 in 256 processes on 32 nodes, n = 32, kn = 8,192" in paper
    assert "156 an epoch of 1,277,952 images (other 3,215 are left out in each), 14,040" in paper


def test_the_rates_are_those_of_the_paper(paper: str) -> None:
    rows = re.findall(r"^ +[\d.]+ +([\d,]+)  ([\d.]+)$", paper, flags=re.MULTILINE)
    rates = {int(iteration.replace(",", "")): float(eta) for iteration, eta in rows}
    assert rates[0] == 0.1
    assert rates[1] == pytest.approx(0.1 + 3.1 / 780, rel=1e-5)
    assert rates[780] == rates[4679] == 3.2
    assert [rates[epoch * 156] for epoch in (30, 60, 80)] == [0.32, 0.032, 0.0032]
    assert rates[14_039] == 0.0032


def test_memory_is_the_network_s_and_what_autograd_keeps(paper: str) -> None:
    for name in ("parameters", "gradients", "momentum"):
        assert number(paper, name) == 102.2
    # The outputs of the convolutions and normalisations of ResNet-50: 22.3 million values an image.
    activations = number(paper, "activations of 32 images")
    assert 0.9 * 32 * 22.3 * 4 < activations < 1.1 * 32 * 22.3 * 4


def test_half_precision_keeps_half_the_activations() -> None:
    argv = ["--dry-run", "--model=resnet18", "--precision"]
    full, half = (
        number(dry_run(parse([*argv, name], {})), "activations of 32 images")
        for name in ("f32", "bf16")
    )
    copies = 11.18 * 2  # of the weights
    assert half - copies == pytest.approx(full / 2, rel=0.1)  # indices of the pooling stay


def test_traffic_and_time_are_the_closed_forms(paper: str) -> None:
    gradients = 25_557_032 * 4
    share = 2 * 31 / 32
    assert number(paper, "halving_doubling") == share
    lines = [line for line in paper.splitlines() if line.strip().startswith("an iteration")]
    assert f"{share * gradients / 1e6:,.1f} MB" in lines[0]
    assert f"{share * gradients * 156 / 1e9:,.1f} GB" in paper
    assert "SIMULATED" in paper


def test_the_hour_of_the_paper_takes_an_hour(paper: str) -> None:
    assert number(paper, "computing an iteration") == 231.8
    assert number(paper, "90 epochs") == pytest.approx(1.0, abs=0.02)


def test_faster_gpus_compute_less_and_hide_less() -> None:
    def run(*more: str) -> str:
        return dry_run(parse(["--dry-run", "--world", "64", "--model=resnet18", *more], {}))

    assert "--rate images a second" in run()  # the paper has no figure for this network
    slow, fast = run("--rate=100"), run("--rate=10000")
    assert number(slow, "computing an iteration") == 32 / 100 * 1e3
    hours = number(slow, "where hosts vary") / 1e3 * 90 * (1_281_167 // 2048) / 3600
    assert number(slow, "90 epochs") == pytest.approx(hours, abs=0.01)

    def efficiency(text: str) -> float:
        (found,) = re.findall(r"not hidden: efficiency ([\d.]+)%", text)
        return float(found)

    assert efficiency(slow) > 99
    assert efficiency(fast) < 60


def test_virtual_workers_hide_communication_in_their_last_turn_alone() -> None:
    def exposed(*more: str) -> float:
        argv = ["--dry-run", "--model=resnet18", "--nodes=8", "--gigabits=1", *more]
        (found,) = re.findall(r"([\d.,]+) ms of communication", dry_run(parse(argv, {})))
        return float(found.replace(",", ""))

    alone = exposed("--workers=8", "--batch=8", "--rate=100")
    turns = exposed("--workers=64", "--workers-virtual=8", "--batch=8", "--rate=800")
    assert turns > alone > 0


def test_half_as_much_travels_in_half_precision() -> None:
    def traffic(wire: str) -> float:
        argv = ["--dry-run", "--world=64", "--model=resnet18", "--wire-dtype", wire]
        (found,) = re.findall(r"an iteration +([\d.]+) MB", dry_run(parse(argv, {})))
        return float(found)

    assert traffic("bf16") == pytest.approx(traffic("f32") / 2, rel=0.01)


def test_links_are_those_of_the_options() -> None:
    def time(*options: str) -> float:
        text = dry_run(parse(["--dry-run", "--world=64", "--model=resnet18", *options], {}))
        (line,) = re.findall(r"an iteration +([\d.]+) ms", text)
        return float(line)

    assert time("--gigabits=10") > time() > time("--gigabits=400")
    assert time("--alpha=1000") > time()


def test_the_main_job_can_be_looked_at_and_starts_nothing(capsys, tmp_path, monkeypatch) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.delenv("RANK", raising=False)
    assert main(["--dry-run"]) == 0
    assert "12 an epoch of 1,536 images" in capsys.readouterr().out
    assert list(tmp_path.iterdir()) == []


def test_one_node_has_no_traffic_and_a_cosine_has_its_rows() -> None:
    text = dry_run(parse(["--dry-run", "--workers=2", "--nodes=1", "--schedule=cosine"], {}))
    assert "traffic between nodes: none, there is one" in text
    assert len(re.findall(r"^ +[\d.e-]+ +[\d,]+  [\d.e-]+$", text, flags=re.MULTILINE)) > 10
