"""Form that plans and launches a training and its teacher, and shows their cost before they start."""

import threading
from collections.abc import Callable
from pathlib import Path
from typing import Any

import anywidget
import ipywidgets
import traitlets

from workbench.config import presets, refuse_unknown
from workbench.files import reason
from workbench.lab.watching import form
from workbench.lab.watching.live import watch
from workbench.runs.store import runs_root
from workbench.training.plan import Plan, duration_text, notes, plan, table

_STATIC = Path(__file__).parents[1] / "static"


def wizard(preset: str = "demo/guided", root: str | Path | None = None, processes: int = 1) -> "Wizard":
    """A form for a training and, where its method learns from one, its teacher.

    Beside the form is the plan: parameters, memory, time by measured steps, disk space, and which existing runs are
    reused. Launching queues both, the student after its teacher, and opens a live panel below.

    Args:
        preset: Preset that fills in the form.
        root: Folder of the runs; ``$WORKBENCH_RUNS`` or ``./runs`` by default.
        processes: Number of processes of each training.

    Returns:
        A widget.

    Raises:
        ValueError: For an unknown preset.

    Examples:
        >>> form = wb.wizard("demo/guided")
        >>> form.problem  # empty: the form is valid
        ''
    """
    refuse_unknown("preset", preset, presets())
    return Wizard(preset, (runs_root() if root is None else Path(root)).resolve(), processes)


class Wizard(anywidget.AnyWidget):
    """The form of `wizard`. ``changes`` holds the changes to the preset, as dotted options and YAML texts."""

    _esm = _STATIC / "wizard.js"
    _css = _STATIC / "panels.css"

    fields = traitlets.List(traitlets.Dict()).tag(sync=True)
    problem = traitlets.Unicode().tag(sync=True)  # why there is no plan
    plan = traitlets.Dict().tag(sync=True)
    code = traitlets.Unicode().tag(sync=True)
    busy = traitlets.Unicode().tag(sync=True)  # a running action that takes seconds

    def __init__(self, preset: str, root: Path, processes: int = 1):
        self.preset, self.root, self.processes = preset, root, processes
        self.changes: dict[str, str] = {}
        self.planned: Plan | None = None
        self.launched: tuple = ()
        self._turn = threading.RLock()
        super().__init__()
        self._below = ipywidgets.VBox([self])
        self.refresh()
        self.on_msg(self._on_message)

    def _repr_mimebundle_(self, **kwargs: Any) -> Any:
        return self._below._repr_mimebundle_(**kwargs)

    def change(self, key: str, text: str) -> None:
        """Set the text of a field and plan again."""
        with self._turn:
            self.preset, self.changes = form.changed(self.preset, self.changes, key, text.strip(), self.root)
            self.refresh()

    def refresh(self) -> None:
        """Plan what the form describes; if it is invalid, ``problem`` says why."""
        with self._turn:
            self.fields = form.fields(self.preset, self.changes, self.root)
            try:
                config, teacher = form.configs(self.preset, self.changes, self.root)
                self.planned = plan(config, self.root, teacher=teacher, processes=self.processes)
                code, problem = form.code(self.preset, self.changes, self.root), ""
            except (ValueError, OSError) as error:
                self.planned, code, problem = None, "", " ".join(str(error).split())
            self.code, self.problem, self.plan = code, problem, _shown(self.planned)

    def measure(self, again: bool = False) -> None:
        """Measure the time of a few steps of every stage."""
        planned = self.planned
        if planned is None:
            raise ValueError("there is nothing to measure: the form is invalid")
        planned.measure(again)
        self.refresh()

    def launch(self) -> None:
        """Queue all stages and open their live panel below."""
        if self.planned is None:
            raise ValueError("there is nothing to launch: the form is invalid")
        self.launched = self.planned.launch()
        self._below.children = (self, watch(*self.launched))
        self.refresh()
        failed = [launched for launched in self.launched if launched.failed]
        self._say("; ".join(map(str, failed or self.launched)), bool(failed))

    def _on_message(self, _widget: Any, content: Any, _buffers: Any) -> None:
        kind = content.get("type") if isinstance(content, dict) else None
        if kind == "change":
            self._try(lambda: self.change(content["key"], content["text"]))
        elif kind == "refresh":
            self._try(self.refresh)
        elif kind == "measure":
            self._in_thread("measuring a few steps …", lambda: self.measure(bool(content.get("again"))))
        elif kind == "launch":
            self._in_thread("launching …", self.launch)

    def _in_thread(self, what: str, action: Callable[[], None]) -> None:
        """Run a slow action in a thread, one at a time."""
        if self.busy:
            self._say(f"still {self.busy}", True)
            return
        self.busy = what

        def work() -> None:
            try:
                self._try(action)
            finally:
                self.busy = ""

        threading.Thread(target=work, daemon=True).start()

    def _try(self, action: Callable[[], None]) -> None:
        try:
            action()
        except Exception as error:  # shown in the page's status line
            self._say(reason(error), True)

    def _say(self, text: str, wrong: bool) -> None:
        self.send({"type": "status", "text": text, "wrong": wrong})


def _shown(planned: Plan | None) -> dict[str, Any]:
    """A plan as the page shows it."""
    if planned is None:
        return {}
    bars = []
    for stage in planned.stages:
        whole, left = stage.seconds(), stage.seconds(stage.done) if stage.left else 0.0
        text = duration_text(left) if stage.left else stage.state
        bars.append({"role": stage.role, "whole": whole, "left": left if stage.left else 0.0, "text": text})
    return {
        "rows": [list(row) for row in table(planned)],
        "notes": notes(planned),
        "warnings": list(planned.warnings),
        "bars": bars,
        "measured": planned.measured,
        "left": sum(stage.left for stage in planned.stages),
        "total": duration_text(planned.seconds),
    }
