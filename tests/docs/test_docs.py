"""The documentation: its code runs, its links lead somewhere, its references hold all that there is."""

import importlib.util
import re
import tomllib
from pathlib import Path

import pytest
import yaml

import workbench as wb
from workbench import plugins
from workbench.__main__ import COMMANDS
from workbench.config import Config, SamplingConfig, plugin_options, record_options
from workbench.config.checks import PLUGINS
from workbench.runs.shelf import set_notes
from workbench.training.mailbox import send

ROOT = Path(__file__).parents[2]
DOCS = ROOT / "docs"
PAGES = sorted([*ROOT.glob("*.md"), *DOCS.glob("*.md")])
LINK = re.compile(r"!?\[[^\]]*\]\(([^)\s]+)\)")


def generator():
    spec = importlib.util.spec_from_file_location("docs_generate", DOCS / "generate.py")
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def python_of(page: Path) -> list[str]:
    """The blocks of Python in a page."""
    return re.findall(r"^```python\n(.*?)^```", page.read_text(), flags=re.MULTILINE | re.DOTALL)


@pytest.fixture(scope="module")
def generated():
    return generator().pages()


@pytest.fixture(scope="module")
def place(tmp_path_factory):
    """A folder in which the code of the quickstart and of the page about runs was run."""
    folder = tmp_path_factory.mktemp("quickstart")
    with pytest.MonkeyPatch.context() as patch:
        patch.delenv("WORKBENCH_RUNS", raising=False)
        patch.chdir(folder)
        for page in ("index.md", "runs.md"):
            for block in python_of(DOCS / page):
                exec(compile(block, page, "exec"), {"__name__": "__main__"})
        yield folder


@pytest.mark.slow
def test_the_quickstart_has_ten_lines_and_runs(place):
    (quickstart,) = python_of(DOCS / "index.md")
    assert len([line for line in quickstart.splitlines() if line.strip()]) <= 10
    assert (place / "maps.html").is_file()
    assert wb.find_runs(place / "runs")[0].status["state"] == "finished"


@pytest.mark.slow
def test_the_page_about_runs_lists_every_file_of_a_run(place):
    run = next(run for run in wb.find_runs(place / "runs") if run.config.data.name == "digits")
    settings = SamplingConfig(sampler="euler", steps=1, count=4)
    wb.score(run, 20, settings, detector="randomconv", small_ok=True)
    set_notes(run, ["a tag"], "a note")
    send(run.folder, "stop")
    listed = rows_of("runs.md", "Files of a run")
    there = {re.sub(r"\d{8}", "NNNNNNNN", path.name) + "/" * path.is_dir() for path in run.folder.iterdir()}
    there -= {"samples/", "checkpoints/"}
    there |= {re.sub(r"step-\d{8}-[0-9a-f]+", "step-NNNNNNNN-KEY", f"samples/{path.name}") for path in
              (run.folder / "samples").iterdir()}  # fmt: skip
    there |= {re.sub(r"\d{8}", "NNNNNNNN", f"checkpoints/{path.name}/") for path in run.checkpoint_folder.iterdir()}
    assert there <= listed
    # The rest is written by what this run did not do.
    assert listed - there <= {"log.txt", "tensorboard/", ".curves", ".starter", ".curves-lock"}
    assert {path.name for path in run.checkpoint().folder.iterdir()} == rows_of("runs.md", "Files of a checkpoint")
    beside = {path.name + "/" * path.is_dir() for path in (place / "runs").iterdir()}
    assert {name for name in beside if name.startswith(".")} <= rows_of("runs.md", "Beside the runs")


def rows_of(page: str, heading: str) -> set[str]:
    """What stands in code in the first column of the table below a heading."""
    section = (DOCS / page).read_text().split(f"## {heading}\n")[1].split("\n## ")[0]
    cells = [line.split("|")[1] for line in section.splitlines() if line.startswith("| `")]
    return {name for cell in cells for name in re.findall(r"`([^`]+)`", cell)}


def test_the_configuration_reference_has_every_option_with_its_range(generated):
    page, hints = generated["configuration.md"], record_options(Config)
    for section, hint in hints.items():
        if section in PLUGINS:
            options = {key for name in plugins.names(section) for key in plugin_options(section, name)}
        else:
            options = set(getattr(hint, "__dataclass_fields__", ()))
        for key in options:
            assert f"| `{section}.{key}` |" in page, f"{section}.{key}"
    assert "| `data.size` | `256` | whole number, at least 1 and at most 8,192 |" in page
    assert "| `objective.teacher` | required |" in page
    assert "1 to the depth of the backbone" in page and "SiT itself does not clip" in page


def test_the_command_reference_has_every_command_and_option(generated):
    page = generated["commands.md"]
    for name, kind in COMMANDS.items():
        section = re.search(rf"^## workbench {name.replace('-', '[ -]')}\n(.*?)(?=^## |\Z)", page, re.M | re.S)
        assert section, name
        for field in kind.__dataclass_fields__:
            written = field.replace("_", "-")
            assert f"`--{written}`" in section[1] or f"`{written.upper()}`" in section[1], f"{name} {field}"


def test_the_api_page_has_every_public_name(generated):
    for name in wb.__all__:
        assert name.startswith("__") or f"heading: wb.{name}\n" in generated["api.md"] + "\n"


def test_notes_are_read_beside_and_above_an_option():
    generate = generator()
    notes = generate.notes_of(SamplingConfig)
    assert notes["shift"].startswith("LightningDiT's timestep shift")  # behind it
    assert notes["labels"].startswith('"balanced" has equal') and notes["labels"].endswith(
        "images per class)."
    )  # above it
    assert "seed" not in notes


@pytest.mark.parametrize("page", PAGES, ids=lambda page: f"{page.relative_to(ROOT)}")
def test_links_lead_to_files_and_headings_that_exist(page, generated):
    pages = {DOCS / name: text for name, text in generated.items()}
    pictures = {DOCS / "images" / name: ROOT / "reports" / name for name in generator().PICTURES}
    for target in LINK.findall(page.read_text()):
        if re.match(r"https?://|mailto:", target):
            continue
        name, _, anchor = target.partition("#")
        file = (page.parent / name).resolve() if name else page
        text = pages.get(file)
        assert text or pictures.get(file, file).exists(), f"{page.name} links to {target}"
        if anchor and file.suffix == ".md":
            assert anchor in anchors(text or file.read_text()), f"{page.name} links to {target}"


def anchors(text: str) -> set[str]:
    headings = re.findall(r"^#+ (.+)$", text, flags=re.MULTILINE)
    return {re.sub(r"[\s-]+", "-", re.sub(r"[^\w\s-]", "", heading).strip().lower()) for heading in headings}


def test_the_version_is_the_same_in_every_place():
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    citation = yaml.safe_load((ROOT / "CITATION.cff").read_text())
    assert wb.__version__ == project["version"] == citation["version"]
    assert f"\n## {wb.__version__}\n" in (ROOT / "CHANGELOG.md").read_text()


def test_every_dependency_has_a_reason():
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    listed = rows_text("installation.md", "Dependencies")
    extras = project["optional-dependencies"]
    for requirement in [*project["dependencies"], *extras["test"], *extras["docs"]]:
        assert re.match(r"[\w-]+", requirement)[0] in listed, requirement


def rows_text(page: str, heading: str) -> str:
    return (DOCS / page).read_text().split(f"## {heading}\n")[1].split("\n## ")[0]
