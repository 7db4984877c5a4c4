"""Live panels in a browser: curves over each other, zoom, commands, what is said, themes and widths."""

import json
import statistics
from pathlib import Path

import pytest

from workbench.lab.watching import live
from workbench.lab.watching.state import panel_state

SCORE = {"metric": "fd-clf64", "n_generated": 300, "sampler_steps": 16, "floor": 0.8}


@pytest.fixture
def run(make_run):
    return make_run("demo/plain", 10, 20, 30)


@pytest.fixture
def shown(mounted, run, make_run):
    """shown(width, scheme, status) -> page of two runs, `status` being changes of the first one's."""
    other = make_run("demo/teacher", *range(5, 60, 5))
    for one in (run, other):
        (one.folder / "log.txt").write_text("begun\nKilled\n")
    run.append("results.jsonl", {**SCORE, "step": 20, "value": 9.0, "low": 8.0, "high": 10.0})

    def opened(width: int = 1000, scheme: str = "light", status: dict | None = None):
        opening = [panel_state(run), panel_state(other)]
        opening[0]["status"] |= status or {}
        values = {"opening": opening, "choices": {}, "code": "wb.watch()", "points": 2000}
        return mounted(live.LivePanel, values, ".wb-chart svg", width, scheme)

    return opened


def settled(page) -> None:
    """Painted."""
    page.evaluate("() => new Promise((done) => requestAnimationFrame(() => requestAnimationFrame(done)))")


def curves(page, title: str) -> list[str]:
    return (
        page.get_by_role("slider", name=f"{title} by step")
        .locator(".wb-curve")
        .evaluate_all("(all) => all.map((one) => one.getAttribute('d'))")
    )


def points(page, title: str) -> list[int]:
    """Of each curve, with those that it went on by; a piece begins with the point before it."""
    return (
        page.get_by_role("slider", name=f"{title} by step")
        .locator(".wb-curve")
        .evaluate_all(
            """(all) => all.map((one) => {
          let count = one.getAttribute("d").match(/[ML]/g).length;
          for (let next = one.nextSibling; next?.classList.contains("wb-more"); next = next.nextSibling)
            count += next.getAttribute("d").match(/[ML]/g).length - 1;
          return count;
        })"""
        )
    )


def sent(page, seen: bool = False) -> list[dict]:
    """What the kernel was sent: of whether the panel is seen, or all else."""
    messages = page.evaluate("JSON.parse(JSON.stringify(sent))")
    return [message for message in messages if (message["type"] == "visible") == seen]


def test_runs_lie_over_each_other_and_new_points_join_them(shown):
    page = shown()
    assert points(page, "loss (total)") == [3, 11]
    styles = (
        page.get_by_role("slider", name="loss (total) by step")
        .locator(".wb-curve")
        .evaluate_all("(all) => all.map((one) => [one.getAttribute('stroke'), one.getAttribute('stroke-dasharray')])")
    )
    assert styles[0][0] != styles[1][0] and styles[0][1] != styles[1][1]
    assert sent(page) == [{"type": "ready"}]
    page.evaluate(
        "tell('msg:custom', {type: 'news', runs: {0: {curves: {loss: [[30, 40], [9, 2]], norm_x: [[40], [1]]}}}})"
    )
    settled(page)
    assert points(page, "loss (total)") == [4, 11]  # step 30 was there
    assert page.get_by_role("slider", name="feature norm, x by step").count() == 1
    many = "[Array.from({length: 2000}, (_, at) => 41 + at), Array(2000).fill(1)]"
    page.evaluate("tell('msg:custom', {type: 'news', runs: {0: {whole: true, name: 'a', curves: {}}}})")
    page.evaluate(f"tell('msg:custom', {{type: 'news', runs: {{0: {{curves: {{loss: {many}}}}}}}}})")
    page.evaluate("tell('msg:custom', {type: 'news', runs: {0: {curves: {loss: [[9000], [1]]}}}})")
    assert sent(page).count({"type": "ready"}) == 2  # too many points: it asks for thinner ones


