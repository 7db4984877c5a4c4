"""Encode an image set to latents in several local processes; resumable, and verified at the end."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import torch

from workbench.config import Config, from_dict, to_dict
from workbench.data.latents import Latents, Source, latent_source, remember, turn_to_write, write_latents
from workbench.data.shards import SHARD_ROWS, check_shard, open_shards
from workbench.data.workers import Progress, device_of, run_workers, serve

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
    """Write the latents that `open_latents` opens with ``processes`` local processes, and verify every byte.

    Process k writes every ``processes``-th shard starting with the k-th, by default on GPU k modulo the number of GPUs.
    With several processes per GPU, one reads images while another encodes. If it is killed, only unfinished shards are
    lost; the next call, with any number of processes, continues. ``progress(done, total)`` counts images.

    Raises ValueError for images that cannot be read, a full disk, a killed process, and finished latents that do not
    belong to these images: by their count, content hash, or the range and order of labels.
    """
    if processes < 1:
        raise ValueError(f"processes must be at least 1; got {processes}")
    source = latent_source(config, split)
    source.report()
    folder = source.folder(root)
    with turn_to_write(folder) as wanted:
        if wanted and processes == 1:
            write_latents(config, split, folder, device=device, shard_rows=shard_rows, progress=progress)
        elif wanted:
            order = {"config": to_dict(config), "split": split, "folder": str(folder), "shard_rows": shard_rows}
            shares = [
                {**order, "share": (number, processes), "device": str(device or device_of(number))}
                for number in range(processes)
            ]
            run_workers(_WORKER, "encoding", shares, len(source.labels), progress)
    latents = Latents(open_shards(folder))
    _check(latents, source)
    remember(config, split, root, folder, len(source.labels))
    return latents


def work() -> None:
    """Entry point of one process of `encode`."""
    serve(_write_share)


def _write_share(order: dict[str, Any], progress: Progress) -> None:
    write_latents(
        from_dict(order["config"]),
        order["split"],
        Path(order["folder"]),
        device=order["device"],
        share=tuple(order["share"]),
        shard_rows=order["shard_rows"],
        progress=progress,
    )


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
        raise ValueError(f"the labels in {folder} differ from those of the images")
