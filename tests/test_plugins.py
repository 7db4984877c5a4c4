"""Plug-ins from outside the package: found by entry point and by module path, and never named by a run folder."""

import contextlib
import importlib
import os
import re
import sys
import tomllib
from pathlib import Path

import numpy as np
import pytest
import yaml
from hypothesis import given
from hypothesis import strategies as st

import workbench as wb
from workbench import plugins
from workbench.__main__ import main
from workbench.cli.sweep import _scores
from workbench.config import from_dict, load_config, plugin_class, plugin_options, to_dict, to_yaml
from workbench.config.declared import declared
from workbench.data.images import from_arrays, load_images
from workbench.evaluation import metrics, suite
from workbench.evaluation.detectors.base import load_detector
from workbench.evaluation.suite import score
from workbench.reporting import figures, paper
from workbench.reporting.sweep.row import open_row
from workbench.reporting.sweep.specification import load_sweep
from workbench.runs.index import runs_table
from workbench.runs.store import Run, find_runs, open_run, prepare_run
from workbench.training.loop import fit

OWN = {"objective": "token_mean", "backbone": "mixer", "data": "shapes"}
MEASURING = {"detector": "patches", "score": "spread"}
PICO = (
    "vae.name=identity",
    "backbone.size=pico",
    "backbone.patch=16",
    "data.limit=16",
    "training.steps=2",
    "training.batch=4",
    "training.log_every=1",
    "training.checkpoint_every=2",
)


def blocks() -> dict[str, str]:
    """The files of the page on extending, by name."""
    page = (Path(__file__).parents[1] / "docs" / "extending.md").read_text(encoding="utf-8")
    return dict(re.findall(r'^```\w+ title="([^"]+)"\n(.*?)^```$', page, re.M | re.S))


def register(folder: Path, name: str, entry_points: dict[str, dict[str, str]]) -> None:
    """What pip leaves of an installed package, as far as entry points need it."""
    info = folder / f"{name}-1.0.dist-info"
    info.mkdir()
    (info / "METADATA").write_text(f"Metadata-Version: 2.1\nName: {name}\nVersion: 1.0\n")
    groups = [
        f"[{group}]\n" + "".join(f"{k} = {v}\n" for k, v in named.items()) for group, named in entry_points.items()
    ]
    (info / "entry_points.txt").write_text("\n".join(groups))


@pytest.fixture
def outside(tmp_path, monkeypatch):
    """The page's package on the path, not registered; nothing is allowed, and what is imported is forgotten."""
    folder = tmp_path / "outside"
    (folder / "mypkg").mkdir(parents=True)
    for name, text in blocks().items():
        (folder / name).write_text(text, encoding="utf-8")
    monkeypatch.setenv(plugins.VARIABLE, "")
    monkeypatch.setenv("WORKBENCH_RUNS", str(tmp_path / "runs"))
    monkeypatch.syspath_prepend(folder)
    importlib.invalidate_caches()
    yield folder
    for module in [name for name in sys.modules if name.split(".")[0] in ("mypkg", "evil")]:
        del sys.modules[module]
    for cached in (metrics._everything_of, suite._detector):
        cached.cache_clear()


@pytest.fixture
def installed(outside):
    """The page's package, its entry points registered as its pyproject.toml says."""
    register(outside, "mypkg", tomllib.loads(blocks()["pyproject.toml"])["project"]["entry-points"])
    importlib.invalidate_caches()
    plugins._entry_points.cache_clear()
    yield outside
    plugins._entry_points.cache_clear()


def train(*overrides: str) -> Run:
    main(["train", "demo/plain", *PICO, *overrides])
    return find_runs()[-1]


def named(prefix: str = "") -> list[str]:
    """Overrides that choose the page's three plug-ins."""
    return [f"{kind}.name={prefix}{name}" for kind, name in OWN.items()]


def test_the_page_has_a_file_of_each_kind():
    named = {*OWN.values(), *MEASURING.values()}
    shown = {"mypkg/norms.py", "mypkg/norms.js", "mypkg/speed.py"}
    assert {f"mypkg/{name}.py" for name in named} | {"pyproject.toml"} | shown == blocks().keys()


@pytest.mark.parametrize("kind", OWN)
def test_a_plug_in_is_trained_by_its_registered_name_and_by_its_path(installed, kind):
    data = [] if kind == "data" else ["data.name=digits"]
    for name in (OWN[kind], f"mypkg.{OWN[kind]}"):
        run = train(*data, f"{kind}.name={name}")
        assert run.status["state"] == "finished" and to_dict(run.config)[kind]["name"] == name
        assert [record["step"] for record in run.metrics] == [1, 2]
        assert all((record["alignment"] is not None) == (kind == "objective") for record in run.metrics)
    assert len(find_runs()) == 2


