"""Live panels in a browser: curves over each other, zoom, commands, what is said, themes and widths."""

import json
import statistics
from pathlib import Path

import pytest

from workbench.config import load_config
from workbench.lab.watching import live
from workbench.lab.watching.module import module
from workbench.lab.watching.state import panel_state
from workbench.runs.store import Run, prepare_run

SCORE = {"metric": "fd-clf64", "n_generated": 300, "sampler_steps": 16, "floor": 0.8}
STUB = """
const values = %s;
const heard = {};
window.sent = [];
const model = {
  get: (name) => values[name], set: (name, value) => { values[name] = value; }, save_changes() {}, off() {},
  on: (event, callback) => (heard[event] ??= []).push(callback), send: (message) => sent.push(message),
};
window.values = values;
window.tell = (message) => heard["msg:custom"].forEach((callback) => callback(message));
render({ model, el: document.getElementById("view") });
"""


def log(run: Run, *steps: int, **more) -> None:
    for step in steps:
        record = {"step": step, "loss": 100.0 / step, "denoise": 50.0 / step, "alignment": None, "gradient_norm": 1.0}
        run.append("metrics.jsonl", {**record, "images_per_second": 80.0, "seconds": step / 10, **more})


def make_run(root: Path, preset: str, *steps: int, state: str = "stopped") -> Run:
    run = prepare_run(load_config(preset), root)
    log(run, *steps)
    run.write_status(state, max(steps, default=0), steps=420, rate=2.0, seconds=7.0)
    return run


@pytest.fixture
def run(tmp_path):
    return make_run(tmp_path, "demo/plain", 10, 20, 30)


@pytest.fixture
def shown(browser, tmp_path, run):
    """shown(width, scheme, **changes of the first run) -> page; the test fails if the page had errors or requests."""
    contexts, wrong = [], []
    other = make_run(tmp_path, "demo/teacher", *range(5, 60, 5))
    for one in (run, other):
        (one.folder / "log.txt").write_text("begun\nKilled\n")
    run.append("results.jsonl", {**SCORE, "step": 20, "value": 9.0, "low": 8.0, "high": 10.0})

    def opened(width: int = 1000, scheme: str = "light", status: dict | None = None):
        context = browser.new_context(viewport={"width": width, "height": 900}, color_scheme=scheme, offline=True)
        contexts.append(context)
        opening = [panel_state(run), panel_state(other)]
        opening[0]["status"] |= status or {}
        values = {"opening": opening, "choices": {}, "code": "wb.watch()", "points": 2000}
        script = module(*live._SCRIPTS).replace("export default { render };", "")
        file = tmp_path / f"live-{len(contexts)}.html"
        held = json.dumps(values).replace("<", "\\u003c")
        head = '<!doctype html><meta charset="utf-8"><body><div id="view"></div>'
        file.write_text(f'{head}<script type="module">{script}{STUB % held}</script>')
        page = context.new_page()
        page.on("console", lambda said: said.type in ("error", "warning") and wrong.append(said.text))
        page.on("pageerror", lambda error: wrong.append(str(error)))
        page.goto(file.as_uri())
        page.wait_for_selector(".wb-chart svg")
        return page

    yield opened
    for context in contexts:
        context.close()
    assert not wrong, wrong


def settled(page) -> None:
    page.evaluate("() => new Promise((done) => requestAnimationFrame(() => requestAnimationFrame(done)))")


def curves(page, title: str) -> list[str]:
    return (
        page.get_by_role("slider", name=f"{title} by step")
        .locator(".wb-curve")
        .evaluate_all("(all) => all.map((one) => one.getAttribute('d'))")
    )


def points(path: str) -> int:
    return path.count("M") + path.count("L")


