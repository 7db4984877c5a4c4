"""Commands that score runs and files of images, write reference files, and compare the scores of runs."""

import contextlib
import os
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Literal

import tyro
from rich.box import SIMPLE
from rich.table import Table

from workbench import plugins
from workbench.cli.arguments import ConfigReference, Names, Overrides, Processes
from workbench.cli.bars import Update, bars
from workbench.cli.terminal import Console
from workbench.config import check_plugin, from_dict, load_config, parse_overrides, to_dict
from workbench.config.ranges import FromStep
from workbench.data.ranks import joined_ranks, several_started
from workbench.evaluation.metrics import default_detector, stored_names
from workbench.files import write_json
from workbench.runs.store import open_run, runs_root
from workbench.runs.weak import check_weak, find_weak

if TYPE_CHECKING:
    from workbench.evaluation.compare import Row


def _check_detector(name: str) -> None:
    """Raise ValueError for an unknown detector; a module path is allowed to be imported from here on."""
    if "=" in name:
        raise ValueError(f"--detector takes all words that follow it, also {name}; give overrides before it")
    if plugins.is_path(name):
        plugins.allow(name)
    check_plugin("detector", name, option="detector")


@dataclass(frozen=True)
class Evaluate:
    """Score a run at a step (by default the newest), or a file of images from any program, and print the scores."""

    run: Annotated[str | None, tyro.conf.Positional, Names.RUN] = None
    overrides: Overrides = ()
    """Changes to the run's sampling options, such as guidance_scale=4 count=2000 sampler=heun labels=random."""
    step: FromStep | None = None
    samples: Annotated[Path | None, Names.FILE] = None
    """Score this .npz (ADM's layout, uint8 arr_0) instead of a run."""
    reference: str | None = None
    """Reference images: an .npz file (ADM's, or by `workbench reference`), "data" for the run's own training images, or
    with --samples a preset or YAML file for its training images. By default the run's own, but for Inception and a run
    of ImageNet ADM's file if it is in $WORKBENCH_WEIGHTS."""
    detector: tuple[str, ...] = ()
    """Feature extractors: clf64, clf64-scenes, effnet-lite0, randomconv, pixels-pca64, inception-2015 (the only one
    whose scores are FID, sFID and IS), dinov2, one registered by an installed package, or a module path. By default the
    classifier of the run's kind of images."""
    detector_precision: Literal["no", "bf16", "auto"] = "no"
    """Of the feature extractors: no is float32, auto is bf16 where the machine multiplies matrices in it. Recorded."""
    processes: Processes = 1
    """Number of processes that generate images, spread over the GPUs of this machine. For several machines start the
    command with torchrun: each process generates its share."""
    weak: str | None = None
    """Weak model to guide against instead of the null label (autoguidance), with guidance_scale: RUN, RUN@STEP, or a
    step of the run."""
    small_ok: bool = False
    """Allow fewer images than twice the detector's dimensions; the scores are marked."""
    force: bool = False
    """Allow a detector whose features the run was trained with; the scores are marked."""
    report: Path | None = None
    """Also write the scores, and how each was measured, to this JSON file."""

    def execute(self) -> None:
        self._check()
        console = Console()
        records: list[dict[str, Any]] = []
        if several_started() and os.environ["RANK"] != "0":  # the main process shows progress and scores
            for _ in self._score_run(None):
                pass
            return
        with bars(console) as update:
            for scores in self._score_run(update) if self.samples is None else self._score_samples(update):
                records += scores
        _print(console, records)
        if self.report:
            write_json(self.report, {"scores": records})

    def _check(self) -> None:
        """Raise ValueError for options that exclude each other, before anything heavy is imported or read."""
        from workbench.arrays import is_npy

        if self.reference == "":
            raise ValueError("--reference is empty; is a shell variable not set? Give a file, or omit it")
        if self.processes < 1:
            raise ValueError(f"--processes must be at least 1; got {self.processes}")
        for detector in self.detector:
            _check_detector(detector)
        for detector in self.detector or (default_detector(""),):
            stored_names(detector)
        if self.report:
            if self.report.is_dir():
                raise ValueError(f"--report {self.report} is a folder; give a JSON file")
            self.report.parent.mkdir(parents=True, exist_ok=True)
        if several_started() and (self.samples is not None or self.processes > 1):
            given = "--samples" if self.samples is not None else "--processes"
            raise ValueError(f"{given} is for one process, but a launcher started {os.environ['WORLD_SIZE']}")
        own = self.samples is None and self.reference == "data"
        if self.reference is not None and not own and (self.samples is None or self.reference.endswith(".npz")):
            is_npy(Path(self.reference))  # raises ValueError if it is not a readable file
        if self.samples is None:
            if self.run is None:
                raise ValueError("give a run, or --samples FILE.npz")
            return
        if self.run is not None and "=" not in self.run:
            raise ValueError(f"give a run or --samples, not both; got {self.run!r} and {self.samples}")
        if self.reference is None:
            raise ValueError("--samples needs --reference: an .npz file, or a preset for its training images")
        is_npy(self.samples)
        others = {"--step": self.step is not None, "--processes": self.processes > 1, "--force": self.force}
        others["--weak"] = self.weak is not None
        if useless := [name for name, given in others.items() if given]:
            raise ValueError(f"{useless[0]} is for runs and has no effect on the file of --samples")

    def _score_run(self, progress: Update | None) -> Iterator[list[dict[str, Any]]]:
        """Yield the scores of a checkpoint by each detector; thinning does not delete it in the meantime."""
        assert self.run is not None  # checked by `_check`
        run = open_run(self.run)
        changes = parse_overrides(f"sampling.{change.removeprefix('sampling.')}" for change in self.overrides)
        tree = to_dict(run.config)
        settings = from_dict({**tree, "sampling": {**tree["sampling"], **changes.get("sampling", {})}}).sampling
        step = run.checkpoint(self.step).step
        weak = None
        if self.weak is not None:
            if settings.guidance_scale == 1:
                raise ValueError("--weak has no effect without guidance; add guidance_scale=2, for example")
            against = find_weak(self.weak, run)
            check_weak(run, [step], against)
            weak = (against.run, against.step)  # the run that is held has one step only
        reference: Path | Literal["data"] | None = None
        if self.reference is not None:
            reference = "data" if self.reference == "data" else Path(self.reference)
        # Errors are raised before torch is imported, which takes seconds.
        from workbench.evaluation.suite import score
        from workbench.runs.held import held

        with contextlib.ExitStack() as stack:
            ranks = stack.enter_context(joined_ranks())
            wanted = ranks.of_main(step) if ranks.count > 1 else self.step  # a running training may have a newer one
            kept = stack.enter_context(held(run, wanted))
            for detector in self.detector or (None,):
                yield score(
                    kept,
                    kept.checkpoint(wanted).step,
                    settings,
                    detector=detector,
                    detector_precision=self.detector_precision,
                    reference=reference,
                    small_ok=self.small_ok,
                    force=self.force,
                    processes=self.processes,
                    weak=weak,
                    ranks=ranks,
                    progress=progress,
                )

    def _score_samples(self, progress: Update) -> Iterator[list[dict[str, Any]]]:
        """Yield the scores of the file of images by each detector."""
        assert self.samples is not None and self.reference is not None  # checked by `_check`
        # Without a run, the first positional argument is an override too.
        overrides = [argument for argument in (self.run, *self.overrides) if argument is not None]
        is_file = self.reference.endswith(".npz")
        if is_file and overrides:
            raise ValueError(f"{overrides[0]} has no effect on a reference file; overrides are for a preset")
        reference = Path(self.reference) if is_file else load_config(self.reference, overrides).data
        from workbench.evaluation.suite import score_file

        for detector in self.detector or (default_detector("" if is_file else reference.name),):
            yield score_file(
                self.samples,
                reference,
                runs_root(),
                detector=detector,
                detector_precision=self.detector_precision,
                small_ok=self.small_ok,
                progress=progress,
            )


