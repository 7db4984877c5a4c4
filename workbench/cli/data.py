"""The command that encodes a data set ahead of training."""

import re
from dataclasses import dataclass
from typing import Literal

from workbench.cli.arguments import ConfigReference, Overrides, Processes, check_data_path
from workbench.cli.bars import bars
from workbench.cli.terminal import Console
from workbench.config import load_config
from workbench.runs.store import runs_root


@dataclass(frozen=True)
class Encode:
    """Encode the images of a configuration into latents before training. Run it again to continue after a stop."""

    config: ConfigReference
    overrides: Overrides = ()
    """Dotted options, such as data.path=/data/imagenet."""
    split: Literal["train", "test"] = "train"
    processes: Processes = 1
    """Number of processes on this machine. Several may share a GPU: one reads images while another encodes."""
    device: str | None = None
    """Device, such as cuda:1 or cpu. By default the processes are spread over all GPUs, or use the CPU."""

    def execute(self) -> None:
        config, console = load_config(self.config, self.overrides), Console()
        check_data_path(config)
        import torch

        from workbench.data.encode import encode as encode_images
        from workbench.data.targets import open_targets

        _check_device(self.device)
        with bars(console) as update:
            latents = encode_images(
                config,
                self.split,
                runs_root() / ".latents",
                processes=self.processes,
                device=self.device,
                progress=lambda done, total: update("encode images", done, total),
            )
            # The objective's stored targets too; otherwise training would compute them in its main process only.
            open_targets(
                config,
                self.split,
                latents,
                runs_root() / ".targets",
                self.device or ("cuda" if torch.cuda.is_available() else "cpu"),
                lambda done, total: update("encode targets", done, total),
            )
        size = sum(shard["bytes"] for shard in latents.index["shards"]) / 1e6
        summary = f"{len(latents)} images of {len(latents.classes)} classes, {size:,.0f} MB, checked"
        console.print(f"{summary}: {latents.shards.folder}", soft_wrap=True)


def _check_device(name: str | None) -> None:
    """Raise ValueError for a device that cannot encode images or that this machine does not have."""
    import torch

    if name is None:
        return
    if not re.fullmatch(r"cpu|mps|(cuda|xpu)(:[0-9]{1,3})?", name):
        raise ValueError(f"--device {name!r} is not known; examples are cpu, cuda and cuda:1")
    try:
        torch.empty(1, device=name)
    except (RuntimeError, AssertionError, NotImplementedError) as error:
        problem = f"{error}".splitlines()[0].partition(". ")[0]
        raise ValueError(f"--device {name!r} cannot be used here: {problem}") from error
