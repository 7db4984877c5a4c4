"""Published files as runs: usable like any other, made once, written back; nothing left behind by a refusal."""

import argparse
import hashlib
import json
import resource
import warnings
from dataclasses import asdict, replace

import pytest
import torch
from safetensors.torch import load_file

from workbench.__main__ import main
from workbench.backbones.base import Size
from workbench.backbones.conversion import FAMILIES, to_published
from workbench.backbones.released import read_released
from workbench.config import load_config, plugin_class
from workbench.evaluation.generate import generate
from workbench.features.extract import extract
from workbench.runs.imported import export_diffusers, export_run, import_run
from workbench.runs.models import load_backbone, load_run_vae
from workbench.runs.store import find_runs, open_run, prepare_run
from workbench.training.loop import fit

# As tests/training trains: digits of 32 x 32 pixels, no VAE, patches of 8.
SMALL = (
    "data.name=digits",
    "data.source=auto",
    "data.limit=64",
    "vae.name=identity",
    "backbone.patch=8",
    "training.steps=2",
    "training.batch=8",
    "training.log_every=1",
    "objective.head_width=16",
    "objective.window=none",
)
DIGITS = {"patch": 8, "channels": 1, "height": 32, "classes": 10}
HEADS = {"projectors.0.0.weight": torch.ones(3, 3), "projectors.0.0.bias": torch.ones(3)}


@pytest.fixture(autouse=True)
def thin_nano(monkeypatch):
    """The size nano with a fourth of its width: these tests are about files."""
    for name in ("sit", "lightningdit"):  # DiT has SiT's sizes
        monkeypatch.setitem(plugin_class("backbone", name).sizes, "nano", Size(depth=12, width=32, heads=2))


def weights_of(backbone: str, seed: int = 0, **options) -> dict[str, torch.Tensor]:
    """Random weights of a backbone of size nano."""
    model = plugin_class("backbone", backbone)(**{"patch": 2, "channels": 4, "height": 8, "classes": 1000, **options})
    generator = torch.Generator().manual_seed(seed)
    model.initialize(generator)
    with torch.no_grad():
        for parameter in model.parameters():
            if parameter.requires_grad:
                parameter.add_(0.05 * torch.randn(parameter.shape, generator=generator))
    return model.state_dict()


@pytest.fixture
def repa_file(tmp_path):
    """A REPA file of a digits model: both sets of weights, a head, arguments and a step."""
    content = {"model": weights_of("sit", 1, **DIGITS), "ema": weights_of("sit", 0, **DIGITS) | HEADS, "steps": 40}
    torch.save(content | {"args": argparse.Namespace(model="SiT-nano/8", num_classes=10)}, tmp_path / "0000040.pt")
    return tmp_path / "0000040.pt"


@pytest.fixture
def run(repa_file, tmp_path):
    return import_run(repa_file, tmp_path / "runs", vae="identity")


def test_an_imported_run_is_complete(run, repa_file, tmp_path):
    assert run.name.startswith("repa-0000040-") and open_run(run.name, tmp_path / "runs").folder == run.folder
    assert (run.status["state"], run.status["step"], run.config.training.steps) == ("finished", 40, 40)
    assert run.config.backbone.name == "sit" and run.config.backbone.options["patch"] == 8
    assert (run.config.vae.name, run.config.data.size, run.config.diffusion.path) == ("identity", 32, "linear")
    latents, origin = run.provenance["latents"], run.provenance["origin"]
    assert latents["classes"] == [str(digit) for digit in range(10)]
    assert (latents["channels"], latents["height"], latents["pixel_channels"]) == (1, 32, 1)
    assert latents["vae"] == {"name": "identity", "hash": "identity"}
    assert origin["sha256"] == hashlib.sha256(repa_file.read_bytes()).hexdigest()
    assert (origin["file"], origin["family"], origin["weights"]) == ("0000040.pt", "repa", "ema")
    assert origin["heads"] == sorted(HEADS) and origin["args"]["num_classes"] == 10
    assert [(c.step, c.resumable) for c in run.checkpoints] == [(40, False)]
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        assert find_runs(tmp_path / "runs")[0].checkpoint().step == 40


def test_its_weights_are_the_file_s(run):
    expected = weights_of("sit", **DIGITS)
    for weights in ("ema", "raw"):
        found = load_backbone(run, weights=weights).state_dict()
        assert found.keys() == expected.keys()
        assert all(torch.equal(found[name], value) for name, value in expected.items())


