"""The training loop: ``fit(config)`` yields a record for each logged step and may be stopped at any point."""

import collections
import contextlib
import math
import time
from collections.abc import Callable, Generator, Iterator, Mapping
from functools import partial
from pathlib import Path
from typing import Any

import torch
from accelerate import Accelerator, PartialState
from accelerate.utils import broadcast_object_list

from workbench.config import Config
from workbench.data.latents import Latents, known_folder, latent_source, open_encoded, open_latents
from workbench.data.targets import Targets, open_targets, targets_ready
from workbench.diffusion.guidance import Guidance
from workbench.diffusion.precision import advanced_in, tf32
from workbench.diffusion.sampling import evaluations
from workbench.files import write_json
from workbench.objectives.base import Batch
from workbench.runs.checkpoints import Checkpoint, StoredTensors, latest_resumable, resumable_at, thin
from workbench.runs.models import ROTARY, check_current, load_teacher
from workbench.runs.store import Run, prepare_run, runs_root
from workbench.training.attend import CommandHandler
from workbench.training.automatic import DECIDED, decided, decisions
from workbench.training.batches import Prefetched, draw_batch, prefetched
from workbench.training.mailbox import StopSignals
from workbench.training.memory import kept_memory
from workbench.training.saving import Saver
from workbench.training.state import TrainState, accelerate
from workbench.training.student import Losses, Student, build_student
from workbench.training.tracker import Tracker, check_tracker

_ENCODED_AT_ONCE = 50_000  # images; with more, the other processes may wait longer than their time limit


class Diverged(ValueError):
    """A loss, a weight or a moment of the optimizer was not finite."""


def fit(
    config: Config, root: Path | None = None, progress: Callable[[int, int], None] | None = None
) -> Iterator[dict[str, Any]]:
    """Train a configuration to its last step in this process.

    Training continues from the newest checkpoint of the run with the same fingerprint, if there is one. SIGTERM, SIGINT
    and closing the generator save a checkpoint and stop. A killed process loses the steps since the last checkpoint,
    and the resumed run ends with the same weights, bit for bit on a CPU. Commands of `wb.Control` are executed between
    steps; options that they change stay changed after a resume. ``training.tf32`` sets the precision of matrix products
    during training only, not while the caller processes a record.

    Args:
        config: The configuration to train.
        root: Folder of the runs; ``$WORKBENCH_RUNS`` or ``./runs`` by default.
        progress: Called with (done, total) images if the data set has to be encoded first.

    Yields:
        Records of ``metrics.jsonl`` with step, loss, denoise, alignment (None while it is off), gradient_norm,
        images_per_second, seconds (total training time), and the objective's own metrics, such as cosine.

    Raises:
        ValueError: If the batch cannot be divided among the processes, the teacher is missing or does not fit, another
            process is training the run, or the disk is full. `Diverged` if a loss, a weight or the optimizer's state
            is not finite: no checkpoint is written, and the run's state becomes "failed".

    Examples:
        >>> small = ["data.name=digits", "backbone.size=pico", "training.steps=4", "training.batch=8"]
        >>> config = wb.load_config("demo/plain", [*small, "training.log_every=2"])
        >>> [record["step"] for record in wb.fit(config)]
        [2, 4]
    """
    root = root or runs_root()
    settings = decided(config, root)
    accelerator = accelerate(settings)
    # Errors in the configuration, sampling options included, are raised before a run folder is created.
    sampling = config.sampling
    evaluations(sampling.sampler, sampling.steps, Guidance.of(sampling), sampling.last_step, sampling.shift)
    check_tracker(config.training.tracker)
    latents = _opened_latents(config, root, accelerator, progress)
    with accelerator.main_process_first():  # which stores the targets if they are to be stored
        targets = open_targets(settings, "train", latents, root / ".targets", accelerator.device, progress)
    teacher = load_teacher(config, latents, root)
    student = build_student(config, latents, teacher.to(accelerator.device) if teacher else None, targets)
    with accelerator.main_process_first():
        run = prepare_run(config, root)
    lock = run.lock() if accelerator.is_main_process else contextlib.nullcontext()
    with lock, StopSignals() as signals, kept_memory():
        trainer = _Trainer(config, settings, run, latents, targets, accelerator, student, signals)
        try:
            yield from advanced_in(partial(tf32, config.training.tf32), trainer.train())
        except (ValueError, OSError, RuntimeError) as error:
            with contextlib.suppress(OSError):  # a full disk must not hide the first error
                trainer.status("failed", error=str(error))
            raise
        except GeneratorExit:  # the caller closed the generator; several processes cannot agree on a save here
            if accelerator.num_processes == 1:
                trainer.save()
            trainer.status("stopped")
            raise
        finally:
            trainer.saver.close()
            trainer.tracker.close()


