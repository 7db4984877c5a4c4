"""VA-VAE: the renamed network computes latent diffusion's formulas, in standard units; what does not fit is refused."""

import pytest
import torch
import torch.nn.functional as F
from diffusers.models import AutoencoderKL
from safetensors.torch import save_file

from workbench.data import published
from workbench.data.images import to_float, to_uint8
from workbench.data.published import VA_VAE, from_latent_diffusion
from workbench.data.vae import load_vae

TINY = {**VA_VAE, "block_out_channels": (32, 32, 64, 64, 64), "latent_channels": 4, "layers_per_block": 1}


def latent_diffusion_shapes(layers: int, widths: tuple[int, ...], z: int) -> dict[str, tuple[int, ...]]:
    """Names and shapes of latent diffusion's autoencoder with attention at the deepest level."""
    shapes: dict[str, tuple[int, ...]] = {}

    def conv(name, before, after, side):
        shapes[f"{name}.weight"], shapes[f"{name}.bias"] = (after, before, side, side), (after,)

    def norm(name, width):
        shapes[f"{name}.weight"] = shapes[f"{name}.bias"] = (width,)

    def residual(name, before, after):
        norm(f"{name}.norm1", before)
        conv(f"{name}.conv1", before, after, 3)
        norm(f"{name}.norm2", after)
        conv(f"{name}.conv2", after, after, 3)
        if before != after:
            conv(f"{name}.nin_shortcut", before, after, 1)

    def attention(name, width):
        norm(f"{name}.norm", width)
        for part in ("q", "k", "v", "proj_out"):
            conv(f"{name}.{part}", width, width, 1)

    deepest = len(widths) - 1
    conv("encoder.conv_in", 3, widths[0], 3)
    conv("decoder.conv_in", z, widths[-1], 3)
    for side, levels, blocks in (
        ("encoder.down", range(deepest + 1), layers),
        ("decoder.up", range(deepest, -1, -1), layers + 1),
    ):
        before = widths[0] if side == "encoder.down" else widths[-1]
        for level in levels:
            for block in range(blocks):
                residual(f"{side}.{level}.block.{block}", before, widths[level])
                before = widths[level]
                if level == deepest:
                    attention(f"{side}.{level}.attn.{block}", before)
            if side == "encoder.down" and level != deepest:
                conv(f"{side}.{level}.downsample.conv", before, before, 3)
            if side == "decoder.up" and level != 0:
                conv(f"{side}.{level}.upsample.conv", before, before, 3)
    for part, width, out in (("encoder", widths[-1], 2 * z), ("decoder", widths[0], 3)):
        residual(f"{part}.mid.block_1", widths[-1], widths[-1])
        attention(f"{part}.mid.attn_1", widths[-1])
        residual(f"{part}.mid.block_2", widths[-1], widths[-1])
        norm(f"{part}.norm_out", width)
        conv(f"{part}.conv_out", width, out, 3)
    conv("quant_conv", 2 * z, 2 * z, 1)
    conv("post_quant_conv", z, z, 1)
    return shapes


