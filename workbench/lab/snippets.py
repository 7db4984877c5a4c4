"""Code snippet that recreates a view, and views whose page has a size limit."""

import inspect
import json
import zlib
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

import numpy as np

from workbench.config import DataConfig
from workbench.lab.made import Made
from workbench.lab.page import assets
from workbench.lab.panes import Axis, Pane
from workbench.lab.sources import RunLike
from workbench.lab.view import View
from workbench.runs.store import Run, open_run

PAGE_MB = 3.0
PACKED = 4 / 3  # base64
_BLOCK = 2048  # bytes
# int16 has 12 used bits. How much bytes compress depends on their values (`deflated`).
_DEFLATED = {"int16": 0.8, "float32": 0.95}


def snippet(make: Callable, sources: Sequence[RunLike] | RunLike, given: Mapping[str, Any]) -> str:
    """Snippet that assigns the view to ``view``, with the arguments that differ from the defaults.

    `given` are the arguments of `make`, taken from its ``locals()`` on entry. Runs are given by name, else by path.
    """
    _, *options = inspect.signature(make).parameters.values()
    values = {of.name: (_plain(given.get(of.name, of.default)), of.default) for of in options if of.name != "progress"}
    named: str | list[str]
    named = _reference(sources) if isinstance(sources, RunLike) else [_reference(source) for source in sources]
    lines, arguments = ["import workbench as wb"], [repr(named)]
    for name, (value, default) in values.items():
        if value == default:
            continue
        if isinstance(value, DataConfig):
            lines.append("from workbench.config import DataConfig")
            chosen = {k: v for k, v in asdict(value).items() if v != getattr(DataConfig(), k)}
            arguments.append(f"{name}=DataConfig({', '.join(f'{k}={v!r}' for k, v in chosen.items())})")
        else:
            arguments.append(f"{name}={value!r}")
    call, name = f"wb.{make.__name__}(", make.__name__
    if not (module := make.__module__).startswith("workbench."):
        call = f"wb.view({json.dumps(module if module.endswith(f'.{name}') else f'{module}:{name}')}, "
    return "\n".join([*lines, "", f"view = {call}{', '.join(arguments)})"])


def bounded_view(
    title: str,
    panes: Sequence[Pane],
    axes: Mapping[str, Axis],
    *,
    page_mb: float,
    shorten: str,
    snippet: str,
    made: Made = (),
    start: Mapping[str, Any] | None = None,
) -> View:
    """A `View` whose page has at most `page_mb` megabytes; ValueError as `check_page`."""
    check_page({pane.title: pane.arrays for pane in panes}, page_mb, shorten)
    return View(title, panes, axes, snippet=snippet, made=made, start=start)


def check_page(parts: Mapping[str, Mapping[str, np.ndarray]], page_mb: float, shorten: str) -> None:
    """ValueError if the arrays make a page of more than `page_mb`; `shorten` names the arguments to reduce."""
    sizes = {name: page_size(arrays) / 1e6 for name, arrays in parts.items()}
    whole = sum(sizes.values()) + script_size() / 1e6
    if whole > page_mb:
        each = ", ".join(f"{name} {size:.1f}" for name, size in sizes.items())
        raise ValueError(
            f"the page of this view would have {whole:.1f} MB ({each}), more than {page_mb:g}: ask for fewer of "
            f"{shorten}, or set page_mb higher (up to 50 is fine in a notebook)"
        )


def script_size() -> int:
    """Bytes of the JavaScript and the style sheet of a page."""
    return sum(map(len, assets()))


def cells_that_fit(page_mb: float, cell: int) -> float:
    """Number of cells of `cell` bytes of coordinates that fit into a page."""
    return max(0.0, (page_mb * 1e6 - script_size()) / (cell * _DEFLATED["int16"] * PACKED))


def page_size(arrays: Mapping[str, np.ndarray]) -> float:
    """Bytes of these arrays in a page, estimated."""
    return sum(map(_size, arrays.values()))


def deflated(array: np.ndarray) -> float:
    """Bytes of an array after compression, estimated from every fourth block."""
    content = np.ascontiguousarray(array).view(np.uint8).ravel()
    blocks = content[: len(content) // _BLOCK * _BLOCK].reshape(-1, _BLOCK)[::4]
    if not len(blocks):
        return float(len(content))
    return len(zlib.compress(blocks.tobytes(), 1)) * len(content) / blocks.size


def _size(array: np.ndarray) -> float:
    if array.dtype.itemsize == 1:
        return deflated(array) * PACKED
    return array.nbytes * _DEFLATED.get(str(array.dtype), 1.0) * PACKED


def _reference(source: RunLike) -> str:
    """A name that `open_run` accepts, else the path."""
    if isinstance(source, Run):
        try:
            if open_run(source.name).folder.resolve() == source.folder.resolve():
                return source.name
        except ValueError:
            pass
        return str(source.folder.resolve())
    return str(source.resolve()) if isinstance(source, Path) else source


def _plain(value: Any) -> Any:
    """The value without numpy types, whose repr is not plain Python, and with references of runs."""
    if isinstance(value, Run | Path):
        return _reference(value)
    if isinstance(value, np.ndarray | np.generic):
        return value.tolist()
    if isinstance(value, list | tuple):
        return type(value)(_plain(one) for one in value)
    return list(value) if isinstance(value, range) else value
