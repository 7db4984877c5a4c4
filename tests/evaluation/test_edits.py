"""Edits during sampling: what replaces the tokens, where and when; what changes nothing gives the same bits."""

import shutil
from dataclasses import replace

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from workbench.backbones import sit
from workbench.config import load_config, to_yaml
from workbench.diffusion.sampling import evaluation_times, sample
from workbench.evaluation.edits import (
    EditedVelocity,
    FeatureEdit,
    check_takes_edits,
    make_edit,
    sample_edited,
    token_numbers,
)
from workbench.evaluation.generate import Samples, generate
from workbench.evaluation.suite import score_pairs
from workbench.runs.checkpoints import save_checkpoint
from workbench.runs.models import load_backbone
from workbench.runs.store import Run, prepare_run
from workbench.training.loop import fit

DATA = ("data.name=digits", "data.limit=40", "vae.name=identity", "training.steps=2", "training.batch=4")


def trained(root, *options: str) -> Run:
    """A run of 16 tokens with random weights, also in the parts that are initialised with zeros."""
    config = load_config("demo/plain", [*DATA, "backbone.size=pico", "sampling.steps=4", "sampling.count=3", *options])
    list(fit(config, root))
    run, generator = prepare_run(config, root), torch.Generator().manual_seed(0)
    weights = run.checkpoint(2).load("ema")
    for name, values in weights.items():
        if not name.startswith("feat_rope"):
            values += 0.05 * torch.randn(values.shape, generator=generator)
    save_checkpoint(run.checkpoint_folder, 2, {"ema": weights}, {})
    return run


@pytest.fixture(scope="module")
def root(tmp_path_factory):
    return tmp_path_factory.mktemp("runs")


@pytest.fixture(scope="module")
def run(root):
    return trained(root, "backbone.patch=8")


@pytest.fixture(scope="module")
def light(root):
    return trained(root, "backbone.patch=8", "backbone.name=lightningdit", "name=light")


@pytest.fixture
def points():
    generator = torch.Generator().manual_seed(1)
    x_t = torch.randn(4, 1, 32, 32, generator=generator)
    return x_t, torch.full((4,), 0.5), torch.tensor([1, 7, 10, 10])  # 10 is the null label


SAME = {"w = 1": {"w": 1.0}, "strength 0": {"with_": "zero", "strength": 0.0}, "itself": {"with_": "itself"}}
GUIDED = {"sampler": "euler-maruyama", "guidance_scale": 2.0, "guidance_high": 0.8}


@pytest.mark.parametrize(("name", "sampling"), [("run", {"sampler": "heun"}), ("run", GUIDED), ("light", GUIDED)])
def test_edits_that_change_nothing_give_the_same_images(name, sampling, request):
    run = request.getfixturevalue(name)
    settings = replace(run.config.sampling, **sampling)
    plain = generate(run, 2, settings).images
    for options in SAME.values():
        options = {**options, "with_": run} if options.get("with_") == "itself" else options
        edited = sample_edited(run, 2, settings, make_edit(run, 5, settings, **options))
        assert torch.equal(edited, plain), options
    edited = sample_edited(run, 2, settings, make_edit(run, 5, settings, with_="zero"))
    assert (edited.int() - plain.int()).abs().max() > 20


def by_hand(model, x_t, t, y, layer, replaced):
    """The velocity of SiT, block by block, with the tokens after `layer` replaced by `replaced(tokens)`."""
    tokens = model.x_embedder(x_t) + model.pos_embed
    condition = model.t_embedder(t) + model.y_embedder(y)
    for number, block in enumerate(model.blocks, start=1):
        tokens = block(tokens, condition)
        if number == layer:
            tokens = replaced(tokens)
    patches = model.final_layer(tokens, condition)
    return patches.unflatten(1, (4, 4)).unflatten(3, (8, 8)).permute(0, 1, 3, 2, 4).reshape(len(x_t), 1, 32, 32)


