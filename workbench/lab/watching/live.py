"""Live panel of training runs: a thread follows the run folders and sends updates to the browser."""

import threading
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import anywidget
import traitlets

from workbench.files import reason
from workbench.lab.watching.code import calling, named
from workbench.lab.watching.state import PARTS, POINTS, finer_curves, panel_state, points_of, sendable, version_of
from workbench.runs.curves import Follower, follow
from workbench.runs.store import Run, find_runs, open_run, runs_root
from workbench.training.control import Control
from workbench.training.launch import Launched

# Seconds between updates. All panels of a kernel update at the same moments, so that the page is painted once: on a
# shared machine, painting slows a training more than everything else. Longer intervals would delay the curves.
_QUICK, _SLOW = 0.8, 1.6
_PATIENT = 20.0  # seconds without news until updates slow down; most runs log more often
_UNSEEN = 8.0  # for a panel that is scrolled out of view or in a hidden tab
_STATIC = Path(__file__).parents[1] / "static"
_open: dict[tuple[Path, ...], "LivePanel"] = {}  # so that running a cell again does not start another thread


def watch(*runs: Run | Launched | str | Path) -> "LivePanel":
    """A live panel of one or several runs: curves, speed, scores, samples, log, and buttons that control the training.

    It only reads the run folders, so it works during and after the training, after a restart of the kernel (call it
    again) and on any machine that can read the folders. The same runs give the same panel until it is closed.

    Args:
        runs: Runs, what `wb.launch` returned, or folders or names of runs.

    Returns:
        A widget; ``panel.close()`` ends its thread.

    Raises:
        ValueError: If no run is given, or one does not exist.

    Examples:
        >>> panel = wb.watch(wb.zoo("plain"), wb.zoo("guided"))
        >>> [run.name[:10] for run in panel.runs]
        ['zoo-plain-', 'zoo-guided']
        >>> panel.close()
    """
    opened = list({run.folder.resolve(): run for run in map(_opened, runs)}.values())
    if not opened:
        names = ", ".join(run.name for run in find_runs()) or "no runs"
        raise ValueError(f"name a run to watch; {runs_root()} holds: {names}")
    key = tuple(run.folder.resolve() for run in opened)
    if key not in _open:
        _open[key] = LivePanel(opened)
    return _open[key]


class RunUpdates:
    """Changes of a run since the last call; a few `stat` calls while there are none."""

    def __init__(self, run: Run):
        self.run = run
        self._seen: dict[str, Any] = {}
        self._versions: dict[str, tuple | None] = {}
        self._follower: Follower = follow(run)
        self._last: int | None = None
        self._complete = True

    def full(self) -> dict[str, Any]:
        """The full state, as of `panel_state`; `changes` continues from there."""
        # Both before anything is read: a change in between is read twice, never missed.
        self._versions = {part: version_of(self.run, part) for part in PARTS}
        self._follower = follow(self.run)
        state = panel_state(self.run)
        self._seen = {key: state.get(key) for key in (*PARTS, "error")}
        self._last, self._complete = state["last"], state["complete"]
        return {**state, "whole": True}

    def changes(self) -> dict[str, Any]:
        """The parts that changed, and "curves" with the new points; the full state if the run was rewound."""
        news: dict[str, Any] = {}
        errors: list[str] = []
        try:
            new = self._follower.new()
            if new.rewound or not self._complete:
                return self.full()
            news["curves"] = points_of(new.records, self._last)
            if new.records:
                self._last = new.records[-1]["step"]
        except ValueError as error:
            errors.append(f"{self.run.folder / 'metrics.jsonl'} is damaged: {error}")
        for part, read in PARTS.items():
            version = version_of(self.run, part)
            if version is not None and version == self._versions.get(part):
                continue
            self._versions[part] = version
            try:
                news[part] = sendable(read(self.run))
            except (ValueError, OSError, KeyError) as error:
                errors.append(" ".join(str(error).split()))
        news["error"] = "; ".join(errors) if errors or "status" in news else self._seen.get("error", "")
        changed = {key: value for key, value in news.items() if key == "curves" or value != self._seen.get(key)}
        self._seen |= {key: value for key, value in changed.items() if key != "curves"}
        return {key: value for key, value in changed.items() if key != "curves" or value}