def test_a_run_of_all_three_is_scored_and_listed(installed, capsys):
    run = train(*named(), "data.limit=100")  # the detector has 64 principal directions
    sampled = ["sampling.count=8", "sampling.steps=2"]
    main(["evaluate", run.name, *sampled, "--detector", "pixels-pca64", "--small-ok"])
    (row,) = runs_table(run.folder.parent)
    assert (row.method, row.backbone, row.damage) == ("token_mean", "mixer-pico", "") and row.scores
    capsys.readouterr()
    main(["runs"])
    assert "token_mean" in capsys.readouterr().out


def test_names_are_listed_and_the_nearest_is_said(installed):
    for kind, name in (OWN | MEASURING).items():
        assert name in plugins.names(kind) and plugins.names(kind) == list(dict.fromkeys(plugins.names(kind)))
    for override, nearest in (("objective.name=token_maen", "token_mean"), ("backbone.name=mixr", "mixer")):
        with pytest.raises(ValueError, match=f"did you mean '{nearest}'"):
            load_config("demo/plain", [override])
    with pytest.raises(ValueError, match="data.name 'shape' is not known; did you mean 'shapes'"):
        load_images(load_config("demo/plain", ["data.name=shape"]).data, "train")


def test_options_are_those_of_the_class_and_keep_their_ranges(outside):
    config = load_config("demo/plain", ["objective.name=mypkg.token_mean", "objective.weight=0.3"])
    assert config.objective.options == {"layer": 4, "weight": 0.3, "stop_step": None}
    assert from_dict(yaml.safe_load(to_yaml(config))) == config
    for override, said in (("layer=13", "outside 1..12"), ("weight=-1", "at least 0"), ("layr=1", "mean 'layer'")):
        with pytest.raises(ValueError, match=said):
            load_config("demo/plain", ["objective.name=mypkg.token_mean", f"objective.{override}"])


def test_recipes_place_methods_on_a_backbone_of_a_known_depth(outside):
    mixer = ["backbone.name=mypkg.mixer", "recipe=paper"]
    for method, option, layer in (
        ("sra", "teacher_layer", 8),
        ("repa", "layer", 4),
        ("self_transcendence", "layer", 6),
    ):
        teacher = ["objective.teacher=demo/teacher"] if method == "self_transcendence" else []
        config = load_config("demo/plain", [*mixer, f"objective.name={method}", *teacher])
        assert config.objective.options[option] == layer and "qk_norm" not in config.backbone.options
    both = load_config("demo/plain", [*mixer, "objective.name=mypkg.token_mean"])
    assert both.objective.options["layer"] == 4
    with pytest.raises(ValueError, match="turns on backbone.qk_norm, which backbone 'mypkg.mixer' does not have"):
        load_config("demo/plain", ["backbone.name=mypkg.mixer", "objective.name=vae_align", "recipe=released"])


def test_dit_is_placed_as_sit_and_a_backbone_of_its_own_rows_is_not():
    def placed(*overrides: str) -> dict:
        chosen = ["objective.name=self_transcendence", "objective.teacher=demo/teacher", "recipe=paper", *overrides]
        return dict(load_config("demo/plain", chosen).objective.options)

    for size in ("b", "l", "xl"):
        assert placed("backbone.name=dit", f"backbone.size={size}") == placed(f"backbone.size={size}")
    assert placed("backbone.name=lightningdit", "backbone.size=b")["guidance_scale"] == 10.0
    with pytest.raises(ValueError, match="no published placement for this objective on lightningdit of depth 24"):
        placed("backbone.name=lightningdit", "backbone.size=l")


def test_a_method_without_recipes_is_trained_under_a_preset_with_one(outside):
    text = (outside / "mypkg" / "token_mean.py").read_text().replace("RECIPES", "_RECIPES")
    (outside / "mypkg" / "plain.py").write_text("from __future__ import annotations\n" + text)
    (outside / "mine.yaml").write_text("base: demo/plain\nrecipe: paper\n")
    config = load_config(outside / "mine.yaml", ["objective.name=mypkg.plain"])
    assert config.objective.options["weight"] == 0.1
    with pytest.raises(ValueError, match="recipe 'released' is not known"):
        load_config(outside / "mine.yaml", ["objective.name=mypkg.plain", "recipe=released"])


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("x = 1", "mypkg.bad has no Objective; it must be a subclass of workbench.objectives.base.Objective"),
        ("Objective = 3", "mypkg.bad has an invalid Objective; it must be"),
        ("class Objective: pass", "mypkg.bad has an invalid Objective; it must be"),
        ("x = 1\nraise KeyError('a')", r"cannot be imported: KeyError: 'a' \(.*bad.py, line 2\)"),
        ("import nosuchthing", r"cannot be imported: .*nosuchthing.*bad.py, line 1"),
        ("x = (", "cannot be imported: .*bad.py, line 1: '.' was never closed"),
        ("raise SystemExit(3)", "cannot be imported: SystemExit: 3"),
        (
            "from workbench.objectives import base\nclass Objective(base.Objective):\n"
            "    def __init__(self, context, *, a: list[int] = ()): super().__init__(context)",
            "objective.a of 'mypkg.bad' has a type that no option can have; allowed: int, float",
        ),
    ],
)
def test_a_plug_in_that_cannot_be_used_is_refused_in_a_sentence(outside, capsys, text, said):
    (outside / "mypkg" / "bad.py").write_text(text)
    with pytest.raises(SystemExit) as ended:
        main(["train", "demo/plain", "objective.name=mypkg.bad"])
    lines = capsys.readouterr().err
    assert ended.value.code == 2 and lines.count("\n") == 1 and re.search(said, lines), lines


