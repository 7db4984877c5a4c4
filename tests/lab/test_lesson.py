"""Pages that teach: safe Markdown, formulas, lesson files, and steps that move the sliders."""

import re
from html.parser import HTMLParser
from pathlib import Path
from xml.etree import ElementTree

import pytest
from hypothesis import given
from hypothesis import strategies as st

import workbench as wb
from workbench.__main__ import main
from workbench.lab.lesson import MOST_STEPS, Lesson, check_arguments, steps_of
from workbench.lab.prose import LONGEST, mathml, to_html

LESSONS = sorted((Path(wb.__file__).parents[1] / "docs" / "lessons").glob("*.md"))
STEPS = [
    {"text": "Set **w** to 5: $f_g = f_u + 5\\,(f_c - f_u)$.", "state": {"w": 5}},
    {"text": "And look at all images, refitted, in a layer that is much deeper. " * 4, "state": {"layer": 11, "w": 0}},
    {"text": "The last one.", "state": {"basis": "refit"}},
]
FILE = """---
title: A lesson
run: zoo/plain
view: maps
arguments: {images: 2, times: [0.5, 0.10]}
state: {w: 0, layer: 8, labels: true}
controls:
  w: Leave it.
steps:
  - text: Now w is 5.
    state: {w: 5}
---

The *introduction*.
"""

# What has no business in a page, in many spellings.
EVIL = [
    "<script>alert(1)</script>",
    "<img src=x onerror=alert(1)>",
    "<svg/onload=alert(1)>",
    "<a href='javascript:alert(1)'>a</a>",
    "[a](javascript:alert(1))",
    "[a](JaVaScRiPt:alert(1))",
    "[a](&#106;avascript:alert(1))",
    "[a](data:text/html,<script>alert(1)</script>)",
    "[a](vbscript:x)",
    "[a](file:///etc/passwd)",
    "<javascript:alert(1)>",
    '[a](https://x.org "\\"><script>alert(1)</script>")',
    "[a](https://x.org\"onclick=\"alert(1))",
    "[a]\n\n[a]: javascript:alert(1)",
    "$\\text{<script>alert(1)</script>}$",
    "$\\text{&lt;script&gt;alert(1)&lt;/script&gt;}$",
    "$<img src=x onerror=alert(1)>$",
    "$$\n\\mathrm{</math><script>alert(1)</script>}\n$$",
    "`<script>alert(1)</script>`",
    "```\"><script>alert(1)</script>\nx\n```",
    "| <b onmouseover=alert(1)> |\n|---|\n| <iframe src=x> |",
    "</script><script>alert(1)</script>",
    "{{ title }}{% raw %}",
]  # fmt: skip
TAGS = {
    *(
        "p",
        "em",
        "strong",
        "code",
        "pre",
        "a",
        "ul",
        "ol",
        "li",
        "blockquote",
        "h2",
        "h3",
        "h4",
        "h5",
        "h6",
        "br",
        "hr",
    ),
    *("table", "thead", "tbody", "tr", "th", "td", "span", "div"),
    *("math", "mi", "mn", "mo", "mrow", "msub", "msup", "msubsup", "mfrac", "mtext", "mspace", "mstyle", "msqrt"),
    *("mtable", "mtr", "mtd", "mover", "munder", "munderover", "mpadded", "mphantom", "menclose", "mroot"),
}
ALLOWED = {"href", "rel", "title", "class", "start", "style"}


class Elements(HTMLParser):
    """Elements and attributes as a browser reads them."""

    def __init__(self, text: str):
        super().__init__()
        self.found: list[tuple[str, dict[str, str | None]]] = []
        self.feed(text)
        self.close()

    def handle_starttag(self, tag, attrs):
        self.found.append((tag, dict(attrs)))


def check_safe(text: str) -> None:
    for tag, attributes in Elements(text).found:
        assert tag in TAGS, (tag, text)
        if "href" in attributes:
            assert re.match(r"(https?://|mailto:|#)", attributes["href"], re.I), text
        assert not [name for name in attributes if name.startswith("on")], text
        if tag[0] != "m":
            assert set(attributes) <= ALLOWED, text
        # Of style only the alignment of a column, which the renderer writes.
        assert re.fullmatch(r"(text-align:(left|right|center))?", attributes.get("style") or ""), text


