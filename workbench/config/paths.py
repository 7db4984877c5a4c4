"""Resolve options that are paths, so that the same data gives the same fingerprint from any working directory."""

import os
from dataclasses import replace
from pathlib import Path

from workbench.config.records import Config

# Names that `data.codecs.load_codec` recognizes, even if a folder of that name exists in the working directory.
NAMED_CODECS = ("kl-f4", "identity", "sd-vae", "sd-vae-ft-ema", "sd-vae-ft-mse", "va-vae")
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
    """``config`` with `real_path` applied to every path: the images, an autoencoder's folder, a teacher's run."""
    data, codec, objective = config.data, config.codec, config.objective
    if data.path:
        data = replace(data, path=real_path(data.path))
    if _is_codec_folder(codec.name):
        codec = replace(codec, name=real_path(codec.name))
    teacher = objective.options.get("teacher")
    if teacher and os.sep in teacher and os.path.isfile(os.path.join(teacher, "provenance.json")):
        objective = replace(objective, options={**objective.options, "teacher": real_path(teacher)})
    return replace(config, data=data, codec=codec, objective=objective)


def _is_codec_folder(name: str) -> bool:
    folder = os.path.expanduser(name)
    # A folder written by `workbench codec train` takes precedence over a published autoencoder of the same name.
    known = name in NAMED_CODECS and not os.path.isfile(os.path.join(folder, "codec.json"))
    return not known and name not in ("kl-f4", "identity") and os.path.isdir(folder)