def test_only_what_a_line_went_on_by_is_drawn_while_it_stays_within_the_borders(shown):
    page = shown()
    news = "tell('msg:custom', {type: 'news', runs: {1: {curves: {loss: [[STEP], [VALUE]]}}}})"
    frame = page.get_by_role("slider", name="loss (total) by step")
    pieces, first = frame.locator(".wb-more"), points(page, "loss (total)")[1]
    value = page.evaluate("values.opening[1].curves.loss[1].at(-1)")

    def grow(step: int, value: float) -> int:
        page.evaluate(news.replace("STEP", str(step)).replace("VALUE", str(value)))
        settled(page)
        return pieces.count()

    assert grow(56, value) == 0  # it was drawn to its last step; now there is room for 3 steps
    before = curves(page, "loss (total)")
    assert grow(57, value) == 1 and grow(58, value) == 2 and curves(page, "loss (total)") == before
    assert points(page, "loss (total)")[1] == first + 3
    assert grow(59, 100 * abs(value) + 1) == 0  # far above the others
    assert curves(page, "loss (total)") != before and points(page, "loss (total)")[1] == first + 4
    assert grow(60, value) == 0  # beyond the room
    assert grow(61, value) == 1
    slider = page.get_by_role("slider", name="smoothing", exact=True)
    slider.focus()
    page.keyboard.press("End")
    settled(page)
    assert pieces.count() == 0 and points(page, "loss (total)")[1] == first + 6
    assert grow(62, value) == 2  # of the curve and of what it smooths


def test_all_charts_show_the_same_steps(shown):
    page = shown()
    for step in (56, 57, 75):
        more = f"[[{step}], [1]]"
        page.evaluate(
            f"tell('msg:custom', {{type: 'news', runs: {{1: {{curves: {{loss: {more}, denoise: {more}}}}}}}}})"
        )
        settled(page)
        first, second = (
            page.get_by_role("slider", name=f"{name} by step")
            .locator("text[text-anchor=middle]")
            .evaluate_all("(all) => all.map((one) => [one.textContent, one.getAttribute('x')])")
            for name in ("loss (total)", "gradient norm")
        )
        assert first == second and len(first) > 2


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
    before = points(page, "loss (total)")
    frame = page.get_by_role("slider", name="loss (total) by step")
    frame.focus()
    page.keyboard.press("+")
    page.wait_for_timeout(150)
    asked = sent(page)[-1]
    assert asked["type"] == "range" and asked["range"] == page.evaluate("values.choices.range")
    finer = {"loss": [list(range(20, 41)), [1.0] * 21]}
    page.evaluate("(m) => tell('msg:custom', m)", {"type": "finer", "range": [0, 1], "runs": {"0": finer}})
    settled(page)
    assert points(page, "loss (total)") == before  # of a stretch that nobody looks at
    page.evaluate("(m) => tell('msg:custom', m)", {"type": "finer", "range": asked["range"], "runs": {"0": finer}})
    settled(page)
    assert points(page, "loss (total)") == [21, before[1]]
    page.evaluate("tell('msg:custom', {type: 'news', runs: {0: {curves: {loss: [[60], [2]]}}}})")
    settled(page)
    assert points(page, "loss (total)")[0] == 22
    assert page.locator(".wb-more").count() == 1  # what lies beyond the stretch does not have it drawn anew
    page.get_by_role("button", name="All steps").click()
    settled(page)
    assert points(page, "loss (total)") == [before[0] + 1, before[1]]


def test_what_is_out_of_view_is_drawn_when_it_comes_into_view_or_after_seconds(shown):
    page = shown()
    page.clock.install()
    page.set_viewport_size({"width": 1000, "height": 200})
    page.evaluate("window.scrollTo(0, 0)")
    settled(page)
    page.wait_for_timeout(300)
    frame = page.get_by_role("slider", name="gradient norm by step")
    (before, *_), read = points(page, "gradient norm"), frame.get_attribute("aria-valuetext")
    news = "tell('msg:custom', {type: 'news', runs: {0: {curves: {gradient_norm: [[STEP], [2]]}}}})"
    page.evaluate(news.replace("STEP", "60"))  # the first may be drawn: the last drawing may be seconds ago
    page.evaluate(news.replace("STEP", "70"))
    settled(page)
    drawn = points(page, "gradient norm")[0]
    assert drawn <= before + 1
    page.clock.fast_forward(20_500)
    settled(page)
    assert points(page, "gradient norm")[0] == before + 2
    assert frame.get_attribute("aria-valuetext") != read
    page.evaluate(news.replace("STEP", "80"))
    settled(page)
    assert points(page, "gradient norm")[0] == before + 2
    frame.scroll_into_view_if_needed()
    page.wait_for_timeout(300)
    assert points(page, "gradient norm")[0] == before + 3


