"""Runs for the notebooks: existing ones, or trained in this process with a progress report."""

from collections.abc import Sequence
from pathlib import Path

from workbench.config import Config
from workbench.lab.progress import Report, reported
from workbench.reporting.demo import ROLES, demo_configs, guided_config
from workbench.runs.models import check_current
from workbench.runs.store import Run, find_runs, home, prepare_run, run_fingerprint
from workbench.training.loop import fit


def demo_runs(
    seed: int = 0, overrides: str | Sequence[str] = (), root: Path | None = None, progress: Report | None = None
) -> dict[str, Run]:
    """The demo's three finished runs; missing ones are trained first.

    They are the runs of ``workbench demo`` with the same seed and overrides; one continues where the other stopped. No
    scores or report are made.

    Args:
        seed: Seed of initial weights, data order and noise.
        overrides: Options for all three runs, in dotted form.
        root: Folder of the runs; by default ``$WORKBENCH_RUNS``, or ``runs`` in the current or the parent folder.
        progress: Called with (stage, done, total) instead of printing.

    Returns:
        The runs by role, "teacher", "plain" and "guided".

    Raises:
        ValueError: As `wb.trained`.

    Examples:
        >>> small = ["data.name=digits", "backbone.size=pico", "training.batch=8", "training.steps=2"]
        >>> list(wb.demo_runs(overrides=small, progress=lambda stage, done, total: None))
        ['teacher', 'plain', 'guided']
    """
    root = home() if root is None else root
    runs: dict[str, Run] = {}
    configs = demo_configs(seed, overrides)
    for role in ROLES:
        config = configs[role] if role != "guided" else guided_config(runs["teacher"], seed, overrides)
        runs[role] = trained(config, root, progress)
    return runs


def trained(config: Config, root: Path | None = None, progress: Report | None = None) -> Run:
    """The finished run of a configuration: an existing one, or trained in this process from its newest checkpoint.

    Args:
        config: The configuration.
        root: Folder of the runs; by default ``$WORKBENCH_RUNS``, or ``runs`` in the current or the parent folder.
        progress: Called with (stage, done, total) instead of printing.

    Returns:
        The run.

    Raises:
        ValueError: If the training was interrupted (its weights are saved), and as `wb.fit`.

    Examples:
        >>> small = ["data.name=digits", "backbone.size=pico", "training.batch=8", "training.steps=4"]
        >>> run = wb.trained(wb.load_config("demo/plain", small), progress=lambda stage, done, total: None)
        >>> run.status["state"], run.status["step"]
        ('finished', 4)
    """
    root = home() if root is None else root
    run = _existing(config, root)
    if run is not None and run.status["state"] == "finished":
        check_current(run)
        return run
    with reported(progress) as report:
        for record in fit(config, root, lambda done, total: report("encode images", done, total)):
            report(f"train {config.name}", record["step"], config.training.steps)
    run = prepare_run(config, root)
    if run.status["state"] != "finished":
        raise ValueError(f"{run.name} was interrupted at step {run.status['step']:,}; call again to continue")
    return run


def _existing(config: Config, root: Path) -> Run | None:
    fingerprint = run_fingerprint(config, root)
    return next((run for run in find_runs(root) if run.fingerprint == fingerprint), None)