@pytest.mark.parametrize("text", EVIL)
@pytest.mark.parametrize("inline", [False, True])
def test_no_text_becomes_a_script(text, inline):
    check_safe(to_html(text, "introduction", inline))


@pytest.mark.fuzz
@given(
    st.lists(st.sampled_from([*EVIL, *"<>\"'&$\\{}[]()`*_#|~-= \n\t\0", "text", "\\text", "\\frac", "on", "^", "é"]))
)
def test_no_generated_text_becomes_a_script(parts):
    try:
        text = to_html("".join(parts), "introduction")
    except ValueError as error:
        assert str(error).startswith("introduction: ") and len(str(error)) < 300
    else:
        check_safe(text)


def test_markdown_is_html_one_heading_below_the_page():
    text = "# One\n\n## Two\n\nA *b* **c** `d` [e](https://x.org) 1 < 2 & 3\n\n- f\n\n| g | h |\n|---|--:|\n| i | 5 |\n"
    made = to_html(text, "x")
    assert made.startswith("<h2>One</h2>\n<h3>Two</h3>") and "1 &lt; 2 &amp; 3" in made
    assert '<a href="https://x.org" rel="noopener noreferrer">e</a>' in made and "<td>i</td>" in made
    assert to_html("It costs $5 and $6.", "x") == "<p>It costs $5 and $6.</p>"
    assert to_html("a *b*", "x", inline=True) == "a <em>b</em>"


def test_a_formula_is_mathml():
    tree = ElementTree.fromstring(mathml(r"f_g = f_u + w\,(f_c - f_u) < \frac{1}{2}"))
    name = "{http://www.w3.org/1998/Math/MathML}"
    assert [one[1].text for one in tree.iter(f"{name}msub")] == ["g", "u", "c", "u"]
    assert "<" in [one.text for one in tree.iter(f"{name}mo")] and len(list(tree.iter(f"{name}mfrac"))) == 1
    assert 'display="block"' in to_html("$$\nx^2\n$$", "x") and 'display="inline"' in to_html("$x^2$", "x")


@pytest.mark.parametrize(
    ("text", "said"),
    [
        (r"$\frac{1}$", "the formula '\\\\frac{1}' is not LaTeX that can be read: an argument is missing"),
        ("$x_a_b$", "the formula 'x_a_b' is not LaTeX that can be read: double subscripts"),
        (r"$\nothing x$", "has \\nothing, which is not known"),
        (r"$\href{javascript:alert(1)}{x}$", "has \\href, which is not allowed"),
        (r"$\style{position:fixed}{x}$", "has \\style, which is not allowed"),
        (r"$\newcommand{\a}{\b\b}\a$", "has \\newcommand, which is not allowed"),
        ("$" + "{" * 60 + "x" + "}" * 60 + "$", "is too large; at most 2,000 characters and 50 levels"),
        ("$" + "x" * 2001 + "$", "is too large"),
        ("![a](https://x.org/a.png)", "the image 'https://x.org/a.png' cannot be shown"),
        ("x" * (LONGEST + 1), "introduction has 100,001 characters; at most 100,000 are allowed"),
    ],
)
def test_markdown_that_cannot_be_shown_is_refused(text, said):
    with pytest.raises(ValueError, match=re.escape(said)) as raised:
        to_html(text, "introduction")
    assert str(raised.value).startswith("introduction")


