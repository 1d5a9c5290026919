"""The command line: defaults, help, and a one-line refusal for each mistake."""

from __future__ import annotations

import dataclasses
import subprocess
import sys

import pytest

from allreduce import schedules
from trainer.config.checks import machine_holds, weights_are_there
from trainer.config.command_line import parse
from trainer.config.gpus import usable_gpus
from trainer.config.options import ALGORITHMS, ALIASES, GROUPS, Config, ConfigError

LAUNCHER = {"RANK": "1", "WORLD_SIZE": "3", "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": "29500"}


def test_without_arguments_it_is_the_main_job() -> None:
    config = parse([], {})
    assert (config.model, config.data, config.epochs) == ("resnet50", "digits", 5)
    assert (config.workers, config.nodes, config.batch, config.minibatch) == (4, 2, 32, 128)
    assert config.out.startswith("runs/")


def test_algorithms_are_those_of_the_core():
    assert ("auto", *schedules.algorithms("allreduce")) == ALGORITHMS
    assert schedules.aliases() == ALIASES


@pytest.mark.parametrize("algo", ALGORITHMS)
def test_every_algorithm_can_be_chosen(algo: str) -> None:
    assert parse(["--algo", algo], {}).algo == algo


def test_bucket_is_another_name_of_ring() -> None:
    assert parse(["--algo", "bucket"], {}).algo == "ring"


def test_arguments_made_from_a_configuration_give_it_again() -> None:
    config = parse(
        ["--milestones", "1.5,3", "--batch=16", "--lr", "0.2", "--workers", "3", "--out", "a b"], {}
    )
    assert config.milestones == (1.5, 3.0)
    assert parse(config.to_argv(), {}) == config


def test_buckets_may_be_auto() -> None:
    config = parse(["--bucket-bytes", "auto"], {})
    assert config.bucket_bytes == "auto"
    assert parse(config.to_argv(), {}) == config


def test_gradients_may_travel_in_half_precision() -> None:
    config = parse(["--wire-dtype", "bf16"], {})
    assert config.wire_dtype == "bf16"
    assert parse(config.to_argv(), {}) == config
    with pytest.raises(ConfigError, match="--wire-dtype: invalid choice: 'f64'"):
        parse(["--wire-dtype", "f64"], {})


def test_deterministic_keeps_threads_and_a_fixed_algorithm() -> None:
    config = parse(["--deterministic"], {})
    assert config.threads >= 1
    assert config.algo == "halving_doubling"
    assert parse(["--deterministic", "--algo", "ring"], {}).algo == "ring"
    assert parse(config.to_argv(), {}) == config


def test_channels_last_may_stand_alone() -> None:
    assert parse(["--channels-last"], {}).channels_last == "on"
    assert parse(["--channels-last=off"], {}).channels_last == "off"


def test_one_worker_is_one_node() -> None:
    assert parse(["--workers", "1"], {}).nodes == 1


def test_a_launcher_decides_workers_and_leaves_nodes_real() -> None:
    config = parse(["--batch", "8"], LAUNCHER)
    assert (config.workers, config.nodes, config.minibatch, config.out) == (3, 0, 24, "")
    assert parse(["--nodes", "3"], LAUNCHER).nodes == 3


@pytest.mark.parametrize(
    ("gpus", "argv", "workers", "nodes"),
    [
        (3, [], 3, 1),
        (1, [], 1, 1),
        (8, ["--workers", "2"], 2, 1),
        (8, ["--nodes", "2"], 8, 2),
        (2, ["--workers", "4"], 4, 2),  # on the CPU, since not each process could have a GPU
        (3, ["--device", "cpu"], 4, 2),
        (3, ["--workers-virtual", "2"], 2, 1),
        (3, ["--machines", "2", "--master", "a:1"], 6, 0),
        (3, ["--dry-run"], 4, 2),
    ],
)
def test_gpus_that_are_found_have_a_worker_each(
    monkeypatch: pytest.MonkeyPatch, gpus: int, argv: list[str], workers: int, nodes: int
) -> None:
    monkeypatch.setattr("trainer.config.command_line.usable_gpus", lambda: gpus)
    config = parse(argv, {})
    assert (config.workers, config.nodes) == (workers, nodes)