@dataclass(frozen=True)
class ReferenceFile:
    """Write a reference .npz of a data set in ADM's layout: 10,000 images, and the moments of all for FID and sFID."""

    config: ConfigReference
    file: Annotated[Path, tyro.conf.Positional]
    overrides: Overrides = ()
    """Overrides, such as data.path=/data/imagenet."""
    detector: str = "inception-2015"
    split: Literal["train", "test"] = "train"

    def execute(self) -> None:
        _check_detector(self.detector)
        from workbench.evaluation.detectors.base import load_detector
        from workbench.evaluation.reference import write_reference_of_data

        detector = load_detector(self.detector)
        config, console = load_config(self.config, self.overrides), Console()
        with bars(console) as update:
            summary = write_reference_of_data(
                config.data,
                self.split,
                self.file,
                detector,
                lambda done, total: update("read images", done, total),
            )
        console.print(f"{self.file}: {summary['count']:,} images, features of {summary['detector']}", soft_wrap=True)


@dataclass(frozen=True)
class Compare:
    """Test the differences between runs and the first run's configuration, paired by training seed.

    Runs that differ only in their seed form a group, which has the name of their configuration.
    """

    runs: Annotated[tuple[str, ...], tyro.conf.Positional, Names.RUN]
    metric: tuple[str, ...] = ()
    """Metrics, such as fd-clf64; by default all scores that do not belong to a layer."""
    step: FromStep | None = None
    """Step to compare at; by default the last one with the largest number of pairs."""
    force: bool = False
    """Also compare scores that were not measured in the same way; they are marked."""

    def execute(self) -> None:
        from workbench.evaluation.compare import compare

        runs = [open_run(reference) for reference in self.runs]
        result = compare(runs, metrics=self.metric, step=self.step, force=self.force)
        console = Console()
        for number, group in enumerate(result.groups):
            seeds = ", ".join(map(str, group.runs))
            console.print(
                f"{group.label}: seeds {seeds}{'' if number else ' (baseline)'}", soft_wrap=True, highlight=False
            )
        table = Table(box=SIMPLE, pad_edge=False)
        several = len(result.groups) > 2
        for name in ("metric", "step", *(["run"] if several else []), "difference", "95 % interval", "Holm's p"):
            table.add_column(name, no_wrap=name != "run")
        for row in result.rows:
            metric, step, run, *rest = _cells(row)
            table.add_row(metric, step, *([run] if several else []), *rest)
        console.print(table)
        how: dict[str, list[str]] = {}
        for metric, measured in result.how.items():
            shown = {k: v for k, v in measured.items() if k not in ("detector_hash", "reference", "layer", "t")}
            text = ", ".join(f"{key.replace('_', ' ')} {value}" for key, value in shown.items())
            how.setdefault(text, []).append(metric)
        lines = []
        shared = Counter(row.conclusion for row in result.rows)
        for row in result.rows:
            values = [" ".join(f"{value:.4g}" for value in seeds.values()) for seeds in (row.first, row.second)]
            text = row.measured if shared[row.conclusion] == len(result.rows) > 1 else row.sentence
            lines.append(f"{text} By seed: {row.baseline} {values[0]}, {row.other} {values[1]}.")
        if len(shared) == 1 and len(result.rows) > 1:
            lines.append(f"For each row: {next(iter(shared))}")
        lines += [f"Note: {note}." for note in result.notes]
        lines += [f"Measured with {text}: {', '.join(metrics)}." for text, metrics in how.items()]
        lines.append(
            "Differences are run - baseline by training seed. Each interval is for its row alone and assumes a normal "
            "distribution."
        )
        console.print("\n".join(lines), soft_wrap=True, highlight=False)