def test_turned_weights_give_the_turned_velocity(tmp_path):
    theirs = weights_of("sit", learn_sigma=True)
    torch.save(theirs, tmp_path / "SiT-XL-2-256x256.pt")
    run = import_run(tmp_path / "SiT-XL-2-256x256.pt", tmp_path / "runs", family="sit")
    network = plugin_class("backbone", "sit")(patch=2, channels=4, height=8, classes=1000, learn_sigma=True)
    network.load_state_dict(theirs)
    x, t = torch.randn(3, 4, 8, 8, generator=torch.Generator().manual_seed(1)), torch.tensor([0.1, 0.5, 0.8])
    y = torch.tensor([3, 500, 1000])
    torch.testing.assert_close(load_backbone(run)(x, t, y), -network(x, 1 - t, y), atol=1e-5, rtol=1e-5)
    assert run.checkpoint(0).step == 0 and run.status["state"] == "finished"
    assert run.provenance["origin"]["converted"] == "t -> 1 - t, v -> -v"


def test_the_same_file_is_the_same_run(run, repa_file, tmp_path):
    root = tmp_path / "runs"
    assert import_run(repa_file, root, vae="identity", name="other").folder == run.folder
    assert import_run(repa_file, root, vae="identity", family="repa").folder == run.folder
    others = [
        import_run(repa_file, root, vae="identity", family="repa", weights="raw"),
        import_run(repa_file, root, vae="identity", height=64),
        import_run(repa_file, root, vae="identity", family="sra", name="as/sra"),
    ]
    assert len({one.folder for one in (run, *others)}) == len(find_runs(root)) == 4
    assert others[1].provenance["latents"]["height"] == 64 and others[2].name.startswith("as-sra-")
    # A training of the same configuration is another run, so nothing is trained into the import.
    assert prepare_run(run.config, root).folder != run.folder


def test_refusals_leave_nothing_behind(tmp_path, monkeypatch):
    root, file = tmp_path / "runs", tmp_path / "a.pt"
    tensors = weights_of("sit", **DIGITS)
    torch.save({name: value for name, value in tensors.items() if "blocks.3.mlp" not in name}, file)
    with pytest.raises(
        ValueError, match=r"a.pt: it does not match the sit .* lacks 4 tensors: blocks.\*.mlp.fc1 \(2\)"
    ):
        import_run(file, root, family="repa", vae="identity")
    torch.save({"ema": tensors, "args": {"num_classes": 10}}, file)
    with pytest.raises(ValueError, match="latents of 1 channels have no usual VAE"):
        import_run(file, root, family="repa")
    with pytest.raises(ValueError, match="VAE 'kl-f4' makes latents of 4 channels; the model takes 1"):
        import_run(file, root, family="repa", vae="kl-f4", pixel_channels=1)
    with pytest.raises(ValueError, match="vae.name 'sd-vea' is not known"):
        import_run(file, root, family="repa", vae="sd-vea")
    assert not root.exists()
    monkeypatch.setattr("workbench.runs.imported.save_checkpoint", lambda *_: 1 / 0)
    with pytest.raises(ZeroDivisionError):
        import_run(file, root, family="repa", vae="identity")
    assert list(root.iterdir()) == []


def test_an_import_that_was_killed_is_made_again(run, repa_file, tmp_path):
    (run.folder / "provenance.json").unlink()
    (run.folder / "half").touch()
    again = import_run(repa_file, tmp_path / "runs", vae="identity")
    assert again.folder == run.folder and not (again.folder / "half").exists()
    assert len(find_runs(tmp_path / "runs")) == 1


def test_it_generates_and_has_features(run, tmp_path):
    settings = replace(run.config.sampling, count=4, steps=3, guidance_scale=2.0)
    samples = generate(run, 40, settings)
    assert samples.images.shape == (4, 1, 32, 32) and samples.images.float().std() > 1
    features = extract(run, 3, [0, 8], [0.5], data=load_config("demo/plain", SMALL[:5]).data, root=tmp_path)
    f_u, f_c = (features.read(8, 0.5, label) for label in ("null", "true"))
    assert f_c.shape == (3, 16, 32) and not torch.equal(f_c, f_u)


def guided(teacher, *overrides: str):
    return load_config("demo/guided", (*SMALL, f"objective.teacher={teacher.folder}", *overrides))


def test_it_teaches(run, tmp_path):
    records = list(fit(guided(run), tmp_path / "runs"))
    assert [record["step"] for record in records] == [1, 2] and all(r["alignment"] > 0 for r in records)
    # Output channels and recomputation do not matter for features; what shapes them does.
    assert len(list(fit(guided(run, "backbone.learn_sigma=true"), tmp_path / "runs"))) == 2
    for option in ("backbone.qk_norm=true", "backbone.patch=4"):
        with pytest.raises(ValueError, match="they must be the same"):
            list(fit(guided(run, option), tmp_path / "runs"))
    with pytest.raises(ValueError, match="has no checkpoint of step 7; it has: 40"):
        list(fit(guided(run, "objective.teacher_step=7"), tmp_path / "runs"))