class LatentDiffusion:
    """The autoencoder of latent diffusion (Rombach et al. 2022) as formulas over its tensors."""

    def __init__(self, tensors, levels, layers):
        self.tensors, self.levels, self.layers = tensors, levels, layers

    def conv(self, name, x, **options):
        return F.conv2d(x, self.tensors[f"{name}.weight"], self.tensors[f"{name}.bias"], **options)

    def norm(self, name, x):
        return F.group_norm(x, 32, self.tensors[f"{name}.weight"], self.tensors[f"{name}.bias"], eps=1e-6)

    def residual(self, name, x):
        h = self.conv(f"{name}.conv1", F.silu(self.norm(f"{name}.norm1", x)), padding=1)
        h = self.conv(f"{name}.conv2", F.silu(self.norm(f"{name}.norm2", h)), padding=1)
        return h + (self.conv(f"{name}.nin_shortcut", x) if f"{name}.nin_shortcut.weight" in self.tensors else x)

    def attention(self, name, x):
        if f"{name}.q.weight" not in self.tensors:
            return x
        h = self.norm(f"{name}.norm", x)
        q, k, v = (self.conv(f"{name}.{part}", h).flatten(2) for part in "qkv")
        weights = torch.einsum("bci,bcj->bij", q, k).div(x.shape[1] ** 0.5).softmax(dim=2)
        return x + self.conv(f"{name}.proj_out", torch.einsum("bij,bcj->bci", weights, v).unflatten(2, x.shape[2:]))

    def middle(self, part, h):
        h = self.attention(f"{part}.mid.attn_1", self.residual(f"{part}.mid.block_1", h))
        return self.residual(f"{part}.mid.block_2", h)

    def encode(self, x):
        h = self.conv("encoder.conv_in", x, padding=1)
        for level in range(self.levels):
            for block in range(self.layers):
                h = self.residual(f"encoder.down.{level}.block.{block}", h)
                h = self.attention(f"encoder.down.{level}.attn.{block}", h)
            if level < self.levels - 1:
                h = self.conv(f"encoder.down.{level}.downsample.conv", F.pad(h, (0, 1, 0, 1)), stride=2)
        h = F.silu(self.norm("encoder.norm_out", self.middle("encoder", h)))
        mean, log_variance = self.conv("quant_conv", self.conv("encoder.conv_out", h, padding=1)).chunk(2, dim=1)
        return mean, log_variance.clamp(-30, 20).div(2).exp()

    def decode(self, z):
        h = self.middle("decoder", self.conv("decoder.conv_in", self.conv("post_quant_conv", z), padding=1))
        for level in reversed(range(self.levels)):
            for block in range(self.layers + 1):
                h = self.residual(f"decoder.up.{level}.block.{block}", h)
                h = self.attention(f"decoder.up.{level}.attn.{block}", h)
            if level > 0:
                h = h.repeat_interleave(2, dim=2).repeat_interleave(2, dim=3)
                h = self.conv(f"decoder.up.{level}.upsample.conv", h, padding=1)
        return self.conv("decoder.conv_out", F.silu(self.norm("decoder.norm_out", h)), padding=1)


def drawn(shapes, seed=0):
    """Random tensors that keep the size of what passes through, norms near one."""
    generator = torch.Generator().manual_seed(seed)
    tensors = {}
    for name, shape in shapes.items():
        values = torch.randn(shape, generator=generator)
        if len(shape) > 1:
            tensors[name] = values / (shape[1] * shape[2] * shape[3]) ** 0.5
        else:
            tensors[name] = 0.1 * values + ("norm" in name and name.endswith("weight"))
    return tensors


@pytest.fixture
def tiny(monkeypatch, tmp_path):
    """A small network in VA-VAE's layout, in the folder where the published one belongs."""
    monkeypatch.setenv("WORKBENCH_WEIGHTS", str(tmp_path / "weights"))
    monkeypatch.setattr(published, "VA_VAE", TINY)
    tensors = drawn(latent_diffusion_shapes(1, TINY["block_out_channels"], 4))
    folder = tmp_path / "weights" / "va-vae"
    folder.mkdir(parents=True)
    extra = {
        "loss.logvar": torch.zeros(()),
        "foundation_model.model.w": torch.zeros(2),
        "linear_proj.weight": torch.ones(1),
    }
    torch.save({"state_dict": {**tensors, **extra}, "epoch": 3}, folder / "vavae.pt")
    mean, std = torch.tensor([0.5, -1.0, 0.0, 2.0]), torch.tensor([0.5, 2.0, 1.0, 4.0])
    torch.save({"mean": mean.reshape(1, 4, 1, 1), "std": std.reshape(1, 4, 1, 1)}, folder / "latents_stats.pt")
    return folder, tensors, mean.reshape(-1, 1, 1), std.reshape(-1, 1, 1)


def images(count=2, side=64):
    return torch.randint(0, 256, (count, 3, side, side), generator=torch.Generator().manual_seed(1), dtype=torch.uint8)


