"""Encoding an image set in several processes of this machine, resumable at any kill, checked at the end."""

import json
import os
import queue
import signal
import subprocess
import sys
import threading
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import numpy as np
import torch

import workbench
from workbench.config import Config, from_dict, to_dict
from workbench.data.latents import Latents, Source, latent_source, turn_to_write, write_latents
from workbench.data.shards import SHARD_ROWS, check_shard, open_shards

# A worker is a fresh interpreter: no script of the user's is imported again, and no GPU handle is inherited.
_WORKER = "from workbench.data.encode import work; work()"


def encode(
    config: Config,
    split: str,
    root: Path,
    *,
    processes: int = 1,
    device: torch.device | str | None = None,
    shard_rows: int = SHARD_ROWS,
    progress: Callable[[int, int], None] | None = None,
) -> Latents:
    """The latents that `open_latents` opens, written by ``processes`` of this machine and checked byte for byte.

    Process k takes every ``processes``-th shard from the k-th on and, unless ``device`` is given, GPU k modulo their
    number; several a GPU let one read images while another encodes. Killed at any moment it loses the shards in work;
    run again, with any number of processes, it goes on after those that are there. ``progress(done, total)`` counts
    images. Raises ValueError for images that cannot be read, a full disk, a process that was killed, and finished
    latents that are not those of these images: their count, their hash, the range and order of their labels.
    """
    if processes < 1:
        raise ValueError(f"processes must be at least 1; got {processes}")
    source = latent_source(config, split)
    folder = source.folder(root)
    with turn_to_write(folder) as wanted:
        if wanted and processes == 1:
            write_latents(config, split, folder, device=device, shard_rows=shard_rows, progress=progress)
        elif wanted:
            order = {"config": to_dict(config), "split": split, "folder": str(folder), "shard_rows": shard_rows}
            shares = [
                {**order, "share": (number, processes), "device": str(device or _device(number))}
                for number in range(processes)
            ]
            _run_workers(shares, len(source.labels), progress)
    latents = Latents(open_shards(folder))
    _check(latents, source)
    return latents


def work() -> None:
    """One process of `encode`: an order as a line of JSON comes in, counts and at worst an error go out.

    It ends when its standard input does, so that it does not outlive a launcher that was killed.
    """
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # Ctrl-C reaches the whole group; the launcher ends its workers
    channel = os.fdopen(os.dup(1), "w")
    os.dup2(2, 1)  # what a library prints must not come between the messages
    order = json.loads(sys.stdin.readline())
    threading.Thread(target=_die_with_launcher, daemon=True).start()

    def tell(message: Mapping[str, Any]) -> None:
        channel.write(json.dumps(message) + "\n")
        channel.flush()

    try:
        write_latents(
            from_dict(order["config"]),
            order["split"],
            Path(order["folder"]),
            device=order["device"],
            share=tuple(order["share"]),
            shard_rows=order["shard_rows"],
            progress=lambda done, total: tell({"done": done}),
        )
    except ValueError as error:
        tell({"error": str(error)})
        sys.exit(2)


def _run_workers(orders: list[dict], count: int, progress: Callable[[int, int], None] | None) -> None:
    """Run one worker an order until all are done; the first that fails ends the others."""
    messages: queue.SimpleQueue = queue.SimpleQueue()
    workers: list[subprocess.Popen] = []
    try:
        for number, order in enumerate(orders):
            workers.append(_start(order, len(orders)))
            threading.Thread(target=_listen, args=(number, workers[-1], messages), daemon=True).start()
        done, running = [0] * len(workers), len(workers)
        while running:
            number, message = messages.get()
            if message is None:
                running -= 1
                if workers[number].wait():
                    raise ValueError(_ending(number, workers))
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


def _start(order: dict, processes: int) -> subprocess.Popen:
    packages = [str(Path(workbench.__file__).parent.parent), os.environ.get("PYTHONPATH", "")]
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join(filter(None, packages))}
    environment.setdefault("OMP_NUM_THREADS", str(max(1, (os.cpu_count() or 1) // processes)))
    worker = subprocess.Popen(
        [sys.executable, "-c", _WORKER],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
        env=environment,
    )
    worker.stdin.write(json.dumps(order) + "\n")
    worker.stdin.flush()
    return worker


def _listen(number: int, worker: subprocess.Popen, messages: queue.SimpleQueue) -> None:
    try:
        for line in worker.stdout:
            messages.put((number, json.loads(line)))
    finally:  # whatever a dying process wrote last, its end is reported
        messages.put((number, None))


def _ending(number: int, workers: list[subprocess.Popen]) -> str:
    code = workers[number].returncode
    how = f"was killed by signal {-code}, perhaps for want of memory" if code < 0 else f"ended with exit code {code}"
    return f"encoding process {number} of {len(workers)} {how}; what is finished is kept, run it again to go on"


def _die_with_launcher() -> None:
    sys.stdin.read()
    os._exit(1)


def _device(number: int) -> str:
    count = torch.cuda.device_count()
    return f"cuda:{number % count}" if count else "cpu"


def _check(latents: Latents, source: Source) -> None:
    folder, index = latents.shards.folder, latents.index
    for shard in index["shards"]:
        check_shard(folder, shard, whole=True)
    rows, labels = sum(shard["rows"] for shard in index["shards"]), latents.labels
    wanted = (len(source.labels), source.described["content"])
    if (rows, index["content"]) != wanted or len(latents) != rows:
        raise ValueError(f"{folder} holds {rows} images of {index['content'][:8]}, not {wanted[0]} of {wanted[1][:8]}")
    latents.check_labels()
    if not np.array_equal(labels, source.labels):
        raise ValueError(f"the labels in {folder} are not those of the images")
