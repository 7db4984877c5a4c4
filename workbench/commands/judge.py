"""Commands that judge: scores of runs and files, reference files, and what differences between runs are worth."""

from collections.abc import Iterator
from pathlib import Path

from rich.box import SIMPLE
from rich.table import Table

from workbench.arrays import is_npy
from workbench.commands.bars import bars
from workbench.commands.terminal import Console
from workbench.config import from_dict, load_config, parse_overrides, refuse_unknown, to_dict
from workbench.evaluation.names import DETECTORS
from workbench.files import write_json
from workbench.runs.store import open_run, runs_root


def evaluate(command) -> None:
    """Scores of a run or of a file of images."""
    _check_evaluate(command)
    console, records = Console(), []
    with bars(console) as update:
        scored = _score_run(command, update) if command.samples is None else _score_samples(command, update)
        for found in scored:
            records += found
    _print(console, records)
    if command.report:
        write_json(command.report, {"scores": records})


def referencefile(command) -> None:
    """A reference file of a data set."""
    refuse_unknown("detector", command.detector, DETECTORS)
    from workbench.evaluation.detectors import load_detector
    from workbench.evaluation.reference import write_reference_of_data

    detector = load_detector(command.detector)
    config, console = load_config(command.config, command.overrides), Console()
    with bars(console) as update:
        about = write_reference_of_data(
            config.data,
            command.split,
            command.file,
            detector,
            lambda done, total: update("see images", done, total),
        )
    console.print(f"{command.file}: {about['count']:,} images by {about['detector']}", soft_wrap=True)


def compare(command) -> None:
    """What scores of runs support, in a table and in words."""
    from workbench.evaluation.compare import compare as compared

    runs = [open_run(reference) for reference in command.runs]
    found = compared(runs, metrics=command.metric, step=command.step, force=command.force)
    console = Console()
    for number, group in enumerate(found.groups):
        seeds = ", ".join(map(str, group.runs))
        console.print(f"{group.label}: seeds {seeds}{'' if number else ' (baseline)'}", soft_wrap=True, highlight=False)
    table = Table(box=SIMPLE, pad_edge=False)
    for name in ("metric", "step", "run", "difference", "95 % interval", "Holm's p"):
        table.add_column(name, no_wrap=name != "run")
    for row in found.rows:
        table.add_row(*_compared(row))
    console.print(table)
    how: dict[str, list[str]] = {}
    for metric, measured in found.how.items():
        shown = {k: v for k, v in measured.items() if k not in ("detector_hash", "reference", "layer", "t")}
        text = ", ".join(f"{key.replace('_', ' ')} {value}" for key, value in shown.items())
        how.setdefault(text, []).append(metric)
    lines = []
    for row in found.rows:
        values = [" ".join(f"{value:.4g}" for value in seeds.values()) for seeds in (row.first, row.second)]
        lines.append(f"{row.sentence} By seed: {row.baseline} {values[0]}, {row.other} {values[1]}.")
    lines += [f"Note: {note}." for note in found.notes]
    lines += [f"Measured with {text}: {', '.join(metrics)}." for text, metrics in how.items()]
    lines.append(
        "Differences are run - baseline by training seed; each interval is of its row alone and takes them as normal."
    )
    console.print("\n".join(lines), soft_wrap=True, highlight=False)


def _check_evaluate(command) -> None:
    """ValueError for options that do not fit together, before anything heavy is imported or read."""
    if command.reference == "":
        raise ValueError("--reference is empty, as of a shell variable that is not set; give a file, or leave it out")
    if command.processes < 1:
        raise ValueError(f"--processes must be at least 1; got {command.processes}")
    for detector in command.detector:
        refuse_unknown("detector", detector, DETECTORS)
    if command.report:
        if command.report.is_dir():
            raise ValueError(f"--report {command.report} is a folder; give a JSON file")
        command.report.parent.mkdir(parents=True, exist_ok=True)
    if command.reference is not None and (command.samples is None or command.reference.endswith(".npz")):
        is_npy(Path(command.reference))  # refuses what is no file
    if command.samples is None:
        if command.run is None:
            raise ValueError("give a run, or --samples FILE.npz")
        return
    if command.run is not None and "=" not in command.run:
        raise ValueError(f"give a run or --samples, not both; got {command.run!r} and {command.samples}")
    if command.reference is None:
        raise ValueError("--samples needs --reference: an .npz file, or a preset whose training images are meant")
    is_npy(command.samples)
    others = {"--step": command.step is not None, "--processes": command.processes > 1, "--force": command.force}
    if useless := [name for name, given in others.items() if given]:
        raise ValueError(f"{useless[0]} is of runs; a file of --samples has none")


