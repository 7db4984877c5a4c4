"""Weights turned to this package's convention and back, against the networks in their own; diffusers' layout."""

import pytest
import torch
from torch.nn.functional import pad

from workbench.backbones.conversion import FAMILIES, _frequency_interpolation, to_diffusers, to_published, turn_time
from workbench.backbones.released import read_released

WIDTH = 128
LIGHTNING = {"rmsnorm", "swiglu", "rope"}


CASES = {
    "sit": {"wide": True},
    "repa": {},
    "self-transcendence": {"flags": {"qk_norm"}},
    "sra": {"patch": 4, "tokens": 4},
    "layersync": {"wide": True, "patch": 1, "tokens": 64},
    "lightningdit": {"flags": LIGHTNING, "channels": 32, "patch": 1, "tokens": 64},
}
MORE = {
    "bare": {"channels": 32, "patch": 1, "tokens": 64, "flags": {"wo_shift"}},
    "normed": {"channels": 32, "patch": 1, "tokens": 64, "flags": LIGHTNING | {"qk_norm"}},
    "layer normed": {"flags": {"qk_norm", "rope"}, "wide": True},
}


@pytest.mark.parametrize(
    "family, options", [*CASES.items(), *(("lightningdit", o) for o in MORE.values())], ids=[*CASES, *MORE]
)
def test_outputs_and_features_are_the_originals(tmp_path, family, options, published, original, save, build, batch):
    tensors = published(**options)
    found = read_released(save(tmp_path, {"ema": tensors}), family=family)
    model, (x, t, y) = build(found), batch(options.get("channels", 4))
    turned = FAMILIES[family].data_at_one
    layers, output, channels = original(tensors, x, 1 - t if turned else t, y)
    expected = -output[:, :channels] if turned else output[:, :channels]
    tapped = model.forward_tapped(x, t, y, (0, 7, 12))
    assert expected.std() > 0.1
    torch.testing.assert_close(tapped.v, expected, atol=1e-5, rtol=1e-5)
    for layer, tokens in tapped.features.items():
        torch.testing.assert_close(tokens, layers[layer], atol=1e-5, rtol=1e-5)


@pytest.mark.parametrize("family", CASES)
def test_written_back_they_are_the_same_bits(tmp_path, family, published, save):
    tensors = published(**CASES[family])
    written = to_published(read_released(save(tmp_path, {"ema": tensors}), family=family).tensors, family)
    assert written.keys() == tensors.keys()
    for name, value in tensors.items():
        if name == "t_embedder.mlp.0.weight" and FAMILIES[family].data_at_one:
            # Turned there and back with a rounding each: half a unit of the larger of two columns, and the same again.
            torch.testing.assert_close(written[name], value, atol=1.5e-7 * value.abs().max().item(), rtol=0)
        else:
            assert torch.equal(written[name], value), name


def test_dit_stays_as_it_is(tmp_path, published, save):
    tensors = published(wide=True)
    found = read_released(save(tmp_path, tensors, "file.safetensors"), family="dit")
    assert (found.backbone, found.options["learn_sigma"], found.wrapped) == ("dit", True, False)
    for same in (found.tensors, to_published(found.tensors, "dit")):
        assert same.keys() == tensors.keys() and all(torch.equal(same[name], tensors[name]) for name in tensors)


def test_turning_time_twice_changes_nothing(published):
    weights = {name: value.double() for name, value in published().items()}
    twice = turn_time(turn_time(weights))
    for name, value in weights.items():
        torch.testing.assert_close(twice[name], value, atol=1e-14, rtol=0)
    assert not torch.allclose(turn_time(weights)["t_embedder.mlp.0.weight"], weights["t_embedder.mlp.0.weight"])


