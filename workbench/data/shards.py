"""Large tables on disk: rows in memory-mapped safetensors shards, written once, resumable, by any number of processes.

A folder holds ``shard-00000.safetensors`` ... with a small JSON file beside each, and ``index.json``, which is written
last: a folder without it is not finished, and writing it again goes on after the shards that are there.
"""

import hashlib
import json
import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
from jaxtyping import Int, Integer

from workbench.files import write_atomically, write_json

SHARD_ROWS = 10_000
_DTYPES = {"F16": np.float16, "F32": np.float32, "I64": np.int64, "U8": np.uint8}
_VERIFIED_BYTES = 1_000_000_000  # larger tables are checked by size only: hashing them costs minutes


@dataclass(frozen=True)
class Shards:
    """A finished folder; ``index`` is what its writer said about it, with ``count`` and ``shards``."""

    folder: Path
    index: dict[str, Any]

    def __len__(self) -> int:
        return self.index["count"]

    @cached_property
    def _maps(self) -> list[dict[str, np.ndarray]]:
        return [_map_shard(self.folder / shard["file"]) for shard in self.index["shards"]]

    @cached_property
    def _starts(self) -> Int[np.ndarray, "shards"]:
        return np.cumsum([0, *(shard["rows"] for shard in self.index["shards"][:-1])])

    def rows(self, column: str, indices: Integer[np.ndarray, "b"]) -> np.ndarray:
        """The rows ``indices`` of a column, copied; only their pages are read."""
        numbers = np.searchsorted(self._starts, indices, side="right") - 1
        return np.stack([self._maps[s][column][i - self._starts[s]] for s, i in zip(numbers, indices, strict=True)])

    def column(self, name: str) -> np.ndarray:
        """A whole column, in memory."""
        return np.concatenate([arrays[name] for arrays in self._maps])


def write_shards(
    folder: Path,
    count: int,
    rows: Callable[[np.ndarray], Mapping[str, np.ndarray]],
    described: Mapping[str, Any],
    *,
    share: tuple[int, int] = (0, 1),
    batch: int = 100,
    shard_rows: int = SHARD_ROWS,
    progress: Callable[[int, int], None] | None = None,
) -> None:
    """Write ``rows(indices)`` for 0 .. count - 1, keeping shards that are there; ``described`` goes into the index.

    ``share`` (k, of) writes every ``of``-th shard from the k-th on; whoever finds all shards finished writes the
    index. ``progress(done, total)`` counts rows, those found finished included.
    """
    from safetensors.numpy import save

    folder.mkdir(parents=True, exist_ok=True)
    total = max(1, math.ceil(count / shard_rows))
    mine = range(share[0], total, share[1])
    wanted = sum(min(shard_rows, count - number * shard_rows) for number in mine)
    done = 0
    for number in mine:
        start, stop = number * shard_rows, min((number + 1) * shard_rows, count)
        file = folder / f"shard-{number:05d}.safetensors"
        if _record(file) is None:
            parts = []
            for first in range(start, stop, batch):
                parts.append(rows(np.arange(first, min(first + batch, stop))))
                if progress:
                    progress(done + min(first + batch, stop) - start, wanted)
            # safetensors writes the buffer as it lies in memory, so it has to be contiguous.
            raw = save({k: np.ascontiguousarray(np.concatenate([p[k] for p in parts])) for k in parts[0]})
            write_atomically(file, raw)
            record = {"file": file.name, "rows": stop - start, "bytes": len(raw)}
            write_json(file.with_suffix(".json"), {**record, "sha256": hashlib.sha256(raw).hexdigest()})
        elif progress:
            progress(done + stop - start, wanted)
        done += stop - start
    records = [_record(folder / f"shard-{number:05d}.safetensors") for number in range(total)]
    if None not in records:
        write_json(folder / "index.json", {**described, "count": count, "shards": records})


def open_shards(folder: Path) -> Shards:
    """Open a finished folder; ValueError naming the file that is missing or damaged."""
    try:
        shards = Shards(folder, json.loads((folder / "index.json").read_text()))
        total = sum(shard["bytes"] for shard in shards.index["shards"])
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise ValueError(f"{folder / 'index.json'} is missing or damaged; delete {folder} to encode again") from error
    for shard in shards.index["shards"]:
        file = folder / shard["file"]
        problem = None
        if not file.is_file():
            problem = "is missing"
        elif file.stat().st_size != shard["bytes"]:
            problem = f"has {file.stat().st_size} bytes instead of {shard['bytes']}"
        elif total <= _VERIFIED_BYTES and hashlib.sha256(file.read_bytes()).hexdigest() != shard["sha256"]:
            problem = "does not have the SHA-256 of index.json"
        if problem:
            raise ValueError(f"shard {file} {problem}; delete {folder} to encode again")
    return shards


def _record(file: Path) -> dict[str, Any] | None:
    """What was noted about a finished shard; None if it is not there whole."""
    try:
        record = json.loads(file.with_suffix(".json").read_text())
        return record if file.stat().st_size == record["bytes"] else None
    except (OSError, ValueError, KeyError):
        return None


def _map_shard(file: Path) -> dict[str, np.ndarray]:
    """The tensors of a shard as memory maps: a batch touches only the pages of its rows."""
    with file.open("rb") as handle:
        length = int.from_bytes(handle.read(8), "little")
        header = json.loads(handle.read(length))
    arrays = {}
    for name, entry in header.items():
        if name != "__metadata__":
            offset = 8 + length + entry["data_offsets"][0]
            shape, dtype = tuple(entry["shape"]), _DTYPES[entry["dtype"]]
            arrays[name] = np.memmap(file, dtype=dtype, mode="r", offset=offset, shape=shape)
    return arrays