@torch.no_grad()
def test_guided_features_of_some_tokens_by_hand(run, points):
    model, (x_t, t, y) = load_backbone(run), points
    edit = FeatureEdit(layer=6, source="guided", tokens=(0, 5), w=3.0, strength=0.5)
    f_u = model.features(x_t, t, torch.full((4,), 10), (6,))[6]

    def replaced(f_c):
        f_g = f_u + 3 * (f_c - f_u)
        tokens = f_c.clone()
        tokens[:, [0, 5]] = (f_c + 0.5 * (f_g - f_c))[:, [0, 5]]
        return tokens

    v = EditedVelocity(model, edit, rows=4)(x_t, t, y)
    torch.testing.assert_close(v, by_hand(model, x_t, t, y, 6, replaced), atol=1e-5, rtol=1e-5)
    plain = model(x_t, t, y)
    assert (v - plain)[:2].abs().max() > 1e-3
    assert torch.equal(v[2:], plain[2:])  # f_g = f_u with the null label


@torch.no_grad()
def test_what_replaces_the_tokens(run, points):
    model, (x_t, t, y) = load_backbone(run), points
    tokens = model.features(x_t, t, y, (6,))[6]
    noise = torch.randn(2, 16, 48, generator=torch.Generator().manual_seed(2))

    def source(name, **options):
        return EditedVelocity(model, FeatureEdit(6, name, **options), 2, noise, model)._source(tokens, x_t, t, y)

    assert not source("zero").any()
    threes = model.features(x_t, t, torch.tensor([3, 3, 10, 10]), (6,))[6]
    torch.testing.assert_close(source("class", label=3), threes)
    torch.testing.assert_close(source("run"), tokens)
    # Samples 0 and 1, then the same with the null label: 0 is edited, 1 is the other image.
    assert torch.equal(source("image"), tokens[[1, 1, 3, 3]])
    drawn = (source("noise") - tokens.mean(1, keepdim=True)) / tokens.std(1, correction=0, keepdim=True)
    torch.testing.assert_close(drawn, noise.repeat(2, 1, 1), atol=1e-3, rtol=1e-3)


@torch.no_grad()
def test_features_are_edited_inside_the_window_and_at_its_ends(run, points):
    model, (x_t, _, y) = load_backbone(run), points
    velocity = EditedVelocity(model, FeatureEdit(6, "zero", low=0.3, high=0.7), rows=4)
    for t, edited in ((0.29, False), (0.3, True), (0.5, True), (0.7, True), (0.71, False)):
        at = torch.full((4,), t)
        assert torch.equal(velocity(x_t, at, y), model(x_t, at, y)) is not edited, t


def test_the_times_of_a_sampler_are_those_of_its_evaluations(points):
    for sampler in ("euler", "heun", "euler-maruyama"):
        seen = []

        def velocity(x, t, y, seen=seen):
            seen.append(float(t[0]))
            return torch.zeros_like(x)

        sample(velocity, points[0].double(), points[2], null_label=None, sampler=sampler, steps=5,
               step_noise=lambda i: torch.zeros_like(points[0]))  # fmt: skip
        assert evaluation_times(sampler, 5) == sorted(set(seen), reverse=True)


def test_another_image_is_the_sample_of_the_same_class_after_all_others(run):
    settings = replace(run.config.sampling, count=2)
    model, edit = load_backbone(run), make_edit(run, 12, settings, with_="image")
    edited = sample_edited(run, 2, settings, edit)
    plain = generate(run, 2, settings).images
    assert (edited.int() - plain.int()).abs().max() > 5
    assert model.depth == 12  # all tokens of the last layer decide the velocity: only x_t is of the sample itself


def test_noise_belongs_to_the_sample(run):
    settings = replace(run.config.sampling, count=3)
    edit = make_edit(run, 6, settings, with_="noise")
    three = sample_edited(run, 2, settings, edit)
    two = sample_edited(run, 2, replace(settings, count=2), edit)
    assert (three[:2].int() - two.int()).abs().max() <= 1


