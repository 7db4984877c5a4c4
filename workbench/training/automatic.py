"""Decide ``training.precision: auto`` and ``training.compile: auto`` when a run starts; resuming keeps the decision.

The configuration, and so the fingerprint, keeps "auto". What was decided is in the run's ``provenance.json`` under
``decided``, so a run that is resumed on another machine continues with the same arithmetic.
"""

import os
import shutil
import sys
import sysconfig
from collections.abc import Callable, Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any, Literal

import torch
from accelerate import PartialState
from accelerate.utils import gather_object

from workbench.config import Config, coerce
from workbench.config.checks import refuse_unknown_keys
from workbench.diffusion.precision import chosen_precision
from workbench.files import damaged
from workbench.runs.store import Run, find_runs, run_fingerprint

DECIDED = "decided"  # key in provenance.json
_OPTIONS: Mapping[str, Any] = {"precision": Literal["no", "fp16", "bf16"], "compile": bool}
_WORTHWHILE = 200  # steps; compilation takes 20 s or more, a compiled step of SiT-nano .1 to .2 s less


def decided(config: Config, root: Path) -> Config:
    """The configuration without "auto": as the run under ``root`` recorded, or else as this machine decides.

    Several processes, perhaps on different machines, take what all of them have. Raises ValueError for a recorded value
    that is not allowed, and if the run has compiled blocks but this machine has no compiler.
    """
    if not _undecided(config):
        return config
    mark = run_fingerprint(config, root)
    run = next((run for run in find_runs(root) if run.fingerprint == mark), None)
    settings = by_machine(config, _recorded(run) if run else {})
    if run and config.training.compile == "auto" and settings.training.compile and not _has_compiler():
        raise ValueError(
            f"run {run.name} was started with compiled blocks, but this machine has no compiler for them: install one, "
            f"or set training.compile=false"
        )
    if PartialState(cpu=not torch.cuda.is_available()).num_processes > 1:
        settings = _in_all(gather_object([settings]))
    return settings


def by_machine(config: Config, known: Mapping[str, Any] | None = None) -> Config:
    """The configuration with every "auto" replaced, by the value in ``known`` if there is one.

    ``precision`` becomes bf16 where the GPU or the processor multiplies matrices in bfloat16 (a GPU of compute
    capability 8.0 or newer; AMX, AVX-512 BF16 or SVE BF16), otherwise "no". ``compile`` becomes true for a training of
    200 steps or more if a compiler is installed: Triton for a GPU, a C++ compiler and Python's headers for a processor.
    """
    rules: dict[str, Callable[[], Any]] = {
        "precision": lambda: chosen_precision("auto"),
        "compile": lambda: config.training.steps >= _WORTHWHILE and _has_compiler(),
    }
    known = known or {}
    changes: dict[str, Any] = {
        option: known[option] if option in known else rules[option]() for option in _undecided(config)
    }
    return replace(config, training=replace(config.training, **changes))


def decisions(asked: Config, config: Config) -> dict[str, Any]:
    """What `decided` replaced in ``asked``, as it is recorded."""
    return {option: getattr(config.training, option) for option in _undecided(asked)}


def _in_all(settings: list[Config]) -> Config:
    """What every process can do: bfloat16 and compiled blocks only if none decided against them."""
    changes: dict[str, Any] = {}
    if len({each.training.precision for each in settings}) > 1:
        changes["precision"] = "no"
    if len({each.training.compile for each in settings}) > 1:
        changes["compile"] = False
    return replace(settings[0], training=replace(settings[0].training, **changes))


def _undecided(config: Config) -> list[str]:
    return [option for option in _OPTIONS if getattr(config.training, option) == "auto"]


def _has_compiler() -> bool:
    if torch.cuda.is_available():
        from torch.utils._triton import has_triton

        return has_triton()
    compiler = os.environ.get("CXX", "clang++" if sys.platform == "darwin" else "g++")
    headers = Path(sysconfig.get_path("include"), "Python.h")  # kernels are built as modules of Python
    return shutil.which(compiler.split()[0]) is not None and headers.is_file()


def _recorded(run: Run) -> dict[str, Any]:
    """What was decided for a run, which is empty if nothing was; ValueError for a value that is not allowed."""
    file = run.folder / "provenance.json"
    values: Mapping[str, Any] = run.provenance.get(DECIDED) or {}
    try:
        refuse_unknown_keys(DECIDED, values, _OPTIONS)
        return {option: coerce(f"{DECIDED}.{option}", value, _OPTIONS[option]) for option, value in values.items()}
    except ValueError as error:
        raise damaged(file, f"{error}") from error
