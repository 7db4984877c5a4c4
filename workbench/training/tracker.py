"""Log the records of ``metrics.jsonl`` to a tracker too, through Accelerate's classes for them."""

import importlib.util
from collections.abc import Mapping
from typing import Any

from workbench.runs.store import Run

PROJECT = "workbench"  # under which trackers list the runs


def check_tracker(name: str) -> None:
    """Raise ValueError, naming the package to install, if the tracker is not available."""
    if name == "none":
        return
    # Not above: it takes a second to import, and most runs and sweeps have no tracker.
    from accelerate import tracking
    from accelerate.utils import is_tensorboard_available

    if name not in tracking.LOGGER_TYPE_TO_CLASS:
        raise ValueError(f"training.tracker {name} needs a newer accelerate: pip install --upgrade accelerate")
    if name == "tensorboard" and not is_tensorboard_available():
        raise ValueError(
            'training.tracker tensorboard needs its package: pip install "diffusion-workbench[tracking]", or use none'
        )
    if name != "tensorboard" and importlib.util.find_spec(name) is None:
        raise ValueError(f"training.tracker {name} needs its package: pip install {name}, or use none")


class Tracker:
    """Logs records with the tracker ``name``, as the run's name in the project "workbench"; nothing for "none".

    What the tracker writes to disk is in the run folder. A run that is resumed at ``step`` is continued by those that
    can; TensorBoard forgets later records. Call it in the main process only.
    """

    def __init__(self, name: str, run: Run, step: int):
        self._tracker: Any = None
        if name == "none":
            return
        from accelerate import tracking

        kind: Any = tracking.LOGGER_TYPE_TO_CLASS[name]
        self._tracker = kind(**arguments(name, run, step))
        if hasattr(self._tracker, "start"):  # older versions of Accelerate start it in the constructor
            self._tracker.start()

    def log(self, record: Mapping[str, Any]) -> None:
        """Log every number of a ``metrics.jsonl`` record under its own name."""
        if self._tracker is not None:
            numbers = {name: value for name, value in record.items() if name != "step" and value is not None}
            self._tracker.log(numbers, step=record["step"])

    def close(self) -> None:
        """Flush to disk."""
        if self._tracker is not None:
            self._tracker.finish()


def arguments(name: str, run: Run, step: int) -> dict[str, Any]:
    """The arguments of Accelerate's tracker ``name``."""
    folder, key = str(run.folder), run.fingerprint
    options: Mapping[str, dict[str, Any]] = {
        "aim": {"run_name": run.name, "logging_dir": folder, "experiment": PROJECT},
        "clearml": {"run_name": run.name, "project_name": PROJECT, "continue_last_task": bool(step)},
        "comet_ml": {"run_name": PROJECT, "experiment_key": f"{key}{key}"},
        "dvclive": {"run_name": run.name, "dir": f"{folder}/dvclive", "resume": bool(step)},
        "mlflow": {"experiment_name": PROJECT, "logging_dir": f"{folder}/mlruns", "run_name": run.name},
        "swanlab": {"run_name": PROJECT, "experiment_name": run.name, "logdir": f"{folder}/swanlog"},
        "tensorboard": {"run_name": "tensorboard", "logging_dir": folder, "purge_step": step + 1},
        "trackio": {"run_name": PROJECT, "name": run.name, "resume": "allow"},
        "wandb": {"run_name": PROJECT, "name": run.name, "id": key, "dir": folder, "resume": "allow"},
    }
    return options[name]
