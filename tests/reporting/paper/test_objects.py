"""Figures of runs whose images have masks: outlines, numbers under the maps, columns and claims."""

import pytest

from workbench.data.images import load_images
from workbench.features.extract import extract
from workbench.reporting import paper
from workbench.reporting.paper.features import Objects, objects_of, rows_and_images
from workbench.reporting.sweep.row import open_row
from workbench.runs.store import find_runs

SCENES = (
    "data.name=scenes",
    "data.size=32",
    "data.limit=120",
    "vae.name=identity",
    "backbone.patch=8",
    "backbone.size=pico",
    "training.steps=4",
    "training.batch=4",
    "training.log_every=2",
    "training.checkpoint_every=2",
    "training.milestone_every=2",
)

pytestmark = pytest.mark.slow


@pytest.fixture(scope="module")
def scenes(tmp_path_factory):
    """The arguments of every figure for a teacher, a plain and a guided run of scenes."""
    root = tmp_path_factory.mktemp("scenes-runs")
    for suffix in ("-plain", ""):
        open_row(f"laptop/sit-nano-2{suffix}", shared=SCENES, seed=0, evaluate={"count": 20}, root=root).train()
    return {"scale": "laptop", "seeds": (0,), "root": root, "overrides": SCENES}


def texts_in(figure):
    return [text.get_text() for axis in figure.axes for text in axis.texts]


def column(table, name):
    return [row.cells[[column.name for column in table.columns].index(name)] for row in table.rows]


def test_the_maps_of_layers_are_outlined_and_measured(scenes):
    made = paper.fig9(**scenes, images=2, eval_images=60, layers=[2, 6])
    (axis,) = made.figures["layers"].axes
    # Twice, white and black, on the image and two layers of two models and two images.
    assert len(axis.collections) == 2 * 3 * 4
    numbers = [text for text in texts_in(made.figures["layers"]) if text]
    assert len(numbers) == 2 * 4 and all(0 <= float(number) <= 1 for number in numbers)
    table = made.tables["layers"]
    plain = next(run for run in made.runs if run.config.name.endswith("plain"))
    objects = objects_of(plain, rows_and_images(plain, 2)[0], 60)
    areas = column(table, "object against background")
    features = extract(plain, objects.rows, [6], [0.7], labels=("true",), root=scenes["root"])
    found = objects.measured(features.read(6, 0.7, "true"))
    assert areas[1].value == found.auc_same_place.value and areas[1].n == 30 and areas[1].interval
    assert "object" in made.claims[1].claim and "guided minus plain" in made.claims[1].confidence
    assert "Outlined is the object" in made.caption and not made.remarks


def test_the_guiding_features_are_outlined_and_measured(scenes):
    made = paper.fig1(**scenes, images=2, eval_images=60)
    # Five targets, of which REPA's, SRA's and LayerSync's are computed by the plain run.
    targets = made.tables["guides"]
    assert column(targets, "target") == ["REPA", "LayerSync", "SRA", "VAE latent", "ours"]
    assert all(
        0 <= number.low <= number.value <= number.high <= 1 for number in column(targets, "intersection over union")
    )
    assert len([text for text in texts_in(made.figures["guides"]) if text]) == 10
    assert len(column(made.tables["layers"], "object against background")) == 2 * 2
    beside = paper.fig2(**scenes, images=60, view=False).tables["separability"]
    areas = dict(zip(column(beside, "features"), column(beside, "object against background"), strict=True))
    assert len(areas) == 8 and areas["wrong label, by given"] == areas["wrong label, by true"]


def test_guidance_is_measured_over_its_scale(scenes):
    made = paper.objects(**scenes, images=2, eval_images=60, layers=[2], scales=(0.0, 10.0), view=False)
    assert set(made.figures) == {"maps", "place", "class"}
    assert all(len(made.figures[name].axes[0].lines) == 5 for name in ("place", "class"))
    table = made.tables["separation"]
    assert len(table.rows) == 2 * (1 + 3 * 3)  # of two layers: f_u, and three versions at 0, 10 and the guiding 30
    gains = [number for number in column(table, "gain over f_u") if number is not None]
    assert len(gains) == 2 * 2 * 3 and gains[0].value == 0
    assert len(made.claims) == 5 and "w = 30" in made.claims[0].claim
    assert made.tables["difference"].rows[0].cells[2].n == 60


def test_pictured_images_are_measured_and_never_fitted_on(scenes):
    run = find_runs(scenes["root"])[0]
    objects = objects_of(run, [7, 5, 90], 40)
    assert isinstance(objects, Objects) and objects.rows[:3] == [7, 5, 90] and len(set(objects.rows)) == 40
    assert {0, 1, 2} <= set(objects.masks.held) and not {0, 1, 2} & set(objects.masks.fit)
    masks = load_images(run.config.data, "train").masks([7, 5, 90]).numpy()
    assert all((own == mask).all() for own, mask in zip(objects.outlines, masks, strict=True))
