"""Resolve options that are paths, so that the same data gives the same fingerprint from any working directory."""

import os
from dataclasses import replace
from pathlib import Path

from workbench.config.older import file_in
from workbench.config.records import Config

# Names that `data.vae.load_vae` recognizes, even if a folder of that name exists in the working directory.
SHIPPED_VAES = ("kl-f4", "kl-f4-scenes-32", "kl-f4-scenes-64")  # folders of the package's assets
NAMED_VAES = (*SHIPPED_VAES, "identity", "sd-vae", "sd-vae-ft-ema", "sd-vae-ft-mse", "va-vae")
_WILDCARDS = frozenset("*?[")


def real_path(text: str) -> str:
    """``text`` as an absolute path, with ``~`` expanded and links resolved; in a pattern, up to the first wildcard.

    "set/", "./set" and a link to it give the same path, as do "~/set/train-*.tar" and "/home/me/set/train-*.tar". A
    relative path that does not exist is returned unchanged, as it cannot be used for a run.
    """
    path = os.path.expanduser(text)
    parts = Path(path).parts
    fixed = next((number for number, part in enumerate(parts) if _WILDCARDS & set(part)), len(parts))
    if os.path.lexists(path):  # a folder may be called "set [2]"
        fixed = len(parts)
    front = os.path.join(os.curdir, *parts[:fixed])
    if not os.path.isabs(path) and not os.path.lexists(front):
        return text
    return os.path.join(os.path.realpath(front), *parts[fixed:])


def with_real_paths(config: Config) -> Config:
    """``config`` with `real_path` applied to every path: images, masks, an autoencoder's folder, a teacher's run."""
    data, vae, objective = config.data, config.vae, config.objective
    if data.path:
        data = replace(data, path=real_path(data.path))
    if data.masks:
        data = replace(data, masks=real_path(data.masks))
    if _is_vae_folder(vae.name):
        vae = replace(vae, name=real_path(vae.name))
    teacher = objective.options.get("teacher")
    if teacher and os.sep in teacher and os.path.isfile(os.path.join(teacher, "provenance.json")):
        objective = replace(objective, options={**objective.options, "teacher": real_path(teacher)})
    return replace(config, data=data, vae=vae, objective=objective)


def _is_vae_folder(name: str) -> bool:
    folder = os.path.expanduser(name)
    # A folder written by `workbench vae train` takes precedence over a published autoencoder of the same name.
    known = name in NAMED_VAES and not file_in(Path(folder), "vae.json").is_file()
    return not known and name not in (*SHIPPED_VAES, "identity") and os.path.isdir(folder)
