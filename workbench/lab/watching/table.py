"""Table of runs in a notebook: search, sort, filter, select, annotate, trash, and open the selection."""

import threading
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import anywidget
import ipywidgets
import traitlets

from workbench.files import reason
from workbench.lab.views.compare_maps import compare_maps
from workbench.lab.views.maps import maps
from workbench.lab.views.samples import samples
from workbench.lab.watching.code import calling, named
from workbench.lab.watching.live import watch
from workbench.lab.watching.state import sendable, short
from workbench.runs import index
from workbench.runs.index import RunRow
from workbench.runs.shelf import TRASH, set_notes, trash
from workbench.runs.store import Run, runs_root

_STATIC = Path(__file__).parents[1] / "static"


def runs_table(root: str | Path | None = None) -> "RunsTable":
    """A table of the runs in a folder, to sort, filter, select, tag and trash.

    The folders are read when the table is shown and when "Read again" is pressed.

    Args:
        root: Folder of the runs; ``$WORKBENCH_RUNS`` or ``./runs`` by default.

    Returns:
        A widget; ``selected`` is the list of selected runs.

    Raises:
        ValueError: For a folder that does not exist.

    Examples:
        >>> table = wb.runs_table()
        >>> table.selected
        []
    """
    folder = runs_root() if root is None else Path(root)
    if not folder.is_dir():
        raise ValueError(f"there is no folder {folder}; runs of this notebook would be made in {runs_root().resolve()}")
    return RunsTable(folder)


def table_rows(root: Path) -> list[dict[str, Any]]:
    """Rows of the table for the runs under `root`, newest first, ready for JSON."""
    return [sendable(_row(row)) for row in reversed(index.runs_table(root))]


def codes(chosen: Sequence[Run]) -> dict[str, str]:
    """Snippets that open the chosen runs, by view; "compare" needs two or more."""
    if not chosen:
        return {}
    names = ", ".join(named(chosen))
    several = len(chosen) > 1
    opened = f"wb.compare([wb.open_run(name) for name in ({names})])\n"
    made = {
        "watch": calling("watch", names),
        "maps": calling("compare_maps", f"[{names}]") if several else calling("maps", names),
        "samples": calling("samples", f"[{names}]"),
    }
    return made | ({"compare": f"import workbench as wb\n\n{opened}"} if several else {})


def opened(what: str, chosen: Sequence[Run]) -> ipywidgets.Widget:
    """The view "watch", "maps" or "samples" of the chosen runs; ValueError for another view, and as those raise it."""
    if not chosen:
        raise ValueError("select a run to open")
    folders = [str(run.folder) for run in chosen]
    if what == "watch":
        return watch(*chosen)
    if what == "maps":
        return (compare_maps(folders) if len(chosen) > 1 else maps(folders[0])).widget()
    if what == "samples":
        return samples(folders).widget()
    raise ValueError(f"there is no view {what!r}; there are: watch, maps, samples")


class RunsTable(anywidget.AnyWidget):
    """The table of `runs_table`. Actions of the page arrive as messages and are answered in its status line."""

    _esm = _STATIC / "table.js"
    _css = _STATIC / "panels.css"

    rows = traitlets.List(traitlets.Dict()).tag(sync=True)
    chosen = traitlets.List(traitlets.Unicode()).tag(sync=True)  # names of the selected runs
    code = traitlets.Dict().tag(sync=True)  # of the selection
    trash = traitlets.Unicode().tag(sync=True)  # where runs are moved to

    def __init__(self, root: Path):
        self.root = root
        super().__init__(rows=table_rows(root), trash=str(root / TRASH))
        self._below = ipywidgets.VBox([self])
        self.on_msg(self._on_message)

    def _repr_mimebundle_(self, **kwargs: Any) -> Any:
        return self._below._repr_mimebundle_(**kwargs)

    @property
    def selected(self) -> list[Run]:
        """The selected runs, in the order of the table."""
        return [Run(self.root / row["name"]) for row in self.rows if row["name"] in self.chosen]

    @traitlets.validate("chosen")
    def _known(self, proposal: Any) -> list[str]:
        names = [row["name"] for row in self.rows]
        strange = [name for name in proposal["value"] if name not in names]
        if strange:
            raise ValueError(f"there is no run {', '.join(strange)}; there are: {', '.join(names)}")
        return proposal["value"]

    @traitlets.observe("chosen")
    def _chosen(self, _change: Any) -> None:
        self.code = codes(self.selected)

    def show(self, what: str) -> None:
        """Show a view of the selected runs below the table, in place of the one before: "watch", "maps", "samples"."""
        self._below.children = (self, opened(what, self.selected))

    def refresh(self) -> None:
        """Read the run folders again."""
        rows = table_rows(self.root)
        names = {row["name"] for row in rows}
        self.chosen = [name for name in self.chosen if name in names]
        self.rows = rows

    def act(self, content: dict[str, Any]) -> str:
        """Run an action of the page, "refresh", "note" or "trash". Returns a sentence for the status line."""
        what = content["what"]
        if what == "note":
            set_notes(self._run(content["name"]), content["tags"], content["notes"])
            sentence = f"Noted {content['name']}."
        elif what == "trash":
            sentence = self._trash(content["names"])
        elif what == "refresh":
            sentence = ""
        else:
            raise ValueError(f"there is no action {what!r}")
        self.refresh()
        return sentence

    def _trash(self, names: Sequence[str]) -> str:
        waiting, done = [self._run(name) for name in names], []
        # Repeat while any can be moved: a teacher cannot be moved before its students.
        moved = True
        while moved:
            moved, refusals = False, {}
            for run in list(waiting):
                try:
                    trash(run)
                except (ValueError, OSError) as error:
                    refusals[run.name] = str(error)
                else:
                    waiting.remove(run)
                    done.append(run.name)
                    moved = True
        self.refresh()
        if refusals:
            raise ValueError("; ".join([*(f"{name} was moved" for name in done), *refusals.values()]))
        return f"Moved {', '.join(done)} to {self.root / TRASH}; `workbench restore NAME` brings one back."

    def _run(self, name: str) -> Run:
        if name not in {row["name"] for row in self.rows}:
            raise ValueError(f"there is no run {name!r} in {self.root}")
        return Run(self.root / name)

    def _on_message(self, _widget: Any, content: Any, _buffers: Any) -> None:
        if not isinstance(content, dict) or content.get("type") != "act":
            return
        if content.get("what") == "open":  # computing features and samples takes long
            threading.Thread(target=self._opened, args=(content.get("view"),), daemon=True).start()
            return
        try:
            self.send({"type": "status", "text": self.act(content), "wrong": False})
        except Exception as error:  # shown in the page's status line
            self.send({"type": "status", "text": reason(error), "wrong": True})

    def _opened(self, view: Any) -> None:
        try:
            self.show(view)
            self.send({"type": "status", "text": f"Opened {view} below.", "wrong": False})
        except Exception as error:  # shown in the page's status line
            self.send({"type": "status", "text": reason(error), "wrong": True})


def _row(row: RunRow) -> dict[str, Any]:
    plain = ("name", "created", "state", "step", "steps", "method", "backbone", "teacher", "seed", "notes")
    return {
        **{name: getattr(row, name) for name in plain},
        "w": short(row.guidance_scale),
        "layers": " → ".join(map(str, reversed(row.layers))),
        "loss": short(row.loss),
        "cost": short(row.cost),
        "tags": list(row.tags),
        "scores": {name: short(value) for name, value in row.scores},
        "remark": row.damage or row.remark,
    }
