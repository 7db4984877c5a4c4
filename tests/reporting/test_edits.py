"""`wb.patch` on a run of the zoo: images, picture and scores."""

from dataclasses import replace

import numpy as np
import pytest
import torch
from PIL import Image

import workbench as wb
from workbench.evaluation.generate import generate
from workbench.runs.zoo import zoo

QUIET = {"progress": lambda *_: None}


@pytest.fixture(scope="module")
def run(tmp_path_factory):
    return zoo("plain", tmp_path_factory.mktemp("runs"))


@pytest.fixture(scope="module")
def fast(run):
    return replace(run.config.sampling, steps=3)


@pytest.fixture(scope="module")
def patched(run, fast):
    middle = np.s_[3:5, 2:6]
    return wb.patch(run, 8, w=4.0, tokens=middle, t=(0.5, 1.0), count=4, sampling=fast, **QUIET)


def test_samples_before_are_those_of_the_run(run, fast, patched):
    plain = generate(run, 6000, replace(fast, count=4))
    assert torch.equal(patched.before, plain.images) and torch.equal(patched.labels, plain.labels)
    assert patched.after.shape == (4, 1, 32, 32) and (patched.changed > 0.1).all()
    assert patched.edit.text == "layer 8, f_g, w = 4, 8 tokens, t = 0.5 to 1"
    assert "4 samples of zoo-plain" in repr(patched)


def test_the_picture_has_both_and_their_change(patched, tmp_path):
    for ending in ("png", "svg", "pdf"):
        assert patched.save(tmp_path / f"patched.{ending}").stat().st_size > 1000
    wide, tall = Image.open(tmp_path / "patched.png").size
    assert 1 < wide / tall < 3  # four samples in three rows
    (axis,) = patched.figure(2).axes
    assert [text.get_text() for text in axis.get_xticklabels()] == ["T-shirt", "trouser"]
    shown = [image.get_array() for image in axis.images]
    assert len(shown) == 6
    change = (patched.after[0, 0].int() - patched.before[0, 0].int()).abs().numpy()
    assert (shown[4][..., 0] == 255 - change).all()
    with pytest.raises(ValueError, match="cannot write 'patched.gif'; allowed endings are .png, .svg, .pdf"):
        patched.save(tmp_path / "patched.gif")
    with pytest.raises(ValueError, match="count is 0; allowed are 1 to 4"):
        patched.figure(0)


def test_another_run_is_found_by_name(run, fast):
    patched = wb.patch(run, 8, with_=run.name, with_step=1200, count=2, sampling=fast, **QUIET)
    assert patched.edit.other == run and patched.edit.other_step == 1200
    assert patched.edit.text == f"layer 8, f of {run.name}, step 1,200"
    said = "with_ is 'guidde'; allowed are 'guided', .*, or a run .'guidde' is not a run"
    with pytest.raises(ValueError, match=said):
        wb.patch(run, 8, with_="guidde", count=2, sampling=fast, **QUIET)
    with pytest.raises(ValueError, match="sampling.count is 0; allowed are 1"):
        wb.patch(run, 8, count=0, sampling=fast, **QUIET)


def test_settings_of_another_type_are_refused(run, fast):
    for options, said in (
        ({"sampling": {"steps": 3}}, "sampling is {'steps': 3}; allowed is the `sampling` of a configuration"),
        ({"count": 2.5}, "count has 2.5; allowed are whole numbers"),
        ({"seed": "one"}, "seed has 'one'; allowed are whole numbers"),
        ({"with_": ["zero"]}, "with_ is ..zero..; allowed are 'guided'"),
    ):
        with pytest.raises(ValueError, match=said):
            plain(wb.patch)(run, 8, **{"sampling": fast, **options}, **QUIET)


def plain(function):
    """The function as users have it, without the checks of types that the tests add."""
    return getattr(function, "__wrapped__", function)
