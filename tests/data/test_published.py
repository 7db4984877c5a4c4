"""Published autoencoders in diffusers folders: their units, files and refusals; missing weights."""

import json

import pytest
import torch
from diffusers.models import AutoencoderKL
from safetensors.torch import save_file

from workbench.data.images import ASSETS, to_float, to_uint8
from workbench.data.published import load_published
from workbench.data.vae import load_vae

SMALL = {
    "in_channels": 3,
    "out_channels": 3,
    "down_block_types": ["DownEncoderBlock2D"] * 2,
    "up_block_types": ["UpDecoderBlock2D"] * 2,
    "block_out_channels": [32, 64],
    "layers_per_block": 1,
    "latent_channels": 4,
}


@pytest.fixture(autouse=True)
def nothing_outside(tmp_path, monkeypatch):
    """No weights of the machine's own, no network."""
    monkeypatch.setenv("WORKBENCH_WEIGHTS", str(tmp_path / "weights"))
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", True)
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_CACHE", str(tmp_path / "hub"))


def images(count=2, side=64):
    return torch.randint(0, 256, (count, 3, side, side), generator=torch.Generator().manual_seed(1), dtype=torch.uint8)


def diffusers_folder(folder, name="diffusion_pytorch_model.safetensors", **config):
    torch.manual_seed(0)
    model = AutoencoderKL(**SMALL)
    tensors = model.state_dict()
    folder.mkdir(parents=True)
    (folder / "config.json").write_text(json.dumps({"_class_name": "AutoencoderKL", **SMALL, **config}))
    save_file(tensors, folder / name)
    return model.eval(), tensors


def test_stable_diffusions_units(tmp_path):
    model, _ = diffusers_folder(tmp_path / "weights" / "sd-vae-ft-ema")
    vae = load_vae("sd-vae", 3)
    assert vae.hash == load_vae("sd-vae-ft-ema", 3).hash == load_vae(str(tmp_path / "weights/sd-vae-ft-ema"), 3).hash
    with torch.no_grad():
        posterior = model.encode(to_float(images(side=16))).latent_dist
        expected = torch.cat([posterior.mean, posterior.std], dim=1) * 0.18215
        z = torch.randn(2, 4, 8, 8, generator=torch.Generator().manual_seed(2))
        decoded = to_uint8(model.decode(z / 0.18215).sample)
    torch.testing.assert_close(vae.encode(images(side=16)), expected)
    assert torch.equal(vae.decode(z), decoded)
    assert next(vae.model.parameters()).requires_grad is False


def test_units_of_other_diffusers_folders(tmp_path):
    raw = torch.randn(2, 8, 3, 3, generator=torch.Generator().manual_seed(0))
    mean, std = raw.chunk(2, dim=1)
    diffusers_folder(tmp_path / "a", scaling_factor=0.5, shift_factor=0.25)
    expected = torch.cat([(mean - 0.25) * 0.5, std * 0.5], dim=1)
    torch.testing.assert_close(load_published(str(tmp_path / "a"), "cpu").standardised(raw), expected)
    # diffusers: latents = (raw - latents_mean) scaling_factor / latents_std
    diffusers_folder(tmp_path / "b", scaling_factor=0.5, latents_mean=[1.0, 2, 3, 4], latents_std=[1.0, 2, 4, 8])
    shift, scale = torch.tensor([1.0, 2, 3, 4]).reshape(-1, 1, 1), torch.tensor([0.5, 0.25, 0.125, 0.0625])
    expected = torch.cat([(mean - shift) * scale.reshape(-1, 1, 1), std * scale.reshape(-1, 1, 1)], dim=1)
    torch.testing.assert_close(load_published(str(tmp_path / "b"), "cpu").standardised(raw), expected)


def test_old_names_of_attention_and_half_precision(tmp_path):
    model, tensors = diffusers_folder(tmp_path / "new")
    diffusers_folder(tmp_path / "old", "other.safetensors")
    names = {"to_q": "query", "to_k": "key", "to_v": "value", "to_out.0": "proj_attn"}
    old = dict(tensors)
    for after, before in names.items():
        old = {key.replace(f".{after}.", f".{before}."): value for key, value in old.items()}
    assert sum("query" in key for key in old) == 4
    save_file(old, tmp_path / "old" / "other.safetensors")
    assert load_vae(str(tmp_path / "old"), 3).hash == load_vae(str(tmp_path / "new"), 3).hash
    save_file({k: v.half() for k, v in tensors.items()}, tmp_path / "old" / "other.safetensors")
    assert next(load_vae(str(tmp_path / "old"), 3).model.parameters()).dtype == torch.float32


