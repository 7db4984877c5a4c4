"""The check of a machine with a GPU, in its tiny version on the processor."""

import json

import pytest
import torch

from workbench.reporting import gpu_check
from workbench.reporting.gpu_check import FULL, check_gpu, summary


@pytest.mark.slow
def test_the_tiny_version_measures_every_item_and_writes_them(tmp_path):
    named = []
    record = check_gpu(tmp_path / "check.json", "cpu", say=named.append)
    assert json.loads((tmp_path / "check.json").read_text()) == json.loads(json.dumps(record))
    assert not [(name, item) for name, item in record["items"].items() if "error" in item or not item.get("ok", True)]
    assert record["ok"] and list(record["items"]) == named and record["device"] == {"kind": "cpu"}
    items = record["items"]
    assert items["objectives no"]["loss, alignment, norm"].keys() >= {"denoise", "repa", "self_transcendence"}
    assert items["resume"]["bit-identical"] and items["no samples"]["taken"]
    assert items["train bf16"]["losses"][-1] < items["train bf16"]["losses"][0]
    assert items["score and extract"]["ok"] and items["step lightningdit-nano 2"]["milliseconds"] > 0
    assert items["loader"].keys() >= {"drawn images a second", "sent images a second", "trained images a second"}
    assert items["step sit-pico 4 select"]["guided / plain"] > 0 < items["step sit-pico 4 plain"]["planned GB"]
    assert items["checkpoint"]["stop seconds"][1] < items["checkpoint"]["save seconds"][1]
    assert len(summary(record)) == len(items)


def test_a_failing_item_and_a_late_one_are_said(tmp_path, monkeypatch):
    def broken():
        raise RuntimeError("no kernel")

    items = {"a": (broken, 1), "b": (lambda: {"ok": False}, 1), "c": (lambda: {"speed": 2.0}, 1)}
    monkeypatch.setattr(gpu_check, "_items", lambda *_: items)
    record = check_gpu(tmp_path / "check.json", "cpu")
    assert not record["ok"]
    assert [row[:2] for row in summary(record)] == [("a", "error"), ("b", "no"), ("c", "")]
    assert "no kernel" in record["items"]["a"]["error"]


def test_without_a_gpu_it_says_so(tmp_path):
    if torch.cuda.is_available():
        pytest.skip("there is a GPU")
    with pytest.raises(ValueError, match="PyTorch finds no GPU here, and check-gpu measures one; --device cpu"):
        check_gpu(tmp_path / "check.json")
    assert not list(tmp_path.iterdir())


def test_the_items_take_less_than_the_limit(tmp_path):
    expected = sum(seconds for _, seconds in gpu_check._items(FULL, "cuda", tmp_path).values())
    assert expected <= 60 * gpu_check.MINUTES


@pytest.mark.gpu
def test_on_a_gpu(tmp_path):
    record = check_gpu(tmp_path / "check.json")
    assert record["ok"], summary(record)