def test_paths_that_lead_nowhere(outside):
    for name, said in (
        ("nosuchpkg.method", "there is no module nosuchpkg; install its package, or add its folder to"),
        ("mypkg.nothing", "there is no module mypkg.nothing"),
        ("mypkg.token_mean:Nothing", "has no Nothing"),
        ("mypkg..token_mean", "'mypkg..token_mean' is not known"),
        ("../mypkg/token_mean.py", "is not known"),
    ):
        with pytest.raises(ValueError, match=re.escape(said)):
            load_config("demo/plain", [f"objective.name={name}"])
    plugins.allow("mypkg.token_mean")
    assert plugin_class("objective", "mypkg.token_mean:Objective").__name__ == "Objective"


def test_a_name_that_is_registered_twice_is_refused_and_our_own_are_kept(installed):
    register(installed, "other", {"workbench.objectives": {"token_mean": "evil.method", "repa": "evil.method"}})
    importlib.invalidate_caches()
    plugins._entry_points.cache_clear()
    with pytest.raises(ValueError, match="'token_mean' is registered by mypkg and other; give the module path of one"):
        load_config("demo/plain", ["objective.name=token_mean"])
    assert plugin_class("objective", "repa").__module__ == "workbench.objectives.repa"
    assert plugins.names("objective").count("repa") == 1


def test_a_data_set_must_give_images(outside):
    (outside / "mypkg" / "none.py").write_text("def load(config, split): return 3")
    with pytest.raises(ValueError, match="data.name 'mypkg.none' returned int; it must return"):
        load_images(load_config("demo/plain", ["data.name=mypkg.none"]).data, "train")
    import numpy as np

    pixels, labels = np.zeros((2, 1, 4, 4), np.uint8), np.array([0, 1])
    for wrong, said in (
        ((pixels.astype(float), labels), "must be uint8"),
        ((pixels[:, :, :2], labels), "must be uint8 of shape n c h h"),
        ((pixels, labels[:1]), "need 2 integer labels"),
        ((pixels, labels + 1), "have labels 1..2; 2 classes have 0..1"),
    ):
        with pytest.raises(ValueError, match=said):
            from_arrays("toy", "train", *wrong, ("a", "b"), "here")


# Of somebody else's runs: a module that says when it is imported.


@pytest.fixture
def foreign(outside, tmp_path):
    """A run folder that names, in each of the three places in turn, a module of ours that nobody allowed."""
    (outside / "evil").mkdir()
    mark = tmp_path / "imported"
    (outside / "evil" / "__init__.py").write_text(f"open({str(mark)!r}, 'w').close()\n")
    for name, text in blocks().items():
        if name.endswith(".py"):
            (outside / "evil" / Path(name).name).write_text(text)

    def make(kind: str, **more) -> Run:
        run = prepare_run(load_config("demo/plain", [*PICO, "data.name=digits"]), tmp_path / "runs")
        tree = to_dict(run.config)
        tree[kind] = {"name": f"evil.{OWN[kind]}", **more}
        (run.folder / "config.yaml").write_text(yaml.safe_dump(tree))
        return Run(run.folder)

    yield make
    assert not mark.exists(), "the module of a run folder was imported"


@pytest.mark.parametrize("kind", OWN)
def test_a_run_folder_cannot_name_a_module(foreign, capsys, kind):
    run = foreign(kind)
    said = (
        f"{kind}.name 'evil.{OWN[kind]}' is a module that was not named in this command: if you trust its code, add "
        f"--plugin evil.{OWN[kind]} to the command"
    )
    with pytest.raises(ValueError, match=re.escape(f"{run.folder}/config.yaml cannot be used: {said}")):
        _ = run.config
    for arguments in (["evaluate", run.name], ["train", str(run.folder / "config.yaml")], ["resume", run.name]):
        with pytest.raises(SystemExit):
            main(arguments)
        assert said in capsys.readouterr().err, arguments
    (row,) = runs_table(run.folder.parent)
    assert row.state == "created"
    # Nor does what builds on it, and what it builds on, become the user's by that.
    mine = run.folder.parent / "mine.yaml"
    mine.write_text(f"base: {run.folder / 'config.yaml'}\n")
    (run.folder / "more.yaml").write_text(f"{kind}: {{name: evil.{OWN[kind]}}}\n")
    (run.folder / "config.yaml").write_text(f"base: [demo/plain, {run.folder / 'more.yaml'}]\nname: x\n")
    for source in (mine, run.folder / "config.yaml"):
        with pytest.raises(ValueError, match="is a module that was not named in this command"):
            load_config(source)
    outside_of_it = run.folder.parent / "more.yaml"
    outside_of_it.write_text(f"{kind}: {{name: evil.{OWN[kind]}}}\n")
    (run.folder / "config.yaml").write_text(f"base: [demo/plain, {outside_of_it}]\nname: x\n")
    with pytest.raises(ValueError, match="is a module that was not named in this command"):
        load_config(mine)


