"""Where the rows of a sweep are executed: submitit (Slurm), dask and Ray, and rows that an earlier sweep left there.

An executor has ``submit(function, order)``, whose result has ``done()``, ``result()`` and ``cancel()``, and, if the
queue tells, ``state``. With ``batch()`` rows that are ready at the same time become one array of jobs.
"""

import contextlib
import os
import shutil
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import yaml

from workbench.files import is_locked, read_json, write_json
from workbench.reporting.sweep.records import LOCK, read_job

EXECUTORS = ("processes", "submitit", "dask", "ray")
_SUBMITTED = "submitted.json"  # in the folder of a row: where it was submitted
# Of a row's job; the signal is sent as long before the time limit as a large checkpoint may take.
_JOB = {"timeout_min": 24 * 60, "cpus_per_task": 8, "mem_gb": 64, "gpus_per_node": 1}
_SLURM = {"slurm_signal_delay_s": 600}
_CONNECT = 20  # seconds to wait for a cluster


@contextlib.contextmanager
def opened(name: str, folder: Path, address: str | None = None, options: Sequence[str] = ()) -> Iterator[Any]:
    """The executor ``name`` of `EXECUTORS`, closed at the end; None for "processes".

    Args:
        name: One of `EXECUTORS`.
        folder: Where submitit keeps the files of its jobs; all machines must see it.
        address: Of the running cluster, for dask and Ray; Ray finds one on this machine without it.
        options: Of each job: for submitit ``KEY=VALUE`` as `submitit.AutoExecutor.update_parameters` takes them, and
            ``cluster=local`` or ``cluster=debug`` instead of Slurm; for Ray those of a task, such as ``num_gpus=1``.

    Raises:
        ValueError: For a package that is not installed, an option that is not known or not used, and a cluster that
            does not answer.
    """
    given = _parsed(options)
    if given and name not in ("submitit", "ray"):
        raise ValueError("--job-options need --executor submitit or ray, whose jobs they describe")
    if address is not None and name not in ("dask", "ray"):
        raise ValueError("--address needs --executor dask or ray: it is that of a running cluster")
    if name == "processes":
        yield None
    elif name == "submitit":
        yield _submitit(folder, given)
    elif name == "dask":
        if address is None:
            raise ValueError("--executor dask needs --address: the scheduler of a running dask cluster")
        distributed = _package("distributed")
        with distributed.Client(address, timeout=_CONNECT) as client:
            yield client.get_executor(pure=False)
    else:
        with _ray(address, given) as executor:
            yield executor


def submit(executor: Any, function: Callable, orders: Sequence[Mapping[str, Any]]) -> list[Any]:
    """Submit rows, as one array of jobs if the executor has such; returns their futures and notes where they are."""
    array = executor.batch() if hasattr(executor, "batch") and len(orders) > 1 else contextlib.nullcontext()
    with array:
        futures = [executor.submit(function, order) for order in orders]
    for future, order in zip(futures, orders, strict=True):
        _note(future, order)
    return futures


def found_again(order: Mapping[str, Any]) -> Any:
    """The future of a row that an earlier process of the sweep submitted, if it still waits or runs, else None.

    Whether it does is asked of Slurm; elsewhere the lock of the row's folder shows that it runs.
    """
    folder = Path(order["folder"])
    file = folder / _SUBMITTED
    if file.is_file():
        record = read_json(file)
        if record.get("fingerprint") == order["identity"]["fingerprint"]:
            job = _slurm_job(record) if record.get("cluster") == "slurm" else _process(record, folder)
            if job is not None:
                return job
    return Elsewhere(folder) if is_locked(folder / LOCK) else None


def forget(folder: Path) -> None:
    """Remove the note of a row that has ended."""
    (folder / _SUBMITTED).unlink(missing_ok=True)


class Elsewhere:
    """A row that a process started by an earlier sweep executes: done when that process has ended.

    Args:
        folder: The row's folder.
        pid: Process that will execute it, if it may not have locked the folder yet.
    """

    def __init__(self, folder: Path, pid: int | None = None):
        self.folder, self.pid = folder, pid

    def done(self) -> bool:
        return not (is_locked(self.folder / LOCK) or (self.pid is not None and _executes_rows(self.pid)))

    def result(self) -> dict[str, Any]:
        record = read_job(self.folder)
        if record.get("state") in (None, "running", "lost"):
            raise ValueError(f"the process that executed the row ended; see {self.folder / 'log.txt'}")
        return record

    def cancel(self) -> None:
        """Nothing: a row that has not started reads the file that asks it to stop."""


