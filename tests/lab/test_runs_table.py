"""The table of runs: its rows, what is done with the selection, and the page in a browser."""

import importlib
import json

import pytest

import workbench as wb
from workbench.config import load_config
from workbench.files import hold_lock
from workbench.lab.watching import live as watching
from workbench.lab.watching.table import RunsTable, codes, runs_table, table_rows
from workbench.runs.shelf import read_notes, set_notes, trashed
from workbench.runs.state import TRAINER_LOCK
from workbench.runs.store import find_runs, prepare_run


@pytest.fixture
def root(tmp_path, monkeypatch):
    """A teacher, its student and a plain run, in this order."""
    root = tmp_path / "runs"
    for preset, seed, score in (("teacher", 0, 30.0), ("guided", 1, 9.5), ("plain", 12, None)):
        run = prepare_run(load_config(f"demo/{preset}", [f"training.seed={seed}"] if preset != "teacher" else []), root)
        run.append("metrics.jsonl", {"step": 10, "loss": 1.0 / (seed + 1), "seconds": 60.0})
        run.write_status("finished" if score else "stopped", 10, steps=10)
        if score:
            run.append("results.jsonl", {"metric": "fd-clf64", "value": score})
    monkeypatch.setenv("WORKBENCH_RUNS", str(root))
    return root


@pytest.fixture
def table(root):
    table = RunsTable(root)
    table.sent = []
    table.send = lambda message, buffers=None: table.sent.append(message)
    return table


def names(root) -> list[str]:
    return [run.name for run in find_runs(root)]


def test_rows_are_newest_first_and_ready_for_json(root):
    plain, guided, teacher = table_rows(root)
    assert [row["name"] for row in (teacher, guided, plain)] == names(root)
    assert (guided["method"], guided["w"], guided["layers"], guided["seed"]) == ("self_transcendence", 10.0, "8 → 6", 1)
    assert (guided["scores"], plain["scores"], guided["cost"]) == ({"fd-clf64": 9.5}, {}, 120.0)
    json.dumps(table_rows(root), allow_nan=False)


def test_the_selection_are_runs(table, root):
    first, second, third = names(root)
    table.chosen = [first, third]
    assert [run.folder for run in table.selected] == [root / third, root / first]  # as the table has them
    assert table.code["watch"] == f'import workbench as wb\n\nwb.watch("{third}", "{first}")\n'
    assert table.code["maps"] == f'import workbench as wb\n\nwb.compare_maps(["{third}", "{first}"])\n'
    table.chosen = [second]
    assert table.code["maps"].endswith(f'wb.maps("{second}")\n') and "compare" not in table.code
    with pytest.raises(Exception, match="there is no run nobody; there are: demo-"):
        table.chosen = ["nobody"]
    table.chosen = []
    assert table.selected == [] and table.code == {}


def test_the_code_is_code(root):
    for text in codes(find_runs(root)).values():
        compile(text, "cell", "exec")


def test_tags_and_notes_are_kept_and_shown(table, root):
    name = names(root)[0]
    note = {"type": "act", "what": "note", "name": name, "tags": ["best", "a"], "notes": "look"}
    table._on_message(table, note, [])
    (run,) = [run for run in find_runs(root) if run.name == name]
    assert read_notes(run) == {"tags": ["a", "best"], "notes": "look"}
    assert (table.rows[-1]["tags"], table.rows[-1]["notes"]) == (["a", "best"], "look")
    assert table.sent[-1] == {"type": "status", "text": f"Noted {name}.", "wrong": False}


def test_a_teacher_goes_with_its_students_and_not_before(table, root):
    teacher, student, plain = names(root)
    table.chosen = [teacher, plain]
    table._on_message(table, {"type": "act", "what": "trash", "names": [teacher, plain]}, [])
    assert table.sent[-1]["wrong"] and "is the teacher of" in table.sent[-1]["text"]
    assert f"{plain} was moved" in table.sent[-1]["text"] and trashed(root) == [plain]
    assert [row["name"] for row in table.rows] == [student, teacher] and table.chosen == [teacher]
    table._on_message(table, {"type": "act", "what": "trash", "names": [teacher, student]}, [])
    assert not table.sent[-1]["wrong"] and "workbench restore" in table.sent[-1]["text"]
    assert table.rows == [] and table.chosen == [] and trashed(root) == sorted([teacher, student, plain])