def test_nor_can_a_teacher(foreign, tmp_path):
    run = foreign("backbone")
    with pytest.raises(ValueError, match="is a module that was not named in this command"):
        prepare_run(load_config("demo/guided", [f"objective.teacher={run.folder}"]), tmp_path / "others")


def test_nor_can_the_index_of_runs_or_what_a_student_hands_to_its_teacher(foreign):
    run = foreign("data")
    tree = yaml.safe_load((run.folder / "config.yaml").read_text())
    tree["objective"] = to_dict(load_config("demo/guided"))["objective"]  # its teacher is a preset
    (run.folder / "config.yaml").write_text(yaml.safe_dump(tree))
    root = run.folder.parent
    (row,) = runs_table(root)
    assert row.teacher == "demo/teacher" and not row.damage
    index = (root / ".index.json").read_text()
    changes = '"teacher_changes": ["backbone.name=evil.mixer"]'
    (root / ".index.json").write_text(index.replace('"teacher_changes": []', changes))
    assert changes in (root / ".index.json").read_text()
    runs_table(root)
    assert "evil" not in os.environ[plugins.VARIABLE]


def test_a_run_is_opened_once_its_modules_are_named(outside, monkeypatch, capsys):
    run = train(*named("mypkg."))
    assert Run(run.folder).config.backbone.name == "mypkg.mixer"  # named by the command that trained it
    monkeypatch.setenv(plugins.VARIABLE, "")
    with pytest.raises(ValueError, match="is a module that was not named in this command"):
        _ = open_run(run.name).config
    allowed = [argument for name in OWN.values() for argument in ("--plugin", f"mypkg.{name}")]
    main(["train", str(run.folder / "config.yaml"), *allowed])
    assert "finished at step 2" in capsys.readouterr().out
    for arguments in (["runs", "--plugin"], ["--plugin=", "runs"], ["runs", "--plugin", "../x.py"]):
        with pytest.raises(SystemExit):
            main(arguments)
        assert "--plugin takes a module" in capsys.readouterr().err


def test_a_module_that_an_installed_package_registers_needs_no_naming(installed):
    tree = to_dict(load_config("demo/plain"))
    tree["objective"] = {"name": "mypkg.token_mean"}
    assert from_dict(tree).objective.options["layer"] == 4
    assert not os.environ[plugins.VARIABLE]


@pytest.mark.fuzz
@given(
    kind=st.sampled_from(sorted(OWN)),
    name=st.one_of(
        st.text(max_size=30),
        st.from_regex(r"\A[a-z_.:]{1,12}(\.[a-z:]{1,9}){0,3}\Z"),
        st.sampled_from(
            ["antigravity", "this", "idlelib.idle", "turtledemo.clock:main", "a.b:c.d", "_a.b", ".a", "a."]
        ),
    ),
)
def test_a_tree_that_was_read_imports_nothing(kind, name):
    tree = to_dict(load_config("demo/plain"))
    tree[kind] = {"name": name}
    before = set(sys.modules)
    with contextlib.suppress(ValueError):
        from_dict(tree)
    assert {module for module in set(sys.modules) - before if not module.startswith("workbench.")} == set()


def test_what_a_module_path_is():
    for name in ("a.b", "a:B", "a.b.c:D", "_a.b1"):
        assert plugins.is_path(name)
    for name in (
        "a",
        "repa",
        "fashion-mnist",
        "a..b",
        ".a",
        "a.",
        "a:",
        ":a",
        "a:b:c",
        "a.b:c.d",
        "1a.b",
        "a/b.c",
        "a.b\n",
        "",
    ):
        assert not plugins.is_path(name)
    assert plugins.is_path(name) == bool(
        re.fullmatch(r"[^\W\d]\w*(\.[^\W\d]\w*)*(:[^\W\d]\w*)?", name) and {*".:"} & {*name}
    )


@pytest.mark.parametrize(("kind", "name"), [(k, n) for k in ("objective", "backbone") for n in plugins.names(k)])
def test_what_the_source_declares_is_what_the_class_has(kind, name):
    imported = declared(kind, name)  # the class is loaded by now
    plugins.load(kind, name)
    module = plugins.own_module(kind, name)
    with pytest.MonkeyPatch.context() as patch:
        patch.delitem(sys.modules, module)
        read = declared(kind, name)
        assert module not in sys.modules
    assert (read.options, read.sizes, read.placement) == (imported.options, imported.sizes, imported.placement)
    assert read.compares_samples == imported.compares_samples and read.recipes.keys() == imported.recipes.keys()
    for one, other in zip(read.recipes.values(), imported.recipes.values(), strict=True):
        for key, value in one.items():
            assert callable(value) or value == other[key]
            assert not callable(value) or [value(d) for d in (12, 28)] == [other[key](d) for d in (12, 28)]
    options = {key: option.default for key, option in read.options.items()}
    assert read.deciding(options) == imported.deciding(options)


