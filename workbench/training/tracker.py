"""TensorBoard logging beside ``metrics.jsonl``, through Accelerate's tracker."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from accelerate.tracking import TensorBoardTracker
from accelerate.utils import is_tensorboard_available


def check_tracker(name: str) -> None:
    """Raise ValueError, naming the package to install, if the tracker is not available."""
    if name == "tensorboard" and not is_tensorboard_available():
        raise ValueError(
            'training.tracker tensorboard needs its package: pip install "diffusion-workbench[tracking]", or use none'
        )


class Tracker:
    """Writes records to ``RUN/tensorboard`` if ``name`` is "tensorboard", and does nothing for "none".

    A resumed run purges records after ``step``. Only the main process writes.
    """

    def __init__(self, name: str, folder: Path, step: int):
        self._tracker = None
        if name == "tensorboard":
            self._tracker = TensorBoardTracker("tensorboard", folder, purge_step=step + 1)
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
