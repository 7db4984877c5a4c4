"""Functions for the notebook of a row: train unless the run exists, score, plot, and record the end."""

import os
import signal
import threading
import time
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

from workbench.config import SamplingConfig, load_config
from workbench.evaluation.generate import generate
from workbench.evaluation.suite import score
from workbench.files import is_locked, write_json
from workbench.reporting.figures import loss_curves, sample_grid
from workbench.reporting.lessons import trained
from workbench.reporting.lines import Chart
from workbench.reporting.sweep.records import MARK, STOP, is_stopped
from workbench.reporting.sweep.specification import Evaluation, Training, evaluation_of, resolve
from workbench.runs.state import LIVE, TRAINER_LOCK
from workbench.runs.store import Run, find_runs, home

_POLL = 0.5  # seconds between looks at other processes


class Stopped(Exception):
    """The sweep was asked to stop; the training was saved."""


@dataclass(frozen=True)
class Scores:
    """Scores of a run, as a table in the notebook."""

    records: tuple[dict[str, Any], ...]

    def _repr_markdown_(self) -> str:
        lines = ["| score | value | 95 % interval | real images |", "| --- | --- | --- | --- |"]
        for r in self.records:
            interval = f"{r['low']:.4g} .. {r['high']:.4g}" if "low" in r else ""
            floor = f"{r['floor']:.4g}" if "floor" in r else ""
            lines.append(f"| {r['metric']} | {r['value']:.4g} | {interval} | {floor} |")
        return "\n".join(lines)


@dataclass
class Row:
    """One row of a sweep with one seed, in the process that executes it."""

    training: Training
    evaluation: Evaluation | None
    root: Path
    run: Run | None = None
    scores: Scores | None = None
    spent: dict[str, float] = field(default_factory=dict)

    def train(self) -> Run:
        """Train the run, after its teachers, from the newest checkpoints; finished runs are reused.

        Waits for a run that another process trains. ValueError as ``fit``.
        """
        began = time.monotonic()
        self.run = self._trained_after_teachers(self.training)
        self.spent["train"] = time.monotonic() - began
        return self.run

    def score(self) -> Scores | None:
        """Scores of the last step, computed once for each protocol; None if the row is not scored."""
        _check_stop()
        if self.evaluation is None:
            return None
        began, run, sampling = time.monotonic(), self._done(), self._sampling()
        step = run.config.training.steps
        detectors = self.evaluation.detector
        records = [r for d in detectors for r in score(run, step, sampling, detector=d, small_ok=True)]
        self.scores, self.spent["score"] = Scores(tuple(records)), time.monotonic() - began
        return self.scores

    def curve(self) -> Chart:
        """Losses over training."""
        return Chart(loss_curves({self._done().name: self._done()}))

    def samples(self, count: int = 10) -> Chart:
        """The first ``count`` samples of the last step, from the scored ones if there are any."""
        _check_stop()
        run, sampling = self._done(), self._sampling()
        sampling = replace(sampling, count=max(count, sampling.count if self.evaluation else 0))
        step = run.config.training.steps
        images = generate(run, step, sampling).images[:count].numpy()
        names = run.latents["classes"]
        columns = [str(names[i % len(names)]) for i in range(count)]
        return Chart(sample_grid({self.training.source: {step: images}}, columns))

    def end(self) -> str:
        """Record that the last cell was reached, for the sweep that executes this notebook."""
        run = self._done()
        scores = {} if self.scores is None else {r["metric"]: r["value"] for r in self.scores.records}
        record = {"run": run.name, "fingerprint": run.fingerprint, "step": run.config.training.steps, "scores": scores}
        if os.environ.get(MARK):
            write_json(Path(os.environ[MARK]), {**record, "spent": self.spent})
        return f"{run.name} at step {record['step']:,}: finished"

    def _sampling(self) -> SamplingConfig:
        changes = (*self.training.shared, *self.training.overrides)
        changes += self.evaluation.overrides if self.evaluation else ()
        return load_config(self.training.source, changes).sampling

    def _done(self) -> Run:
        if self.run is None:
            raise ValueError("row.train() comes first")
        return self.run

    def _trained_after_teachers(self, training: Training) -> Run:
        changes = [*training.shared, *training.overrides, f"training.seed={training.seed}"]
        if training.teacher is not None:
            changes.append(f"objective.teacher={self._trained_after_teachers(training.teacher).name}")
        return self._trained(training, changes)

    def _trained(self, training: Training, changes: Iterable[str]) -> Run:
        config = load_config(training.source, changes)
        while True:
            _check_stop()
            self._wait(training)
            try:
                return trained(config, self.root)
            except ValueError:
                _check_stop()
                run = find_run(training.fingerprint, self.root)
                if run is None or not is_locked(run.folder / TRAINER_LOCK):
                    raise  # the error is not that another process has started the run in the meantime

    def _wait(self, training: Training) -> None:
        """Wait until no other process trains the run."""
        printed = False
        while (run := find_run(training.fingerprint, self.root)) is not None:
            status = run.status
            # A queued run without a process is not trained either.
            if status["state"] not in LIVE or "remark" in status:
                return
            if not printed:
                print(f"{run.name} is {status['state']} in process {status['pid']} on {status['host']}: waiting")
            printed = True
            time.sleep(_POLL)
            _check_stop()


def open_row(
    config: str,
    overrides: Iterable[str] | str = (),
    shared: Iterable[str] | str = (),
    seed: int = 0,
    evaluate: Mapping[str, Any] | None = None,
    root: Path | None = None,
) -> Row:
    """The row of a preset or file, with ``overrides`` and ``shared`` as for `specification.resolve`.

    Strings of several overrides are split at blanks. ``evaluate`` has the keys of a sweep's; with None the row is not
    scored. ValueError for unknown options.
    """
    root = (home() if root is None else root).resolve()
    own, common = (value.split() if isinstance(value, str) else value for value in (overrides, shared))
    if os.environ.get(STOP):
        threading.Thread(target=_interrupt_when_asked, daemon=True).start()
    return Row(resolve(config, own, common, seed, root), None if evaluate is None else evaluation_of(evaluate), root)


def find_run(fingerprint: str, root: Path) -> Run | None:
    """The run with a fingerprint, if it exists."""
    return next((run for run in find_runs(root) if run.fingerprint == fingerprint), None)


def _check_stop() -> None:
    if is_stopped():
        raise Stopped("the sweep was stopped")


def _interrupt_when_asked() -> None:
    """Interrupt like Ctrl-C, once: a second one would abort the saving. Between cells `_check_stop` is used."""
    while not is_stopped():
        time.sleep(_POLL)
    os.kill(os.getpid(), signal.SIGINT)
