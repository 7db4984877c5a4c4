"""Records for a tracker beside ``metrics.jsonl``: TensorBoard, through Accelerate's own."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from accelerate.tracking import TensorBoardTracker
from accelerate.utils import is_tensorboard_available


def check_tracker(name: str) -> None:
    """ValueError that says what to install, unless the tracker can be used."""
    if name == "tensorboard" and not is_tensorboard_available():
        raise ValueError(
            'training.tracker tensorboard needs its package: pip install "diffusion-workbench[tracking]", or take none'
        )


class Tracker:
    """Writes records to ``RUN/tensorboard`` if ``name`` says so, and nothing for "none".

    A resumed run takes back what it logged after ``step``. Only the main process writes.
    """

    def __init__(self, name: str, folder: Path, step: int):
        self._tracker = None
        if name == "tensorboard":
            self._tracker = TensorBoardTracker("tensorboard", folder, purge_step=step + 1)
            self._tracker.start()

    def log(self, record: Mapping[str, Any]) -> None:
        """Every number of a record of ``metrics.jsonl``, under its own name."""
        if self._tracker is not None:
            numbers = {name: value for name, value in record.items() if name != "step" and value is not None}
            self._tracker.log(numbers, step=record["step"])

    def close(self) -> None:
        """Flush to disk."""
        if self._tracker is not None:
            self._tracker.finish()
