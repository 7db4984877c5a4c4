"""What was written before a word changed is read with the word of today."""

import json
import shutil

import yaml

from workbench.config import fingerprint, load_config, to_dict
from workbench.config.older import file_in, modern
from workbench.data.images import ASSETS
from workbench.data.latents import open_latents
from workbench.data.vae import load_vae
from workbench.runs.models import load_run_vae
from workbench.runs.store import Run, find_runs, prepare_run
from workbench.training.loop import fit

SMALL = ("data.name=digits", "data.source=auto", "data.limit=32", "backbone.size=pico", "training.steps=2",
         "training.batch=8", "vae.name=identity", "backbone.patch=8")  # fmt: skip


def test_only_the_old_key_is_changed():
    assert modern({"codec": 1, "data": 2}) == {"vae": 1, "data": 2}
    assert modern({"codec": 1, "vae": 2}) == {"codec": 1, "vae": 2}


def test_a_yaml_file_and_overrides_with_the_old_word(tmp_path):
    file = tmp_path / "old.yaml"
    file.write_text("base: demo/plain\ncodec:\n  name: identity\n")
    assert load_config(file).vae.name == "identity"
    assert load_config("demo/plain", ["codec.name=identity"]) == load_config("demo/plain", ["vae.name=identity"])


def test_a_run_and_its_latents_with_the_old_word_go_on(tmp_path):
    config = load_config("demo/plain", SMALL)
    list(fit(config, tmp_path))
    run = prepare_run(config, tmp_path)
    tree = yaml.safe_load((run.folder / "config.yaml").read_text())
    tree["codec"] = tree.pop("vae")
    (run.folder / "config.yaml").write_text(yaml.safe_dump(tree))
    indices = [path for path in (tmp_path / ".latents").rglob("index.json")]
    assert indices
    for file in (run.folder / "provenance.json", *indices):
        record = json.loads(file.read_text())
        latents = record.get("latents", record)
        latents["codec"] = latents.pop("vae")
        file.write_text(json.dumps(record))
    (old,) = find_runs(tmp_path)
    assert to_dict(old.config) == to_dict(config) and fingerprint(old.config) == old.fingerprint == run.fingerprint
    assert load_run_vae(Run(run.folder)).name == "identity"
    assert open_latents(config, "train", tmp_path / ".latents").index["vae"]["name"] == "identity"
    assert list(fit(config, tmp_path)) == [] and prepare_run(config, tmp_path).folder == run.folder


def test_a_folder_of_an_autoencoder_with_the_old_names(tmp_path):
    for ending in ("json", "safetensors"):
        shutil.copy(ASSETS / "kl-f4" / f"vae.{ending}", tmp_path / f"codec.{ending}")
    assert load_vae(str(tmp_path), 1).hash == load_vae("kl-f4", 1).hash
    (tmp_path / "vae.json").touch()
    assert file_in(tmp_path, "vae.json").name == "vae.json"