def test_options_of_all_that_are_registered_are_typed():
    for kind in ("objective", "backbone"):
        for name in plugins.names(kind):
            assert plugin_options(kind, name) is not None


# Detectors and scores.

FEW = ("sampling.count=16", "sampling.steps=2", "--small-ok")
DIGITS = ("data.name=digits", "data.limit=40")


def trained(batch: int) -> Run:
    return train(*DIGITS, f"training.batch={batch}")


def text_of(name: str) -> str:
    return blocks()[f"mypkg/{name}.py"]


def test_a_registered_detector_and_score_are_used_to_the_end(installed, capsys, monkeypatch):
    runs = [trained(batch) for batch in (4, 8)]  # 4 is the batch of PICO
    for run in runs:
        main(["evaluate", run.name, *FEW, "--detector", "patches"])
    assert "spread-patches" in capsys.readouterr().out
    spread, fd = ({r["metric"]: r for r in runs[0].results}[f"{kind}-patches"] for kind in ("spread", "fd"))
    assert spread["detector"] == "patches" and spread["variance"] > 0 and spread["floor"] > 0 and fd["d"] == 32
    assert "is-patches" not in {r["metric"] for r in runs[0].results}  # which needs class scores
    main(["compare", *(run.name for run in runs)])
    sentence = next(line for line in capsys.readouterr().out.splitlines() if line.startswith("spread-patches at"))
    larger = runs[1].results[-1]["value"] > runs[0].results[-1]["value"]
    assert ("is higher (better) than" if larger else "is lower (worse) than") in sentence
    main(["runs"])
    table = capsys.readouterr().out
    assert "spread-patches" in table and f"{spread['value']:.4g}" in table
    assert metrics.metric_title("spread-patches") == "spread-patches" and metrics.metric_title("spread") == "spread"
    axis = figures.score_curves({"plain": runs[0]}, "spread-patches").axes[0]
    assert axis.get_ylabel() == "spread-patches (higher is better)"
    # The row of a sweep that is this run, and what the sweep prints of it.
    row = open_row("demo/plain", [*PICO, *DIGITS], evaluate={"count": 16, "steps": 2, "detector": "patches"})
    assert row.train().name == runs[0].name
    scores = {record["metric"]: record["value"] for record in row.score().records}
    columns = _scores([{"row": "plain", "seed": 0, "run": row.run.name, "scores": scores}]).columns
    assert [column.header for column in columns[3:]] == ["fd-patches", "kid-patches", "spread-patches"]
    assert not os.environ[plugins.VARIABLE]


def test_they_are_used_by_module_path(outside, capsys, monkeypatch):
    run = trained(4)
    main(["evaluate", run.name, *FEW, "--detector", "mypkg.patches", "--plugin", "mypkg.spread"])
    assert "spread-patches" in capsys.readouterr().out
    main(["reference", "demo/plain", str(outside / "digits.npz"), *DIGITS, "--detector", "mypkg.patches"])
    value = next(r["value"] for r in run.results if r["metric"] == "spread-patches")
    # Another process, which does not name them, lists what it does not know, and imports nothing.
    monkeypatch.setenv(plugins.VARIABLE, "")
    for module in ("mypkg", "mypkg.patches", "mypkg.spread"):
        del sys.modules[module]
    assert metrics.find_metric("spread-patches") is None
    main(["runs"])
    table = capsys.readouterr().out
    assert "spread-patches" in table and f"{value:.4g}" in table and "fd-patches" in table
    assert "density-patches" not in table  # as of the detectors that are known
    said = "detector 'mypkg.patches' is a module that was not named in this command"
    with pytest.raises(ValueError, match=said):
        score(run, 2, run.config.sampling, detector="mypkg.patches", small_ok=True)
    assert "mypkg.patches" not in sys.modules and "mypkg.spread" not in sys.modules


def test_what_a_run_folder_says_of_its_scores_imports_nothing(foreign, tmp_path):
    run = foreign("data")
    (tmp_path / "outside" / "evil" / "spread.py").write_text("raise SystemExit")
    for metric in ("spread-clf64", "evil.spread", "fd-evil.patches", "evil.spread-evil.patches"):
        run.append("results.jsonl", {"metric": metric, "value": 1.0, "step": 1, "detector": "evil.patches"})
    (row,) = runs_table(run.folder.parent)
    assert len(row.scores) == 4 and not row.damage
    names = [name for name, _ in row.scores]
    assert metrics.columns(names) == sorted(names) and metrics.in_order(names) == sorted(names)
    assert not any(map(metrics.find_metric, names))
    sweep = run.folder / "sweep.yaml"
    sweep.write_text("base: demo/plain\nevaluate: {detector: evil.patches}\n")
    with pytest.raises(ValueError, match="detector 'evil.patches' is a module that was not named in this command"):
        load_sweep(sweep)
    mine = tmp_path / "sweep.yaml"
    mine.write_text(sweep.read_text())
    assert load_sweep(mine).evaluate.detector == ("evil.patches",)


