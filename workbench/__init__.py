"""A workbench for the internal features of diffusion transformers.

Conventions:

* Time is as in the paper: ``t = 0`` is data, ``t = 1`` is noise, ``x_t = (1 - t) z + t eps``, ``v = eps - z``.
* Layers count from 1: layer 6 is the output of ``blocks[5]``; layer 0 is the patch embedding.
* The code uses the paper's letters: ``z, x_t, t, eps, v`` and the features ``f_n`` (of the student), ``f_c`` (with the
  class), ``f_u`` (with the null class), ``f_g = f_u + w (f_c - f_u)`` (guided, Eq. 3).
  Options are whole words: ``layer``, ``teacher_layer``, ``guidance_scale``, ``weight``, ``stop_step``.
* Axes: ``b`` batch, ``c`` channels, ``h w`` grid, ``n`` tokens, ``d`` width.
* Randomness depends on (seed, stream, index), never on global state.

Public names are imported on first use, so that ``import workbench`` is fast.
"""

import importlib
from pathlib import Path

from workbench.imports import import_faster

import_faster()

__version__ = "0.2.0"

_HERE = Path(__file__).parent
# Each file of the folder is a view, and a function of its name.
_VIEWS = sorted(file.stem for file in (_HERE / "lab" / "views").glob("[!_]*.py"))
_PUBLIC = {
    "load_config": "workbench.config",
    "as_overrides": "workbench.config",
    "load_images": "workbench.data.images",
    "load_vae": "workbench.data.vae",
    "fit": "workbench.training.loop",
    "launch": "workbench.training.launch",
    "Control": "workbench.training.control",
    "watch": "workbench.lab.watching.live",
    "runs_table": "workbench.lab.watching.table",
    "wizard": "workbench.lab.watching.wizard",
    "find_runs": "workbench.runs.store",
    "open_run": "workbench.runs.store",
    "zoo": "workbench.runs.zoo",
    "extract": "workbench.features.extract",
    "target_tokens": "workbench.features.targets",
    "object_shares": "workbench.features.masks",
    "similarity": "workbench.lab.similarity",
    "attention": "workbench.lab.attention",
    "project": "workbench.features.projection",
    "embed_sequence": "workbench.features.embedding",
    "measure_grid": "workbench.evaluation.measures",
    "measure_objects": "workbench.evaluation.measures",
    "object_separation": "workbench.evaluation.objects",
    **{name: f"workbench.lab.views.{name}" for name in _VIEWS},
    "view": "workbench.lab.views",
    "score": "workbench.evaluation.suite",
    "compare": "workbench.evaluation.compare",
    "patch": "workbench.reporting.edits",
    "lens": "workbench.lab.lens",
    "demo_runs": "workbench.reporting.lessons",
    "trained": "workbench.reporting.lessons",
    "probe_over_training": "workbench.reporting.lines",
    "probe_of_runs": "workbench.reporting.lines",
    "versions_over_guidance": "workbench.reporting.lines",
    "objects_over_training": "workbench.reporting.lines",
    "scores_over_training": "workbench.reporting.lines",
}

__all__ = [*_PUBLIC, "__version__"]


def __getattr__(name: str):
    if name in _PUBLIC:
        return getattr(importlib.import_module(_PUBLIC[name]), name)
    if not (name.startswith("_") or (_HERE / name).is_dir() or (_HERE / f"{name}.py").is_file()):
        plugins = importlib.import_module("workbench.plugins")
        if name in plugins.names("view"):  # of another package, which registers it
            return plugins.load("view", name)
    raise AttributeError(f"module 'workbench' has no attribute {name!r}; it has {', '.join(__all__)}")


def __dir__() -> list[str]:
    return sorted([*globals(), *_PUBLIC])
