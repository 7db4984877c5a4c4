"""Measure a training: when each line was written, and the cost of its steps with and without panels."""

import json
import os
import signal
import statistics
import threading
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import NamedTuple

import psutil
from costs import Block

from workbench.config import Config
from workbench.files import is_locked
from workbench.runs.state import LIVE, STARTER_LOCK, last_log_lines
from workbench.runs.store import Run, prepare_run
from workbench.training.control import Control
from workbench.training.launch import launch

_SETTLE = 0.5  # seconds before a block, after panels were opened or closed
_LOOK = 0.005  # seconds between two checks of the file
_PATIENCE = 60.0  # seconds that a training has to save and exit


class Line(NamedTuple):
    """A logged step: when the file was written, and the trainer's CPU seconds until then."""

    written: float
    step: int
    cpu: float


class Trained:
    """A run in training, and every line that it logs while this is open."""

    def __init__(self, run: Run, beside: Sequence[str]):
        self.run, self.beside = run, tuple(beside)
        self.lines: list[Line] = []
        self._over = threading.Event()
        self._process = psutil.Process(run.status["pid"])
        self._thread = threading.Thread(target=self._follow, daemon=True)
        self._thread.start()
        try:
            self.wait_for(3, 0.0)
        except BaseException:
            self.close()
            raise

    def close(self) -> None:
        """Stop following the file; the training continues."""
        self._over.set()
        self._thread.join()

    def wait_for(self, count: int, seconds: float) -> list[Line]:
        """Lines of the next `seconds`, or longer until there are `count`; ValueError if the training ends."""
        first, since = len(self.lines), time.monotonic()
        while time.monotonic() - since < seconds or len(self.lines) - first < count:
            state = self.run.status["state"]
            if state not in LIVE:
                raise ValueError(f"the training is {state}: {'; '.join(last_log_lines(self.run.folder, 3))}")
            time.sleep(0.1)
        return self.lines[first:]

    @property
    def step(self) -> float:
        """Seconds per step, the median of the last hundred."""
        # Of lines written at the same time only the last counts.
        last = list({line.written: line for line in self.lines[-1001:]}.values())[-101:]
        pairs = zip(last, last[1:], strict=False)
        return statistics.median((after.written - line.written) / (after.step - line.step) for line, after in pairs)

    def block(self, watched: bool, seconds: float) -> Block:
        """Measure a stretch of whole steps."""
        time.sleep(_SETTLE)
        others, since = self._others(), time.monotonic()
        lines = self.wait_for(3, seconds)
        others, lasted = self._others() - others, time.monotonic() - since
        return between(lines[0], lines[-1], watched, others / lasted)

    def _others(self) -> float:
        """CPU seconds of child processes other than the training: a kernel, JupyterLab, a browser."""
        here, found = psutil.Process(), 0.0
        training = {self._process.pid, *(child.pid for child in self._process.children(recursive=True))}
        for child in here.children(recursive=True):
            if child.pid not in training:
                with suppress(psutil.Error):  # it has ended
                    found += sum(child.cpu_times()[:2])
        return found

    def _follow(self) -> None:
        file = self.run.folder / "metrics.jsonl"
        position, rest, cpu = 0, b"", 0.0
        while not self._over.wait(_LOOK):
            if not file.exists() or (found := file.stat()).st_size == position:
                continue
            with suppress(psutil.Error):  # it has ended
                cpu = sum(self._process.cpu_times()[:2])
            with file.open("rb") as opened:
                opened.seek(position)
                *lines, rest = (rest + opened.read(found.st_size - position)).split(b"\n")
            position = found.st_size
            # The file's modification time: on a busy machine this check comes late.
            self.lines += [Line(found.st_mtime_ns / 1e9, json.loads(line)["step"], cpu) for line in lines]


def between(first: Line, last: Line, watched: bool, panels_cpu: float) -> Block:
    """The block of steps between two lines."""
    steps = last.step - first.step
    return Block(watched, steps, (last.written - first.written) / steps, (last.cpu - first.cpu) / steps, panels_cpu)


@contextmanager
def training(config: Config, root: Path) -> Iterator[Trained]:
    """Train `config` under `root` in a process that ends with this context; ValueError if it fails."""
    run = prepare_run(config, root)
    try:
        launched = launch(config, root=root, patience=600.0)
        if launched.failed:
            raise ValueError(f"the training failed: {launched.failed}")
        trained = Trained(run, launched.beside)
        try:
            yield trained
        finally:
            trained.close()
    finally:
        _end(run)


def _end(run: Run) -> None:
    if run.status["state"] in LIVE:
        with suppress(ValueError):  # it has ended by itself
            Control(run, patience=_PATIENCE).stop()
    deadline = time.monotonic() + _PATIENCE
    while is_locked(run.folder / STARTER_LOCK):
        if time.monotonic() > deadline:
            # A detached training leads its own process group.
            with suppress(ProcessLookupError):
                os.killpg(run.status["pid"], signal.SIGKILL)
            return
        time.sleep(0.1)
