"""``training.precision: auto`` and ``training.compile: auto``: the rule, its record, and resuming elsewhere."""

import json
import os
import signal

import pytest
import torch

from workbench.config import fingerprint, from_dict, load_config, to_dict
from workbench.runs.store import prepare_run
from workbench.training import automatic
from workbench.training.automatic import by_machine
from workbench.training.loop import fit
from workbench.training.state import TrainState

SMALL = (
    "data.name=digits",
    "data.limit=32",
    "vae.name=identity",
    "backbone.size=pico",
    "backbone.patch=16",
    "training.steps=4",
    "training.batch=8",
    "training.log_every=1",
    "training.checkpoint_every=2",
    "training.precision=no",
)
BF16, COMPILED = ("training.precision=auto",), ("training.compile=auto",)


def config_of(*changes: str):
    return load_config("demo/plain", (*SMALL, *changes))


def processor(monkeypatch, **capabilities: bool) -> None:
    """Make this machine one without a GPU whose processor has these instructions."""
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    monkeypatch.setattr(torch.cpu, "get_capabilities", lambda: capabilities, raising=False)


def losses(config, root) -> list[float]:
    return [record["loss"] for record in fit(config, root)]


@pytest.mark.parametrize(
    ("capabilities", "precision"),
    [
        ({"amx_bf16": True}, "bf16"),
        ({"amx_bf16": False, "avx512_bf16": True}, "bf16"),
        ({"sve_bf16": True}, "bf16"),
        ({"avx512_f": True, "avx512_bf16": False}, "no"),
        ({}, "no"),
    ],
)
def test_bfloat16_where_the_processor_multiplies_it(monkeypatch, capabilities, precision):
    processor(monkeypatch, **capabilities)
    assert by_machine(config_of(*BF16)).training.precision == precision
    assert by_machine(config_of("training.precision=no")).training.precision == "no"


def test_compiled_where_a_compiler_is_installed(monkeypatch, tmp_path):
    processor(monkeypatch)
    monkeypatch.setenv("CXX", "there -O1")
    monkeypatch.setenv("PATH", str(tmp_path))
    monkeypatch.setattr(automatic.sysconfig, "get_path", lambda name: str(tmp_path))
    long, short = config_of(*COMPILED, "training.steps=200"), config_of(*COMPILED, "training.steps=199")
    (tmp_path / "Python.h").touch()
    assert by_machine(long).training.compile is False
    (tmp_path / "there").touch(mode=0o755)
    assert by_machine(long).training.compile is True
    assert by_machine(short).training.compile is False  # compiling would take longer than it saves
    (tmp_path / "Python.h").unlink()
    assert by_machine(long).training.compile is False


def test_the_configuration_keeps_auto_and_is_another_run():
    marks = {value: fingerprint(config_of(f"training.precision={value}")) for value in ("no", "bf16", "auto")}
    assert len(set(marks.values())) == 3
    assert fingerprint(config_of(*COMPILED)) == marks["no"]  # it only changes rounding
    config = config_of(*BF16, *COMPILED)
    assert from_dict(to_dict(config)) == config and config.training.compile == "auto"
    assert [config_of(f"training.compile={word}").training.compile for word in ("true", "off")] == [True, False]
    with pytest.raises(ValueError, match="training.compile must be bool; got 'maybe'; also allowed: auto"):
        config_of("training.compile=maybe")


def test_a_resumed_run_keeps_what_was_decided_where_it_started(monkeypatch, tmp_path):
    config = config_of(*BF16)
    seen, step = [], TrainState.losses
    monkeypatch.setattr(
        TrainState, "losses", lambda self, batch: seen.append(self.config.precision) or step(self, batch)
    )
    processor(monkeypatch, avx512_bf16=True)
    whole = losses(config, tmp_path / "whole")
    for record in fit(config, tmp_path / "cut"):
        if record["step"] == 2:
            os.kill(os.getpid(), signal.SIGTERM)
    run = prepare_run(config, tmp_path / "cut")
    assert run.provenance["decided"] == {"precision": "bf16"}
    processor(monkeypatch)  # another machine
    seen.clear()
    assert losses(config, tmp_path / "cut") == whole[-len(seen) :] and set(seen) == {"bf16"}
    assert prepare_run(config, tmp_path / "cut").provenance["decided"] == {"precision": "bf16"}
    assert losses(config, tmp_path / "elsewhere")[-1] != whole[-1] and seen[-1] == "no"
    assert "decided" not in prepare_run(config_of(), tmp_path / "elsewhere").provenance


@pytest.mark.parametrize(("able", "precision", "compiled"), [((0, 1), "bf16", True), ((0,), "no", False)])
def test_processes_take_what_all_their_machines_have(monkeypatch, tmp_path, in_ranks, able, precision, compiled):
    config = config_of(*BF16, *COMPILED, "training.steps=200", "training.batch=8")

    def decide(rank: int) -> tuple[str, bool]:
        processor(monkeypatch, avx512_bf16=rank in able)
        monkeypatch.setattr(automatic, "_has_compiler", lambda: rank in able)
        settings = automatic.decided(config, tmp_path).training
        if not compiled:  # compiling takes long
            next(iter(fit(config, tmp_path)))
        return settings.precision, settings.compile

    assert in_ranks(decide) == [(precision, compiled)] * 2
    if not compiled:
        assert prepare_run(config, tmp_path).provenance["decided"] == {"precision": "no", "compile": False}


def test_a_compiled_run_without_a_compiler_is_refused(monkeypatch, tmp_path):
    processor(monkeypatch)
    config = config_of(*COMPILED, "training.steps=1")
    run = prepare_run(config, tmp_path)
    record(run, {"compile": True})
    monkeypatch.setenv("CXX", "no-compiler")
    with pytest.raises(ValueError, match="no compiler for them: install one, or set training.compile=false"):
        list(fit(config, tmp_path))
    assert losses(config_of("training.compile=false", "training.steps=1"), tmp_path)
    assert run.provenance["decided"] == {"compile": True}


@pytest.mark.filterwarnings("ignore:run .* is skipped")
@pytest.mark.parametrize(
    "value", [{"precision": "auto"}, {"precision": 16}, {"compile": "yes?"}, {"other": 1}, [1], "bf16"]
)
def test_a_damaged_decision_is_named(tmp_path, value):
    config = config_of(*BF16, *COMPILED)
    record(prepare_run(config, tmp_path), value)
    with pytest.raises(ValueError, match="provenance.json is damaged: .*decided") as error:
        list(fit(config, tmp_path))
    assert "\n" not in str(error.value)


def record(run, decisions) -> None:
    (run.folder / "provenance.json").write_text(json.dumps({**run.provenance, "decided": decisions}))
