"""Overrides that a student applies to its teacher if the teacher is given as a preset.

This is the only implementation of the rule. `runs.store.find_teacher`, plans, sweeps, the run index, the wizard and
the command in the message about a missing teacher all use it.
"""

import json
from collections.abc import Iterable
from typing import Any

from workbench.config.reading import parse_value
from workbench.config.records import Config

# Sections and options that teacher and student must have in common.
_SHARED = ("data", "vae", "backbone", "diffusion.path", "training.precision")
# Options of the training hardware: not in the fingerprint, but what the student needs the teacher needs too.
_MACHINE = ("training.compile", "training.tf32", "training.sharding")


def teacher_overrides(config: Config, given: Iterable[str] = ()) -> tuple[str, ...]:
    """Overrides that turn the preset ``objective.teacher`` into the teacher of ``config``, in addition to ``given``.

    They set the student's recipe, images, autoencoder, backbone, noise path and precision where the preset differs, so
    an unchanged preset needs none. Steps, batch, learning rate and seed stay the teacher's own.
    ``workbench train PRESET *overrides`` trains exactly the run that `find_teacher` looks for.

    Raises ValueError if the preset cannot be changed, as for a backbone without a published placement.
    """
    from workbench.config import load_config, to_dict  # avoids a circular import

    reference, given = config.objective.options["teacher"], tuple(given)
    ours, theirs = to_dict(config), to_dict(load_config(reference, given, named=False))
    # Another name resets its section, so names are applied first and the other options compared afterwards.
    named = [(key, ours[key]) for key in ("recipe",) if ours[key] not in (None, theirs[key])]
    named += [
        (f"{section}.name", ours[section]["name"])
        for section in ("data", "vae", "backbone")
        if ours[section]["name"] != theirs[section]["name"]
    ]
    first = tuple(override(key, value) for key, value in named)
    if first:
        theirs = to_dict(load_config(reference, (*given, *first), named=False))
    changed = {key: value for key, value in _options(ours, (*_SHARED, *_MACHINE)).items()
               if value != _options(theirs, (key,))[key]}  # fmt: skip
    accumulation = ours["training"]["accumulation"]
    if accumulation != theirs["training"]["accumulation"] and theirs["training"]["batch"] % accumulation == 0:
        changed["training.accumulation"] = accumulation
    return (*first, *(override(key, value) for key, value in changed.items()))


def override(key: str, value: Any) -> str:
    """An override such as "training.steps=500" that parses to ``value``; strings are quoted only if YAML needs it."""
    if isinstance(value, str):
        try:
            plain = parse_value(value, key) == value
        except ValueError:
            plain = False
        return f"{key}={value if plain else json.dumps(value, ensure_ascii=False)}"
    return f"{key}={json.dumps(value)}"


def _options(tree: dict[str, Any], names: Iterable[str]) -> dict[str, Any]:
    """Values by dotted name of whole sections ("data") and of single options ("diffusion.path")."""
    values: dict[str, Any] = {}
    for name in names:
        section, _, option = name.partition(".")
        keys = [option] if option else tree[section]
        values |= {f"{section}.{key}": tree[section][key] for key in keys}
    return values