class _Trainer:
    """Training in one process: state, data, control and logs."""

    def __init__(
        self,
        config: Config,
        settings: Config,
        run: Run,
        latents: Latents,
        targets: Mapping[str, Targets],
        accelerator: Accelerator,
        student: Student,
        signals: StopSignals,
    ):
        self.config, self.run, self.accelerator = config, run, accelerator
        self.latents, self.targets = latents, targets
        self.objective = student.objective
        self.state = TrainState(student, settings, accelerator)
        self.step, self.seconds, self.bad_step = 0, 0.0, torch.tensor(-1, device=accelerator.device)
        self.rate: float | None = None
        self._gpu = accelerator.device.type == "cuda"
        self.commands = CommandHandler(run, config, accelerator, signals, self.status)
        training = config.training
        self.saver = Saver(run.folder / "checkpoints", training.keep, training.milestone_every)
        self.state.before_update = self.saver.settle
        self._record_provenance(decisions(config, settings))
        self._resume()
        if self._gpu and accelerator.is_main_process:
            self.saver.prepare(self._checkpoint_bytes())
        self.tracker = Tracker(config.training.tracker if accelerator.is_main_process else "none", run, self.step)

    def train(self) -> Generator[dict[str, Any], None, None]:
        """Train to the last step, logging and saving when due, and execute commands between steps."""
        self.status("running")
        self.commands.event(self.step, "train", processes=self.accelerator.num_processes)
        self._refuse_divergence()  # a checkpoint written by another program may not be finite
        stopped = False
        while self.step < self.config.training.steps and not stopped:
            # The prefetched batch was drawn with the old settings, so it is dropped when they change.
            with contextlib.closing(prefetched(self._draws(), ahead=2 if self._gpu else 1)) as batches:
                stopped = yield from self._train(batches)
        self.status("finished" if self.step == self.config.training.steps else "stopped")

    def _train(self, batches: Prefetched[Batch]) -> Generator[dict[str, Any], None, bool]:
        """Train until a command to stop (True), a command that needs new batches (False), or the last step (False)."""
        steps = self.config.training.steps
        logged, since = self.step, time.monotonic()
        while self.step < steps:
            losses, norm = self._step(batches)
            settings = self.commands.settings.at(self.step)
            self.step += 1
            actions = self.commands.poll(self.step)
            since += actions.paused
            self.saver.check()
            ending = actions.stop or actions.save or self.step == steps  # what waits for the checkpoint
            saving = ending or self.step % settings["checkpoint_every"] == 0
            if saving or actions.redraw or self.step % settings["log_every"] == 0:
                self._refuse_divergence()
                elapsed = time.monotonic() - since
                self.seconds += elapsed
                record = self._log(losses, norm, (self.step - logged) / elapsed)
                if saving:
                    self.save(wait=ending)
                batches.settle()  # no batch may be drawn with the caller's precision of matrix products
                yield record
                # Neither saving nor the caller's work counts as training time.
                logged, since = self.step, time.monotonic()
            if actions.stop or actions.redraw:
                return actions.stop
        return False

    def _draws(self) -> Iterator[Callable[[], Batch]]:
        """A function for each remaining micro-batch that draws it."""
        for step in range(self.step, self.config.training.steps):
            # Targets are needed only while the objective is on.
            targets = self.targets if self._weight_at(step) > 0 else {}
            for rows in self._micro_batches():
                yield partial(self._draw, targets, step, rows)

    def _draw(self, targets: Mapping[str, Targets], step: int, rows: range) -> Batch:
        """A micro-batch, for a GPU in pinned memory."""
        batch = draw_batch(self.config, self.latents, targets, step, rows)
        return batch.pinned() if self._gpu else batch

    def _weight_at(self, step: int) -> float:
        """The objective's weight at a step, with the stop step that applies there."""
        settings = self.commands.settings.at(step)
        if "stop_step" in settings:
            self.objective.stop_step = settings["stop_step"]
        return self.objective.weight_at(step)

    def _step(self, batches: Iterator[Batch]) -> tuple[list[Losses], torch.Tensor]:
        """One optimizer step, with the weight and learning rate of this step."""
        weight = self._weight_at(self.step)
        learning_rate = self.commands.settings.at(self.step)["learning_rate"]
        learning_rate *= min(1.0, (self.step + 1) / max(self.config.training.warmup_steps, 1))
        parts, norm = self.state.step(batches, weight, learning_rate, check=self._note_divergence)
        if self.accelerator.scaler is None:  # a gradient scaler skips such a step
            self._note_divergence(norm)
        return parts, norm

    def _note_divergence(self, value: torch.Tensor) -> None:
        """Record the first step with a value that is not finite, without a device synchronization."""
        self.bad_step = torch.where(~value.isfinite() & (self.bad_step < 0), self.step, self.bad_step)

    def _micro_batches(self) -> list[range]:
        """This process's rows of the global batch, one range per accumulation step."""
        training, state = self.config.training, PartialState()
        size = training.batch // (state.num_processes * training.accumulation)
        first = state.process_index * size * training.accumulation
        return [range(first + i * size, first + (i + 1) * size) for i in range(training.accumulation)]

    def _refuse_divergence(self) -> None:
        bad_steps = self.accelerator.gather(self.bad_step.reshape(1))
        bad_steps = bad_steps[bad_steps >= 0]
        if len(bad_steps):
            step = int(bad_steps.min())
            positions = f"{step * self.config.training.batch}..{(step + 1) * self.config.training.batch - 1}"
            problem = f"the loss is not finite at step {step}"
            problem += f" (data seed {self.config.training.seed}, positions {positions})"
        elif name := self.state.not_finite():  # no loss has been computed since the last update
            problem = f"{name} is not finite after step {self.step}"
        else:
            return
        self.saver.close()  # the checkpoint that is being written is a good one
        good = max((c.step for c in self.run.checkpoints if c.step != self.step), default=None)
        raise Diverged(
            f"{problem}; the last good checkpoint is {'none' if good is None else f'step {good}'}; "
            f"lower training.learning_rate or set training.precision=no"
        )

    def _log(self, parts: list[Losses], norm: torch.Tensor, rate: float) -> dict[str, Any]:
        def mean(values: list[torch.Tensor]) -> float:
            return self.accelerator.reduce(torch.cat(values).float().mean(), "mean").item()

        denoise = mean([losses.denoise for losses in parts])
        aligned = [losses.alignment for losses in parts if losses.alignment is not None]
        alignment = mean(aligned) if aligned else None
        weight = self._weight_at(self.step - 1)
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
            self.tracker.log(record)
        self.rate = rate
        self.status("running")
        return record

    def _mean_where_known(self, values: torch.Tensor) -> float | None:
        """Mean over all micro-batches of all processes, ignoring NaN; None if every value is NaN."""
        number = self.accelerator.gather(values.float()).nanmean().item()
        return number if math.isfinite(number) else None

    def save(self, wait: bool = True) -> None:
        """Save a checkpoint of the current step; without ``wait`` it is written while training goes on."""
        tensors = self.state.gathered()
        if self.accelerator.is_main_process:
            scaler = self.accelerator.scaler
            state = {"seconds": self.seconds, "scaler": scaler.state_dict() if scaler else None}
            self.saver.save(self.step, self.state.bytes(), tensors, state, gathered=self.state.sharded)
        else:
            collections.deque(tensors, maxlen=0)  # this process sends its shards
        if wait:
            self.saver.finish()
            self.accelerator.wait_for_everyone()

    def _checkpoint_bytes(self) -> int:
        """Size of a checkpoint; before the first step, whose optimizer has no moments yet, as if it had AdamW's."""
        trained = sum(p.numel() * p.element_size() for p in self.state.student.parameters() if p.requires_grad)
        return self.state.bytes() + (0 if self.state.optimizer.state else 2 * trained)

    def _thin(self) -> None:
        if self.accelerator.is_main_process:
            training = self.config.training
            thin(self.run.folder / "checkpoints", training.keep, training.milestone_every, self.step)

    def _resume(self) -> None:
        latest = self._newest()
        if latest is None:
            if self.accelerator.is_main_process:
                self.run.rewind(0)
            return
        checkpoint, parts = latest
        self.state.restore(parts)
        self.step, self.seconds = checkpoint.step, checkpoint.state["seconds"]
        self._thin()  # in case the process was killed between saving and thinning
        if self.accelerator.scaler and checkpoint.state["scaler"]:
            self.accelerator.scaler.load_state_dict(checkpoint.state["scaler"])
        if self.accelerator.is_main_process:
            self.run.rewind(self.step)

    def _newest(self) -> tuple[Checkpoint, dict[str, StoredTensors]] | None:
        """The checkpoint to resume from, whose files the main process alone checks."""
        folder, latest = self.run.folder / "checkpoints", None
        if self.accelerator.is_main_process:
            latest = latest_resumable(folder)
        if self.accelerator.num_processes > 1:
            (step,) = broadcast_object_list([latest[0].step if latest else None])
            if step is not None and latest is None:
                latest = resumable_at(folder, step)
            found = torch.tensor([latest[0].step if latest else 0], device=self.accelerator.device)
            steps = self.accelerator.gather(found)
            if steps.min() != steps.max():
                raise ValueError(f"the processes resume from steps {steps.tolist()}: all must see the same {folder}")
        return latest

    def _record_provenance(self, decisions: dict[str, Any]) -> None:
        """Record training data and decisions in the run's provenance; ValueError if a resumed run had other data."""
        index, provenance = self.latents.index, self.run.provenance
        described = {
            "content": self.latents.content,
            "channels": self.latents.channels,
            "height": self.latents.height,
            "classes": list(self.latents.classes),
            "vae": index["vae"],
            "pixel_channels": index["pixel_channels"],
        }
        if "latents" not in provenance and self.config.backbone.options.get("rope"):
            provenance["rotary"] = ROTARY
        if provenance.setdefault("latents", described)["content"] != self.latents.content:
            raise ValueError(
                f"run {self.run.name} was trained on other images or with another VAE: restore them, or train again "
                f"after `workbench trash {self.run.name}`"
            )
        if decisions:
            provenance[DECIDED] = {**provenance.get(DECIDED, {}), **decisions}
        check_current(self.run)
        if self.accelerator.is_main_process:
            write_json(self.run.folder / "provenance.json", provenance)
        self.accelerator.wait_for_everyone()

    def status(self, state: str, **more: Any) -> None:
        self.commands.reset_heartbeat()
        if self.accelerator.is_main_process:
            fields = {"steps": self.config.training.steps, "processes": PartialState().num_processes, "rate": self.rate}
            fields |= {"seconds": self.seconds, "answer": self.commands.answer}
            fields["earlier"] = self.commands.earlier
            self.run.write_status(state, self.step, **fields, **more)