def test_a_lesson_file_has_all_of_a_lesson(tmp_path):
    file = tmp_path / "lesson.md"
    file.write_text(FILE)
    lesson = Lesson.read(file)
    assert (lesson.title, lesson.introduction) == ("A lesson", "The *introduction*.")
    assert (lesson.view, lesson.runs, lesson.state) == ("maps", ("zoo/plain",), {"w": 0, "layer": 8, "labels": "true"})
    assert repr(lesson.arguments) == "{'images': 2, 'times': [0.5, 0.1]}" and lesson.controls == {"w": "Leave it."}
    assert [(step.text, step.state) for step in lesson.steps] == [("Now w is 5.", {"w": 5})]
    file.write_text("Only *text*, and a rule.\n\n---\n")
    assert Lesson.read(file) == Lesson(introduction="Only *text*, and a rule.\n\n---\n")


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("---\ntitle: a\n", "begins with ---, but no second line of --- ends that block"),
        ("---\n- a\n---\n", "begins with a list between lines of ---; allowed is a mapping"),
        ("---\ntitel: a\n---\n", "the key 'titel' is not known; did you mean 'title'?"),
        ("---\ntitle: 5\n---\n", "title is 5; allowed is text"),
        ("---\ntitle: [a\n---\n", "not valid YAML"),
        ("---\na: 1\na: 2\n---\n", "line 3"),
        ("---\nrun: a\nruns: [b]\n---\n", "has run and runs; allowed is one of them"),
        ("---\nruns: b\n---\n", "runs is text; allowed is a list of runs"),
        ("---\nstate: 5\n---\n", "state is 5; allowed is a mapping"),
        ("---\ncontrols: {w: 5}\n---\n", "controls.w is 5; allowed is text"),
        ("---\nsteps: {a: 1}\n---\n", "steps is a mapping; allowed is a list of steps"),
        ("---\nsteps: [a]\n---\n", "step 1 is text; allowed is a mapping with text and state"),
        ("---\nsteps: [{txt: a}]\n---\n", "step 1: the key 'txt' is not known"),
        ("---\nsteps: [{text: a}]\n---\n", "step 1 has no state; a step has a text and a state"),
        ("---\nsteps: [{text: a, state: {w: 1}}, {state: {w: 1}}]\n---\n", "step 2 has no text"),
        (b"---\ntitle: \xff\n---\n", "is not valid UTF-8"),
        ("x" * 200_001, "at most 200,000 are read"),
    ],
)
def test_a_lesson_file_with_a_mistake_is_refused(tmp_path, text, said):
    file = tmp_path / "lesson.md"
    file.write_bytes(text if isinstance(text, bytes) else text.encode())
    with pytest.raises(ValueError, match=re.escape(said)) as raised:
        Lesson.read(file)
    assert str(raised.value).startswith(f"{file}")


@pytest.mark.fuzz
@given(
    st.recursive(
        st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=9),
        lambda each: (
            st.lists(each, max_size=3) | st.dictionaries(st.text(max_size=5) | st.just("text"), each, max_size=3)
        ),
        max_leaves=8,
    )
)
def test_generated_steps_are_steps_or_a_sentence(given):
    try:
        assert all(step.text and step.state for step in steps_of(given))
    except ValueError as error:
        assert "allowed" in str(error) or "is not known" in str(error) or "a step has a text" in str(error)


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        ({"image": 2}, "the argument 'image' is not known; did you mean 'images'?"),
        ({"progress": 2}, "the argument 'progress' is not known"),
        ({"images": "two"}, "the argument images is 'two'; allowed is a whole number or a list, each a whole number"),
        ({"times": 0.5}, "the argument times is 0.5; allowed is a list, each a number"),
        ({"w": [0, 1, 2]}, "the argument w is [0, 1, 2]; allowed is a list of 2 numbers"),
        ({"steps": "some"}, "the argument steps is 'some'; allowed is 'all' or a list"),
    ],
)
def test_arguments_of_another_type_are_refused(arguments, said):
    check_arguments(wb.maps, {"images": [1, 2], "times": [0, 0.5], "steps": None, "w": [0, 9], "layers": None}, "x")
    with pytest.raises(ValueError, match=re.escape(said)):
        check_arguments(wb.maps, arguments, "lesson.md")


@pytest.mark.parametrize(
    ("texts", "said"),
    [
        (
            {"steps": [{"text": "a", "state": {"w": 5}}, {"text": "a", "state": {"w": 50}}]},
            "step 2: w is 50; allowed are",
        ),
        ({"steps": [{"text": "a", "state": {"depth": 5}}]}, "step 1: this view has no 'depth'; allowed are step, t"),
        ({"steps": [{"text": "a", "state": {"basis": "own"}}]}, "step 1: basis is 'own'; allowed are 'fixed'"),
        ({"steps": [STEPS[0]] * (MOST_STEPS + 1)}, "steps has 31 steps; at most 30 are allowed"),
        ({"steps": [{"text": "$\\no$", "state": {"w": 5}}]}, "step 1: the formula '\\\\no' has \\no"),
        ({"controls": {"depth": "a"}}, "controls has 'depth'; allowed are step, t, layer, w, image, token, colour"),
        ({"controls": {"w": "![a](b)"}}, "controls.w: the image 'b' cannot be shown"),
        ({"introduction": "![a](b)"}, "introduction: the image 'b' cannot be shown"),
    ],
)
def test_texts_that_do_not_fit_the_view_are_refused(maps_view, tmp_path, texts, said):
    with pytest.raises(ValueError, match=re.escape(said)):
        maps_view().save_html(tmp_path / "x.html", **texts)
    assert not list(tmp_path.iterdir())


