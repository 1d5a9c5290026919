"""`python -m trainer.run`: the training job from top to bottom, as in the paper."""

from __future__ import annotations

import contextlib
import dataclasses
import os
import sys
from collections.abc import Sequence
from pathlib import Path

from trainer.checkpoint.find import begin
from trainer.config.checks import (
    data_is_there,
    gpus_are_there,
    machine_holds,
    no_launcher_but_ours,
    weights_are_there,
)
from trainer.config.command_line import default_directory, parse
from trainer.config.options import Config, ConfigError
from trainer.launch.launcher_environment import as_torchrun
from trainer.launch.local_processes import launch, run_worker
from trainer.output.run_lock import own_run_directory

__all__ = ["main"]


def main(argv: Sequence[str] | None = None) -> int:
    """Starts the job, or is one worker of it where a launcher says so (RANK is set)."""
    try:
        os.environ.update(as_torchrun(os.environ))
        config = parse(sys.argv[1:] if argv is None else argv, os.environ)
        if config.dry_run:
            return _dry_run(config)
        no_launcher_but_ours(config, os.environ)
        if "TRAINER_LAUNCHER" not in os.environ:  # else our launcher has looked
            info = data_is_there(config)
            weights_are_there(config)
            alone = "RANK" not in os.environ
            gpus_are_there(config, config.processes // config.machines if alone else None)
        if "RANK" not in os.environ:
            machine_holds(config)
            if config.weights:
                from trainer.model.pretrained import check_weights  # here: it takes torch

                check_weights(config, info.num_classes)
            return launch(config)
        with contextlib.ExitStack() as owned:
            if os.environ["RANK"] == "0":
                config = dataclasses.replace(config, out=config.out or default_directory())
                begin(config)  # refuses before the others are waited for
                owned.enter_context(own_run_directory(Path(config.out)))
            return run_worker(lambda: _work(config), traceback=config.traceback)
    except ConfigError as error:
        print(f"trainer: {error}", file=sys.stderr)
        return 2


def _dry_run(config: Config) -> int:
    from trainer.dry_run import dry_run

    print(dry_run(config))
    return 0


def _work(config: Config) -> int:
    from trainer.training.worker import (
        work,  # here, so that --help and refusals do not wait for torch
    )

    return work(config)


if __name__ == "__main__":
    sys.exit(main())
