"""Commands that carry runs in and out: import, export, the zoo; presets."""

from workbench.commands.terminal import Console
from workbench.config import presets as preset_names
from workbench.config import refuse_unknown
from workbench.files import WEIGHT_ENDINGS
from workbench.runs.store import open_run, runs_root


def importfile(command) -> None:
    """A run of a published checkpoint."""
    from workbench.runs.imported import import_run

    run = import_run(
        command.file,
        runs_root(),
        family=command.family,
        weights=command.weights,
        name=command.name,
        codec=command.codec,
        pixel_channels=command.pixel_channels,
        height=command.height,
        classes=command.classes,
    )
    origin = run.provenance["origin"]
    said = [
        f"{origin['family']}, {origin['layout']} file: {origin['tensors']} tensors, {len(origin['heads'])} more of "
        f"heads kept apart; converted: {origin['converted']}",
        origin.get("label_table"),  # runs that were imported before do not have it
        str(run.folder),
    ]
    Console().print("\n".join(filter(None, said)), soft_wrap=True, markup=False)


def exportrun(command) -> None:
    """A run's weights for other code."""
    if command.family != "diffusers":
        refuse_unknown("the ending of a checkpoint's name", command.path.suffix, WEIGHT_ENDINGS)
    from workbench.runs.imported import export_diffusers, export_run

    run = open_run(command.run)
    step = run.checkpoint(command.step).step
    chosen = {"step": step, "weights": command.weights}
    if command.family == "diffusers":
        path = export_diffusers(run, command.path, **chosen)
    else:
        path = export_run(run, command.path, family=command.family, **chosen)
    Console().print(f"{run.name}, step {step}, as {command.family}: {path}", soft_wrap=True)


def zoo(command) -> None:
    """The shipped runs, opened or made."""
    from workbench.runs.zoo import ANIMALS, pack
    from workbench.runs.zoo import zoo as opened

    folders = pack(runs_root()) if command.pack else [opened(name, runs_root()).folder for name in ANIMALS]
    Console().print("\n".join(map(str, folders)), soft_wrap=True)


def presets(command) -> None:
    """Names of the presets."""
    print("\n".join(preset_names()))