def test_a_torch_for_cpus_has_no_gpus(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("allreduce.cuda.device_count", lambda: 2)
    for release, gpus in (("2.13.0+cpu", 0), ("2.13.0", 2), ("2.11.0+cu130", 2)):
        monkeypatch.setattr("importlib.metadata.version", lambda name, release=release: release)
        assert usable_gpus() == gpus


REFUSALS = [
    (["--algo", "nccl"], r"--algo: invalid choice: 'nccl' \(choose from .*halving_doubling"),
    (["--model", "vgg"], "--model: invalid choice: 'vgg'"),
    (["--data", "imagenet"], "--data: invalid choice: 'imagenet'"),
    (["--batch", "x"], "--batch: invalid int value: 'x'"),
    (["--batch", "1"], "--batch 1: batch normalisation needs at least 2 images"),
    (["--batch", "400"], "--batch 400 x --workers 4 = 1600 images, but --data digits has 1536"),
    (["--workers", "0"], "--workers 0: give a whole number from 1 up"),
    (["--workers", "-3"], "--workers -3: give a whole number from 1 up"),
    (["--nodes", "5"], "--nodes 5: at most 4, one process to each node"),
    (["--epochs", "0"], "--epochs 0: give a whole number from 1 up"),
    (["--seed", "-1"], "--seed -1: give a whole number from 0 up"),
    (["--threads", "-1"], "--threads -1: give a whole number from 0 up"),
    (["--bucket-bytes", "-1"], "--bucket-bytes -1: give a whole number from 0 up"),
    (["--bucket-bytes", "big"], "--bucket-bytes: big: give a number of bytes, or auto"),
    (["--log-every", "0"], "--log-every 0: give a whole number from 1 up"),
    (["--max-iterations", "-1"], "--max-iterations -1: give a whole number from 0 up"),
    (["--lr", "0"], "--lr 0.0: give a number above 0"),
    (["--lr", "nan"], "--lr nan: give a number above 0"),
    (["--timeout", "inf"], "--timeout inf: give a number above 0"),
    (["--momentum", "1"], "--momentum 1.0: give a number from 0 to below 1"),
    (["--weight-decay", "-1"], "--weight-decay -1.0: give a number from 0 up"),
    (["--warmup-epochs", "6"], "--warmup-epochs 6.0: give 0 to --epochs 5"),
    (["--warmup", "linear"], "--warmup: invalid choice: 'linear' .*gradual"),
    (["--scaling", "log"], "--scaling: invalid choice: 'log' .*linear"),
    (["--schedule", "poly"], "--schedule: invalid choice: 'poly' .*cosine"),
    (["--gamma", "0.5"], "--gamma: invalid int value: '0.5'"),
    (["--gamma", "2"], "--gamma: invalid choice: 2"),
    (["--warmup-start", "-1"], "--warmup-start -1.0: give a number from 0 up"),
    (["--label-smoothing", "1"], "--label-smoothing 1.0: give a number from 0 to below 1"),
    (["--lars-trust", "0"], "--lars-trust 0.0: give a number above 0"),
    (
        ["--optimizer", "lars", "--sgd-form", "absorbed"],
        "--sgd-form absorbed: --optimizer lars has the reference form alone",
    ),
    (
        ["--schedule", "cosine", "--warmup-epochs", "5"],
        "--warmup-epochs 5.0: leave epochs for --schedule cosine to fall in",
    ),
    (["--milestones", "3,2"], "--milestones 3,2: give increasing numbers of epochs"),
    (["--milestones", "a"], "--milestones: a: give numbers of epochs, as 30,60,80"),
    (["--save-every", "0"], "--save-every 0: give a whole number from 1 up"),
    (["--save-every", "often"], "--save-every: often: give a number of iterations, epoch or never"),
    (["--keep", "-1"], "--keep -1: give a whole number from 0 up"),
    (["--resume", ""], "--resume: give a value"),
    (["--on-bad-loss", "pray"], "--on-bad-loss: invalid choice: 'pray'"),
    (["--max-loss", "-1"], "--max-loss -1.0: give a number from 0 up"),
    (["--log", "tensorboard,excel"], "--log tensorboard,excel: choose from tensorboard, wandb"),
    (["--profile", "15:10"], "--profile 15:10: give iterations FIRST:LAST, as 10:15"),
    (["--machines", "3"], "--machines 3: give a divisor of the 4 processes"),
    (["--machines", "2"], "--machines 2: add --master HOST:PORT, of machine 0"),
    (["--machines", "2", "--machine", "2"], "--machine 2: give 0 to 1"),
    (["--master", "node1"], "--master node1: give HOST:PORT, as node1:29500"),
    (["--algoo", "ring"], "--algoo: there is no such option; did you mean --algo?"),
    (["digits"], "digits: there is no such option; did you mean --preset digits?"),
    (["zzz"], "zzz: there is no such option; --help lists the options"),
    (["--device", "tpu"], "--device: invalid choice: 'tpu' .*cuda"),
    (
        ["--cuda-graphs", "--device=cuda"],
        "--cuda-graphs: is for jobs of one process so far; leave it out",
    ),
    (["--precision", "fp8"], "--precision: invalid choice: 'fp8' .*bf16"),
    (["--channels-last=maybe"], "--channels-last: invalid choice: 'maybe' .*on"),
    (["--cuda-graphs", "--device=cpu"], "--cuda-graphs: needs a GPU, not --device cpu"),
    (["--cuda-graphs", "--compile"], "--cuda-graphs: goes not with --compile; leave one out"),
    (
        ["--cuda-graphs", "--workers-virtual", "2", "--workers", "2"],
        "--cuda-graphs: goes with virtual workers only by --ghost-bn",
    ),
    (
        ["--deterministic", "--bucket-bytes", "auto"],
        "--bucket-bytes auto: goes by times; with --deterministic give a number",
    ),
    (["--world", "8"], "--world 8: belongs to --dry-run; --workers starts so many workers"),
    (["--dry-run", "--world", "8", "--workers", "4"], "--world 8: is the same as --workers 4"),
    (["--dry-run", "--world", "0"], "--workers 0: give a whole number from 1 up"),
    (["--dry-run", "--alpha", "0"], "--alpha 0.0: give a number above 0"),
    (["--dry-run", "--gigabits", "-1"], "--gigabits -1.0: give a number above 0"),
    (["--dry-run", "--rate", "-1"], "--rate -1.0: give a number from 0 up"),
    (["--batch"], "--batch: expected one argument"),
]


@pytest.mark.parametrize(("argv", "message"), REFUSALS, ids=[" ".join(a) for a, _ in REFUSALS])
def test_a_mistake_is_refused_in_one_line(argv: list[str], message: str) -> None:
    with pytest.raises(ConfigError, match=message) as caught:
        parse(argv, {})
    assert "\n" not in str(caught.value)


def test_a_job_for_many_machines_is_not_started_on_one() -> None:
    config = parse(["--data=synthetic", "--workers=4096", "--batch=8"], {})
    with pytest.raises(ConfigError, match="--workers 4096: would start 4096 processes on this"):
        machine_holds(config)
    machine_holds(parse(["--data=synthetic", "--workers-virtual=4096", "--batch=8"], {}))
    machine_holds(parse(["--workers=32"], {}))


def test_without_warmup_its_length_does_not_matter() -> None:
    assert parse(["--warmup=none", "--warmup-epochs=9"], {}).warmup == "none"


def test_weights_that_are_not_there_are_refused_before_any_worker_starts() -> None:
    with pytest.raises(ConfigError, match=r"--weights no.pth: there is no such file; give a state"):
        weights_are_there(parse(["--weights", "no.pth"], {}))


@pytest.mark.parametrize(
    ("changes", "argv", "message"),
    [
        ({}, ["--workers", "4"], r"--workers 4: the launcher started 3 \(WORLD_SIZE\)"),
        ({"MASTER_ADDR": None}, [], "MASTER_ADDR is not set although RANK is"),
        ({"WORLD_SIZE": None}, [], "WORLD_SIZE is not set although RANK is"),
        ({"MASTER_PORT": "http"}, [], "MASTER_PORT=http: set it to a whole number"),
        ({"RANK": "3"}, [], "RANK=3: ranks run from 0 to WORLD_SIZE - 1 = 2"),
    ],
)
def test_a_broken_launcher_environment_is_refused(changes, argv, message: str) -> None:
    environ = {name: value for name, value in {**LAUNCHER, **changes}.items() if value is not None}
    with pytest.raises(ConfigError, match=message):
        parse(argv, environ)


def test_configurations_are_frozen_and_keyword_only() -> None:
    with pytest.raises(dataclasses.FrozenInstanceError):
        Config().batch = 3  # type: ignore[misc]
    with pytest.raises(TypeError):
        Config("resnet50")  # type: ignore[misc]


def test_every_option_has_help_and_a_group() -> None:
    for field in dataclasses.fields(Config):
        assert field.metadata["help"], field.name
        assert field.metadata["group"] in GROUPS, field.name


def test_help_lists_every_option_in_groups_and_needs_no_torch() -> None:
    code = (
        "import sys; sys.modules['torch'] = sys.modules['numpy'] = None\n"
        "from trainer.run import main; main(['--help'])"
    )
    done = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, check=True, timeout=60
    )
    for field in dataclasses.fields(Config):
        assert "--" + field.name.replace("_", "-") in done.stdout
    for group in ("what to train:", "optimizer and learning rate:", "communication:"):
        assert group in done.stdout


def test_a_refusal_is_one_line_on_stderr_and_starts_nothing() -> None:
    done = subprocess.run(
        [sys.executable, "-m", "trainer.run", "--algo=none"],
        capture_output=True, text=True, timeout=60, check=False,
    )  # fmt: skip
    assert done.returncode == 2
    assert done.stdout == ""
    assert done.stderr.startswith("trainer: --algo: invalid choice")
    assert done.stderr.count("\n") == 1
