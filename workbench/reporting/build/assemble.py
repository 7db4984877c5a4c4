"""Binding: the index, the pages and the PDF of the artifacts that lie in a folder."""

from pathlib import Path

from workbench.reporting import paper
from workbench.reporting.build.pdf import write_pdf
from workbench.reporting.build.pages import RECORD, RUNS, read_artifacts, write_pages, write_readme
from workbench.runs.archive import pack_records
from workbench.runs.store import Run
from workbench.shipped import shipped

_LEADS = {
    "demo": "Three small models, trained for minutes on two CPU cores on Fashion-MNIST: enough to see how each figure "
    "is made, not to tell methods apart.",
    "laptop": "All methods on two small backbones, trained for about a minute each on two CPU cores on Fashion-MNIST, "
    "with several seeds. Scores are FD-clf64, which is not FID: against the paper's numbers, sign and order can be "
    "compared, sizes never.",
    "paper": "The paper's own experiments on ImageNet, from the runs there are.",
}


def bind(scale: str, folder: Path, command: str, root: Path, small: bool = False) -> Path:
    """Write index, pages, README.md and PDF of the artifacts in `folder`; return the index, README.md if `small`.

    `small` keeps what belongs into a repository: pictures, tables and JSON; views and executed notebooks are removed,
    and ``runs.zip`` has the records of their runs, which lie under `root`.
    """
    title, lead = f"Self-Transcendence, {scale} report", _LEADS[scale]
    ours = [paper.folder_of(name) for name in paper.names()]
    others = sorted(file.parent.name for file in folder.glob(f"[!.]*/{RECORD}") if file.parent.name not in ours)
    shown = read_artifacts(folder, [*ours, *others])
    sweeps = sorted(file.name for file in shipped("reports/sweeps").glob(f"{scale}*.yaml"))
    commands = [*(f"workbench sweep reports/sweeps/{name}" for name in sweeps), command]
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
