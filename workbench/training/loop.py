"""The training loop: the only one. ``fit(config)`` yields a record for each logged step and can be stopped anywhere."""

import contextlib
import signal
import threading
import time
from collections.abc import Callable, Iterator, Mapping
from functools import partial
from pathlib import Path
from typing import Any

import torch
from accelerate import Accelerator, PartialState

from workbench.config import Config
from workbench.data.latents import Latents, latent_source, open_latents
from workbench.data.targets import Targets, open_targets
from workbench.diffusion.guidance import Guidance
from workbench.diffusion.sampling import evaluations
from workbench.files import write_json
from workbench.objectives.base import Batch
from workbench.runs.checkpoints import latest_resumable, save_checkpoint, thin
from workbench.runs.models import load_teacher
from workbench.runs.store import Run, prepare_run, runs_root
from workbench.training.batches import draw_batch, prefetched
from workbench.training.state import TrainState, accelerate
from workbench.training.student import Losses, Student, build_student

_ASK_EVERY = 10  # steps between questions whether a process was told to stop
_ENCODED_AT_ONCE = 50_000  # images that one process encodes well within the others' patience


class Diverged(ValueError):
    """A loss was not finite."""


def fit(
    config: Config, root: Path | None = None, progress: Callable[[int, int], None] | None = None
) -> Iterator[dict[str, Any]]:
    """Train ``config`` to its last step, from the newest checkpoint of the run with its fingerprint if there is one.

    Yields the records of ``metrics.jsonl``: step, loss, denoise, alignment (None while off), gradient_norm, what the
    objective measures (norm_guided and norm_difference while a teacher guides), images_per_second and seconds (of
    training, earlier sittings included). ``progress(done, total)`` reports the encoding of the images, if that has to
    happen. SIGTERM, SIGINT and leaving the generator save a checkpoint and end it; a kill at any moment loses no more
    than the steps since the last checkpoint, and the resumed run ends with the same weights, bit for bit on a CPU.

    Raises ValueError for a batch that the processes cannot share, a teacher that is missing or does not fit, a run
    that another process is training, a full disk, and Diverged when a loss is not finite.
    """
    root = root or runs_root()
    accelerator = accelerate(config)
    # What the configuration can get wrong is found before a folder is made, wrong sampling before it is needed.
    drawn = config.sampling
    evaluations(drawn.sampler, drawn.steps, Guidance.of(drawn), drawn.last_step, drawn.shift)
    if accelerator.num_processes > 1:
        _refuse_long_encoding(config, root)
    with accelerator.main_process_first():
        latents = open_latents(config, "train", root / ".latents", progress)
        targets = open_targets(config, "train", latents, root / ".targets", accelerator.device, progress)
    teacher = load_teacher(config, latents, root)
    student = build_student(config, latents, teacher.to(accelerator.device) if teacher else None, targets)
    with accelerator.main_process_first():
        run = prepare_run(config, root)
    with run.lock() if accelerator.is_main_process else contextlib.nullcontext(), _StopSignals() as stop:
        trainer = _Trainer(config, run, latents, targets, accelerator, student)
        try:
            yield from trainer.train(stop)
        except (ValueError, OSError, RuntimeError) as error:
            with contextlib.suppress(OSError):  # a full disk must not hide what filled it
                trainer.status("failed", error=str(error))
            raise
        except GeneratorExit:  # the reader of the records left; processes cannot agree on a save here
            if accelerator.num_processes == 1:
                trainer.save()
            trainer.status("stopped")
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
        steps = accelerator.gather(torch.tensor([self.step], device=accelerator.device))
        if steps.min() != steps.max():
            raise ValueError(f"the processes resume from steps {steps.tolist()}: all must see the same {run.folder}")

    def train(self, stop: "_StopSignals") -> Iterator[dict[str, Any]]:
        """Step until the last one, logging and saving when due."""
        training = self.config.training
        self.status("running")
        logged, since = self.step, time.monotonic()
        with contextlib.closing(prefetched(self._draws())) as batches:
            while self.step < training.steps:
                losses, norm = self._step(batches)
                self.step += 1
                last = self.step == training.steps or self._agree(stop)
                saving = last or self.step % training.checkpoint_every == 0
                if saving or self.step % training.log_every == 0:
                    self._refuse_divergence()
                    elapsed = time.monotonic() - since
                    self.seconds += elapsed
                    record = self._log(losses, norm, (self.step - logged) / elapsed)
                    if saving:
                        self.save()
                    yield record
                    # Neither saving nor what the reader of the records does is training.
                    logged, since = self.step, time.monotonic()
                if last:
                    break
        self.status("finished" if self.step == training.steps else "stopped")

    def _draws(self) -> Iterator[Callable[[], Batch]]:
        """Every micro-batch still to come, as a function that draws it."""
        for step in range(self.step, self.config.training.steps):
            # Targets are of use only while the objective runs.
            targets = self.targets if self.objective.weight_at(step) > 0 else {}
            for rows in self._micro_batches():
                yield partial(draw_batch, self.config, self.latents, targets, step, rows)

    def _step(self, batches: Iterator[Batch]) -> tuple[list[Losses], torch.Tensor]:
        """One optimizer step: the batch in micro-batches, the sum of both losses, clip, update, average."""
        training = self.config.training
        weight = self.objective.weight_at(self.step)
        self.state.align(weight > 0)
        count, parts = len(self._micro_batches()), []
        for number in range(1, count + 1):
            with self.state.local(final=number == count):
                losses = self.state.losses(next(batches).to(self.accelerator.device))
                total = losses.denoise.mean()
                if losses.alignment is not None:
                    total = total + weight * losses.alignment.mean()
                self._note_divergence(total)
                self.state.backward(total / count, final=number == count)
            parts.append(losses.detached())
        norm = self.state.update(training.learning_rate * min(1.0, (self.step + 1) / max(training.warmup_steps, 1)))
        if self.accelerator.scaler is None:  # with a scaler, such a step was left out
            self._note_divergence(norm)
        return parts, norm

    def _note_divergence(self, value: torch.Tensor) -> None:
        """Remember the first step with a value that is not finite, without waiting for the device."""
        self.bad_step = torch.where(~value.isfinite() & (self.bad_step < 0), self.step, self.bad_step)

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
        if self.step % _ASK_EVERY:  # asking makes every process wait for the slowest
            return False
        flag = torch.tensor(float(stop.asked), device=self.accelerator.device)
        return bool(self.accelerator.reduce(flag, "sum") > 0)

    def _refuse_divergence(self) -> None:
        found = self.accelerator.gather(self.bad_step.reshape(1))
        found = found[found >= 0]
        if not len(found):
            return
        step = int(found.min())
        good = max((c.step for c in self.run.checkpoints), default=None)
        raise Diverged(
            f"the loss is not finite at step {step} (data seed {self.config.training.seed}, positions "
            f"{step * self.config.training.batch}..{(step + 1) * self.config.training.batch - 1}); the last good "
            f"checkpoint is {'none' if good is None else f'step {good}'}; lower training.learning_rate or set "
            f"training.precision=no"
        )

    def _log(self, parts: list[Losses], norm: torch.Tensor, rate: float) -> dict[str, Any]:
        def mean(values: list[torch.Tensor]) -> float:
            return self.accelerator.reduce(torch.cat(values).float().mean(), "mean").item()

        denoise = mean([losses.denoise for losses in parts])
        aligned = [losses.alignment for losses in parts if losses.alignment is not None]
        alignment = mean(aligned) if aligned else None
        weight = self.objective.weight_at(self.step - 1)
        metrics = {name: torch.stack([losses.metrics[name] for losses in parts]) for name in parts[0].metrics}
        record = {
            "step": self.step,
            "loss": denoise + weight * (alignment or 0.0),
            "denoise": denoise,
            "alignment": alignment,
            "gradient_norm": float(norm) if norm.isfinite() else None,
            **{name: self._mean_where_known(values) for name, values in metrics.items()},
            "images_per_second": rate * self.config.training.batch,
            "seconds": self.seconds,
        }
        if self.accelerator.is_main_process:
            self.run.append("metrics.jsonl", record)
            self.status("running", rate=rate)
        return record

    def _mean_where_known(self, values: torch.Tensor) -> float | None:
        """Mean over the micro-batches, of all processes, that know the value; None where no sample counted."""
        number = self.accelerator.gather(values.float()).nanmean().item()
        return number if number == number else None

    def save(self) -> None:
        """Write a checkpoint of the step that training stands at."""
        parts = self.state.parts()
        if self.accelerator.is_main_process:
            scaler = self.accelerator.scaler
            state = {"seconds": self.seconds, "scaler": scaler.state_dict() if scaler else None}
            save_checkpoint(self.run.folder / "checkpoints", self.step, parts, state)
        self._thin()
        self.accelerator.wait_for_everyone()

    def _thin(self) -> None:
        if self.accelerator.is_main_process:
            training = self.config.training
            thin(self.run.folder / "checkpoints", training.keep, training.milestone_every, self.step)

    def _resume(self) -> None:
        found = latest_resumable(self.run.folder / "checkpoints")
        if found is None:
            if self.accelerator.is_main_process:
                self.run.rewind(0)
            return
        checkpoint, parts = found
        self.state.restore(parts)
        self.step, self.seconds = checkpoint.step, checkpoint.state["seconds"]
        self._thin()  # a kill between saving and thinning left that undone
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


def _refuse_long_encoding(config: Config, root: Path) -> None:
    """ValueError if several processes would wait for one that encodes: their wait has a time limit."""
    source = latent_source(config, "train")
    if len(source.labels) > _ENCODED_AT_ONCE and not (source.folder(root / ".latents") / "index.json").is_file():
        raise ValueError(
            f"{len(source.labels):,} images are not encoded yet: run `workbench encode` with the same configuration, "
            f"then train with several processes"
        )