REFUSED = {
    "layer is 13; allowed are 0 .the patch embedding. to 12": {"layer": 13},
    "layer is -1; allowed": {"layer": -1},
    "layer has 2.5; allowed are whole numbers": {"layer": 2.5},
    "with_ is 'guide'; allowed are 'guided', 'class', 'image', 'noise', 'zero', or a run": {"with_": "guide"},
    "tokens has 16, but the grid has 4 x 4 tokens; allowed": {"tokens": [3, 16]},
    "tokens has rows slice.2, 9, None.; allowed": {"tokens": np.s_[2:9, 0:2]},
    "tokens is 'object'; a sample has no mask while it is generated; allowed": {"tokens": "object"},
    "tokens selects no token": {"tokens": []},
    "tokens is a boolean array of shape .3,.; the grid has 4 x 4": {"tokens": np.ones(3, bool)},
    "t is .0.7, 0.4.; allowed is a pair .low, high. with 0 <= low": {"t": (0.7, 0.4)},
    "t is .0.3, 0.4., where euler with 4 steps does not evaluate the model; the nearest t are 0.25 and 0.5": {
        "t": (0.3, 0.4)
    },
    "t is 0.5; allowed is a pair": {"t": 0.5},
    "w is nan; allowed are finite numbers": {"w": float("nan")},
    "w is 3.0, but with_ is 'zero'; w is allowed if with_='guided'": {"w": 3.0, "with_": "zero"},
    "label is 3, but with_ is 'guided'": {"label": 3},
    "with_step is 2, but with_ is 'image'; with_step is allowed if with_ is another run": {
        "with_step": 2,
        "with_": "image",
    },
    "strength is inf; allowed": {"strength": float("inf")},
    "label is 10; allowed are 0 to 9, or a name: 0, 1, 2": {"with_": "class", "label": 10},
    "label is None; allowed": {"with_": "class"},
    "layer 6, f_g, w = 3e.38, strength 3e.38. makes features that are not finite at t = 1; choose a smaller w": {
        "w": 3e38,
        "strength": 3e38,
    },
    "w is '2'; allowed are finite": {"w": "2"},
    "strength is None; allowed are finite": {"strength": None},
    "w is 1e.308; allowed are finite numbers up to 3.4e.38 in size": {"w": 1e308},
}


@pytest.mark.parametrize("said", REFUSED)
def test_edits_that_are_not_possible_are_refused(run, said):
    settings, options = run.config.sampling, {"layer": 6, **REFUSED[said]}
    with pytest.raises(ValueError, match=said):
        sample_edited(run, 2, settings, make_edit(run, options.pop("layer"), settings, **options))


def test_a_run_without_a_trained_null_label_is_refused(run):
    always = replace(run.config, diffusion=replace(run.config.diffusion, label_dropout=0.0))
    other = copy_of(run, "always", config=always)
    with pytest.raises(ValueError, match="label_dropout 0, so its null class is untrained; it has no f_u"):
        make_edit(other, 6, run.config.sampling)
    assert make_edit(other, 6, run.config.sampling, with_="zero").source == "zero"


def copy_of(run, name, provenance=lambda text: text, config=None):
    """Another run with the weights of `run`."""
    other = Run(run.folder.parent / name)
    shutil.copytree(run.folder, other.folder, ignore=shutil.ignore_patterns("samples"))
    (other.folder / "provenance.json").write_text(provenance((run.folder / "provenance.json").read_text()))
    (other.folder / "config.yaml").write_text(to_yaml(config or run.config))
    return other


def test_another_run_that_does_not_fit_is_refused(run, root):
    cosine = replace(run.config, diffusion=replace(run.config.diffusion, path="cosine"))
    others = {
        "width 128 instead of 48, tokens 4 instead of 16": trained(root, "backbone.patch=16", "backbone.size=nano"),
        "noise path 'cosine' instead of 'linear'": copy_of(run, "cosine", config=cosine),
        "classes of other names": copy_of(run, "names", lambda text: text.replace('"9"', '"nine"')),
        "VAE 'other' instead of 'identity'": copy_of(run, "vae", lambda text: text.replace('"identity"', '"other"', 1)),
    }
    for said, other in others.items():
        start = f"the features of run {other.name} cannot replace those of .*: it has"
        with pytest.raises(ValueError, match=f"{start} .*{said}"):
            sample_edited(run, 2, run.config.sampling, make_edit(run, 6, run.config.sampling, with_=other))
    with pytest.raises(ValueError, match="step 77"):
        make_edit(run, 6, run.config.sampling, with_=other, with_step=77)