def test_a_teacher_without_a_step_and_of_other_latents(tmp_path):
    torch.save(weights_of("sit", **DIGITS), tmp_path / "flat.pt")
    read = {"family": "sra", "vae": "identity"}
    teacher = import_run(tmp_path / "flat.pt", tmp_path / "runs", **read, classes=10)
    assert len(list(fit(guided(teacher), tmp_path / "runs"))) == 2
    taller = import_run(tmp_path / "flat.pt", tmp_path / "runs", **read, classes=10, height=64)
    with pytest.raises(ValueError, match="VAE 'identity', 1 x 64, 10 classes, not .* 1 x 32, 10"):
        list(fit(guided(taller), tmp_path / "runs"))
    torch.save(weights_of("sit", **DIGITS | {"classes": 11}), tmp_path / "more.pt")
    more = import_run(tmp_path / "more.pt", tmp_path / "runs", **read, classes=11)
    with pytest.raises(ValueError, match="11 classes, not .* 10 classes"):
        list(fit(guided(more), tmp_path / "runs"))


def test_a_vae_known_by_name_alone(tmp_path):
    torch.save(weights_of("sit"), tmp_path / "b.pt")
    run = import_run(tmp_path / "b.pt", tmp_path / "runs", family="repa")
    assert run.provenance["latents"]["vae"] == {"name": "sd-vae", "hash": None}
    assert run.config.data.size == 64 and run.provenance["latents"]["pixel_channels"] == 3
    # Whatever VAE has the name is taken, if its latents have as many channels.
    text = (run.folder / "config.yaml").read_text()
    (run.folder / "config.yaml").write_text(text.replace("sd-vae", "kl-f4"))
    provenance = run.provenance
    provenance["latents"]["pixel_channels"] = 1
    (run.folder / "provenance.json").write_text(json.dumps(provenance))
    assert load_run_vae(open_run(run.folder)).channels == 4
    provenance["latents"]["channels"] = 3
    (run.folder / "provenance.json").write_text(json.dumps(provenance))
    with pytest.raises(ValueError, match="VAE 'kl-f4' is not the one"):
        load_run_vae(open_run(run.folder))


@pytest.mark.parametrize("family, suffix", [*((name, ".pt") for name in FAMILIES), ("layersync", ".safetensors")])
def test_exported_and_imported_again_they_are_the_same(tmp_path, family, suffix):
    kind = FAMILIES[family]
    theirs = weights_of(kind.backbone, learn_sigma=bool(kind.learn_sigma) or family == "dit")
    torch.save({"ema": theirs | HEADS, "steps": 7}, tmp_path / "in.pt")
    run = import_run(tmp_path / "in.pt", tmp_path / "runs", family=family)
    assert asdict(run.config.sampling).items() >= kind.sampling.items()
    file = export_run(run, tmp_path / "out" / f"x{suffix}", family=family)
    content = load_file(file) if suffix == ".safetensors" else torch.load(file, weights_only=True)
    if kind.wrapped and suffix == ".pt":
        assert content.keys() == {"model", "ema", "steps", "args"} and content["steps"] == 7
        assert content["args"] == {"num_classes": 1000}
        assert content["model"].keys() == content["ema"].keys()
        content = content["ema"]
    assert content.keys() == (theirs | HEADS).keys()
    for name, value in (theirs | HEADS).items():
        turned = name == "t_embedder.mlp.0.weight" and kind.data_at_one
        atol = 1.5e-7 * value.abs().max().item() if turned else 0  # a rounding of float32 each way
        torch.testing.assert_close(content[name], value, atol=atol, rtol=0)
    again = read_released(file, family=family)
    assert all(
        torch.equal(value, run.checkpoint().load("ema")[name]) or name == "t_embedder.mlp.0.weight"
        for name, value in again.tensors.items()
    )
    assert [path.name for path in file.parent.iterdir()] == [file.name] and file.stat().st_mode & 0o777 == 0o644