def lesson(view, **more):
    """A page with everything, as `show` opens it."""
    texts = {"title": "What w does", "introduction": "# First\n\nOf $f_g$.", "controls": {"w": "Mine."}, "steps": STEPS}
    return {**texts, "w": 1.0, "layer": 2, "t": 0.3, **more}


def test_steps_move_the_sliders_by_keyboard_and_are_announced(show, maps_view):
    shown = show(maps_view(), **lesson(maps_view))
    page = shown.page
    assert page.locator("h1").inner_text() == page.title() == "What w does"
    texts = page.locator(".wb-step-texts > :not(.wb-off)")
    assert texts.inner_text().startswith("3 steps set the controls below")

    def values():
        shown.settled()
        return [shown.slider(name).get_attribute("aria-valuetext") for name in ("t", "layer", "w")]

    page.get_by_role("button", name="Next", exact=True).focus()
    page.keyboard.press("Enter")
    assert values() == ["0.3", "2", "5"] and page.get_by_role("radio", name="1", exact=True).is_checked()
    assert "Set w to 5" in texts.inner_text() and "Sets w 5." in texts.inner_text()
    assert page.locator(".wb-steps [aria-live]").inner_text().startswith("Step 1 of 3. Set w to 5")
    page.keyboard.press("Enter")
    assert values() == ["0.3", "11", "0"]
    page.keyboard.press("Enter")
    page.keyboard.press("Enter")  # the last one stays
    assert values() == ["0.3", "11", "0"] and page.get_by_role("radio", name="refit").is_checked()
    assert page.evaluate("document.activeElement.textContent") == "Next"
    # A slider that is moved leaves the step; its number leads back, and an arrow key to the one before.
    shown.slider("t").fill("4")
    assert values()[0] == "0.9" and not page.locator(".wb-steps input:checked").count()
    page.get_by_role("radio", name="3", exact=True).check(force=True)
    assert values() == ["0.3", "11", "0"]
    page.keyboard.press("ArrowLeft")
    assert values() == ["0.3", "11", "0"] and page.get_by_role("radio", name="fixed").is_checked()
    page.get_by_role("radio", name="start").check(force=True)
    assert values() == ["0.3", "2", "1"]


@pytest.mark.parametrize(("width", "scheme"), [(390, "light"), (1400, "dark")])
def test_nothing_moves_from_step_to_step(show, maps_view, width, scheme):
    shown = show(maps_view(), width, scheme, **lesson(maps_view))
    places = """() => [...document.querySelectorAll(".wb-steps .wb-bar, .wb-axes, .wb-panes, .wb-foot, h2, dt")].map(
      (e) => [e.offsetTop, e.offsetLeft, e.offsetWidth])"""
    before = shown.page.evaluate(places)
    for _ in range(2):
        shown.page.get_by_role("button", name="Next", exact=True).click()
        shown.settled()
        assert shown.page.evaluate(places) == before
    assert shown.page.evaluate("document.documentElement.scrollWidth") == width
    boxes = shown.page.evaluate("""() => [...document.querySelectorAll("h1, p, dd, .wb-button, math, pre")].map(
      (e) => e.getBoundingClientRect().right)""")
    assert max(boxes) <= width


def test_a_page_says_what_its_words_mean_and_how_it_was_made(show, maps_view):
    shown = show(maps_view(), **lesson(maps_view))
    page, about = shown.page, "document.getElementById(document.querySelector('%s').getAttribute('aria-describedby'))"
    assert page.locator("dt").all_inner_texts() == [
        *("training step", "t", "layer", "w", "image", "token", "colour", "basis", "show", "written"),
    ]
    assert page.evaluate(f"{about % '[data-axis=w]'}.textContent").endswith("exaggerates what the class changes. Mine.")
    assert "principal components" in page.evaluate(f"{about % '[data-option=colour]'}.textContent")
    assert "8 × 8 tokens" in page.locator("#about-token").inner_text()
    assert page.locator("#about-step").inner_text().endswith("Here it is 20,000.")
    assert re.search(r"\d{4}-\d\d-\d\d by diffusion-workbench \d", page.locator("dd").last.inner_text())
    assert (
        page.locator("details code").inner_text() == 'view = wb.token_maps("plain")'
        or page.evaluate("document.querySelector('details code').textContent") == 'view = wb.token_maps("plain")'
    )
    for name in ("t", "layer", "w", "image"):
        described = shown.slider(name).get_attribute("aria-describedby")
        assert page.locator(f"#{described}").inner_text()