def test_runs_lie_over_each_other_and_new_points_join_them(shown):
    page = shown()
    assert [points(path) for path in curves(page, "loss (total)")] == [3, 11]
    styles = (
        page.get_by_role("slider", name="loss (total) by step")
        .locator(".wb-curve")
        .evaluate_all("(all) => all.map((one) => [one.getAttribute('stroke'), one.getAttribute('stroke-dasharray')])")
    )
    assert styles[0][0] != styles[1][0] and styles[0][1] != styles[1][1]
    assert page.evaluate("sent") == [{"type": "ready"}]
    page.evaluate("tell({type: 'news', runs: {0: {curves: {loss: [[30, 40], [9, 2]], norm_x: [[40], [1]]}}}})")
    settled(page)
    assert [points(path) for path in curves(page, "loss (total)")] == [4, 11]  # step 30 was there
    assert page.get_by_role("slider", name="feature norm, x by step").count() == 1
    many = "[Array.from({length: 2000}, (_, at) => 41 + at), Array(2000).fill(1)]"
    page.evaluate("tell({type: 'news', runs: {0: {whole: true, name: 'a', curves: {}}}})")
    page.evaluate(f"tell({{type: 'news', runs: {{0: {{curves: {{loss: {many}}}}}}}}})")
    page.evaluate("tell({type: 'news', runs: {0: {curves: {loss: [[9000], [1]]}}}})")
    assert page.evaluate("sent").count({"type": "ready"}) == 2  # too many points: it asks for thinner ones


def test_zoom_by_dragging_and_by_keys_in_all_charts(shown):
    page = shown()
    frame = page.get_by_role("slider", name="loss (total) by step")
    before = curves(page, "denoising loss")
    box = frame.bounding_box()
    page.mouse.move(box["x"] + box["width"] * 0.3, box["y"] + 60)
    page.mouse.down()
    page.mouse.move(box["x"] + box["width"] * 0.6, box["y"] + 60, steps=4)
    page.mouse.up()
    settled(page)
    low, high = (int(frame.get_attribute(f"aria-value{end}")) for end in ("min", "max"))
    assert 5 < low < high < 55 and curves(page, "denoising loss") != before
    page.wait_for_timeout(150)
    assert page.evaluate("values.choices.range") == pytest.approx([low, high], abs=0.51)
    frame.dblclick()
    settled(page)
    assert (frame.get_attribute("aria-valuemin"), frame.get_attribute("aria-valuemax")) == ("5", "55")
    page.mouse.move(0, 0)
    settled(page)
    assert curves(page, "denoising loss") == before
    frame.focus()
    page.keyboard.press("Home")
    page.keyboard.press("ArrowRight")
    settled(page)
    assert "step 20: demo-plain" in frame.get_attribute("aria-valuetext") and ", demo-teacher" in frame.get_attribute(
        "aria-valuetext"
    )
    page.keyboard.press("+")
    settled(page)
    assert int(frame.get_attribute("aria-valuemax")) < 55
    page.get_by_role("button", name="All steps").click()
    settled(page)
    assert frame.get_attribute("aria-valuemax") == "55"


def test_a_zoom_asks_for_finer_points_and_draws_them(shown):
    page = shown()
    before = [points(path) for path in curves(page, "loss (total)")]
    frame = page.get_by_role("slider", name="loss (total) by step")
    frame.focus()
    page.keyboard.press("+")
    page.wait_for_timeout(150)
    asked = page.evaluate("sent.at(-1)")
    assert asked["type"] == "range" and asked["range"] == page.evaluate("values.choices.range")
    finer = {"loss": [list(range(20, 41)), [1.0] * 21]}
    page.evaluate("(m) => tell(m)", {"type": "finer", "range": [0, 1], "runs": {"0": finer}})
    settled(page)
    assert [points(path) for path in curves(page, "loss (total)")] == before  # of a stretch that nobody looks at
    page.evaluate("(m) => tell(m)", {"type": "finer", "range": asked["range"], "runs": {"0": finer}})
    settled(page)
    assert [points(path) for path in curves(page, "loss (total)")] == [21, before[1]]
    page.evaluate("tell({type: 'news', runs: {0: {curves: {loss: [[60], [2]]}}}})")
    settled(page)
    assert points(curves(page, "loss (total)")[0]) == 22
    page.get_by_role("button", name="All steps").click()
    settled(page)
    assert [points(path) for path in curves(page, "loss (total)")] == [before[0] + 1, before[1]]