def test_va_vae_is_latent_diffusions_network_in_standard_units(tiny):
    _, tensors, mean, std = tiny
    vae, formulas = load_vae("va-vae", 3), LatentDiffusion(tensors, 5, 1)
    assert (vae.channels, vae.factor, vae.pixel_channels) == (4, 16, 3)
    assert vae.record["ignored"] == ["foundation_model", "linear_proj", "loss"]
    raw_mean, raw_std = formulas.encode(to_float(images()))
    expected = torch.cat([(raw_mean - mean) / std, raw_std / std], dim=1)
    torch.testing.assert_close(vae.encode(images()), expected, rtol=1e-4, atol=1e-4)
    z = torch.randn(2, 4, 4, 4, generator=torch.Generator().manual_seed(2))
    decoded = to_uint8(formulas.decode(z * std + mean))
    assert (vae.decode(z).int() - decoded.int()).abs().max() <= 1 and decoded.float().std() > 20


def test_the_hash_is_of_the_numbers_not_of_the_container(tiny):
    folder, tensors, _, std = tiny
    first = load_vae("va-vae", 3).hash
    (folder / "vavae.pt").unlink()
    save_file(tensors, folder / "vavae.safetensors")
    assert load_vae(str(folder), 3).hash == first
    torch.save({"mean": std, "std": std}, folder / "latents_stats.pt")
    assert load_vae("va-vae", 3).hash != first


def test_full_size_va_vae_has_the_published_shapes():
    shapes = latent_diffusion_shapes(2, VA_VAE["block_out_channels"], 32)
    renamed, _ = from_latent_diffusion({name: torch.empty(shape, device="meta") for name, shape in shapes.items()}, 5)
    with torch.device("meta"):
        model = AutoencoderKL.from_config(VA_VAE)
    assert {k: v.shape for k, v in renamed.items()} == {k: v.shape for k, v in model.state_dict().items()}


def test_va_vae_refusals(tiny):
    folder, tensors, *_ = tiny
    damaged = dict(tensors)
    del damaged["encoder.mid.attn_1.q.weight"], damaged["decoder.conv_out.bias"]
    damaged["encoder.down.0.block.9.conv1.bias"] = torch.zeros(1)
    damaged["quant_conv.bias"] = torch.zeros(3)
    torch.save(damaged, folder / "vavae.pt")
    said = r"vavae.pt do not fit: 2 missing \(.*\); 1 not of this network \(.*resnets.9.*\); 1 of another shape \(quant"
    with pytest.raises(ValueError, match=said):
        load_vae("va-vae", 3)
    torch.save({"state_dict": tensors, "callback": TestsOfNothing()}, folder / "vavae.pt")
    with pytest.raises(ValueError, match="vavae.pt is damaged, or has more than plain tensors"):
        load_vae("va-vae", 3)
    (folder / "vavae.pt").write_bytes(b"junk")
    with pytest.raises(ValueError, match="vavae.pt is damaged"):
        load_vae("va-vae", 3)
    torch.save({"mean": torch.zeros(4), "std": torch.zeros(4)}, folder / "latents_stats.pt")
    with pytest.raises(ValueError, match="latents_stats.pt has non-finite numbers, or standard deviations"):
        load_vae("va-vae", 3)
    torch.save({"mean": torch.zeros(3)}, folder / "latents_stats.pt")
    with pytest.raises(ValueError, match=r"latents_stats.pt must have mean and std of 4 channels; it has .*\(3,\)"):
        load_vae("va-vae", 3)
    (folder / "latents_stats.pt").unlink()
    with pytest.raises(ValueError, match="latents_stats.pt is missing"):
        load_vae("va-vae", 3)
    (folder / "vavae.pt").unlink()
    with pytest.raises(ValueError, match="must have one weights file .*found: none"):
        load_vae("va-vae", 3)


class TestsOfNothing:
    """Something that only running foreign code could bring back."""

    __test__ = False