def test_sigma_channels_come_and_go(tmp_path, published, original, save, batch):
    x, t, y = batch()
    narrow = published()
    of_repa = read_released(save(tmp_path, narrow), family="repa").tensors
    wide = to_published(of_repa, "sit")
    assert wide["final_layer.linear.weight"].shape == (32, WIDTH)
    _, output, _ = original(wide, x, 1 - t, y)
    torch.testing.assert_close(-output[:, :4], original(narrow, x, t, y)[1], atol=1e-5, rtol=1e-5)
    assert not output[:, 4:].any()
    file = save(tmp_path, published(1, wide=True))
    back = to_published(read_released(file, family="sit").tensors, "repa")
    assert back["final_layer.linear.weight"].shape == (16, WIDTH)
    expected = -original(published(1, wide=True), x, 1 - t, y)[1][:, :4]
    torch.testing.assert_close(original(back, x, t, y)[1], expected, atol=1e-5, rtol=1e-5)


def diffusers_model(found, renamed):
    from diffusers import DiTTransformer2DModel

    model = DiTTransformer2DModel(
        num_attention_heads=2,
        attention_head_dim=64,
        in_channels=4,
        out_channels=8 if found.options["learn_sigma"] else 4,
        num_layers=12,
        sample_size=8,
        patch_size=2,
        num_embeds_ada_norm=1000,
        norm_eps=1e-6,
    )
    model.load_state_dict(renamed)
    return model.eval().requires_grad_(False)


@pytest.mark.parametrize("wide", [False, True])
def test_diffusers_computes_the_same_velocity(tmp_path, wide, published, save, build, batch):
    tensors = published(wide=wide)
    tensors["pos_embed"] = (
        build(read_released(save(tmp_path, published()), family="sra", height=8))._positions().float()
    )
    found = read_released(save(tmp_path, tensors), family="sit" if wide else "sra")
    x, t, y = batch(dtype=torch.float32)
    theirs = diffusers_model(found, to_diffusers(found.tensors, 12, velocity=True))
    sample = theirs(x, timestep=t, class_labels=y).sample[:, :4]
    torch.testing.assert_close(sample, build(found, torch.float32)(x, t, y), atol=1e-5, rtol=1e-4)


def test_diffusers_gets_dit_s_own_weights(tmp_path, published, save):
    tensors = published(wide=True)
    found = read_released(save(tmp_path, tensors), family="dit")
    renamed = to_diffusers(found.tensors, 12, velocity=False)
    diffusers_model(found, renamed)
    time = renamed["transformer_blocks.3.norm1.emb.timestep_embedder.linear_1.weight"]
    assert torch.equal(time, tensors["t_embedder.mlp.0.weight"])
    key = renamed["transformer_blocks.7.attn1.to_k.weight"]
    assert torch.equal(key, tensors["blocks.7.attn.qkv.weight"][WIDTH : 2 * WIDTH])


def test_the_frequencies_of_diffusers_are_met_for_times_up_to_one():
    t = torch.linspace(0, 1, 101, dtype=torch.float64)[:, None]
    ours = t * 10_000.0 ** (-torch.arange(128, dtype=torch.float64) / 128)
    theirs = t * 10_000.0 ** (-torch.arange(128, dtype=torch.float64) / 127)
    refit = _frequency_interpolation()
    for wave in (torch.cos, torch.sin):
        torch.testing.assert_close(wave(theirs) @ refit.T, wave(ours), atol=1e-8, rtol=0)
    assert (ours.cos() - theirs.cos()).abs().max() > 1e-3
    assert torch.equal(refit[0], pad(torch.ones(1, dtype=torch.float64), (0, 127)))


def test_each_family_samples_as_its_code():
    for name, family in FAMILIES.items():
        chosen = {"guidance_channels": None, "shift": 1.0, **family.sampling}
        found = tuple(chosen[key] for key in ("sampler", "steps", "shift", "guidance_channels"))
        if name == "lightningdit":
            assert found == ("euler", 249, 0.3, 3)
        else:
            assert found == ("euler-maruyama", 250, 1.0, 3 if name in ("sit", "layersync", "dit") else None), name
