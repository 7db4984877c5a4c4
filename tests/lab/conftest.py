"""Synthetic views with real structure, runs that logged something, and pages of views and widgets in the browser."""

import json
from pathlib import Path

import numpy as np
import pytest
import torch
from anywidget import AnyWidget

from workbench.config import load_config
from workbench.lab.packing import quantise
from workbench.lab.panes import Axis
from workbench.lab.panes.maps import MapsPane
from workbench.lab.sources import Source
from workbench.lab.unit_tokens import unit_tokens
from workbench.lab.view import View
from workbench.runs.store import Run, prepare_run

NAMES = ("boot", "bag", "coat", "dress", "sandal", "shirt")


def blob(side: int, y: float, x: float, reach: float) -> np.ndarray:
    places = (np.arange(side) + 0.5) / side
    return np.exp(-((places[:, None] - y) ** 2 + (places[None, :] - x) ** 2) / (2 * reach**2))


def make_features(
    n: int = 6, side: int = 8, k: int = 8, layers: int = 12, times: int = 5, steps: int = 1, sources: int = 1
):
    """Arrays of a "maps" pane: an object in a field, position, class and detail, changing smoothly with layer and t.

    `total` is the variance inside the k directions plus a tenth, as if that lay outside.
    """
    random = np.random.default_rng(7)
    centres, reach = random.uniform(0.35, 0.65, (n, 2)), random.uniform(0.12, 0.24, n)
    objects = np.stack([blob(side, *centre, size) for centre, size in zip(centres, reach, strict=True)])
    places = np.broadcast_to(np.linspace(-1, 1, side), (n, side, side))
    basic = np.stack([objects - 0.3, places, places.swapaxes(1, 2), objects * places], axis=-1).reshape(
        n, side * side, 4
    )
    classes = random.normal(size=(n, 1, 4)) * basic[..., :1]
    source = np.concatenate([basic, classes, random.normal(size=(n, side * side, 4)) * 0.25], axis=-1)
    u = np.empty((sources, steps, times, layers, n, side * side, k))
    d = np.empty_like(u)
    start, turn = random.normal(size=(2, sources, 12, k))
    for s, e, t, layer in np.ndindex(sources, steps, times, layers):
        depth, clear = (layer + 1) / layers, 1 - (t + 0.5) / times
        weights = np.array([2 * depth, *[1.5 - depth] * 2, depth, *[0.8 * depth] * 4, *[0.6] * 4])
        mixing = (start[s] + 0.15 * (layer + e) * turn[s]) * np.linspace(1.6, 0.4, k)
        u[s, e, t, layer] = source * weights @ mixing * (0.4 + clear)
        d[s, e, t, layer] = source * weights * np.array([0.5] + [0.05] * 3 + [0.4] * 4 + [0.1] * 4) @ mixing[::-1] * 0.3
    return make_totals(u, d)


def make_totals(u: np.ndarray, d: np.ndarray, outside: float = 0.1) -> dict[str, np.ndarray]:
    arrays = {}
    for name, values in (("u", u), ("d", d)):
        arrays[name], arrays[f"{name}_scale"] = quantise(values, 4)
    around = [values - values.mean(axis=(4, 5), keepdims=True) for values in (u, d)]
    pairs = [(0, 0), (0, 1), (1, 1)]
    totals = [(around[a] * around[b]).sum(axis=-1).mean(axis=(4, 5)) for a, b in pairs]
    arrays["total"] = (np.stack(totals, axis=-1) * (1 + outside)).astype(np.float32)
    return arrays


def pictures(n: int = 6, size: int = 64) -> np.ndarray:
    random = np.random.default_rng(3)
    grounds, inks = random.integers(30, 120, (n, 1, 1, 3)), random.integers(140, 255, (n, 1, 1, 3))
    shapes = np.stack([blob(size, *random.uniform(0.35, 0.65, 2), random.uniform(0.12, 0.22)) for _ in range(n)])[
        ..., None
    ]
    return (grounds + (inks - grounds) * (shapes > 0.5) * (0.6 + 0.4 * shapes)).astype(np.uint8)


def similar_arrays(features: dict[str, np.ndarray], room: float = 1e9) -> dict[str, np.ndarray]:
    """Arrays for similarities of tokens whose features are the coordinates of `make_features`, away from the mean."""

    def source(s: int) -> Source:
        def read(step: int, t: float, layer: int):
            at = (s, step, int(t), layer)
            u, d = (features[name][at] * features[f"{name}_scale"][at] for name in ("u", "d"))
            return tuple(torch.from_numpy(of + 1.0) for of in (u, u + d))

        return Source(str(s), read)

    sources, steps, times, layers = features["u"].shape[:4]
    return unit_tokens(
        [source(s) for s in range(sources)], steps, [float(t) for t in range(times)], range(layers), room
    )


def noise_arrays(sources: int = 1, given: int = 1, side: int = 16) -> dict[str, np.ndarray]:
    """Pictures of what models were given and of what they predict at three w, all of them different."""
    random = np.random.default_rng(11)
    return {
        "noisy": random.integers(0, 256, (given, 5, 6, side, side, 3), dtype=np.uint8),
        "predicted": random.integers(0, 256, (sources, 1, 5, 3, 6, side, side, 3), dtype=np.uint8),
    }


