"""Run a task in several local processes, each with its share of the work."""

import json
import os
import queue
import signal
import subprocess
import sys
import threading
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import torch

import workbench

Progress = Callable[[int, int], None]


def run_workers(
    code: str, what: str, orders: Sequence[Mapping[str, Any]], count: int, progress: Progress | None
) -> None:
    """Run one worker per order until all are done; if one fails, the others are killed.

    A worker is a new interpreter that runs ``code``, which must call `serve`. The user's script is not imported again,
    and no GPU handle is inherited. ``progress(done, count)`` sums over the workers. Raises ValueError for an error that
    a worker reports and for a killed worker; ``what`` names the task in messages.
    """
    messages: queue.SimpleQueue = queue.SimpleQueue()
    workers: list[subprocess.Popen] = []
    try:
        for number, order in enumerate(orders):
            workers.append(_start(code, order, len(orders)))
            threading.Thread(target=_listen, args=(number, workers[-1], messages), daemon=True).start()
        done, running = [0] * len(workers), len(workers)
        while running:
            number, message = messages.get()
            if message is None:
                running -= 1
                if workers[number].wait():
                    raise ValueError(_ending(what, number, workers))
            elif "error" in message:
                raise ValueError(message["error"])
            else:
                done[number] = message["done"]
                if progress:
                    progress(sum(done), count)
    finally:
        for worker in workers:
            worker.kill()
            worker.wait()


def serve(task: Callable[[dict[str, Any], Progress], None]) -> None:
    """Main function of a worker: reads an order as a line of JSON, runs the task, writes progress and errors.

    It exits when its standard input is closed, so that it does not outlive a launcher that was killed.
    """
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # Ctrl-C reaches the whole group; the launcher stops its workers
    channel = os.fdopen(os.dup(1), "w")
    os.dup2(2, 1)  # output of libraries must not mix with the messages
    order = json.loads(sys.stdin.readline())
    threading.Thread(target=_die_with_launcher, daemon=True).start()

    def send(message: Mapping[str, Any]) -> None:
        channel.write(json.dumps(message) + "\n")
        channel.flush()

    try:
        task(order, lambda done, total: send({"done": done}))
    except ValueError as error:
        send({"error": str(error)})
        sys.exit(2)


def device_of(number: int) -> str:
    """Device of worker ``number``: the GPUs in turn, or the CPU if there are none."""
    count = torch.cuda.device_count()
    return f"cuda:{number % count}" if count else "cpu"


def _start(code: str, order: Mapping[str, Any], processes: int) -> subprocess.Popen:
    packages = [str(Path(workbench.__file__).parent.parent), os.environ.get("PYTHONPATH", "")]
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join(filter(None, packages))}
    environment.setdefault("OMP_NUM_THREADS", str(max(1, (os.cpu_count() or 1) // processes)))
    worker = subprocess.Popen(
        [sys.executable, "-c", code],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
        env=environment,
    )
    assert worker.stdin is not None
    worker.stdin.write(json.dumps(order) + "\n")
    worker.stdin.flush()
    return worker


def _listen(number: int, worker: subprocess.Popen, messages: queue.SimpleQueue) -> None:
    assert worker.stdout is not None
    try:
        for line in worker.stdout:
            messages.put((number, json.loads(line)))
    finally:  # report the end of the process even after invalid output
        messages.put((number, None))


def _ending(what: str, number: int, workers: list[subprocess.Popen]) -> str:
    code = workers[number].returncode
    how = f"was killed by signal {-code}, perhaps out of memory" if code < 0 else f"ended with exit code {code}"
    return f"{what} process {number} of {len(workers)} {how}; finished parts are kept, run it again to continue"


def _die_with_launcher() -> None:
    sys.stdin.read()
    os._exit(1)
