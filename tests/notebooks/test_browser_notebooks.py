"""Each notebook in a real JupyterLab: sliders by keyboard, pixels as Python draws them, themes, reload and restart."""

import base64
import io
import json
import time
from dataclasses import dataclass, field

import numpy as np
import pytest

# How many views and charts each shows.
EXPECTED = {
    "00_tour": (7, 0),
    "01_teacher": (3, 1),
    "02_features": (5, 2),
    "03_guidance": (4, 3),
    "04_compare": (3, 3),
}
PANEL = "window.jupyterapp.shell.currentWidget"
READY = f"""async () => {{
  const panel = window.jupyterapp && {PANEL};
  if (!panel?.context) return false;
  await panel.context.ready;
  await panel.context.sessionContext.ready;
  const session = panel.context.sessionContext.session;
  return session?.kernel?.connectionStatus === "connected" && session.kernel.status === "idle";
}}"""
RAN = f"""() => {{
  const code = [...{PANEL}.content.model.cells].filter((cell) => cell.type === "code");
  for (const cell of code) {{
    const wrong = cell.sharedModel.getOutputs().find((output) => output.output_type === "error");
    if (wrong) throw new Error(`${{wrong.ename}}: ${{wrong.evalue}}`);
  }}
  return code.length > 0 && code.every((cell) => cell.executionCount) &&
    {PANEL}.context.sessionContext.session.kernel.status === "idle";
}}"""
ASK = f"""async (code) => {{
  const future = {PANEL}.context.sessionContext.session.kernel.requestExecute({{ code, store_history: false }});
  let said = "";
  future.onIOPub = ({{ header, content }}) => {{ if (header.msg_type === "stream") said += content.text; }};
  const {{ content }} = await future.done;
  if (content.status !== "ok") throw new Error(`${{content.ename}}: ${{content.evalue}}`);
  return said;
}}"""
ALL = """() => document.querySelectorAll(".wb-foot").length === {} &&
  document.querySelectorAll(".jp-RenderedImage img").length === {}"""
FORGET = f"""async () => {{
  await {PANEL}.context.sessionContext.session.kernel.restart();
  for (const cell of {PANEL}.content.model.cells) if (cell.type === "code") cell.clearExecution();
}}"""
# Of every canvas its size and its decoded pixels.
PIXELS = """(canvases) => canvases.filter((canvas) => !canvas.hidden).map((canvas) => {
  const copy = new OffscreenCanvas(canvas.width, canvas.height).getContext("2d");
  copy.drawImage(canvas, 0, 0);
  const { data } = copy.getImageData(0, 0, canvas.width, canvas.height);
  let text = "";
  for (let i = 0; i < data.length; i += 8192) text += String.fromCharCode(...data.subarray(i, i + 8192));
  return [canvas.height, canvas.width, btoa(text)];
})"""
# What all canvases of a view show, and the marks and frames over them, as one number: pixels are many to send.
SHOWN = """(root) => {
  let sum = 0x811c9dc5;
  const add = (number) => { sum = Math.imul(sum ^ number, 0x01000193); };
  for (const canvas of root.querySelectorAll("canvas")) {
    if (canvas.hidden) continue;
    const copy = new OffscreenCanvas(canvas.width, canvas.height).getContext("2d", { willReadFrequently: true });
    copy.drawImage(canvas, 0, 0);
    new Uint32Array(copy.getImageData(0, 0, canvas.width, canvas.height).data.buffer).forEach(add);
  }
  for (const mark of root.querySelectorAll(".wb-panes svg")) {
    for (const letter of mark.outerHTML) add(letter.codePointAt(0));
  }
  return sum;
}"""
# What reaches beyond the right edge of its view, in which a table of samples may scroll.
OVER = """(root) => {
  const scrolls = (e) => e !== root && (["auto", "scroll"].includes(getComputedStyle(e).overflowX)
    || (e.parentElement && scrolls(e.parentElement)));
  const edge = root.getBoundingClientRect().right + 1;
  return [...root.querySelectorAll("*")].filter((e) => e.getClientRects().length
    && e.getBoundingClientRect().right > edge && !scrolls(e))
    .map((e) => `${e.tagName} ${e.getAttribute("class")} of ${e.closest(".wb-pane")?.firstChild.textContent}`);
}"""
# The views of the kernel in the order of their cells, and what `View.picture` would draw of one.
VIEWS = """
import base64, io, json
import numpy as np
from ipywidgets.widgets.widget import _instances
from workbench.lab.widget import ViewWidget
made = [each for each in _instances.values() if isinstance(each, ViewWidget)]
"""
STATES = VIEWS + "print(json.dumps([each.state for each in made]))"
DRAWN = VIEWS + (
    """
view, state, found = made[{view}]._view, made[{view}].state, []
figure = view.panes[{pane}].draw(state, view.axes)
buffer = io.BytesIO()
np.savez(buffer, *(np.asarray(image.get_array()) for of in figure.axes for image in of.images))
print(base64.b64encode(buffer.getvalue()).decode())
"""
)