def _score_run(command, progress) -> Iterator[list[dict]]:
    """The scores of one checkpoint, held until all detectors have seen its images."""
    run = open_run(command.run)
    changes = parse_overrides(f"sampling.{change.removeprefix('sampling.')}" for change in command.overrides)
    tree = to_dict(run.config)
    settings = from_dict({**tree, "sampling": {**tree["sampling"], **changes.get("sampling", {})}}).sampling
    run.checkpoint(command.step)
    # What is wrong is said before torch is imported, which takes seconds.
    from workbench.evaluation.suite import score
    from workbench.runs.held import held

    with held(run, command.step) as kept:
        for detector in command.detector:
            yield score(
                kept,
                kept.checkpoint(command.step).step,
                settings,
                detector=detector,
                reference=Path(command.reference) if command.reference else None,
                small_ok=command.small_ok,
                force=command.force,
                processes=command.processes,
                progress=progress,
            )


def _score_samples(command, progress) -> Iterator[list[dict]]:
    # Without a run the first word is an override too.
    overrides = [word for word in (command.run, *command.overrides) if word is not None]
    is_file = command.reference.endswith(".npz")
    if is_file and overrides:
        raise ValueError(f"{overrides[0]} changes nothing of a reference file; overrides are of a preset")
    against = Path(command.reference) if is_file else load_config(command.reference, overrides).data
    from workbench.evaluation.suite import score_file

    options = {"small_ok": command.small_ok, "progress": progress}
    for detector in command.detector:
        yield score_file(command.samples, against, runs_root(), detector=detector, **options)


def _print(console: Console, records: list[dict]) -> None:
    """The scores as a table, and below it what is marked, what they are made of and what they were measured with."""
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
        floor = f"; real images: the same of {r['n_floor']:,} held-out ones" if "n_floor" in r else ""
        console.print(
            f"{r['n_generated']:,} images against {r['n_reference']:,} of {r['reference_origin']}, seen by "
            f"{r['detector']} (resize: {r['resize']}){floor}. Intervals tell what the choice of images does, not what "
            f"another training would give.",
            soft_wrap=True,
            highlight=False,
        )


def _note(record: dict) -> str:
    """What a reader must know beside one score."""
    notes = []
    if record.get("supervised"):
        notes.append("judge taught the run")
    if record.get("small"):
        notes.append(f"too few images for {record['d']} dimensions")
    if "covariance_term" in record:
        notes.append(f"mean {record['mean_term']:.3g} + covariance {record['covariance_term']:.3g}")
    if "median_test_distance" in record:
        notes.append(
            f"chance to lie closer to the training images than held-out ones do; median distance "
            f"{record['median_distance']:.3g} against {record['median_test_distance']:.3g}, "
            f"{record['copies']} exact copies"
        )
    if "by_class" in record:
        known = [share for share in record["by_class"] if share is not None]
        notes.append(f"by class {min(known):.2f} .. {max(known):.2f}")
    if "residual" in record:
        notes.append(f"residual {record['residual']:.2g}")
    return "; ".join(notes)


def _compared(row) -> list[str]:
    interval = row.paired.interval
    return [
        row.metric,
        f"{row.step:,}",
        row.other,
        f"{row.paired.mean:+.3g}",
        f"{interval.low:.2g} .. {interval.high:.2g}" if interval else "",
        "" if row.adjusted is None else f"{row.adjusted:.2g}",
    ]
