"""Numbers of the scatter and of the heat maps, worked by hand."""

import numpy as np
import pytest

from workbench.lab.panes import Axis, nearest_stop
from workbench.lab.panes.heat import heat_number, measured_scale
from workbench.lab.panes.scatter import class_numbers

STOPS = (0.0, 1.0, 4.0)
SCALES = (0.0, 1.0, 2.5, 4.0)


def small(**state):
    """Four images of two classes at one frame: what a hand can count."""
    arrays = {
        "labels": np.array([0, 0, 1, 0], dtype=np.uint16),
        "given": np.array([1, 0, 1, 0], dtype=np.uint16),
        "correct": np.array([[1, 0, 1, 1], [0, 0, 0, 1]], dtype=np.uint8).reshape(1, 1, 1, 1, 2, 4),
        "correct_given": np.array([[1, 1, 0, 0], [0, 0, 0, 0]], dtype=np.uint8).reshape(1, 1, 1, 1, 2, 4),
    }
    axes = {"w": Axis("w", (0.0, 2.0, 0.1), continuous=True, stops=(0.0, 2.0))}
    state = {"method": "pca", "w": 0.4, "selection": [0, 1, 2], **state}
    by_class, total = class_numbers({"names": ["a", "b", "c"]}, arrays, state, axes)
    return [one.texts for one in by_class], total.texts


def test_numbers_of_the_classes_by_hand():
    # w = 0.4 is nearer to the stop 0, where rows 0, 2 and 3 are right; class c has no images.
    classes, total = small()
    assert classes == [("a", "2 of 3", ".50", ".67"), ("b", "1 of 1", "1.00", "1.00")]
    assert total == ("All classes", "3 of 4", ".67", ".75")
    # At the stop 2 only row 3 is right, and nothing selected has no share.
    classes, total = small(w=1.6, selection=[])
    assert classes == [("a", "0 of 3", "–", ".33"), ("b", "0 of 1", "–", ".00")]
    assert total == ("All classes", "0 of 4", "–", ".25")
    # Row 0 was told to be a b; by the labels told, rows 0 and 1 are right.
    classes, total = small(labels="given")
    assert classes == [("a", "1 of 2", "1.00", ".50"), ("b", "2 of 2", ".50", ".50")]
    assert total == ("All classes", "3 of 4", ".67", ".50")


def test_a_row_that_there_is_not_is_refused():
    with pytest.raises(ValueError, match="row 4 is selected; allowed are 0 to 3"):
        small(selection=[4])


def test_the_nearest_stop():
    assert [nearest_stop(STOPS, w) for w in (0.0, 0.5, 0.6, 2.4, 2.6, 4.0)] == [0, 0, 1, 1, 2, 2]
    assert nearest_stop((), 3.0) == nearest_stop(STOPS, None) == 0


def test_numbers_are_written_as_their_size_asks():
    cases = [(0.834, (0.1, 1.0)), (1.0, (0.0, 1.0)), (-0.25, (-0.6, 0.6)), (-0.001, (-0.6, 0.6)), (0.125, (0, 1))]
    assert [heat_number(*case) for case in cases] == [".83", "1.00", "-.25", ".00", ".13"]
    assert [heat_number(value, (0.0, 9.0)) for value in (3.25, 0.04, 9.0)] == ["3.3", ".0", "9.0"]
    assert heat_number(41.6, (0.0, 80.0)) == "42" and heat_number(1234.4, (0.0, 2000.0)) == "1234"
    assert heat_number(0.8344, (0.0, 1.0), digits=3) == ".834"


def test_the_scale_is_the_nearest_measured_one():
    values = np.full((2, 2, 4), np.nan, dtype=np.float32)
    assert measured_scale(values, SCALES, 2.4) == 2
    values[0, 1, [0, 3]] = 0.5
    assert [measured_scale(values, SCALES, w) for w in (None, 0.0, 1.9, 2.1, 4.0)] == [0, 0, 0, 3, 3]
