"""The training loop."""

from __future__ import annotations

from typing import TYPE_CHECKING

import torch
import torch.nn.functional as F
from torch import Tensor

from trainer.launch.resume_command import command_again
from trainer.training.evaluation import evaluate
from trainer.training.loss_guard import BadLoss
from trainer.training.metrics import Window
from trainer.training.run_state import Job

if TYPE_CHECKING:
    from trainer.output.run_directory import Log

__all__ = ["share_of_loss", "test", "train", "train_epoch"]


def train(job: Job, log: Log) -> None:
    """Trains and tests from where `job` is to the end of the run, or until all agree to stop.

    BadLoss on every process if it diverged, ReplicaError if processes hold different networks.
    """
    job.saver.say = job.profiler.say = log.say
    try:
        if job.iteration == 0:
            job.save()
        stop = False
        while not (stop or job.complete):
            stop = not job.test_is_due and train_epoch(job, log)
            if stop:
                job.save()
            else:
                stop = test(job, log)
        if not job.complete:
            log.say(_farewell(job))
    except BadLoss:
        job.saver.set_aside(job.facts)
        raise
    finally:
        job.profiler.close()
        job.saver.close()


def _farewell(job: Job) -> str:
    if job.config.save_every == "never":
        return "stopped by a signal; nothing was saved, because of --save-every never"
    command = command_again(job.config.out)
    where = " on each machine, with its own --machine" * (job.config.machines > 1)
    return f"stopped by a signal, and saved; this goes on from here{where}:\n  {command}"


def test(job: Job, log: Log) -> bool:
    """Tests, and saves a checkpoint, the best if its error is the lowest; whether all stop."""
    error = evaluate(job)["test_error"]
    log.test(job.last_test)
    best, job.best_error = error < job.best_error, min(error, job.best_error)
    job.save(best=best)
    return job.guard.ask()


def train_epoch(job: Job, log: Log) -> bool:
    """Trains from where `job` is to the end of its epoch or of the run; whether all stop before."""
    kn, epoch = job.config.minibatch, job.epoch
    precision, watch = job.precision, job.watch
    window = Window(job)
    job.model.train()
    watch.start()
    for batch in job.feed.train(epoch, job.offset):
        job.profiler.before(job.iteration)
        job.begin_iteration()
        watch.lap("data")

        for images, labels in job.virtual.turns(*batch):  # one for each worker in here
            with precision.autocast():
                logits = job.model(job.normalize(images)).float()
            labels = labels.to(logits.device)
            loss = share_of_loss(logits, labels, kn, job.config.label_smoothing)
            watch.lap("forward")

            waited = job.model.statistics()["exposed_seconds"]
            # Gradients are summed over workers while backprop goes on.
            torch.autograd.backward(precision.scaled(loss))
            watch.lap("backward")
            watch.move(job.model.statistics()["exposed_seconds"] - waited, "backward", "exposed")
            job.guard.see(float(loss.detach()) * kn / len(labels))
            window.add(loss.detach(), (logits.argmax(1) != labels).sum())

        sound = job.guard.sound(job.iteration)
        watch.lap("exposed")

        for group in job.optimizer.param_groups:
            group["lr"] = job.schedule(job.iteration)
        if sound:
            precision.step(job.optimizer)
            if job.average:
                job.average.update_parameters(job.model.module)
        job.optimizer.zero_grad()
        watch.lap("optimizer")

        job.move_to(epoch, job.offset + kn)
        job.images += kn
        window.end_iteration(sound)
        log.tick(job.iteration)
        job.replicas.check(job.iteration)  # before what may be saved
        pause = job.guard.stopping or job.test_is_due
        saving = job.saver.due(job.iteration) and not pause
        if pause or saving or job.iteration % job.config.log_every == 0:
            log.train(window.close())
            window = Window(job)
        if saving:
            job.save()
        watch.lap("other")
        if pause:
            break
    return job.guard.stopping


def share_of_loss(logits: Tensor, labels: Tensor, kn: int, smoothing: float = 0.0) -> Tensor:
    """One worker's share of the loss: its images' cross entropy over kn, not n (Remark 3).

    Gradients of the shares of all workers, summed, are those of the mean over the minibatch.
    """
    return F.cross_entropy(logits, labels, reduction="sum", label_smoothing=smoothing) / kn
