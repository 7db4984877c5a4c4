"""A teacher that is named by preset: what its student hands on to it.

This is the one place with the rule; `runs.store.find_teacher`, plans, sweeps, the index of runs and the wizard follow
it, and the command that a missing teacher asks for is made of it.
"""

import json
from collections.abc import Iterable
from typing import Any

from workbench.config.reading import parse_value
from workbench.config.records import Config

# Sections and options that describe the experiment, so that teacher and student must have them in common.
_SHARED = ("data", "codec", "backbone", "diffusion.path", "training.precision")
# Options of the machine that trains: they change no fingerprint, and what the student needs the teacher needs as well.
_MACHINE = ("training.compile", "training.tf32", "training.sharding")


def teacher_overrides(config: Config, given: Iterable[str] = ()) -> tuple[str, ...]:
    """The overrides that make the preset ``objective.teacher`` the teacher of ``config``, beside those ``given`` to it.

    They are the student's recipe, images, autoencoder, backbone, noise path and precision, each only where the preset
    says otherwise: none for a student that is a preset without changes. Steps, batch, learning rate and seed are the
    teacher's own. So ``workbench train PRESET *overrides`` trains exactly the run that `find_teacher` looks for.

    ValueError where the preset cannot be changed so, such as a backbone for which nothing of its method is published.
    """
    from workbench.config import load_config, to_dict  # which is built on this package's other files

    reference, given = config.objective.options["teacher"], tuple(given)
    ours, theirs = to_dict(config), to_dict(load_config(reference, given, named=False))
    # Another name starts its section afresh, so names come first and what differs is counted from there.
    named = [(key, ours[key]) for key in ("recipe",) if ours[key] not in (None, theirs[key])]
    named += [
        (f"{section}.name", ours[section]["name"])
        for section in ("data", "codec", "backbone")
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
    """An override like "training.steps=500" that is read back as ``value``; text is quoted only where YAML needs it."""
    if isinstance(value, str):
        try:
            plain = parse_value(value, key) == value
        except ValueError:
            plain = False
        return f"{key}={value if plain else json.dumps(value, ensure_ascii=False)}"
    return f"{key}={json.dumps(value)}"


def _options(tree: dict[str, Any], places: Iterable[str]) -> dict[str, Any]:
    """Values by dotted option of whole sections ("data") and of single options ("diffusion.path")."""
    found = {}
    for place in places:
        section, _, option = place.partition(".")
        keys = [option] if option else tree[section]
        found |= {f"{section}.{key}": tree[section][key] for key in keys}
    return found
