"""Build the index, pages, README and PDF of the artifacts in a folder."""

from pathlib import Path

from workbench.reporting import paper
from workbench.reporting.build.pdf import write_pdf
from workbench.reporting.build.pages import RECORD, RUNS, read_artifacts, write_pages, write_readme
from workbench.runs.archive import pack_records
from workbench.runs.store import Run
from workbench.runs.zoo import shipped_at
from workbench.shipped import shipped

_LEADS = {
    "demo": "Three small models, trained for minutes on two CPU cores on Fashion-MNIST: enough to show how each figure "
    "is made, not to compare methods.",
    "laptop": "All methods on two small backbones, trained for about a minute each on two CPU cores on Fashion-MNIST, "
    "with several seeds. Scores are FD-clf64, which is not FID: compare signs and order with the paper, not values.",
    "scenes": "Garments on photographs, 64 x 64 pixels, with known outlines: the models that ship with the package, one "
    "training seed each. Read it for the pictures and for what the outlines measure; the laptop report has several seeds.",
    "paper": "The paper's experiments on ImageNet, from the existing runs.",
}


def assemble(scale: str, folder: Path, command: str, root: Path, small: bool = False) -> Path:
    """Write index, pages, README.md and PDF of the artifacts in `folder`; return the index, or README.md if `small`.

    With `small` the folder suits a repository: pictures, tables and JSON, without views and executed notebooks, and
    with the records of the runs under `root` in ``runs.zip``.
    """
    title, lead = f"Self-Transcendence, {scale} report", _LEADS[scale]
    ours = [paper.folder_of(name) for name in paper.names()]
    others = sorted(file.parent.name for file in folder.glob(f"[!.]*/{RECORD}") if file.parent.name not in ours)
    shown = read_artifacts(folder, [*ours, *others])
    # Where the runs ship with the package, nothing has to be trained.
    sweeps = [] if shipped_at(scale) else sorted(shipped("reports/sweeps").glob(f"{scale}*.yaml"))
    commands = [*(f"workbench sweep reports/sweeps/{file.name}" for file in sweeps), command]
    runs = {name: Run(root / name) for one in shown for name in sorted({run["name"] for run in one.record["runs"]})}
    readme = write_readme(folder, title, lead, shown, commands, list(runs.values()) if small else [])
    if small:
        pack_records(runs.values(), folder / RUNS)
        for one in shown:
            for file in (
                *(folder / view["file"] for view in one.record["views"]),
                folder / one.name / f"{one.name}.ipynb",
            ):
                file.unlink(missing_ok=True)
        return readme
    book = write_pdf(folder / "book.pdf", title, lead, [one.record for one in shown], folder)
    return write_pages(folder, title, lead, shown, {"command": command, "commands": commands, "book": book.name})