METRIC = "from workbench.evaluation.metrics import Metric\nMETRIC = Metric("


@pytest.mark.parametrize(
    ("text", "said"),
    [
        (METRIC + "title='x', measure=print)", "cannot be imported: TypeError: .* argument: 'better' .*bad.py, line 2"),
        (METRIC + "better='lower', measure=print)", "cannot be imported: TypeError: .* argument: 'title'"),
        (METRIC + "title='x', better='lower')", "cannot be imported: TypeError: .* argument: 'measure'"),
        (METRIC + "title='x', better='down', measure=print)", "better is 'down'; allowed are 'lower', 'higher', ''"),
        (METRIC + "title='x', better='lower', beter='higher', measure=print)", "unexpected keyword argument 'beter'"),
        ("METRIC = 3", "mypkg.bad has an invalid METRIC; it must be a workbench.evaluation.metrics.Metric"),
        ("x = 1\nraise KeyError('a')", r"score 'mypkg.bad' cannot be imported: KeyError: 'a' \(.*bad.py, line 2\)"),
    ],
)
def test_a_score_that_cannot_be_used_is_refused_before_anything_is_seen(outside, capsys, monkeypatch, text, said):
    run = prepare_run(load_config("demo/plain", [*PICO, *DIGITS]), outside.parent / "runs")
    (outside / "mypkg" / "bad.py").write_text(text)
    with pytest.raises(SystemExit) as ended:
        main(["evaluate", run.name, "--plugin", "mypkg.bad"])
    lines = capsys.readouterr().err
    assert ended.value.code == 2 and lines.count("\n") == 1 and re.search(said, lines), lines
    # What is stored can still be listed.
    run.append("results.jsonl", {"metric": "bad-clf64", "value": 0.5, "step": 1})
    main(["runs", "--plugin", "mypkg.bad"])
    told = capsys.readouterr()
    assert "bad-clf64" in told.out and re.search(said, told.err)


@pytest.mark.parametrize(
    ("returned", "said"),
    [
        ("3.0", "score 'bad' returned 3.0; it must return a dict with a Python number under 'value'"),
        ("{'vlue': 3}", "returned {'vlue': 'int'}; it must return"),
        ("{'value': of.generated.features.sum()}", "returned {'value': 'Tensor'}; it must return"),
        ("{'value': float('nan')}", "bad-patches cannot hold value = nan"),
        ("{'value': 1, 'rows': of.generated.features}", "returned values that cannot be stored: .*Tensor"),
        ("{'value': 1, 'metric': 'fid'}", "returned the reserved key 'metric'; choose another name"),
    ],
)
def test_a_score_that_gives_no_number_is_refused(outside, run_of_digits, returned, said):
    text = text_of("spread").replace('{"value": float(generated / real), "variance": float(generated)}', returned)
    (outside / "mypkg" / "bad.py").write_text(text.replace(" -> dict[str, float]", ""))
    plugins.allow("mypkg.bad", "mypkg.patches")
    with pytest.raises(ValueError, match=said):
        score(run_of_digits, 2, run_of_digits.config.sampling, detector="mypkg.patches", small_ok=True)
    assert not run_of_digits.results


@pytest.fixture(scope="module")
def run_of_digits(tmp_path_factory):
    """A trained run whose samples and reference are found again."""
    root = tmp_path_factory.mktemp("digits")
    config = load_config("demo/plain", [*PICO, *DIGITS, *FEW[:2]])
    for _ in fit(config, root):
        pass
    return prepare_run(config, root)


