"""Benchmark of reading latents: our shards, one file per image, and a memory copy of the same size."""

import math
import os
import statistics
import tempfile
import time
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from functools import partial
from pathlib import Path

import harness
import numpy as np
from jaxtyping import Int
from rich.table import Table

from workbench.cli.arguments import Repeats
from workbench.cli.terminal import Console
from workbench.config.ranges import Count
from workbench.data.shards import Shards, open_shards, write_shards
from workbench.diffusion.randomness import generator

_SHARD_ROWS = 1000


def bench_loading(
    *,
    count: int = 4096,
    shape: tuple[int, int, int] = (8, 32, 32),
    batch: int = 256,
    repeats: int = 9,
    folder: Path | None = None,
    seed: int = 0,
) -> dict[str, int | float]:
    """Images per second that one process reads in random batches (median of ``repeats``), and their ratios.

    ``count`` float32 rows of ``shape`` (by default the moments of an SD-VAE at 256 pixels) are generated in a temporary
    folder inside ``folder``, as shards and as one .npy file per image (REPA's layout). ``copy`` copies a batch in
    memory, as an upper bound. The methods alternate, so that changes of machine speed affect all of them. "warm" reads
    from the page cache; "cold" drops the files from it before each batch (Linux only, left out elsewhere).
    """
    if batch > count:
        raise ValueError(f"batch {batch} is larger than count {count}")
    numbers = generator(seed, "bench-loading", 0)
    with tempfile.TemporaryDirectory(dir=folder) as temporary:
        shards_at, files_at = Path(temporary) / "shards", Path(temporary) / "files"
        write_shards(shards_at, count, partial(_draw, numbers, shape), {}, shard_rows=_SHARD_ROWS)
        shards = open_shards(shards_at)
        _write_files(shards, files_at)
        source = shards.rows("moments", np.arange(batch))
        ways = {
            "shards": lambda chosen: shards.rows("moments", chosen),
            "files": lambda chosen: np.stack([np.load(files_at / f"{index}.npy") for index in chosen]),
            "copy": lambda chosen: source.copy(),
        }
        drawn = [numbers.integers(0, count, batch) for _ in range(repeats + 1)]
        result = {"images": count, "megabytes": count * math.prod(shape) * 4 / 1e6, "batch": batch}
        result |= _rates("warm", ways, drawn, lambda: None)
        if hasattr(os, "posix_fadvise"):
            every = [*shards_at.glob("*.safetensors"), *files_at.iterdir()]
            del ways["copy"]
            result |= _rates("cold", ways, drawn, lambda: _forget(every))
    return result


def _draw(numbers: np.random.Generator, shape: tuple[int, int, int], indices: np.ndarray) -> dict[str, np.ndarray]:
    return {"moments": numbers.standard_normal((len(indices), *shape), dtype=np.float32), "labels": indices}


def _write_files(shards: Shards, files_at: Path) -> None:
    files_at.mkdir()
    for index in range(len(shards)):
        np.save(files_at / f"{index}.npy", shards.rows("moments", np.array([index]))[0])
    os.sync()  # dirty pages cannot be dropped from the cache


def _rates(
    cache: str,
    ways: dict[str, Callable[[np.ndarray], np.ndarray]],
    drawn: list[Int[np.ndarray, "b"]],
    before: Callable[[], None],
) -> dict[str, float]:
    """Rows per second of each method, without the first batch, and ratios of the shards to the others."""
    seconds: dict[str, list[float]] = {name: [] for name in ways}
    for chosen in drawn:
        for name, read in ways.items():
            before()
            start = time.perf_counter()
            read(chosen)
            seconds[name].append(time.perf_counter() - start)
    rates = {name: len(drawn[0]) / statistics.median(taken[1:]) for name, taken in seconds.items()}
    ratios = {f"shards / {name} {cache}": rates["shards"] / rates[name] for name in rates if name != "shards"}
    return {**{f"{name} {cache}": rate for name, rate in rates.items()}, **ratios}


def _forget(files: Iterable[Path]) -> None:
    for file in files:
        descriptor = os.open(file, os.O_RDONLY)
        try:
            os.posix_fadvise(descriptor, 0, 0, os.POSIX_FADV_DONTNEED)
        finally:
            os.close(descriptor)


@dataclass(frozen=True)
class Loading:
    """Time reading latents in random batches: shards, one file an image, and a memory copy, on generated data."""

    images: Count = 4096
    batch: Repeats = 256
    repeats: Repeats = 9
    folder: Path | None = None
    """On the disk to measure; the system's temporary folder by default."""

    def execute(self) -> None:
        figures = bench_loading(count=self.images, batch=self.batch, repeats=self.repeats, folder=self.folder)
        images, megabytes, batch = (figures.pop(key) for key in ("images", "megabytes", "batch"))
        table = Table("images a second, one process", f"{images} images, {megabytes:,.0f} MB, batch {batch}")
        for name, value in figures.items():
            table.add_row(name, f"{value:.3g} x" if "/" in name else f"{value:,.0f}")
        Console().print(table)


if __name__ == "__main__":
    harness.main(Loading)