def test_no_script_of_a_text_runs(show, maps_view):
    texts = "\n\n".join(EVIL).replace("alert(1)", "window.ran=1")
    steps = [{"text": texts, "state": {"w": 5}}]
    controls = {"w": EVIL[1].replace("alert(1)", "window.ran=1")}
    view = maps_view()
    shown = show(view, title=EVIL[0], introduction=texts, controls=controls, steps=steps, command=EVIL[21], w=5.0)
    shown.page.get_by_role("button", name="Next", exact=True).click()
    shown.settled()
    assert shown.page.get_by_role("radio", name="1", exact=True).is_checked()  # though the step changes nothing
    assert shown.page.evaluate("window.ran") is None and shown.page.locator("h1").inner_text() == EVIL[0]
    assert shown.page.locator("img, svg[onload], iframe").count() == 0


@pytest.mark.parametrize("file", LESSONS, ids=lambda file: file.stem)
def test_the_lessons_of_the_documentation_are_complete(file):
    lesson = Lesson.read(file)
    assert lesson.title and lesson.runs and len(lesson.steps) >= 3 and lesson.controls
    assert all(run.startswith("zoo/") for run in lesson.runs)
    check_arguments(getattr(wb, lesson.view), lesson.arguments, str(file))
    for text in (lesson.introduction, *lesson.controls.values(), *(step.text for step in lesson.steps)):
        check_safe(to_html(text, str(file)))
    assert "$" not in lesson.introduction.partition("\n\n")[0]  # the list of lessons has no formulas


def test_there_are_five_lessons():
    assert len(LESSONS) == 5


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("no run", "has no run; add `run: zoo/plain`"),
        (FILE.replace("zoo/plain", "zoo/plane"), "run of the zoo 'plane' is not known; did you mean 'plain'?"),
        (FILE.replace("zoo/plain", "gone"), "is not a run folder or the name of a run"),
        (FILE.replace("view: maps", "view: mpas"), "view 'mpas' is not known; did you mean 'maps'?"),
    ],
)
def test_the_command_refuses_a_mistake_in_one_sentence(tmp_path, monkeypatch, capsys, text, said):
    monkeypatch.setenv("WORKBENCH_RUNS", str(tmp_path / "runs"))
    file = tmp_path / "lesson.md"
    file.write_text(text)
    with pytest.raises(SystemExit) as left:
        main(["lesson", str(file), "--into", str(tmp_path)])
    error = capsys.readouterr().err
    assert left.value.code == 2 and said in error and error.count("\n") == 1
    assert sorted(path.name for path in tmp_path.glob("*.html")) == []


@pytest.mark.slow
def test_a_lesson_and_a_page_are_written(tmp_path, monkeypatch, capsys):
    monkeypatch.setenv("WORKBENCH_RUNS", str(tmp_path / "runs"))
    file = tmp_path / "guidance.md"
    file.write_text(FILE.replace("images: 2,", "images: 1, layers: [8],").replace(", labels: true", ""))
    main(["lesson", str(file), "--into", str(tmp_path / "pages")])
    text = (tmp_path / "pages" / "guidance.html").read_text()
    assert "<h1>A lesson</h1>" in text and "Leave it." in text and "workbench lesson guidance.md" in text
    assert re.search(r"zoo-plain-\w+, a sit pico trained on fashion-mnist with objective denoise, step 6,000", text)
    main(["page", "zoo-plain", str(tmp_path / "other.html"), "--lesson", str(file), "--title", "T", "--state", "t=0.1"])
    text = (tmp_path / "other.html").read_text()
    assert "<h1>T</h1>" in text and re.search(r'id="workbench-view-state">[^<]*"t": 1', text)
    capsys.readouterr()
    with pytest.raises(SystemExit):
        main(["page", "zoo-plain", str(tmp_path / "x.html"), "--lesson", str(file), "--state", "title=3"])
    assert "has no 'title'" in capsys.readouterr().err
    assert not (tmp_path / "x.html").exists()