def make_maps_view(sources: int = 1, similar: bool = False, noise: bool = False, given: int = 1, **meta) -> View:
    """A view of one maps pane: 6 images, 8 x 8 tokens, k = 8, 12 layers, 5 times; `similar`: with similarities.

    `noise`: with what the models were given and predict, at w = 0, 1 and 5.
    """
    axes = {
        "step": Axis("training step", (20_000,)),
        "t": Axis("t", (0.1, 0.3, 0.5, 0.7, 0.9)),
        "layer": Axis("layer", tuple(range(1, 13))),
        "w": Axis("w", (0.0, 6.0, 0.1), continuous=True),
        "image": Axis("image", tuple(range(6))),
    }
    if sources > 1:
        axes["source"] = Axis("method", ("plain", "guided", "REPA", "SRA")[:sources])
    arrays = {"images": pictures(), **make_features(sources=sources)}
    if similar:
        arrays |= similar_arrays(arrays)
    if noise:
        arrays |= noise_arrays(sources, given)
        meta = {"stops": [0.0, 1.0, 5.0], "runs": list(axes["source"].values) if sources > 1 else [], **meta}
    pane = MapsPane("Token maps", arrays, {"names": NAMES, **meta})
    return View("Token maps", [pane], axes, snippet='view = wb.token_maps("plain")')


@pytest.fixture
def maps_view():
    return make_maps_view


@pytest.fixture
def features():
    return make_features


@pytest.fixture
def with_similar():
    return similar_arrays


@pytest.fixture
def with_totals():
    return make_totals


class Shown:
    """A page of a view in the browser, and everything that went wrong in it."""

    def __init__(self, context, file: Path):
        self.page = context.new_page()
        self.wrong: list[str] = []
        self.page.on("console", lambda said: said.type in ("error", "warning") and self.wrong.append(said.text))
        self.page.on("pageerror", lambda error: self.wrong.append(str(error)))
        self.page.on("request", lambda asked: asked.url.startswith(("http", "ws")) and self.wrong.append(asked.url))
        self.page.goto(file.as_uri())
        self.page.wait_for_selector(".wb-foot")

    def slider(self, name: str):
        return self.page.get_by_role("slider", name=name, exact=True)

    def status(self) -> str:
        return self.page.locator(".wb-status").inner_text()

    def settled(self) -> None:
        self.page.evaluate("() => new Promise((done) => requestAnimationFrame(() => requestAnimationFrame(done)))")


@pytest.fixture
def show(browser, tmp_path):
    """show(view, width=900, scheme="light", **values) -> Shown; the test fails if the page had errors or requests."""
    contexts, shown = [], []

    def opened(view: View, width: int = 900, scheme: str = "light", **values) -> Shown:
        context = browser.new_context(
            viewport={"width": width, "height": 900}, color_scheme=scheme, accept_downloads=True, offline=True
        )
        contexts.append(context)
        shown.append(Shown(context, view.save_html(tmp_path / f"view-{len(shown)}.html", **values)))
        return shown[-1]

    yield opened
    problems = [problem for each in shown for problem in each.wrong]
    for context in contexts:
        context.close()
    assert not problems, problems


# A widget's module, loaded as anywidget does, and what it sees of its kernel: what it sends is in `sent`, `tell` speaks
# as the kernel does.
KERNEL = """
const values = %s;
const heard = {};
window.sent = [];
const model = {
  get: (name) => values[name], save_changes() {}, off() {}, send: (message) => sent.push(message),
  set: (name, value) => { values[name] = value; },
  on: (event, callback) => (heard[event] ??= []).push(callback),
};
window.values = values;
window.tell = (event, message) => heard[event].forEach((callback) => callback(message));
const script = URL.createObjectURL(new Blob([%s], { type: "text/javascript" }));
(await import(script)).default.render({ model, el: document.getElementById("view") });
"""


@pytest.fixture
def mounted(browser, tmp_path):
    """mounted(widget, values, wait, width, scheme) -> page of a widget; fails if it had errors or made requests."""
    contexts, wrong = [], []

    def opened(widget: type[AnyWidget], values: dict, wait: str, width: int, scheme: str):
        context = browser.new_context(viewport={"width": width, "height": 900}, color_scheme=scheme, offline=True)
        contexts.append(context)
        held, script = (json.dumps(part).replace("<", "\\u003c") for part in (values, str(widget._esm)))
        file = tmp_path / f"widget-{len(contexts)}.html"
        head = f'<!doctype html><meta charset="utf-8"><style>{widget._css}</style><body><div id="view"></div>'
        file.write_text(f'{head}<script type="module">{KERNEL % (held, script)}</script>', encoding="utf-8")
        page = context.new_page()
        page.on("console", lambda said: said.type in ("error", "warning") and wrong.append(said.text))
        page.on("pageerror", lambda error: wrong.append(str(error)))
        page.goto(file.as_uri())
        page.wait_for_selector(wait)
        return page

    yield opened
    for context in contexts:
        context.close()
    assert not wrong, wrong


@pytest.fixture
def make_run(tmp_path):
    """make_run(preset, *steps, state) -> a run that logged these steps, in the folder of the test."""

    def made(preset: str, *steps: int, state: str = "stopped") -> Run:
        run = prepare_run(load_config(preset), tmp_path)
        log_steps(run, *steps)
        run.write_status(state, max(steps, default=0), steps=420, rate=2.0, seconds=7.0)
        return run

    return made


def log_steps(run: Run, *steps: int, **more) -> None:
    for step in steps:
        record = {"step": step, "loss": 100.0 / step, "denoise": 50.0 / step, "alignment": None, "gradient_norm": 1.0}
        run.append("metrics.jsonl", {**record, "images_per_second": 80.0, "seconds": step / 10, **more})


@pytest.fixture
def log():
    return log_steps