def test_a_trained_run_goes_out_and_comes_back(tmp_path):
    config = load_config("demo/plain", SMALL[:-2])
    list(fit(config, tmp_path))
    run = prepare_run(config, tmp_path)
    ema, raw = run.checkpoint().load("ema"), load_backbone(run, weights="raw").state_dict()
    content = torch.load(export_run(run, tmp_path / "st.pt", family="self-transcendence"), weights_only=True)
    for found, expected in ((content["ema"], ema), (content["model"], raw)):
        assert found.keys() == expected.keys() and all(torch.equal(found[n], v) for n, v in expected.items())
    flat = load_file(export_run(run, tmp_path / "raw.safetensors", family="sit", weights="raw"))
    expected = to_published(raw, "sit")
    assert flat.keys() == expected.keys() and all(torch.equal(flat[n], v) for n, v in expected.items())
    with pytest.raises(ValueError, match="has backbone sit: it can be exported as sit, .*, not as lightningdit"):
        export_run(run, tmp_path / "no.pt", family="lightningdit")
    with pytest.raises(ValueError, match="has no checkpoint of step 9"):
        export_run(run, tmp_path / "no.pt", family="sra", step=9)
    with pytest.raises(ValueError, match="'.bin' is not known"):
        export_run(run, tmp_path / "no.bin", family="sra")
    assert not (tmp_path / "no.pt").exists()
    back = import_run(tmp_path / "st.pt", tmp_path, family="self-transcendence", vae="identity")
    assert all(torch.equal(back.checkpoint().load("ema")[n], v) for n, v in ema.items())
    again = import_run(tmp_path / "raw.safetensors", tmp_path, family="sit", vae="identity")
    for one in (back, again):  # told by the file
        assert one.provenance["origin"]["label_table"] == "11 rows read as 10 classes and a null row"


@pytest.fixture
def without_null(tmp_path):
    """A run of a digits model that was trained on all labels: case 19."""
    tensors = weights_of("sit", **DIGITS)
    tensors["y_embedder.embedding_table.weight"] = tensors["y_embedder.embedding_table.weight"][:10].clone()
    torch.save(tensors, tmp_path / "ten.pt")
    return import_run(tmp_path / "ten.pt", tmp_path / "runs", family="repa", vae="identity", classes=10)


def test_a_model_without_a_null_row_draws_its_classes(without_null, tmp_path):
    run, table = without_null, weights_of("sit", **DIGITS)["y_embedder.embedding_table.weight"]
    latents = run.provenance["latents"]
    assert len(latents["classes"]) == 10 and latents["null_row"] is False
    assert run.config.diffusion.label_dropout == 0
    assert torch.equal(load_backbone(run).y_embedder.embedding_table.weight, table[:10])  # class 9 is class 9
    samples = generate(run, 0, replace(run.config.sampling, count=10, steps=2))
    assert samples.labels.tolist() == list(range(10)) and samples.images.float().std() > 1
    data = load_config("demo/plain", SMALL[:5]).data
    f_c = extract(run, 3, [8], [0.5], labels=("true",), data=data, root=tmp_path).read(8, 0.5, "true")
    assert f_c.isfinite().all()
    for family in ("repa", "sit"):
        content = torch.load(export_run(run, tmp_path / "out.pt", family=family), weights_only=True)
        assert len(content.get("ema", content)["y_embedder.embedding_table.weight"]) == 10


def test_nothing_is_unconditional_without_a_null_row(without_null, tmp_path):
    run, data = without_null, load_config("demo/plain", SMALL[:5]).data
    with pytest.raises(ValueError, match=f"run {run.name} has no null row in its label table; it cannot be guided"):
        generate(run, 0, replace(run.config.sampling, count=10, steps=2, guidance_scale=2.0))
    for labels in (("null", "true"), ("noise-null",)):
        with pytest.raises(ValueError, match="label table of 10 classes and no null row: .* unconditional features"):
            extract(run, 3, [8], [0.5], labels=labels, data=data, root=tmp_path)
    with pytest.raises(ValueError, match="no null row in its label table; it cannot be a teacher"):
        list(fit(guided(run), tmp_path / "runs"))
    with pytest.raises(ValueError, match="no null row in its label table; diffusers' class"):
        export_diffusers(run, tmp_path / "folder")
    assert not (tmp_path / "folder").exists()


def test_one_file_read_with_and_without_a_null_row_is_two_runs(without_null, tmp_path):
    read = {"family": "repa", "vae": "identity"}
    nine = import_run(tmp_path / "ten.pt", tmp_path / "runs", **read, classes=9)
    assert nine.folder != without_null.folder and len(nine.provenance["latents"]["classes"]) == 9
    assert import_run(tmp_path / "ten.pt", tmp_path / "runs", **read, classes=10).folder == without_null.folder