def _print(console: Console, records: Sequence[Mapping[str, Any]]) -> None:
    """Print the scores as a table, then notes on them, and the images and detectors they were measured with."""
    table = Table(box=SIMPLE, pad_edge=False)
    for name in ("score", "value", "95 % interval", "real images"):
        table.add_column(name, no_wrap=True)
    for r in records:
        interval = f"{r['low']:.4g} .. {r['high']:.4g}" if "low" in r else ""
        floor = f"{r['floor']:.4g}" if "floor" in r else ""
        table.add_row(r["metric"], f"{r['value']:.4g}", interval, floor)
    console.print(table)
    for r in records:
        if note := _note(r):
            console.print(f"{r['metric']}: {note}.", soft_wrap=True, highlight=False)
    for r in {record["detector"]: record for record in records}.values():
        floor = f"; real images: the same scores of {r['n_floor']:,} held-out ones" if "n_floor" in r else ""
        guided = f" guided against {r['weak']} at step {r['weak_step']:,}," if r.get("weak") else ""
        console.print(
            f"{r['n_generated']:,} images{guided} against {r['n_reference']:,} of {r['reference_origin']}, features of "
            f"{r['detector']} (resize: {r['resize']}){floor}. Intervals are over the choice of images, not over "
            f"training seeds.",
            soft_wrap=True,
            highlight=False,
        )


def _note(record: Mapping[str, Any]) -> str:
    """Notes on a score, separated by semicolons."""
    notes = []
    if record.get("supervised"):
        notes.append("the run was trained with features of this detector")
    if record.get("small"):
        notes.append(f"too few images for {record['d']} dimensions")
    if "covariance_term" in record:
        notes.append(f"mean {record['mean_term']:.3g} + covariance {record['covariance_term']:.3g}")
    if "median_test_distance" in record:
        notes.append(
            f"probability of being closer to the training images than held-out images are; median distance "
            f"{record['median_distance']:.3g} against {record['median_test_distance']:.3g}, "
            f"{record['copies']} exact copies"
        )
    if "by_class" in record:
        known = [share for share in record["by_class"] if share is not None]
        notes.append(f"by class {min(known):.2f} .. {max(known):.2f}")
    if "residual" in record:
        notes.append(f"residual {record['residual']:.2g}")
    return "; ".join(notes)


def _cells(row: "Row") -> list[str]:
    interval = row.paired.interval
    return [
        row.metric,
        f"{row.step:,}",
        row.other,
        f"{row.paired.mean:+.3g}",
        f"{interval.low:.2g} .. {interval.high:.2g}" if interval else "",
        "" if row.adjusted is None else f"{row.adjusted:.2g}",
    ]
