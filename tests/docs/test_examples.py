"""The docstrings of the public functions: their examples run, and they say what every argument is."""

import doctest
import importlib
import inspect
import re

import pytest

import workbench as wb
from workbench.lab import progress


def public(name: str):
    return getattr(importlib.import_module(wb._PUBLIC[name]), name)


@pytest.fixture(scope="module")
def place(tmp_path_factory):
    """One folder for all examples, so that images are encoded once."""
    folder = tmp_path_factory.mktemp("examples")
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("WORKBENCH_RUNS", str(folder / "runs"))
        patch.setenv("WORKBENCH_QUEUE", str(folder / "queue"))
        patch.chdir(folder)
        patch.setattr(progress, "_WORTH_A_LINE", float("inf"))  # what a slow machine prints is no part of an example
        yield folder


@pytest.mark.slow
@pytest.mark.parametrize("name", wb._PUBLIC)
def test_the_example_runs(name, place):
    found = doctest.DocTestParser().get_doctest(public(name).__doc__, {"wb": wb}, f"wb.{name}", None, 0)
    assert found.examples
    said = []
    result = doctest.DocTestRunner(optionflags=doctest.REPORT_NDIFF).run(found, out=said.append)
    assert result.failed == 0, "".join(said)


@pytest.mark.parametrize("name", wb._PUBLIC)
def test_the_docstring_has_every_argument_and_what_comes_back(name):
    thing = public(name)
    text = inspect.getdoc(thing)
    sections = dict(re.findall(r"^(Args|Returns|Yields|Raises|Examples):\n((?: .*\n|\n)*)", text + "\n", re.MULTILINE))
    listed = re.findall(r"^    (\w+): ", sections["Args"], re.MULTILINE)
    assert listed == [parameter for parameter in inspect.signature(thing).parameters if parameter != "self"]
    assert sections["Raises"].startswith("    ValueError: ")
    assert ("Returns" in sections or "Yields" in sections) != inspect.isclass(thing)
    # What stands before a colon would be read as a type.
    assert ": " not in (sections.get("Returns") or sections.get("Yields") or "").partition("\n")[0]
    assert len(text.partition("\n")[0]) <= 116 and text.partition("\n")[0].endswith(".")


def test_an_example_that_is_wrong_fails(place):
    wrong = doctest.DocTestParser().get_doctest(">>> wb.as_overrides('a=1')\n'a'", {"wb": wb}, "wrong", None, 0)
    assert doctest.DocTestRunner().run(wrong, out=lambda text: None).failed == 1
