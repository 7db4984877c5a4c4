"""Execute a sweep on any executor: each job when its teachers are finished, continuing an earlier execution."""

import contextlib
import multiprocessing
import os
import time
from collections.abc import Callable, Generator, Iterator, Sequence
from concurrent.futures import BrokenExecutor, ProcessPoolExecutor
from pathlib import Path
from typing import Any

from workbench.files import hold_lock, home_path, reason
from workbench.reporting.sweep.execution import RowTask, cores, execute_row, live_with_parent
from workbench.reporting.sweep.executors import forget, found_again, submit
from workbench.reporting.sweep.progress import Meter, Outcome, Progress, finished, runs_by_fingerprint, write_results
from workbench.reporting.sweep.records import SweepFolder, sweep_folder
from workbench.reporting.sweep.specification import Job, SweepSpec, plan
from workbench.runs.store import runs_root
from workbench.shipped import shipped

_PATIENCE = 3.0  # seconds to wait for an earlier sweep that is ending
_POLL = 0.5  # seconds between looks at the rows


def run_sweep(
    spec: SweepSpec,
    executor: Any = None,
    *,
    root: Path | None = None,
    workers: int | None = 1,
    only: Sequence[str] = (),
    stop: Callable[[], bool] = lambda: False,
    notebook: Path | None = None,
) -> Iterator[Progress]:
    """Execute every row and seed that is not finished, teachers first; yields progress twice a second.

    ``executor`` is anything with ``submit(function, order)`` whose result has ``done()``, ``result()`` and
    ``cancel()``: those of ``concurrent.futures``, ``dask.distributed.Client(...).get_executor()``, loky's, a
    ``submitit.AutoExecutor``, or one of `executors.opened`; None makes a pool of ``workers`` processes, each with its
    share of the cores (by default one for each GPU, else one for every two cores). All machines need the package and
    access to the folder of the runs. Rows that an earlier sweep submitted are waited for while they are queued or run.
    If a row fails, rows that need it are left out and the others continue. When ``stop()`` is true, or the generator is
    closed, the rows save and end. ``only`` selects rows; ``notebook`` replaces the package's own.

    ValueError, before anything starts, as `specification.plan`, for a row that cannot run, and for a sweep that another
    process executes.
    """
    if workers is not None and workers < 1:
        raise ValueError(f"workers must be at least 1; got {workers}")
    root = (runs_root() if root is None else root).resolve()
    all_jobs = plan(spec, root)
    jobs = plan(spec, root, only) if only else all_jobs
    for job in jobs:
        _check(job)
    workers = default_workers() if workers is None else workers
    place = sweep_folder(root, spec.name)
    with _held(place):
        place.stop.unlink(missing_ok=True)
        notebook = shipped("notebooks/paper/row.ipynb") if notebook is None else notebook.resolve()
        common = {"notebook": str(notebook), "root": str(root), "cwd": os.getcwd(), "stop": str(place.stop)}
        sweep = _Sweep(jobs, place, root, {**common, "workers": workers}, executor)
        ended = -1
        with contextlib.closing(sweep.run(stop)) as updates:  # closing waits until the rows have saved
            for progress in updates:
                if len(progress.ended) != ended:
                    ended = len(progress.ended)
                    write_results(spec, all_jobs, place, root)
                yield progress


@contextlib.contextmanager
def _held(place: SweepFolder) -> Iterator[None]:
    """Lock a sweep for this process; ValueError if another one executes it."""
    place.folder.mkdir(parents=True, exist_ok=True)
    with contextlib.ExitStack() as stack:
        try:
            stack.enter_context(hold_lock(place.lock, _PATIENCE))
        except ValueError as error:
            raise ValueError(f"another process executes the sweep {place.folder.name}: {place.folder}") from error
        yield


