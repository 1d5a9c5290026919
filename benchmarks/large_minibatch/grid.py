"""What `benchmarks.large_minibatch` trains: Figure 1 and Tables 1 and 2 of the paper, small."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace

BASE = 256  # images: the minibatch that --lr is right for, and that others are compared with
N = 32  # images a worker, as in the paper, whatever the minibatch


@dataclass(frozen=True, slots=True, kw_only=True)
class Variant:
    """One row of the paper's ablations: how eta follows kn, the warmup, gamma of the last norm."""

    name: str
    scaling: str = "linear"
    warmup: str = "gradual"
    gamma: int = 0

    def argv(self) -> list[str]:
        """Return its options of `trainer.run`."""
        return [f"--scaling={self.scaling}", f"--warmup={self.warmup}", f"--gamma={self.gamma}"]


GRADUAL = Variant(name="linear, gradual warmup")
NONE = Variant(name="linear, no warmup", warmup="none")
CONSTANT = Variant(name="linear, constant warmup", warmup="constant")
FIXED = Variant(name="fixed eta", scaling="fixed", warmup="none")
SQRT = Variant(name="square root, gradual warmup", scaling="sqrt")
GAMMA1 = Variant(name="gamma = 1, gradual warmup", gamma=1)
GAMMA1_NONE = Variant(name="gamma = 1, no warmup", gamma=1, warmup="none")
VARIANTS = (GRADUAL, NONE, CONSTANT, FIXED, SQRT, GAMMA1, GAMMA1_NONE)


@dataclass(frozen=True, slots=True, kw_only=True)
class Run:
    """One training."""

    kn: int
    variant: Variant
    seed: int

    @property
    def name(self) -> str:
        """Its name, also of its directory."""
        words = "".join(c if c.isalnum() else "-" for c in self.variant.name).replace("--", "-")
        return f"kn{self.kn:05d}_{words}_seed{self.seed}"


@dataclass(frozen=True, slots=True, kw_only=True)
class Grid:
    """An experiment: what all runs share, and the runs.

    stages: minibatches by variant; one stage after the other, each with all seeds, the most telling
    ones first, so that an experiment that was stopped early tells most.
    last: evaluations (one an epoch) whose median is the error of a run. The paper takes 5 of 90
    epochs; these are all after the first drop of eta.
    """

    options: tuple[str, ...]
    epochs: int
    milestones: tuple[float, ...]
    warmup_epochs: float
    stages: tuple[dict[Variant, tuple[int, ...]], ...]
    seeds: tuple[int, ...] = (0, 1, 2)
    last: int = 3
    images: int = 60_000

    def runs(self, seeds: Sequence[int] | None = None) -> Iterator[Run]:
        """Yield every run, in the order in which they are trained."""
        for stage in self.stages:
            for seed in self.seeds if seeds is None else seeds:
                for variant, minibatches in stage.items():
                    yield from (Run(kn=kn, variant=variant, seed=seed) for kn in minibatches)

    def argv(self, run: Run) -> list[str]:
        """Return the options of `trainer.run` for one of the runs."""
        iterations = self.images // run.kn
        return [
            *self.options,
            *run.variant.argv(),
            f"--batch={N}",
            f"--workers-virtual={run.kn // N}",
            "--ghost-bn",
            f"--epochs={self.epochs}",
            f"--milestones={','.join(f'{epoch:g}' for epoch in self.milestones)}",
            f"--warmup-epochs={self.warmup_epochs:g}",
            f"--seed={run.seed}",
            f"--log-every={max(1, iterations // 8)}",
        ]


CPU = Grid(
    options=("--model=resnet8", "--data=fashion", "--side=14", "--threads=1"),
    epochs=5,  # 1,170 iterations at the base, 70 at 4,096
    milestones=(2.5, 3.75),
    warmup_epochs=0.8,
    stages=(
        {GRADUAL: (256, 512, 1024, 2048, 4096)},
        dict.fromkeys((FIXED, NONE, SQRT, CONSTANT, GAMMA1), (2048,)),
        {GRADUAL: (64,), GAMMA1_NONE: (2048,)},
    ),
    last=3,
)
LONG = replace(
    CPU,
    epochs=15,  # 3,510 iterations at the base, 210 at 4,096
    milestones=(7, 10),
    warmup_epochs=1,
    stages=(
        {GRADUAL: (256, 512, 1024, 2048, 4096)},
        dict.fromkeys((FIXED, NONE, SQRT, CONSTANT, GAMMA1), (4096,)),
        {GRADUAL: (64,), GAMMA1_NONE: (4096,)},
    ),
    last=5,
)
GPU = Grid(
    options=(
        *("--model=resnet50", "--data=fashion", "--side=32", "--save-every=never"),
        "--channels-last=off",  # ghost normalisation would copy each activation twice
    ),
    epochs=12,  # 2,808 iterations at the base, 84 at 8,192
    milestones=(6, 9),
    warmup_epochs=2,
    stages=(
        {GRADUAL: (256, 1024, 2048, 4096, 8192)},
        dict.fromkeys((FIXED, NONE, SQRT, CONSTANT, GAMMA1), (8192,)),
    ),
    seeds=(0,),
    last=5,
)
SMOKE = Grid(  # shows that every variant runs; the errors mean nothing
    options=("--model=resnet8", "--data=digits", "--threads=1"),
    epochs=4,
    milestones=(1.5, 3),
    warmup_epochs=0.5,
    stages=({GRADUAL: (256, 512)}, dict.fromkeys(VARIANTS[1:], (512,))),
    seeds=(0, 1),
    images=1536,
)