def test_diffusers_refusals(tmp_path):
    _, tensors = diffusers_folder(tmp_path / "a")
    with pytest.raises(ValueError, match="is for images of 3 channels; these have 1"):
        load_vae(str(tmp_path / "a"), 1)
    (tmp_path / "a" / "diffusion_pytorch_model.safetensors").write_bytes(b"x" * 40)
    with pytest.raises(ValueError, match="diffusion_pytorch_model.safetensors is damaged"):
        load_vae(str(tmp_path / "a"), 3)
    (tmp_path / "a" / "config.json").write_text('{"_class_name": "AutoencoderTiny"}')
    with pytest.raises(ValueError, match="holds a AutoencoderTiny; a VAE is an AutoencoderKL"):
        load_vae(str(tmp_path / "a"), 3)
    (tmp_path / "a" / "config.json").write_text("{")
    with pytest.raises(ValueError, match="config.json is damaged"):
        load_vae(str(tmp_path / "a"), 3)


@pytest.mark.parametrize(
    ("name", "repository", "file"),
    [
        ("sd-vae", "stabilityai/sd-vae-ft-ema", "diffusion_pytorch_model.safetensors"),
        ("sd-vae-ft-mse", "stabilityai/sd-vae-ft-mse", "config.json"),
        ("va-vae", "hustvl/vavae-imagenet256-f16d32-dinov2", "latents_stats.pt"),
    ],
)
def test_missing_weights_say_what_to_fetch_and_where_to_put_it(tmp_path, name, repository, file):
    place = tmp_path / "weights" / {"sd-vae": "sd-vae-ft-ema"}.get(name, name)
    with pytest.raises(ValueError, match=f"(?s){file}.* of {repository} to {place}"):
        load_vae(name, 3)
    with pytest.raises(ValueError, match="did you mean 'va-vae'"):
        load_vae("vavae", 3)


def test_a_published_name_tells_what_its_folder_must_hold(tmp_path):
    folder = tmp_path / "weights" / "sd-vae-ft-mse"
    diffusers_folder(folder)
    (folder / "config.json").unlink()
    with pytest.raises(ValueError, match="sd-vae-ft-mse/config.json does not exist"):
        load_vae("sd-vae-ft-mse", 3)
    diffusers_folder(tmp_path / "weights" / "va-vae")
    with pytest.raises(ValueError, match="va-vae/latents_stats.pt is missing"):
        load_vae("va-vae", 3)


def test_an_answer_of_the_hub_that_lacks_a_file_is_no_answer(monkeypatch):
    class EntryNotFound(Exception):
        pass

    def answer(url, timeout):
        if url.endswith("/diffusion_pytorch_model.safetensors"):
            raise EntryNotFound

    monkeypatch.setattr("huggingface_hub.get_hf_file_metadata", answer)
    with pytest.raises(
        ValueError, match=r"ft-ema' has no weights here and they could not be downloaded \(EntryNotFound\)"
    ):
        load_vae("sd-vae", 3)


@pytest.mark.parametrize(
    ("change", "said"),
    [
        ({"block_out_channels": "many"}, "is not a valid autoencoder"),
        ({"block_out_channels": [32, 64, 64]}, "is not a valid autoencoder|do not fit"),
        ({"norm_num_groups": 0}, "is not a valid autoencoder"),
        ({"scaling_factor": "x"}, "config.json has a scale or shift that is not a number"),
        ({"scaling_factor": float("nan")}, "config.json has a scale or shift that is not finite"),
        ({"latents_mean": [[0]], "latents_std": [0.0] * 4}, "config.json has a scale or shift that is not finite"),
    ],
)
def test_a_damaged_description_is_named(tmp_path, change, said):
    diffusers_folder(tmp_path / "set", **change)
    with pytest.raises(ValueError, match=said):
        load_vae(str(tmp_path / "set"), 3)


@pytest.mark.parametrize(
    ("change", "said"),
    [
        ({"architecture": {"layers": 3}}, "vae.json does not match its weights"),
        ({"architecture": None}, "vae.json does not match its weights"),
        ({"scale": float("inf")}, "vae.json must have a finite shift and a scale above 0"),
        ({"scale": [1, 2]}, "vae.json does not match its weights"),
        ({"sha256": None}, "vae.safetensors is damaged"),
    ],
)
def test_a_damaged_record_of_our_own_is_named(tmp_path, change, said):
    for file in ("vae.json", "vae.safetensors"):
        (tmp_path / file).write_bytes((ASSETS / "kl-f4" / file).read_bytes())
    record = json.loads((tmp_path / "vae.json").read_text())
    (tmp_path / "vae.json").write_text(json.dumps({**record, **change}))
    with pytest.raises(ValueError, match=said):
        load_vae(str(tmp_path), 1)
    (tmp_path / "vae.json").write_text("[" * 100_000)
    with pytest.raises(ValueError, match="vae.json is damaged: it is nested too deeply|vae.json is damaged"):
        load_vae(str(tmp_path), 1)