def test_a_backbone_that_takes_no_edits_is_refused():
    class Older(sit.Backbone):
        def forward_tapped(self, x_t, t, y, layers):
            return super().forward_tapped(x_t, t, y, layers)

    class OlderWalk(sit.Backbone):
        def _walk(self, x_t, t, y, layers, deepest):
            return super()._walk(x_t, t, y, layers, deepest)

    class Deaf(sit.Backbone):
        def _walk(self, x_t, t, y, layers, deepest, edits=None):
            return super()._walk(x_t, t, y, layers, deepest)

    for kind in (sit.Backbone, Older, OlderWalk, Deaf):
        model = kind(size="pico", patch=2, channels=4, height=8, classes=3)
        model.initialize(torch.Generator().manual_seed(0))
        assert model(torch.ones(1, 4, 8, 8), torch.ones(1), torch.zeros(1, dtype=int)).shape == (1, 4, 8, 8)
        if kind is sit.Backbone:
            check_takes_edits(model, 4, "sit")
        else:
            with pytest.raises(ValueError, match="^backbone mine takes no edits: its forward_tapped or _walk lacks"):
                check_takes_edits(model, 4, "mine")


def test_token_numbers_by_hand():
    assert token_numbers("all", 4) is None
    assert token_numbers([5, 0, 5], 4) == (0, 5)
    assert token_numbers(np.s_[1:3, 2:], 4) == (6, 7, 10, 11)
    mask = np.zeros((4, 4), bool)
    mask[3, 1] = True
    assert token_numbers(mask, 4) == token_numbers(torch.from_numpy(mask).flatten(), 4) == (13,)


@pytest.mark.fuzz
@given(
    st.one_of(
        st.lists(st.one_of(st.integers(-3, 20), st.floats(), st.none())),
        st.tuples(*[st.builds(slice, *[st.one_of(st.none(), st.integers(-2, 6), st.floats())] * 3)] * 2),
        st.tuples(st.integers(), st.builds(slice, st.integers())),
        st.text(),
        st.none(),
        st.integers(),
        st.builds(lambda n: np.ones(n, bool), st.integers(0, 20)),
    )
)
def test_any_tokens_are_numbers_of_the_grid_or_refused(tokens):
    try:
        chosen = token_numbers(tokens, 4)
    except ValueError as error:
        assert "tokens" in str(error)
    else:
        assert chosen is None or (chosen and list(chosen) == sorted(set(chosen)) and 0 <= chosen[0] <= chosen[-1] < 16)


def test_scores_of_pairs(run):
    generator = torch.Generator().manual_seed(0)
    images = torch.randint(256, (40, 1, 32, 32), generator=generator, dtype=torch.uint8)
    darker = (images.float() * 0.8).to(torch.uint8)
    labels = torch.arange(40) % 10
    before, after = Samples(images, labels), Samples(darker, labels)
    options = {"detector": "randomconv", "small_ok": True}
    (same,) = score_pairs(run, before, before, scores=["fd"], **options)
    assert (same["difference"], same["low"], same["high"]) == (0, 0, 0) and same["metric"] == "fd-randomconv"
    (record,) = score_pairs(run, before, after, scores=["fd"], **options)
    assert record["difference"] == record["after"]["value"] - record["before"]["value"] != 0
    assert record["low"] < record["difference"] < record["high"]
    # Pairs share their noise, so the interval is narrower than that of two independent sets.
    apart = np.hypot(record["before"]["deviation"], record["after"]["deviation"])
    assert record["high"] - record["difference"] < 1.96 * apart
    with pytest.raises(ValueError, match="pairs of the same labels"):
        score_pairs(run, before, Samples(darker, labels.flip(0)), **options)
    with pytest.raises(ValueError, match="kind of score"):
        score_pairs(run, before, after, scores=["fdd"], **options)