class _Sweep:
    """The jobs of one execution: waiting, running and ended."""

    def __init__(self, jobs: Sequence[Job], place: SweepFolder, root: Path, common: dict[str, Any], executor: Any):
        self.jobs, self.place, self.common = jobs, place, common
        self.executor = executor
        self.pool: ProcessPoolExecutor | None = None
        runs = runs_by_fingerprint(root)
        self.ended: dict[str, Outcome] = {}
        for job in jobs:
            record = finished(job, place, runs)
            if record is not None:
                self.ended[job.id] = self._outcome(job, record, before=True)
                forget(place.job(job.id))  # a job that outlived the sweep that submitted it
        self.futures: dict[str, Any] = {}
        self.meter = Meter([job for job in jobs if job.id not in self.ended], place, root)
        self.stopping = False

    def run(self, stop: Callable[[], bool]) -> Generator[Progress, None, None]:
        """Run until every job has ended or, after a stop, every running one."""
        try:
            while True:
                if stop() and not self.stopping:
                    self._stop()
                self._collect()
                if not self.stopping:
                    self._submit()
                yield self._progress()
                if not self.futures:
                    return
                time.sleep(_POLL)
        finally:
            self._stop()
            while any(not future.done() for future in self.futures.values()):
                time.sleep(_POLL)
            if self.pool is not None:
                self.pool.shutdown()
            self.place.stop.unlink(missing_ok=True)

    def _submit(self) -> None:
        """Submit every job whose teachers are finished; leave out those whose teachers failed."""
        ready: list[Job] = []
        for job in self.jobs:
            if job.id in self.ended or job.id in self.futures:
                continue
            needed = [self.ended.get(id) for id in job.after]
            failed = next((each for each in needed if each is not None and each.state != "finished"), None)
            if failed is not None:
                how = "was left out" if failed.state == "left out" else failed.state
                self.ended[job.id] = Outcome(job.id, job.names, "left out", f"it needs {failed.id}, which {how}")
            elif all(needed) and (self.executor is not None or len(self.futures) + len(ready) < self.common["workers"]):
                ready.append(job)
        if not ready:
            return
        if self.executor is not None:
            # Jobs of a cluster survive the process that submitted them.
            again = {job.id: found for job in ready if (found := found_again(self._order(job))) is not None}
            self.futures |= again
            ready = [job for job in ready if job.id not in again]
        task = RowTask() if hasattr(self.executor, "batch") else execute_row
        orders = [self._order(job) for job in ready]
        self.futures |= zip((job.id for job in ready), submit(self._executor(), task, orders), strict=True)

    def _collect(self) -> None:
        for job in self.jobs:
            future = self.futures.get(job.id)
            if future is None or not future.done():
                continue
            del self.futures[job.id]
            forget(self.place.job(job.id))
            try:
                record = future.result()
            except Exception as error:  # of any executor: a worker died, a machine was lost
                state = "stopped" if self.stopping else "failed"
                record = {"state": state, "reason": reason(error)}
                if isinstance(error, BrokenExecutor):
                    self.pool = None  # the remaining rows get a new one
            self.ended[job.id] = self._outcome(job, record)

    def _stop(self) -> None:
        """Ask running rows to save and end, and cancel those that have not started."""
        self.stopping = True
        self.place.stop.touch()
        for job in self.jobs:
            if job.id in self.futures and self.meter.active(job) is None:
                self.futures[job.id].cancel()

    def _progress(self) -> Progress:
        active = tuple(row for job in self.jobs if job.id in self.futures if (row := self.meter.active(job)))
        done, left = self.meter.measure(self.jobs, self.ended, active)
        started = {row.id for row in active}
        # What the queue says; most executors say nothing.
        states = {id: getattr(future, "state", None) for id, future in self.futures.items() if id not in started}
        queued = {id: state.lower() for id, state in states.items() if isinstance(state, str)}
        return Progress(done, len(self.jobs), left, active, tuple(self.ended.values()), self.stopping, queued)

    def _outcome(self, job: Job, record: dict[str, Any], before: bool = False) -> Outcome:
        notebook = self.place.job(job.id) / "row.ipynb"
        return Outcome(
            job.id,
            job.names,
            record["state"],
            record.get("reason", ""),
            record.get("cell", ""),
            record.get("seconds", 0.0),
            notebook if notebook.is_file() else None,
            before,
        )

    def _order(self, job: Job) -> dict[str, Any]:
        identity = {"job": job.id, "names": list(job.names), "seed": job.training.seed}
        identity |= {"fingerprint": job.fingerprint, "protocol": job.protocol}
        identity |= {"backbone": job.training.config.backbone.name}
        folder = str(self.place.job(job.id))
        return {**self.common, "folder": folder, "parameters": job.parameters, "identity": identity}

    def _executor(self) -> Any:
        if self.executor is not None:
            return self.executor
        if self.pool is None:
            spawn = multiprocessing.get_context("spawn")
            self.pool = ProcessPoolExecutor(self.common["workers"], spawn, initializer=live_with_parent)
        return self.pool


def _check(job: Job) -> None:
    """Raise ValueError, with the row's name, for a package or folder that is missing."""
    from workbench.training.tracker import check_tracker

    config = job.training.config
    try:
        check_tracker(config.training.tracker)
        if config.data.path is not None and not home_path(config.data.path).exists():
            raise ValueError(f"data.path {config.data.path} does not exist")
    except ValueError as error:
        raise ValueError(f"row {' = '.join(job.names) or job.id}: {error}") from error


def default_workers() -> int:
    """Number of rows to execute at a time: one for each GPU, else one for every two cores."""
    import torch

    return torch.cuda.device_count() or max(1, cores() // 2)
