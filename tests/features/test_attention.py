import shutil

import numpy as np
import pytest
import torch
from einops import rearrange

from workbench.features.attention import (
    attending,
    attention_entropies,
    attention_entropy,
    attention_of,
    attention_weights,
)
from workbench.features.extract import opened_latents
from workbench.runs.checkpoints import save_checkpoint
from workbench.runs.models import load_backbone
from workbench.runs.store import Run


@pytest.mark.parametrize("name", ["sit", "lightningdit"])
def test_the_weights_are_those_that_mix_the_values(name):
    from workbench.config import plugin_class

    options = {"size": "nano", "patch": 1, "channels": 4, "height": 4, "classes": 3}
    backbone = plugin_class("backbone", name)(**options)
    generator = torch.Generator().manual_seed(0)
    backbone.initialize(generator)
    for parameter in backbone.parameters():  # the modulations start at zero, which would leave nothing to see
        parameter.data += 0.05 * torch.randn(parameter.shape, generator=generator)
    entered = []
    attention = backbone.blocks[2].attn
    handle = attention.register_forward_hook(lambda module, given, out: entered.append((given, out)))
    x, t, y = torch.randn(2, 4, 4, 4, generator=generator), torch.tensor([0.3, 0.6]), torch.tensor([0, 3])
    with torch.no_grad(), attention_of(backbone, [1, 3]) as seen:
        backbone.features(x, t, y, (3,))
    handle.remove()
    assert seen[3].shape == (2, backbone.heads, 16, 16) and set(seen) == {1, 3}
    torch.testing.assert_close(seen[3].sum(dim=3), torch.ones(2, backbone.heads, 16))
    (tokens, *_), mixed = entered[0]
    v = rearrange(attention.qkv(tokens), "b n (three heads e) -> three b heads n e", three=3, heads=backbone.heads)[2]
    by_hand = attention.proj(rearrange(seen[3] @ v, "b heads n e -> b n (heads e)"))
    torch.testing.assert_close(by_hand, mixed, rtol=1e-4, atol=1e-5)
    assert not backbone.blocks[2].attn._forward_pre_hooks


def test_entropies_of_a_run(run):
    counts = []
    found = attention_entropies(
        run, 12, [1, 4], [0.2, 0.8], root=run.folder.parent, progress=lambda *seen: counts.append(seen)
    )
    heads = load_backbone(run).heads
    assert found.shape == (2, 2, heads) and (found > 0).all() and (found <= 1).all()
    assert counts[-1] == (24, 24)
    again = attention_entropies(run, 12, [4], [0.8], root=run.folder.parent)
    assert found[1, 1] == pytest.approx(again[0, 0], rel=1e-6)
    with pytest.raises(ValueError, match="allowed are 1 to"):
        attention_entropies(run, 12, [0], [0.2], root=run.folder.parent)
    for times, said in (([0.2, float("nan")], "times has nan; allowed are 0 to 1"), ([], "times has nothing")):
        with pytest.raises(ValueError, match=said):
            attention_entropies(run, 12, [1], times, root=run.folder.parent)


def test_attention_in_bfloat16_is_close(run):
    options = {"root": run.folder.parent}
    single, half = (attention_entropies(run, 6, [4], [0.5], precision=p, **options) for p in ("no", "bf16"))
    assert not np.array_equal(single, half) and half == pytest.approx(single, rel=1e-2)


def test_attention_of_images_that_do_not_fit_at_once(run, monkeypatch):
    rows, seen = np.arange(6), []
    options = (run, attending(run, [4]), opened_latents(run, None, "train", run.folder.parent, 6), rows, [4], 0.5)
    labels = np.zeros(6, dtype=np.int64)
    ((_, whole),) = attention_weights(*options, labels)

    def small_gpu(*given):
        seen.append(len(given[0]))
        if seen[-1] > 4:
            raise torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 20.00 MiB.")
        return features(*given)

    features = options[1].features
    monkeypatch.setattr(options[1], "features", small_gpu)
    parts = list(attention_weights(*options, labels))
    assert seen == [6, 3, 3] and [part for part, _ in parts] == [slice(0, 3), slice(3, 6)]
    torch.testing.assert_close(torch.cat([found[4] for _, found in parts]), whole[4])


def test_attention_that_is_not_finite_is_named(run, tmp_path):
    shutil.copytree(run.folder, tmp_path / run.name)
    (tmp_path / ".latents").symlink_to(run.folder.parent / ".latents")
    broken = Run(tmp_path / run.name)
    weights = broken.checkpoint().load("ema")
    weights["blocks.2.attn.qkv.weight"][0, 0] = torch.nan
    save_checkpoint(broken.folder / "checkpoints", broken.checkpoint().step, {"ema": weights}, {})
    with pytest.raises(ValueError, match=rf"layer 3, t = 0.2: attention is not finite; did {run.name} diverge"):
        attention_entropies(broken, 4, [2, 3], [0.2], root=tmp_path)


def test_attention_entropy_of_uniform_single_and_half_attention():
    uniform = torch.full((16,), 1 / 16)
    single = torch.eye(16)[3]
    half = torch.cat([torch.full((4,), 1 / 4), torch.zeros(12)])
    weights = torch.stack([uniform, single, half])[None, :, None].repeat(2, 1, 5, 1)
    # log 4 / log 16 = 1/2.
    torch.testing.assert_close(attention_entropy(weights), torch.tensor([1.0, 0.0, 0.5]).double())


def test_attention_entropy_averages_over_images_and_queries():
    weights = torch.full((2, 1, 4, 4), 0.25)
    weights[0, 0, 0] = torch.eye(4)[1]
    assert attention_entropy(weights).item() == pytest.approx(7 / 8)


@pytest.mark.parametrize("weights", [torch.full((1, 1, 2, 2), 0.4), torch.tensor([[[[1.5, -0.5]]]])])
def test_attention_entropy_refuses_what_is_no_attention(weights):
    with pytest.raises(ValueError, match="allowed are rows that add up to 1"):
        attention_entropy(weights)
    with pytest.raises(ValueError, match="at least 2"):
        attention_entropy(torch.ones(1, 1, 1, 1))