class LivePanel(anywidget.AnyWidget):
    """The panel of `watch`. `choices` holds smoothing, scale and the zoomed range of steps, in sync with the page."""

    _esm = _STATIC / "live.js"
    _css = _STATIC / "panels.css"

    opening = traitlets.List(traitlets.Dict()).tag(sync=True)  # state for the first drawing; later updates are messages
    choices = traitlets.Dict().tag(sync=True)
    code = traitlets.Unicode().tag(sync=True)
    points = traitlets.Int(POINTS).tag(sync=True)

    def __init__(self, runs: Sequence[Run]):
        self.runs = tuple(runs)
        self._updates = [RunUpdates(run) for run in self.runs]
        self._turn = threading.RLock()  # messages are sent in order: updates before the full state would be lost
        self._woken, self._over = threading.Event(), False
        self._views: dict[str, bool] = {}  # views of this panel, and whether each is on screen
        code = calling("watch", ", ".join(named(self.runs)))
        super().__init__(opening=[one.full() for one in self._updates], code=code)
        self.on_msg(self._on_message)
        threading.Thread(target=self._follow, name=f"watch {self.runs[0].name}", daemon=True).start()

    def close(self) -> None:
        """Close the panel and end its thread; the training continues."""
        self._over = True
        self._woken.set()
        _open.pop(tuple(run.folder.resolve() for run in self.runs), None)
        super().close()

    def look(self) -> bool:
        """Send changes of the runs to the page. Returns whether there were any."""
        with self._turn:
            news = {number: new for number, one in enumerate(self._updates) if (new := one.changes())}
            if news:
                self.send({"type": "news", "runs": news})
        return bool(news)

    def _follow(self) -> None:
        quiet, shown = 0.0, ""
        while not self._over:
            beat = self._beat(quiet)
            wait = beat - time.monotonic() % beat
            if self._woken.wait(wait):
                self._woken.clear()
                quiet = 0.0
            try:
                quiet = 0.0 if not self._over and self.look() else quiet + wait
            except Exception as error:  # shown in the page, because a thread has no other place
                if not self._over and str(error) != shown:
                    shown = str(error)
                    self._say(reason(error), True)

    def _beat(self, quiet: float) -> float:
        if self._views and not any(self._views.values()):
            return _UNSEEN
        return _QUICK if quiet < _PATIENT else _SLOW

    def _on_message(self, _widget: Any, content: Any, _buffers: Any) -> None:
        kind = content.get("type") if isinstance(content, dict) else None
        if kind == "ready":
            with self._turn:
                self.send({"type": "news", "runs": {number: one.full() for number, one in enumerate(self._updates)}})
        elif kind == "range":
            self._send_finer(content["range"])
        elif kind == "visible":
            self._views[str(content["view"])] = visible = bool(content["value"])
            if visible:
                self._woken.set()
        elif kind == "command":
            # In a thread, because launching a run again takes seconds.
            threading.Thread(target=self.command, args=(content,), daemon=True).start()

    def _send_finer(self, span: Any) -> None:
        """Send the curves between two steps at full resolution."""
        try:
            low, high = map(float, span)
            curves = {number: finer_curves(run, low, high) for number, run in enumerate(self.runs)}
        except (ValueError, OSError, TypeError) as error:
            self._say(reason(error), True)
        else:
            self.send({"type": "finer", "range": [low, high], "runs": curves})

    def command(self, content: dict[str, Any]) -> None:
        """Run the command of a button: {"run": its number, "what": a method of `Control`, "value"}."""
        try:
            run, what = self.runs[content["run"]], content["what"]
            control = Control(run, patience=0.0)
            if what not in ("pause", "resume", "checkpoint", "stop", "set"):
                raise ValueError(f"there is no command {what!r}")
            done = control.set("learning_rate", content["value"]) if what == "set" else getattr(control, what)()
        except Exception as error:  # shown in the page's status line
            self._say(reason(error), True)
        else:
            if isinstance(done, Launched):
                self._say(str(done), done.failed is not None)
            else:
                self._say(f"{run.name}: {what} {done.result}", False)
        self._woken.set()

    def _say(self, text: str, wrong: bool) -> None:
        self.send({"type": "status", "text": text, "wrong": wrong})


def _opened(run: Run | Launched | str | Path) -> Run:
    if isinstance(run, Launched):
        return run.run
    return run if isinstance(run, Run) else open_run(run)