def test_a_run_that_trains_stays(table, root):
    run = find_runs(root)[2]
    with hold_lock(run.folder / TRAINER_LOCK, 1.0):
        table._on_message(table, {"type": "act", "what": "trash", "names": [run.name]}, [])
    assert table.sent[-1]["wrong"] and "workbench stop" in table.sent[-1]["text"] and trashed(root) == []


@pytest.mark.parametrize("content", [{"what": "burn"}, {"what": "trash", "names": ["../x"]}, {}])
def test_what_makes_no_sense_is_said(table, root, content):
    before = names(root)
    table._on_message(table, {"type": "act", **content}, [])
    assert table.sent[-1]["wrong"] and names(root) == before


def test_damage_is_a_row(root):
    (find_runs(root)[0].folder / "config.yaml").write_text("data: [1")
    assert "config.yaml cannot be used" in table_rows(root)[-1]["remark"]


def test_no_folder_is_a_sentence(tmp_path):
    with pytest.raises(ValueError, match="there is no folder .*nowhere"):
        runs_table(tmp_path / "nowhere")


def test_the_table_is_public_and_the_package_of_runs_stays_a_package(root, monkeypatch):
    monkeypatch.setenv("WORKBENCH_RUNS", str(root))
    assert isinstance(wb.runs_table(), RunsTable)
    assert wb.runs_table is runs_table and not callable(importlib.import_module("workbench.runs"))


def test_a_view_of_the_selection_opens_below(table, root, monkeypatch):
    monkeypatch.setattr(watching, "_open", {})
    table.chosen = [names(root)[0], names(root)[2]]
    table._opened("watch")
    assert table._below.children[0] is table and [run.folder for run in table._below.children[1].runs] == [
        run.folder for run in table.selected
    ]
    assert not table.sent[-1]["wrong"]
    table._below.children[1].close()
    for view, said in (("dance", "there are: watch, maps, samples"), ("samples", "checkpoint")):
        table._opened(view)
        assert table.sent[-1]["wrong"] and said in table.sent[-1]["text"]
    table.chosen = []
    table._opened("watch")
    assert "select a run to open" in table.sent[-1]["text"]
    data = table._repr_mimebundle_()
    data = data[0] if isinstance(data, tuple) else data
    assert data["application/vnd.jupyter.widget-view+json"]["model_id"] == table._below.model_id


# The page.


@pytest.fixture
def shown(mounted, root):
    """shown(width, scheme) -> page."""
    set_notes(find_runs(root)[1], ["best"], "the one <b>we</b> show")

    def opened(width: int = 1400, scheme: str = "light"):
        values = {"rows": table_rows(root), "chosen": [], "code": {"watch": "wb.watch()"}, "trash": "runs/.trash"}
        return mounted(RunsTable, values, ".wb-table tbody tr", width, scheme)

    return opened


def settled(page) -> None:
    page.evaluate("() => new Promise((done) => requestAnimationFrame(() => requestAnimationFrame(done)))")


def listed(page) -> list[str]:
    settled(page)
    return [text.split("-")[1] for text in page.locator("tbody th").all_inner_texts()]


def test_search_filter_and_sort(shown):
    page = shown()
    assert listed(page) == ["plain", "guided", "teacher"]
    page.get_by_role("searchbox", name="search").fill("self best")
    assert listed(page) == ["guided"]
    page.get_by_role("searchbox", name="search").fill("")
    page.get_by_role("combobox", name="state").select_option(label="finished")
    assert listed(page) == ["guided", "teacher"]
    page.get_by_role("combobox", name="state").select_option(label="all")
    sort = page.get_by_role("button", name="fd-clf64")
    sort.click()
    assert listed(page) == ["guided", "teacher", "plain"]  # without a score: last
    sort.click()
    assert listed(page) == ["teacher", "guided", "plain"]
    assert page.locator("th[data-key=score]").get_attribute("aria-sort") == "descending"
    page.get_by_role("button", name="seed", exact=True).click()
    assert listed(page) == ["teacher", "guided", "plain"]  # 0, 1, 12: as numbers


def test_selecting_by_keyboard(shown):
    page = shown()
    boxes = page.locator("tbody input")
    boxes.first.focus()
    page.keyboard.press("Space")
    settled(page)
    page.keyboard.press("ArrowDown")
    page.keyboard.press("Space")
    settled(page)
    assert [name.split("-")[1] for name in page.evaluate("values.chosen")] == ["plain", "guided"]
    assert page.locator(".wb-count").inner_text() == "2 of 3 selected"
    assert page.evaluate("document.activeElement.ariaLabel").startswith("select demo-guided")
    page.get_by_role("searchbox", name="search").fill("teacher")
    settled(page)
    page.get_by_role("checkbox", name="select all runs that are shown").check()
    settled(page)
    assert len(page.evaluate("values.chosen")) == 3  # those not shown stay selected


