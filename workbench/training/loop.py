"""The training loop: the only one. ``fit(config)`` yields a record for each logged step and can be stopped anywhere."""

import contextlib
import signal
import threading
import time
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any

import torch
from accelerate import Accelerator, PartialState

from workbench.config import Config
from workbench.data.latents import Latents, open_latents
from workbench.data.targets import Targets, open_targets
from workbench.files import write_json
from workbench.runs.checkpoints import latest_resumable, save_checkpoint, thin
from workbench.runs.models import load_teacher
from workbench.runs.store import Run, prepare_run, runs_root
from workbench.training.batches import draw_batch
from workbench.training.state import TrainState, accelerate
from workbench.training.student import Losses, Student, build_student


class Diverged(ValueError):
    """A loss was not finite."""


def fit(
    config: Config, root: Path | None = None, progress: Callable[[int, int], None] | None = None
) -> Iterator[dict[str, Any]]:
    """Train ``config`` to its last step, from the newest checkpoint of the run with its fingerprint if there is one.

    Yields the records of ``metrics.jsonl``: step, loss, denoise, alignment (None while off), gradient_norm,
    norm_guided and norm_difference while a teacher guides, images_per_second, seconds (of training, earlier
    sittings included). ``progress(done, total)`` reports the encoding of the images, if that has to happen.
    SIGTERM and SIGINT save a checkpoint and end the generator; a kill at any moment loses no more than the steps since
    the last checkpoint, and the resumed run ends with the same weights, bit for bit on a CPU.

    Raises ValueError for a batch that the processes cannot share, a teacher that is missing or does not fit, a run
    that another process is training, a full disk, and Diverged when a loss is not finite.
    """
    root = root or runs_root()
    accelerator = accelerate(config)
    with accelerator.main_process_first():
        latents = open_latents(config, "train", root / ".latents", progress)
        targets = open_targets(config, "train", latents, root / ".targets", accelerator.device, progress)
    # Everything that the configuration can get wrong is found before a folder is made.
    teacher = load_teacher(config, latents, root)
    student = build_student(config, latents, teacher.to(accelerator.device) if teacher else None, targets)
    with accelerator.main_process_first():
        run = prepare_run(config, root)
    with run.lock() if accelerator.is_main_process else contextlib.nullcontext(), _StopSignals() as stop:
        trainer = _Trainer(config, run, latents, targets, accelerator, student)
        try:
            yield from trainer.train(stop)
        except (ValueError, OSError, RuntimeError) as error:
            trainer.status("failed", error=str(error))
            raise


