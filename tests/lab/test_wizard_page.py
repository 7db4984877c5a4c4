"""The wizard in a browser: the form by keyboard, the plan, what is said, themes and widths."""

from dataclasses import replace

import pytest

from workbench.lab.watching import form
from workbench.lab.watching.wizard import Wizard, _shown
from workbench.training.pace import Pace
from workbench.training.plan import plan


@pytest.fixture
def shown(mounted, tmp_path, monkeypatch):
    """shown(width, scheme, known) -> page, `known` whether the paces were measured."""
    monkeypatch.setenv("WORKBENCH_QUEUE", str(tmp_path / "queue"))
    student, teacher = form.configs("demo/guided", {}, tmp_path)
    unmeasured = plan(student, tmp_path / "runs", teacher=teacher)
    paces = (Pace(0.4, 0.3, 340_000_000, 10**10, 10**10, 0.1, 5), Pace(0.6, 0.3, 360_000_000, 10**10, 10**10, 0.1, 5))
    stages = [replace(stage, pace=pace) for stage, pace in zip(unmeasured.stages, paces, strict=True)]
    measured = replace(unmeasured, stages=(stages[0], replace(stages[1], state="stopped", done=140)))

    def opened(width: int = 1400, scheme: str = "light", known: bool = True):
        values = {
            "fields": form.fields("demo/guided", {}, tmp_path),
            "plan": _shown(measured if known else unmeasured),
            "problem": "",
            "busy": "",
            "code": "wb.wizard()",
        }
        return mounted(Wizard, values, ".wb-plan tbody tr", width, scheme)

    return opened


def settled(page) -> None:
    page.evaluate("() => new Promise((done) => requestAnimationFrame(() => requestAnimationFrame(done)))")


def cells(page) -> dict[str, list[str]]:
    rows = page.locator(".wb-plan tbody tr").all()
    return {row.locator("th").inner_text(): row.locator("td").all_inner_texts() for row in rows}


def test_the_plan_stands_there(shown):
    page = shown()
    # 100 steps of 0.4 s; from step 140 on, after the stop at 80, 100 of 0.3 s.
    assert cells(page)["time"] == ["40 s", "30 s", "70 s"]
    assert cells(page)["steps"] == ["100", "100 of 240", "200"]
    assert page.get_by_role("heading", name="To train: 70 s").count() == 1
    widths = page.locator(".wb-time i").evaluate_all("(all) => all.map((one) => parseFloat(one.style.width))")
    # Of 40 s and 80 * 0.6 + 160 * 0.3 = 96 s: nothing done of the first, 66 s of the second.
    assert widths == pytest.approx([0, 100 * 40 / 96, 100 * 66 / 96, 100 * 30 / 96], abs=0.02)
    assert page.get_by_role("img", name="student: 30 s").count() == 1
    assert page.evaluate("sent") == [{"type": "refresh"}]


def test_fields_are_changed_by_keyboard(shown):
    page = shown()
    page.get_by_role("combobox", name="start from").focus()
    page.keyboard.press("Tab")
    assert page.evaluate("document.activeElement.ariaLabel") == "images"
    scale = page.get_by_role("textbox", name="guidance scale w")
    scale.fill("3")
    page.keyboard.press("Tab")
    size = page.get_by_role("combobox", name="size", exact=True)
    size.focus()
    page.keyboard.press("ArrowUp")
    sent = page.evaluate("sent.slice(1)")
    assert sent == [
        {"type": "change", "key": "objective.guidance_scale", "text": "3"},
        {"type": "change", "key": "backbone.size", "text": "pico"},
    ]


def test_what_the_kernel_says_takes_the_place_but_not_of_what_is_typed(shown):
    page = shown()
    seed = page.get_by_role("textbox", name="seed")
    seed.click()
    page.keyboard.type("7")
    page.evaluate(
        "values.fields = values.fields.map((f) => ({...f, text: f.key === 'training.steps' ? '99' : f.text}))"
    )
    page.evaluate("tell('change:fields')")
    settled(page)
    assert page.get_by_role("textbox", name="steps", exact=True).input_value() == "99"
    assert seed.input_value().endswith("7") and seed.input_value() != "0"
    # Another method has other fields: the focus stays where it was.
    page.evaluate("values.fields = values.fields.filter((f) => f.key !== 'objective.teacher_layer')")
    page.evaluate("tell('change:fields')")
    settled(page)
    assert page.get_by_role("textbox", name="teacher layer").count() == 0
    assert page.evaluate("document.activeElement.ariaLabel") == "seed"


def test_what_is_wrong_takes_the_place_of_the_plan(shown):
    page = shown()
    page.evaluate("Object.assign(values, {problem: 'objective.layer 99 is <outside> 1..12', plan: {}, code: ''})")
    page.evaluate("tell('change:problem')")
    settled(page)
    assert "objective.layer 99 is <outside> 1..12" in page.get_by_role("alert").inner_text()
    assert page.locator(".wb-plan").count() == 0
    for name in ("Measure", "Launch", "Copy code"):
        assert page.get_by_role("button", name=name).is_disabled()


def test_the_buttons(shown):
    page = shown(known=False)
    assert cells(page)["time"] == ["not measured"] * 3 and page.locator(".wb-bars").count() == 0
    page.get_by_role("button", name="Measure").press("Enter")
    page.evaluate("values.busy = 'measuring a few steps …'; tell('change:busy')")
    settled(page)
    assert page.get_by_role("status").inner_text() == "measuring a few steps …"
    assert page.get_by_role("button", name="Launch").is_disabled()
    page.evaluate("values.busy = ''; tell('change:busy')")
    settled(page)
    page.get_by_role("button", name="Launch").press("Space")
    assert [one["type"] for one in page.evaluate("sent")] == ["refresh", "measure", "launch"]
    page.evaluate("tell('msg:custom', {type: 'status', text: 'ValueError: no room', wrong: true})")
    assert page.get_by_role("alert").inner_text() == "ValueError: no room"
    page.context.grant_permissions(["clipboard-read", "clipboard-write"])
    page.get_by_role("button", name="Copy code").click()
    page.get_by_text("Copied the code").wait_for()
    assert page.evaluate("navigator.clipboard.readText()") == "wb.wizard()"
    assert shown().get_by_role("button", name="Measure again").count() == 1


@pytest.mark.parametrize("scheme", ["light", "dark"])
@pytest.mark.parametrize("width", [390, 1400])
def test_nothing_runs_over_and_everything_has_a_name(shown, width, scheme):
    page = shown(width, scheme)
    assert page.evaluate("document.documentElement.scrollWidth") == width
    unnamed = page.evaluate("""() => [...document.querySelectorAll("button, input, select, [tabindex]")]
      .filter((one) => !(one.ariaLabel || one.textContent.trim() || one.closest("label")))
      .map((one) => one.outerHTML)""")
    assert unnamed == []
    colour = page.evaluate("getComputedStyle(document.querySelector('.wb')).backgroundColor")
    assert (sum(map(int, colour[4:-1].split(","))) < 150) == (scheme == "dark")