def _parsed(options: Sequence[str]) -> dict[str, Any]:
    given = {}
    for text in options:
        key, equals, value = text.partition("=")
        if not equals or not key.isidentifier():
            raise ValueError(f"--job-options has {text!r}; it must be KEY=VALUE, such as timeout_min=600")
        given[key] = yaml.safe_load(value)
    return given


def _package(name: str) -> Any:
    try:
        return __import__(name)
    except ImportError as error:
        extra = {"distributed": "dask"}.get(name, name)
        raise ValueError(f'--executor {extra} needs its package: pip install "diffusion-workbench[{extra}]"') from error


def _submitit(folder: Path, options: Mapping[str, Any]) -> Any:
    submitit = _package("submitit")
    options = {"name": folder.name, **_JOB, **options}
    cluster = options.pop("cluster", "slurm")
    if cluster not in ("slurm", "local", "debug"):
        raise ValueError(f"--job-options cluster={cluster} is not known; allowed: slurm, local, debug")
    if cluster == "slurm" and shutil.which("srun") is None:
        raise ValueError(
            "--executor submitit needs Slurm's srun, which is not here; --job-options cluster=local tries it here"
        )
    if cluster == "slurm":
        options = {**_SLURM, **options}
    else:
        import torch

        options["gpus_per_node"] = torch.cuda.device_count()  # of which a row takes the least used one
    executor = submitit.AutoExecutor(folder / ".submitit", cluster=cluster)
    try:
        executor.update_parameters(**options)
    except (NameError, AssertionError, TypeError) as error:  # of submitit, for a parameter that it does not know
        raise ValueError(f"--job-options: {str(error).splitlines()[0]}") from error
    return executor


@contextlib.contextmanager
def _ray(address: str | None, options: Mapping[str, Any]) -> Iterator[Any]:
    ray = _package("ray")
    try:
        ray.init(address=address, log_to_driver=False, configure_logging=False)
    except (ConnectionError, RuntimeError, ValueError) as error:
        raise ValueError(f"the Ray cluster {address} cannot be reached: {str(error).splitlines()[0]}") from error
    try:
        yield _Ray(ray, options)
    finally:
        ray.shutdown()


class _Ray:
    """Ray's tasks as an executor."""

    def __init__(self, ray: Any, options: Mapping[str, Any]):
        self._ray = ray
        gpus = {"num_gpus": 1} if ray.cluster_resources().get("GPU") else {}
        self._options = {"max_retries": 0, **gpus, **options}

    def submit(self, function: Callable, order: Mapping[str, Any]) -> "_RayTask":
        try:
            return _RayTask(self._ray, self._ray.remote(function).options(**self._options).remote(order))
        except (TypeError, ValueError) as error:
            raise ValueError(f"--job-options: {str(error).splitlines()[0]}") from error


class _RayTask:
    def __init__(self, ray: Any, reference: Any):
        self._ray, self._reference = ray, reference

    def done(self) -> bool:
        return bool(self._ray.wait([self._reference], timeout=0)[0])

    def result(self) -> Any:
        return self._ray.get(self._reference)

    def cancel(self) -> None:
        self._ray.cancel(self._reference, force=False)


def _note(future: Any, order: Mapping[str, Any]) -> None:
    """Write where a row was submitted, if it can be found again there."""
    cluster = {"SlurmJob": "slurm", "LocalJob": "local"}.get(type(future).__name__)
    if cluster is not None:
        folder = Path(order["folder"])
        folder.mkdir(parents=True, exist_ok=True)
        record = {"cluster": cluster, "job": future.job_id, "host": os.uname().nodename}
        record |= {"folder": str(future.paths.folder), "fingerprint": order["identity"]["fingerprint"]}
        write_json(folder / _SUBMITTED, record)


def _slurm_job(record: Mapping[str, Any]) -> Any:
    """The job in Slurm's queue; None if Slurm says that it has ended, or submitit is not installed."""
    try:
        import submitit
    except ImportError:
        return None
    job: Any = submitit.SlurmJob(folder=record["folder"], job_id=record["job"])
    return None if job.done(force_check=True) else job


def _process(record: Mapping[str, Any], folder: Path) -> Elsewhere | None:
    pid = int(record["job"]) if str(record.get("job")).isdecimal() else None
    here = record.get("host") == os.uname().nodename
    return Elsewhere(folder, pid) if pid is not None and here and _executes_rows(pid) else None


def _executes_rows(pid: int) -> bool:
    """Whether a process is one of submitit's, and not another one that got the same number later."""
    import psutil

    try:
        process = psutil.Process(pid)
        return process.status() != psutil.STATUS_ZOMBIE and any("submitit" in word for word in process.cmdline())
    except psutil.Error:
        return False