class _Trainer:
    """The state of one training process."""

    def __init__(
        self,
        config: Config,
        run: Run,
        latents: Latents,
        targets: Mapping[str, Targets],
        accelerator: Accelerator,
        student: Student,
    ):
        self.config, self.run, self.accelerator = config, run, accelerator
        self.latents, self.targets = latents, targets
        self.objective = student.objective
        self.state = TrainState(student, config, accelerator)
        self.step, self.seconds, self.bad_step = 0, 0.0, torch.tensor(-1, device=accelerator.device)
        self._record_latents()
        self._resume()

    def train(self, stop: "_StopSignals") -> Iterator[dict[str, Any]]:
        """Step until the last one, logging and saving when due."""
        training = self.config.training
        self.status("running")
        logged, since = self.step, time.monotonic()
        while self.step < training.steps:
            losses, norm = self._step()
            self.step += 1
            last = self.step == training.steps or self._agree(stop)
            saving = last or self.step % training.checkpoint_every == 0
            if saving or self.step % training.log_every == 0:
                self._refuse_divergence()
                elapsed = time.monotonic() - since
                self.seconds += elapsed
                record = self._log(losses, norm, (self.step - logged) / elapsed)
                logged, since = self.step, time.monotonic()
                yield record
            if saving:
                self._save()
                since = time.monotonic()  # saving is not training
            if last:
                break
        self.status("finished" if self.step == training.steps else "stopped")

    def _step(self) -> tuple[Losses, torch.Tensor]:
        """One optimizer step: the batch in micro-batches, the sum of both losses, clip, update, average."""
        training = self.config.training
        weight = self.objective.weight_at(self.step)
        self.state.align(weight > 0)
        targets = self.targets if weight > 0 else {}  # of use only while the objective runs
        micro_batches = self._micro_batches()
        for number, rows in enumerate(micro_batches, start=1):
            final = number == len(micro_batches)
            with self.state.local(final):
                batch = draw_batch(self.config, self.latents, targets, self.step, rows).to(self.accelerator.device)
                losses = self.state.losses(batch)
                total = losses.denoise.mean()
                if losses.alignment is not None:
                    total = total + weight * losses.alignment.mean()
                self.bad_step = torch.where(~total.isfinite() & (self.bad_step < 0), self.step, self.bad_step)
                self.state.backward(total / len(micro_batches), final)
        return losses, self.state.update(
            training.learning_rate * min(1.0, (self.step + 1) / max(training.warmup_steps, 1))
        )

    def _micro_batches(self) -> list[range]:
        """The rows of the global batch that this process works on, one range for each accumulation step."""
        training, state = self.config.training, PartialState()
        size = training.batch // (state.num_processes * training.accumulation)
        first = state.process_index * size * training.accumulation
        return [range(first + i * size, first + (i + 1) * size) for i in range(training.accumulation)]

    def _agree(self, stop: "_StopSignals") -> bool:
        """Whether any process was told to stop; all leave after the same step."""
        if PartialState().num_processes == 1:
            return stop.asked
        flag = torch.tensor(float(stop.asked), device=self.accelerator.device)
        return bool(self.accelerator.reduce(flag, "sum") > 0)

    def _refuse_divergence(self) -> None:
        step = int(self.bad_step)
        if step < 0:
            return
        good = max((c.step for c in self.run.checkpoints), default=None)
        raise Diverged(
            f"the loss is not finite at step {step} (data seed {self.config.training.seed}, positions "
            f"{step * self.config.training.batch}..{(step + 1) * self.config.training.batch - 1}); the last good "
            f"checkpoint is {'none' if good is None else f'step {good}'}; lower training.learning_rate or set "
            f"training.precision=no"
        )

    def _log(self, losses: Losses, norm: torch.Tensor, rate: float) -> dict[str, Any]:
        def mean(value: torch.Tensor) -> float:
            return self.accelerator.reduce(value.detach().float().mean(), "mean").item()

        denoise = mean(losses.denoise)
        alignment = None if losses.alignment is None else mean(losses.alignment)
        weight = self.objective.weight_at(self.step - 1)
        record = {
            "step": self.step,
            "loss": denoise + weight * (alignment or 0.0),
            "denoise": denoise,
            "alignment": alignment,
            "gradient_norm": float(norm),
            **{name: self._mean_where_known(value) for name, value in losses.metrics.items()},
            "images_per_second": rate * self.config.training.batch,
            "seconds": self.seconds,
        }
        if self.accelerator.is_main_process:
            self.run.append("metrics.jsonl", record)
            self.status("running", rate=rate)
        return record

    def _mean_where_known(self, value: torch.Tensor) -> float | None:
        """Mean over the processes that know the value; None where no sample of any counted."""
        number = self.accelerator.gather(value.detach().float().reshape(1)).nanmean().item()
        return number if number == number else None

    def _save(self) -> None:
        parts = self.state.parts()
        if self.accelerator.is_main_process:
            scaler = self.accelerator.scaler
            state = {"seconds": self.seconds, "scaler": scaler.state_dict() if scaler else None}
            save_checkpoint(self.run.folder / "checkpoints", self.step, parts, state)
        self._thin()
        self.accelerator.wait_for_everyone()

    def _thin(self) -> None:
        if self.accelerator.is_main_process:
            thin(self.run.folder / "checkpoints", self.config.training.keep, self.config.training.milestone_every)

    def _resume(self) -> None:
        found = latest_resumable(self.run.folder / "checkpoints")
        if found is None:
            if self.accelerator.is_main_process:
                self.run.rewind(0)
            return
        checkpoint, parts = found
        self.state.restore(parts)
        self._thin()  # a kill between saving and thinning left that undone
        self.step, self.seconds = checkpoint.step, checkpoint.state["seconds"]
        if self.accelerator.scaler and checkpoint.state["scaler"]:
            self.accelerator.scaler.load_state_dict(checkpoint.state["scaler"])
        if self.accelerator.is_main_process:
            self.run.rewind(self.step)

    def _record_latents(self) -> None:
        """Write what the run is trained on beside its versions; refuse to go on with other data."""
        index, provenance = self.latents.index, self.run.provenance
        described = {
            "content": self.latents.content,
            "channels": self.latents.channels,
            "height": self.latents.height,
            "classes": list(self.latents.classes),
            "codec": index["codec"],
            "pixel_channels": index["pixel_channels"],
        }
        if provenance.setdefault("latents", described)["content"] != self.latents.content:
            raise ValueError(f"run {self.run.name} was trained on other images or another codec than there are now")
        if self.accelerator.is_main_process:
            write_json(self.run.folder / "provenance.json", provenance)
        self.accelerator.wait_for_everyone()

    def status(self, state: str, **more: Any) -> None:
        if self.accelerator.is_main_process:
            processes = PartialState().num_processes
            self.run.write_status(state, self.step, steps=self.config.training.steps, processes=processes, **more)


class _StopSignals:
    """SIGTERM and SIGINT ask for a stop after the current step; a second one acts as it did before."""

    def __init__(self) -> None:
        self.asked = False

    def __enter__(self) -> "_StopSignals":
        self._before = {}
        if threading.current_thread() is threading.main_thread():
            self._before = {number: signal.signal(number, self._ask) for number in (signal.SIGTERM, signal.SIGINT)}
        return self

    def __exit__(self, *_: object) -> None:
        for number, handler in self._before.items():
            signal.signal(number, handler)

    def _ask(self, number: int, _: object) -> None:
        self.asked = True
        signal.signal(number, self._before[number])