def test_no_number_is_stored_under_the_name_of_another(outside):
    (outside / "mypkg" / "fid.py").write_text(text_of("spread"))
    (outside / "mypkg" / "kid.py").write_text(text_of("spread"))
    (outside / "mypkg" / "mine.py").write_text(
        text_of("spread").replace("measure=measure", "measure=measure, fid_name='is'")
    )
    (outside / "mypkg" / "clf64.py").write_text(text_of("patches").replace('"patches"', '"clf64"'))
    (outside / "mypkg" / "inception_2015.py").write_text(text_of("patches").replace('"patches"', '"inception-2015"'))
    (outside / "mypkg" / "inf.py").write_text(text_of("patches"))
    for score_path, said in (
        ("mypkg.fid", "score 'mypkg.fid' by detector inception-2015 would be stored as 'fid', as FD"),
        ("mypkg.kid", "score 'mypkg.kid' would be called 'kid', as the workbench's own; rename it"),
        ("mypkg.mine", "score 'mypkg.mine' by detector inception-2015 would be stored as 'is', as IS"),
    ):
        with pytest.MonkeyPatch.context() as patch:
            patch.setenv(plugins.VARIABLE, score_path)
            with pytest.raises(ValueError, match=re.escape(said)):
                metrics.metrics()
            with pytest.warns(UserWarning, match=re.escape(said)):
                assert metrics.find_metric("mine-clf64") is None
            assert metrics.metric_title("fid") == "FID" and metrics.metric_title("is") == "IS"
    plugins.allow("mypkg.clf64", "mypkg.inception_2015", "mypkg.inf", "mypkg.patches", "mypkg.token_mean")
    for path, said in (
        ("mypkg.clf64", "detector 'mypkg.clf64' would be called 'clf64', as the workbench's own; rename it"),
        ("mypkg.inception_2015", "would be called 'inception-2015', as the workbench's own; rename it"),
        ("mypkg.inf", "detector 'mypkg.inf' has the name 'patches'; it must be 'inf'"),
        ("mypkg.token_mean", "mypkg.token_mean has no load; it must be a function load(device)"),
    ):
        with pytest.raises(ValueError, match=re.escape(said)):
            load_detector(path)
    assert load_detector("mypkg.patches").name == "patches"


def test_a_detector_is_checked_as_it_is_loaded(outside):
    (outside / "mypkg" / "three.py").write_text("def load(device): return 3")
    plugins.allow("mypkg.three")
    with pytest.raises(ValueError, match="detector 'mypkg.three' returned int; it must return workbench's Detector"):
        load_detector("mypkg.three")
    for name, said in (
        ("ptches", "'ptches' is not known"),
        ("mypkg.none", "'mypkg.none' is a module that was not named in this command"),
    ):
        with pytest.raises(ValueError, match=said):
            load_detector(name)
        with pytest.raises(ValueError, match=said):
            metrics.stored_names(name)


def test_one_module_can_have_several(outside):
    two = (
        text_of("spread").replace("METRIC =", "FIRST =")
        + 'SECOND = Metric(title="second", better="lower", measure=measure)\n'
    )
    (outside / "mypkg" / "several.py").write_text(two)
    plugins.allow("mypkg.several:FIRST", "mypkg.several:SECOND", "mypkg.token_mean:Objective")
    names = metrics.stored_names("clf64")
    assert (names["FIRST"], names["SECOND"]) == ("FIRST-clf64", "SECOND-clf64")
    assert (
        metrics.get_metric("SECOND-clf64").better == "lower" and metrics.metric_title("FIRST-clf64") == "spread-clf64"
    )


@pytest.mark.fuzz
@given(st.text(max_size=30) | st.from_regex(r"\A[a-z.:-]{1,12}(-[a-z.:]{1,9}){0,2}\Z"))
def test_a_stored_name_imports_nothing(name):
    before = set(sys.modules)
    metrics.find_metric(name)
    assert metrics.metric_title(name) and metrics.columns([name]) in ([name], []) or not name
    with contextlib.suppress(ValueError):
        metrics.stored_names(name)
    assert {module for module in set(sys.modules) - before if not module.startswith("workbench.")} == set()


# Views and figures.


@pytest.fixture
def page_of(browser):
    """page_of(file) -> an exported page in the browser; the test fails if it asked for anything or had errors."""
    wrong, context = [], browser.new_context(viewport={"width": 800, "height": 700}, offline=True)

    def opened(file: Path):
        page = context.new_page()
        page.on("console", lambda said: said.type in ("error", "warning") and wrong.append(said.text))
        page.on("pageerror", lambda error: wrong.append(str(error)))
        page.on("request", lambda asked: asked.url.startswith(("http", "ws")) and wrong.append(asked.url))
        page.goto(file.as_uri())
        page.wait_for_selector(".wb-foot")
        return page

    yield opened
    context.close()
    assert not wrong, wrong


def test_a_registered_view_is_shown_in_a_page_and_saved(installed, page_of, tmp_path):
    run = train("data.name=digits")
    assert {"maps", "norms"} <= set(plugins.names("view")) and plugins.names("view").count("maps") == 1
    main(["page", run.name, str(tmp_path / "norms.html"), "--view", "norms", "--images", "8"])
    page = page_of(tmp_path / "norms.html")
    bars = page.locator(".wb-body rect[width='24']")
    assert bars.count() == 13
    view = wb.norms(run, images=8)
    pane = page.locator(".wb-body [role=img]")
    for t, name in enumerate(("0.1", "0.5", "0.9")):
        page.get_by_role("slider", name="t", exact=True).fill(str(t))
        page.wait_for_function("t => document.querySelector('.wb-body [role=img]').ariaLabel.endsWith(t)", arg=name)
        heights = np.array(bars.evaluate_all("all => all.map((bar) => Number(bar.getAttribute('height')))"))
        values = view.panes[0].arrays["norms"]
        assert np.allclose(heights, 160 * values[t] / values.max())
    assert pane.get_attribute("aria-label") == "norms of 13 layers at t = 0.9"
    with page.expect_download() as download:
        page.get_by_role("button", name="Save SVG").click()
    assert Path(download.value.path()).read_text().count("<rect") == 15  # two are the paper
    figure = view.figure(t=0.9, layer=3)
    assert [bar.get_height() for bar in figure.axes[0].patches] == view.panes[0].arrays["norms"][2].tolist()
    assert view.save(tmp_path / "norms.pdf", t=0.9).read_bytes().startswith(b"%PDF")
    made = f'import workbench as wb\n\nview = wb.view("mypkg.norms", {run.name!r}, images=8)\n'
    file = f'# To write the picture to a file: view.save("{view.name}.png", t=0.9, layer=6)'
    assert view.code(t=0.9) == f"{made}view.widget(t=0.9, layer=6)\n{file}\n"
    names = {}
    exec(view.code(t=0.9).partition("view.widget")[0], names)
    assert np.array_equal(names["view"].panes[0].arrays["norms"], view.panes[0].arrays["norms"])