def _opened_latents(
    config: Config, root: Path, accelerator: Accelerator, progress: Callable[[int, int], None] | None
) -> Latents:
    """The latents of the training images; of several processes only the main one looks at the images.

    Raises ValueError if it would encode so many images or targets that the others exceed their waiting time.
    """
    folder, several = root / ".latents", accelerator.num_processes > 1
    latents = None
    if accelerator.is_main_process:
        if several:
            _refuse_long_encoding(config, folder)
        latents = open_latents(config, "train", folder, progress)
    if several:
        (name,) = broadcast_object_list([None if latents is None else latents.shards.folder.name])
        latents = open_encoded(folder / name) if latents is None else latents
        if len(latents) > _ENCODED_AT_ONCE and not targets_ready(config, latents, root / ".targets"):
            raise _too_long(f"the targets of {len(latents):,} images")
    assert latents is not None
    return latents


def _refuse_long_encoding(config: Config, folder: Path) -> None:
    """Raise ValueError if one process would encode so many images that the others exceed their waiting time."""
    if known_folder(config, "train", folder) is not None:
        return
    source = latent_source(config, "train")
    if len(source.labels) > _ENCODED_AT_ONCE and not (source.folder(folder) / "index.json").is_file():
        raise _too_long(f"{len(source.labels):,} images")


def _too_long(what: str) -> ValueError:
    return ValueError(
        f"{what} are not encoded yet: run `workbench encode` with the same configuration, then train with several "
        f"processes"
    )