def test_scale_and_smoothing(shown):
    page = shown()
    before = curves(page, "loss (total)")
    page.get_by_role("radio", name="log").check(force=True)
    settled(page)
    logged = curves(page, "loss (total)")
    slider = page.get_by_role("slider", name="smoothing", exact=True)
    slider.focus()
    page.keyboard.press("End")
    settled(page)
    assert slider.get_attribute("aria-valuetext") == "0.99"
    assert len({tuple(before), tuple(logged), tuple(curves(page, "loss (total)"))}) == 3
    page.wait_for_timeout(150)
    assert page.evaluate("[values.choices.scale, values.choices.smoothing]") == ["log", 6]


def test_a_lost_run_shows_its_log_and_resumes(shown, run):
    run.write_status("running", 30, steps=420)
    page = shown()
    card = page.get_by_role("region", name=run.name)
    assert "died without a word" in card.inner_text() and "Killed" in card.inner_text()
    assert page.get_by_role("button", name=f"Pause {run.name}").is_disabled()
    page.get_by_role("button", name=f"Resume {run.name}").click()
    rate = page.get_by_role("textbox", name=f"learning rate of {run.name}")
    rate.fill("0.0005")
    page.evaluate("tell({type: 'news', runs: {0: {settings: {learning_rate: 0.002}}}})")
    settled(page)
    assert rate.input_value() == "0.0005"  # what is typed is not taken away
    rate.press("Enter")
    asked = [
        {"type": "command", "run": 0, "what": "resume"},
        {"type": "command", "run": 0, "what": "set", "value": 5e-4},
    ]
    assert page.evaluate("JSON.parse(JSON.stringify(sent.slice(1)))") == asked
    page.evaluate("tell({type: 'said', text: 'ValueError: no room', wrong: true})")
    assert page.get_by_role("alert").inner_text() == "ValueError: no room"


def test_the_answer_is_said_when_it_comes(shown):
    page = shown(status={"state": "running", "can": {"pause": True}})
    page.get_by_role("button", name="Pause demo-plain").click()
    assert "asked to pause" in page.locator(".wb-status").inner_text()
    answer = {"number": 3, "what": "pause", "result": "done", "step": 31}
    status = {"state": "paused", "step": 31, "steps": 420, "remark": "", "answer": answer, "can": {"resume": True}}
    page.evaluate("(status) => tell({type: 'news', runs: {0: {status}}})", status)
    settled(page)
    assert page.locator(".wb-status").inner_text().endswith("pause at step 31: done")
    assert page.get_by_role("button", name="Resume demo-plain").is_enabled()


@pytest.mark.parametrize("scheme", ["light", "dark"])
@pytest.mark.parametrize("width", [390, 1400])
def test_nothing_runs_over_and_everything_has_a_name(shown, width, scheme):
    page = shown(width, scheme)
    assert page.evaluate("document.documentElement.scrollWidth") == width
    unnamed = page.evaluate("""() => [...document.querySelectorAll("button, input, [tabindex], progress")]
      .filter((one) => !(one.ariaLabel || one.textContent.trim() || one.closest("label")))
      .map((one) => one.outerHTML)""")
    assert unnamed == []
    colour = page.evaluate("getComputedStyle(document.querySelector('.wb')).backgroundColor")
    assert (sum(map(int, colour[4:-1].split(","))) < 150) == (scheme == "dark")


def test_the_curves_are_saved(shown, tmp_path):
    page = shown()
    with page.expect_download() as waiting:
        page.get_by_role("button", name="Save SVG").click()
    waiting.value.save_as(tmp_path / "curves.svg")
    text = (tmp_path / "curves.svg").read_text()
    assert text.count('class="wb-curve"') == 2 * 4 + 1 and "FD-clf64, 300 images" in text


def test_a_line_is_drawn_soon_after_it_is_heard(shown):
    page = shown()
    taken = page.evaluate("""async () => {
      const taken = [];
      for (let step = 100; step < 130; step += 1) {
        const start = performance.now();
        tell({type: "news", runs: {0: {curves: {loss: [[step], [1]], denoise: [[step], [1]]}}}});
        await new Promise((done) => requestAnimationFrame(() => requestAnimationFrame(done)));
        taken.push(performance.now() - start);
      }
      return taken;
    }""")
    print(f"from a message to its curve: median {statistics.median(taken):.0f} ms")
    assert statistics.median(taken) < 1000