def test_import_asks_for_the_classes_and_says_what_it_read(tmp_path, monkeypatch, capsys):
    monkeypatch.setenv("WORKBENCH_RUNS", str(tmp_path / "runs"))
    torch.save(weights_of("sit", **DIGITS), tmp_path / "flat.pt")
    command = ["import", str(tmp_path / "flat.pt"), "--family", "repa", "--vae", "identity"]
    with pytest.raises(SystemExit) as ended:
        main(command)
    assert ended.value.code == 2 and not (tmp_path / "runs").exists()
    assert (
        "10 classes and a null row or 11 classes without one; give the number of classes (--classes"
        in capsys.readouterr().err
    )
    main([*command, "--classes", "10"])
    assert "11 rows read as 10 classes and a null row" in capsys.readouterr().out
    torch.save(weights_of("sit"), tmp_path / "imagenet.pt")
    main(["import", str(tmp_path / "imagenet.pt"), "--family", "repa"])
    assert "1001 rows read as 1000 classes and a null row" in capsys.readouterr().out


def test_names_of_runs_are_folders_everywhere(repa_file, tmp_path):
    odd = import_run(repa_file, tmp_path / "runs", vae="identity", name="a/../b\n\0" + "c" * 500)
    assert odd.folder.parent == tmp_path / "runs" and odd.name.startswith("a-..-b--ccc") and len(odd.name) == 69
    assert find_runs(tmp_path / "runs")[0].folder == odd.folder


def test_an_export_without_room_says_so(run, tmp_path):
    limit, most = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (10_000, most))  # as on a disk with so much room
    try:
        for name, family in (("a.pt", "repa"), ("a.safetensors", "repa"), ("b.pt", "sit")):
            with pytest.raises(ValueError, match=f"{name} cannot be written: .*; its disk has .* MB free"):
                export_run(run, tmp_path / "out" / name, family=family)
        with pytest.raises(ValueError, match="diffusion_pytorch_model.safetensors cannot be written"):
            export_diffusers(run, tmp_path / "out")
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (limit, most))
    assert list((tmp_path / "out").iterdir()) == []
    (tmp_path / "file").touch()
    with pytest.raises(ValueError, match="a.pt cannot be written: .*; its disk"):
        export_run(run, tmp_path / "file" / "a.pt", family="repa")


def test_heads_go_back_into_their_own_family_alone(run, tmp_path):
    own = torch.load(export_run(run, tmp_path / "own.pt", family="repa"), weights_only=True)["ema"]
    assert all(torch.equal(own[name], value) for name, value in HEADS.items())
    other = torch.load(export_run(run, tmp_path / "other.pt", family="sra"), weights_only=True)["ema"]
    assert not HEADS.keys() & other.keys()


def test_diffusers_reads_the_folder(tmp_path):
    from diffusers import DiTTransformer2DModel

    torch.save(weights_of("sit", learn_sigma=True), tmp_path / "a.pt")
    run = import_run(tmp_path / "a.pt", tmp_path / "runs", family="sit")
    folder = export_diffusers(run, tmp_path / "folder")
    model = DiTTransformer2DModel.from_pretrained(folder).eval()
    x, t = torch.randn(3, 4, 8, 8, generator=torch.Generator().manual_seed(1)), torch.tensor([0.0, 0.4, 1.0])
    y = torch.tensor([3, 500, 1000])
    with torch.no_grad():
        v = model(x, timestep=t, class_labels=y).sample[:, :4]
    torch.testing.assert_close(v, load_backbone(run)(x, t, y), atol=1e-5, rtol=1e-4)
    text = (folder / "README.md").read_text()
    assert run.name in text and "or 1000 for none" in text and "linear path" in text


@pytest.mark.parametrize(
    "family, backbone, note", [("lightningdit", "lightningdit", "no class for it"), ("dit", "dit", "DDPM")]
)
def test_folders_of_the_other_backbones_say_what_they_hold(tmp_path, family, backbone, note):
    theirs = weights_of(backbone)
    torch.save({"ema": theirs}, tmp_path / "a.pt")
    run = import_run(tmp_path / "a.pt", tmp_path / "runs", family=family)
    folder = export_diffusers(run, tmp_path / "folder")
    assert note in (folder / "README.md").read_text()
    config = json.loads((folder / "config.json").read_text())
    tensors = load_file(folder / "diffusion_pytorch_model.safetensors")
    if backbone == "dit":
        assert config["_class_name"] == "DiTTransformer2DModel"
        time = tensors["transformer_blocks.0.norm1.emb.timestep_embedder.linear_1.weight"]
        assert torch.equal(time, theirs["t_embedder.mlp.0.weight"])
    else:
        name = config.pop("backbone")
        plugin_class("backbone", name)(**config).load_state_dict(tensors)