@dataclass
class Shown:
    """A notebook in JupyterLab, and what its console said that is wrong."""

    page: object
    name: str
    wrong: list[str] = field(default_factory=list)

    def until(self, script: str, seconds: float = 240) -> None:
        deadline = time.monotonic() + seconds
        while not self.page.evaluate(script):
            assert time.monotonic() < deadline, self.page.locator(".jp-Notebook").inner_text()[-3000:]
            self.page.wait_for_timeout(100)

    def run(self) -> None:
        self.page.evaluate("() => { window.jupyterapp.commands.execute('notebook:run-all-cells'); }")
        self.until(RAN)
        self.page.wait_for_timeout(300)

    def views(self) -> list:
        return self.page.locator(".jp-OutputArea-output:has(.wb-foot)").all()

    def ask(self, code: str) -> str:
        return self.page.evaluate(ASK, code)

    def states(self) -> list[dict]:
        """What the kernel knows, a moment after the page told it."""
        self.page.wait_for_timeout(250)
        return json.loads(self.ask(STATES))

    def is_whole(self) -> None:
        assert len(self.views()) == EXPECTED[self.name][0]
        assert self.page.locator(".jp-RenderedImage img").count() == EXPECTED[self.name][1]
        assert not any(self.page.locator(".wb-status").all_inner_texts())
        assert self.page.locator("[data-mime-type='application/vnd.jupyter.stderr']").all_inner_texts() == []


@pytest.fixture(scope="module")
def context(browser):
    """A window, which loads JupyterLab's files once."""
    opened = browser.new_context(viewport={"width": 1400, "height": 1000})
    yield opened
    opened.close()


@pytest.fixture(scope="module", params=sorted(EXPECTED))
def shown(request, lab, notebooks, context):
    """A notebook that ran from top to bottom; the tests below go on with it in their order."""
    page = context.new_page()
    shown = Shown(page, request.param)
    page.on("console", lambda said: said.type == "error" and shown.wrong.append(said.text))
    page.on("pageerror", lambda error: shown.wrong.append(str(error)))
    asked = []
    page.on("request", lambda request: asked.append(request.url))
    page.goto(f"{lab.address}/lab/tree/{shown.name}.ipynb?reset&token={lab.token}")
    page.wait_for_selector(".jp-Notebook .jp-Cell")
    shown.until(READY)
    shown.run()
    yield shown
    page.evaluate(
        "async () => { for (const one of window.jupyterapp.serviceManager.sessions.running())"
        " await window.jupyterapp.serviceManager.sessions.shutdown(one.id); }"
    )
    page.close()
    assert not shown.wrong, shown.wrong
    others = [url for url in asked if not url.startswith((lab.address, "data:", "blob:"))]
    assert asked and not others, others


def pixels(locator) -> list[np.ndarray]:
    """Red, green and blue of the canvases, 0 to 255."""
    found = locator.evaluate_all(PIXELS)
    return [
        np.frombuffer(base64.b64decode(data), np.uint8).reshape(tall, wide, 4)[..., :3] for tall, wide, data in found
    ]


def once(pane) -> list[np.ndarray]:
    """Pixels of token maps with layers in order, that of the slider once, as on paper."""
    tiles = pane.locator(".wb-tile")
    heads = tiles.locator(".wb-tile-head .wb-line:first-child").all_text_contents()  # of the first row alone
    names = [text.removesuffix(" (slider)") for text in heads]
    kept = [i for i, name in enumerate(names) if name == heads[i] or name not in heads]
    order = sorted(kept, key=lambda i: (int(names[i].split()[1]) if names[i].startswith("layer ") else -1, i))
    found = pixels(tiles.locator("canvas"))
    return [found[start + i] for start in range(0, len(found), len(heads)) for i in order]


def expected(shown: Shown, view: int, pane: int) -> list[np.ndarray]:
    archive = np.load(io.BytesIO(base64.b64decode(shown.ask(DRAWN.format(view=view, pane=pane)))))
    arrays = [archive[name] for name in archive.files]
    coloured = [255 * of if of.dtype.kind == "f" else of.astype(float) for of in arrays]
    return [np.repeat(of[..., None], 3, axis=-1) if of.ndim == 2 else of for of in coloured]


# Whether an element is within the window, and nothing is over it.
IN_SIGHT = """(of) => { const { x, y, bottom } = of.getBoundingClientRect();
  return [y, bottom].every((at) => of.contains(document.elementFromPoint(x + 9, (at + (y + bottom) / 2) / 2))); }"""


