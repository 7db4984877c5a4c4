"""Fingerprints stay: what a later version adds leaves the runs of before as they are."""

import json
import zipfile
from collections import Counter

import yaml

from workbench.config import fingerprint, from_dict
from workbench.shipped import shipped


def test_runs_of_the_edition_keep_their_fingerprints():
    """Options that come later leave the records of before as they are; a teacher's mark is not in the configuration."""
    checked = Counter()
    with zipfile.ZipFile(shipped("reports/laptop/runs.zip")) as archive:
        for name in archive.namelist():
            folder, _, file = name.rpartition("/")
            if file != "config.yaml":
                continue
            config = from_dict(yaml.load(archive.read(name), yaml.CSafeLoader))
            if "teacher" not in config.objective.options:
                recorded = json.loads(archive.read(f"{folder}/provenance.json"))["fingerprint"]
                assert fingerprint(config) == recorded, folder
                checked[config.backbone.name, config.objective.name] += 1
    assert {backbone for backbone, _ in checked} == {"sit", "lightningdit"}
    assert {objective for _, objective in checked} == {"denoise", "vae_align", "repa", "sra", "layersync", "dispersive"}