def test_the_kernel_hears_whether_a_panel_is_seen(shown):
    page = shown()
    page.wait_for_function("sent.some(({type}) => type === 'visible')")
    page.evaluate("document.body.style.paddingTop = '3000px'")
    page.wait_for_function("sent.filter(({type}) => type === 'visible').length === 2")
    page.get_by_role("slider", name="loss (total) by step").scroll_into_view_if_needed()
    page.wait_for_function("sent.filter(({type}) => type === 'visible').length === 3")
    assert [message["value"] for message in sent(page, seen=True)] == [True, False, True]
    assert len({message["view"] for message in sent(page, seen=True)}) == 1


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
    assert "died unexpectedly" in card.inner_text() and "Killed" in card.inner_text()
    assert page.get_by_role("button", name=f"Pause {run.name}").is_disabled()
    page.get_by_role("button", name=f"Resume {run.name}").click()
    rate = page.get_by_role("textbox", name=f"learning rate of {run.name}")
    rate.fill("0.0005")
    page.evaluate("tell('msg:custom', {type: 'news', runs: {0: {settings: {learning_rate: 0.002}}}})")
    settled(page)
    assert rate.input_value() == "0.0005"  # what is typed is not taken away
    rate.press("Enter")
    asked = [
        {"type": "command", "run": 0, "what": "resume"},
        {"type": "command", "run": 0, "what": "set", "value": 5e-4},
    ]
    assert sent(page)[1:] == asked
    page.evaluate("tell('msg:custom', {type: 'status', text: 'ValueError: no room', wrong: true})")
    assert page.get_by_role("alert").inner_text() == "ValueError: no room"


def test_the_log_follows_its_end_unless_earlier_lines_are_read(shown, run):
    run.write_status("running", 30, steps=420)  # lost, so that the log is open
    page = shown()
    log = page.get_by_label(f"log of {run.name}")

    def news(count: int) -> list[float]:
        lines = [f"line {number}" for number in range(count)]
        page.evaluate("(log) => tell('msg:custom', {type: 'news', runs: {0: {log}}})", lines)
        settled(page)
        return log.evaluate("(of) => [of.scrollTop, of.scrollHeight - of.clientHeight]")

    top, end = news(60)
    assert end > 200 and abs(top - end) <= 1
    log.evaluate("(of) => { of.scrollTop = 40; }")
    assert news(61)[0] == 40
    log.evaluate("(of) => { of.scrollTop = of.scrollHeight; }")
    top, end = news(70)
    assert abs(top - end) <= 1


def test_the_answer_is_said_when_it_comes(shown):
    page = shown(status={"state": "running", "can": {"pause": True}})
    page.get_by_role("button", name="Pause demo-plain").click()
    assert "asked to pause" in page.locator(".wb-status").inner_text()
    answer = {"number": 3, "what": "pause", "result": "done", "step": 31}
    status = {"state": "paused", "step": 31, "steps": 420, "remark": "", "answer": answer, "can": {"resume": True}}
    page.evaluate("(status) => tell('msg:custom', {type: 'news', runs: {0: {status}}})", status)
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


@pytest.mark.parametrize("scheme", ["light", "dark"])
def test_a_run_has_one_colour_by_theme_and_what_is_saved_is_for_white_paper(shown, tmp_path, scheme):
    page = shown(scheme=scheme)
    series = json.loads((Path(live.__file__).parents[1] / "palette.json").read_text())["series"][:2]

    def strokes(selector: str) -> list[str]:
        return page.locator(selector).evaluate_all("(all) => all.map((one) => getComputedStyle(one).stroke)")

    for theme in (scheme, "dark" if scheme == "light" else "light"):
        page.emulate_media(color_scheme=theme)
        settled(page)
        wanted = ["rgb({}, {}, {})".format(*bytes.fromhex(one[theme][1:])) for one in series]
        first = ".wb-chart:first-child"
        assert strokes(f"{first} .wb-curve") == strokes(f"{first} .wb-swatch line") == wanted
        assert strokes(".wb-run-head line") == wanted
    with page.expect_download() as waiting:
        page.get_by_role("button", name="Save SVG").click()
    waiting.value.save_as(tmp_path / "curves.svg")
    text = (tmp_path / "curves.svg").read_text()
    assert all(one["light"] in text and one["dark"] not in text for one in series)


def test_a_line_is_drawn_soon_after_it_is_heard(shown):
    page = shown()
    taken = page.evaluate("""async () => {
      const taken = [];
      const drawn = () => document.querySelector(".wb-chart").outerHTML;
      for (let step = 100; step < 130; step += 1) {
        const [start, before] = [performance.now(), drawn()];
        tell("msg:custom", {type: "news", runs: {0: {curves: {loss: [[step], [1]], denoise: [[step], [1]]}}}});
        while (drawn() === before) await new Promise(requestAnimationFrame);
        taken.push(performance.now() - start);
      }
      return taken;
    }""")
    print(f"from a message to its curve: median {statistics.median(taken):.0f} ms")
    assert statistics.median(taken) < 1000