def agrees(shown: Shown, number: int, view) -> int:
    """Compare every picture of pixels in a view with Python's; how many there were."""
    compared = 0
    for index, pane in enumerate(view.locator(".wb-pane").all()):
        kinds = {".wb-grid .wb-tile": once, ".wb-lane canvas": lambda of: pixels(of.locator(".wb-lane canvas"))}
        for selector, read in kinds.items():
            if not pane.locator(selector).count():
                continue
            found, wanted = read(pane), expected(shown, number, index)
            assert len(found) == len(wanted)
            for one, other in zip(found, wanted, strict=True):
                assert np.abs(one - other).max() <= 2, (shown.name, number, index)
            compared += len(found)
    return compared


def test_it_ran(shown):
    shown.is_whole()
    assert shown.page.get_by_text("official Jupyter news").count() == 0


def test_every_slider_moves_its_view_as_python_draws_it(shown):
    compared = 0
    for number, view in enumerate(shown.views()):
        sliders = view.get_by_role("slider").element_handles()  # which finds them once
        assert sliders, "a view without sliders"
        view.scroll_into_view_if_needed()
        compared += agrees(shown, number, view)  # as the notebook shows it first
        view.locator(".wb-foot").scroll_into_view_if_needed()
        assert view.locator(".wb-axes").evaluate(IN_SIGHT), f"the sliders of view {number} are out of sight below it"
        one = view.get_by_role("radio", name="one image", exact=True)
        if one.count():  # else the slider of the image chooses nothing
            one.check(force=True)
        for key in ("Home", "End"):
            for slider in sliders:
                before, text = view.locator(".wb").evaluate(SHOWN), slider.get_attribute("aria-valuetext")
                slider.focus()
                shown.page.keyboard.press(key)
                shown.page.wait_for_timeout(60)
                if key == "End" and slider.get_attribute("aria-valuetext") != text:
                    name = slider.get_attribute("aria-label")
                    assert view.locator(".wb").evaluate(SHOWN) != before, f"{name} of view {number} moves nothing"
            state = shown.states()[number]
            for slider in sliders:
                axis = slider.get_attribute("data-axis")
                if axis in state:
                    assert state[axis] == pytest.approx(float(slider.input_value()))
            compared += agrees(shown, number, view)
    assert compared >= 20
    shown.is_whole()


@pytest.mark.parametrize("theme", ["JupyterLab Dark", "JupyterLab Light"])
def test_theme_and_narrow_window(shown, theme):
    page = shown.page
    page.evaluate("(theme) => window.jupyterapp.commands.execute('apputils:change-theme', { theme })", theme)
    page.wait_for_function("(light) => document.body.dataset.jpThemeLight === light", arg=str("Light" in theme).lower())
    page.evaluate("() => { const { shell } = window.jupyterapp; shell.collapseLeft(); shell.collapseRight(); }")
    for width in (390, 1400):
        page.set_viewport_size({"width": width, "height": 1000})
        page.wait_for_timeout(300)
        for view in shown.views():
            view.scroll_into_view_if_needed()  # what is out of sight hears of its width when it is seen
            page.wait_for_timeout(100)
            root = view.locator(".wb")
            assert root.evaluate(OVER) == []
            assert root.evaluate("(root) => root.scrollWidth <= root.clientWidth + 1")
            ground = root.evaluate("(root) => getComputedStyle(root).backgroundColor.match(/\\d+/g).slice(0, 3)")
            ink = root.locator("h2").evaluate("(h) => getComputedStyle(h).color.match(/\\d+/g).slice(0, 3)")
            brightness = [sum(map(int, of)) for of in (ground, ink)]
            assert (brightness[0] > brightness[1] + 400) if "Light" in theme else brightness[1] > brightness[0] + 400


def test_after_a_reload_the_views_are_there_as_they_were_left(shown):
    left = shown.states()
    shown.page.evaluate("async () => { await window.jupyterapp.commands.execute('docmanager:save'); }")
    shown.page.goto(shown.page.url.split("?")[0])
    shown.page.wait_for_selector(".jp-Notebook .jp-Cell")
    shown.until(READY)
    shown.until(ALL.format(*EXPECTED[shown.name]), 60)  # outputs are drawn one after the other
    shown.is_whole()
    assert shown.states() == left
    last = shown.views()[-1]
    slider = last.get_by_role("slider").first
    axis = slider.get_attribute("data-axis")
    assert float(slider.input_value()) == pytest.approx(left[-1][axis])
    slider.focus()
    shown.page.keyboard.press("Home")
    lowest, deadline = float(slider.get_attribute("min")), time.monotonic() + 10
    while shown.states()[-1][axis] != lowest:  # which takes a moment on a busy machine
        assert time.monotonic() < deadline


def test_after_a_restart_of_the_kernel_it_runs_again(shown):
    if shown.name != "03_guidance":
        pytest.skip("one of five is enough: it runs from top to bottom once more")
    shown.page.evaluate(FORGET)
    shown.until(READY, 60)
    shown.run()
    shown.is_whole()
    view = shown.views()[0]
    assert agrees(shown, 0, view)
