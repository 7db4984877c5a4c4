"""What several processes share: JSON that any reader can read, and homes that are not there."""

import math

import pytest

from workbench.files import append_jsonl, home_path, read_json, read_jsonl, write_json


@pytest.mark.parametrize("number", [math.nan, math.inf, -math.inf])
def test_numbers_that_json_has_not_are_refused_by_place(tmp_path, number):
    for write, file in ((write_json, tmp_path / "a.json"), (append_jsonl, tmp_path / "a.jsonl")):
        write(file, {"a": 1.5})
        before = file.read_bytes()
        with pytest.raises(
            ValueError, match=rf"^{file} cannot hold scores.1.low = {number}: JSON only has finite numbers"
        ):
            write(file, {"scores": [{"low": 0.0}, {"low": number}]})
        assert file.read_bytes() == before
    assert read_json(tmp_path / "a.json") == {"a": 1.5} == read_jsonl(tmp_path / "a.jsonl")[0]


def test_a_home_that_is_not_known_is_said(monkeypatch):
    monkeypatch.setenv("HOME", "/somewhere")
    assert str(home_path("~/x")) == "/somewhere/x" and str(home_path("x/~")) == "x/~"
    with pytest.raises(ValueError, match="^~no-such-user/x begins with an unknown home folder; set HOME, or give"):
        home_path("~no-such-user/x")