def test_a_view_is_shown_by_its_module_path(outside, page_of, tmp_path):
    run = train("data.name=digits")
    main(["page", run.name, str(tmp_path / "norms.html"), "--view", "mypkg.norms", "--images", "8"])
    assert page_of(tmp_path / "norms.html").locator(".wb-body rect[width='24']").count() == 13
    assert not hasattr(wb, "norms")  # which is not registered here


def test_a_view_that_cannot_be_used_is_refused_in_a_sentence(outside, capsys, tmp_path):
    run = train("data.name=digits")
    (outside / "mypkg" / "bad.py").write_text("norms = 3\ndef bad(run): return 4\n")
    capsys.readouterr()
    for name, said in (
        ("norm", "view 'norm' is not known. Allowed: compare_maps, embedding, explore, leakage, lens_view, maps, samp"),
        ("mpas", "view 'mpas' is not known; did you mean 'maps'"),
        ("mypkg.nothing", "there is no module mypkg.nothing"),
        ("mypkg.bad:norms", "mypkg.bad has an invalid norms; it must be a function, called as its file, of a run that"),
        ("mypkg.bad", "view 'mypkg.bad' gave int; it must give workbench.lab.view.View"),
    ):
        with pytest.raises(SystemExit):
            main(["page", run.name, str(tmp_path / "page.html"), "--view", name])
        written = capsys.readouterr().err
        assert said in written and written.count("\n") == 1, written
    with pytest.raises(SystemExit):
        main(["page", run.name, str(tmp_path / "page.html"), "--view", "mypkg.bad", "--images", "3"])
    assert "view 'mypkg.bad' has no number of images; omit --images" in capsys.readouterr().err
    (outside / "mypkg" / "norms.js").unlink()
    with pytest.raises(SystemExit):
        main(["page", run.name, str(tmp_path / "page.html"), "--view", "mypkg.norms", "--images", "8"])
    assert "JavaScript module of mypkg.norms.Norms cannot be read" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("script", "said"),
    [
        ("export default 3", "its module has no default export that is a function"),
        ("const a = ;", "Unexpected token ';'"),
        ("export default () => { throw new Error('no </script> here'); }", "no </script> here"),
    ],
)
def test_javascript_that_fails_is_said_in_the_page(outside, browser, tmp_path, script, said):
    (outside / "mypkg" / "norms.js").write_text(script)
    norms = importlib.import_module("mypkg.norms")
    axes = {"t": norms.Axis("t", (0.5,)), "layer": norms.Axis("layer", (1, 2))}
    view = norms.View("Bad", [norms.Norms("Norms", {"norms": np.ones((1, 2), np.float32)})], axes)
    page = browser.new_page()
    page.goto(view.save_html(tmp_path / "bad.html").as_uri())
    page.wait_for_selector(".wb-foot")
    assert said in page.get_by_role("alert").inner_text()
    page.close()


def test_a_figure_is_in_the_pages_of_a_report(installed, capsys, monkeypatch, tmp_path):
    run = train("data.name=digits")
    monkeypatch.setenv("PYTHONPATH", os.pathsep.join([str(installed), os.environ.get("PYTHONPATH", "")]))
    main(["report", "laptop", "--only", "speed,mypkg.speed:speed", "--out", str(tmp_path / "out"), "--workers", "2"])
    folder = tmp_path / "out" / "laptop"
    for name in ("speed", "mypkg.speed.speed"):
        page = (folder / f"{name}.html").read_text()
        assert f"{run.name} was the fastest at its end." in page and f'src="{name}/speed.png"' in page
        assert (folder / name / "speed.pdf").is_file() and f'href="{name}.html"' in (folder / "index.html").read_text()
    assert "--only mypkg.speed:speed" in (folder / "mypkg.speed.speed.html").read_text()
    assert "speed" in paper.names() and paper.names()[0] == "fig1"
    with pytest.raises(SystemExit):
        main(["report", "laptop", "--only", "sped"])
    assert "figure or table 'sped' is not known; did you mean 'speed'" in capsys.readouterr().err