def test_code_is_copied(shown):
    page = shown()
    page.context.grant_permissions(["clipboard-read", "clipboard-write"])
    assert page.get_by_role("button", name="Copy: Watch").is_disabled()
    page.locator("tbody input").first.check()
    settled(page)
    assert page.get_by_role("button", name="Copy: Compare scores").is_disabled()
    page.get_by_role("button", name="Copy: Watch").click()
    page.get_by_text("Copied the code").wait_for()
    assert page.evaluate("navigator.clipboard.readText()") == "wb.watch()"


def test_views_are_asked_for(shown):
    page = shown()
    assert page.get_by_role("button", name="Open maps").is_disabled()
    page.locator("tbody input").first.check()
    settled(page)
    page.get_by_role("button", name="Open maps").click()
    assert page.evaluate("sent.at(-1)") == {"type": "act", "what": "open", "view": "maps"}
    assert page.locator(".wb-status").inner_text() == "Opening maps …"


def test_the_trash_asks_first(shown):
    page = shown()
    page.locator("tbody input").nth(1).check()
    settled(page)
    page.get_by_role("button", name="Move to trash").click()
    dialog = page.get_by_role("alertdialog")
    assert "Move demo-guided" in dialog.inner_text() and "runs/.trash?" in dialog.inner_text()
    page.keyboard.press("Escape")
    assert dialog.count() == 0 and page.evaluate("sent.length") == 1  # the first reading
    page.get_by_role("button", name="Move to trash").click()
    page.locator("tbody input").first.check()
    settled(page)
    assert page.get_by_role("alertdialog").count() == 0  # another selection, another question
    page.get_by_role("button", name="Move to trash").click()
    page.get_by_role("button", name="Yes, move").click()
    assert page.evaluate("sent.at(-1).what") == "trash" and len(page.evaluate("sent.at(-1).names")) == 2
    page.evaluate("tell('msg:custom', {type: 'status', text: 'ValueError: it is a teacher', wrong: true})")
    assert page.get_by_role("alert").inner_text() == "ValueError: it is a teacher"


def test_tags_and_notes_are_edited(shown):
    page = shown()
    page.locator("tbody input").nth(1).check()
    settled(page)
    page.get_by_role("button", name="Tags and notes").click()
    assert page.get_by_role("textbox", name="notes", exact=True).input_value() == "the one <b>we</b> show"
    page.get_by_role("textbox", name="tags, with commas between them").fill("best,  new ,")
    page.keyboard.press("Enter")
    sent = page.evaluate("sent.at(-1)")
    assert (sent["what"], sent["tags"], sent["notes"]) == ("note", ["best", "new"], "the one <b>we</b> show")


@pytest.mark.parametrize("scheme", ["light", "dark"])
@pytest.mark.parametrize("width", [390, 1400])
def test_nothing_runs_over_and_everything_has_a_name(shown, width, scheme):
    page = shown(width, scheme)
    assert page.evaluate("document.documentElement.scrollWidth") == width
    unnamed = page.evaluate("""() => [...document.querySelectorAll("button, input, select, textarea, [tabindex]")]
      .filter((one) => !(one.ariaLabel || one.textContent.trim() || one.closest("label")))
      .map((one) => one.outerHTML)""")
    assert unnamed == []
    colour = page.evaluate("getComputedStyle(document.querySelector('.wb')).backgroundColor")
    assert (sum(map(int, colour[4:-1].split(","))) < 150) == (scheme == "dark")


def test_many_runs_are_drawn_at_once(shown):
    page = shown()
    taken = page.evaluate("""async () => {
      const rows = Array.from({length: 200}, (_, at) => ({...values.rows[0], name: `run-${at}`}));
      const start = performance.now();
      values.rows = rows;
      tell("change:rows");
      await new Promise((done) => requestAnimationFrame(() => requestAnimationFrame(done)));
      return performance.now() - start;
    }""")
    print(f"200 rows drawn in {taken:.0f} ms")
    assert page.locator("tbody tr").count() == 200 and taken < 3000
