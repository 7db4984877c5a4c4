"""Commands that train: a run, the demo, and the networks shipped with the package."""

import os
import shlex
import sys
from dataclasses import dataclass, fields
from pathlib import Path
from typing import Annotated, Literal

import tyro

from workbench.cli.arguments import (
    ConfigReference,
    Device,
    Names,
    Overrides,
    Processes,
    Repeats,
    check_data_path,
)
from workbench.cli.bars import bars
from workbench.cli.terminal import Console
from workbench.config import Config, DataConfig, load_config, parse_overrides
from workbench.config.ranges import Positive, Range, Seed, Steps
from workbench.runs.store import Run, find_runs, open_run, prepare_run, run_fingerprint, runs_root


@dataclass(frozen=True)
class Demo:
    """Train a teacher, a plain and a guided model on the embedded images, and write a report that compares them.

    Ctrl-C saves; run the command again to continue.
    """

    overrides: Overrides = ()
    """Overrides for all three runs, such as training.steps=200."""
    seed: Seed = 0
    """Seed of initial weights, data order and noise."""
    report: Path = Path("reports/out/demo.html")
    """File of the report."""

    def execute(self) -> None:
        load_config("demo/guided", self.overrides)  # errors are raised before anything heavy is imported
        from workbench.reporting.demo import demo_configs, estimate_seconds, run_demo

        console, root = Console(), runs_root()
        configs = demo_configs(self.seed, self.overrides)
        plain, guided = configs["plain"], configs["guided"]
        console.print(
            f"Self-Transcendence, demo report: {plain.data.name}, SiT-{plain.backbone.options['size']}, "
            f"batch {plain.training.batch}\n"
            f"  1. teacher  VAE-aligned, {configs['teacher'].training.steps} steps\n"
            f"  2. plain    no alignment, {plain.training.steps} steps\n"
            f"  3. guided   by the teacher's features at w = {guided.objective.options['guidance_scale']:g}, "
            f"{guided.training.steps} steps\n"
            f"  then scores, probes and a report. Runs are saved in {root}/. Ctrl-C saves; run again to continue."
        )
        try:
            minutes = estimate_seconds(configs) / 60
            console.print(f"About {minutes:.0f} minutes on this machine if nothing is finished yet.")
        except ValueError as error:
            console.print(f"The duration is unknown: {error}.")
        finished = None
        with bars(console) as update:
            for progress in run_demo(root, self.report, self.seed, self.overrides):
                update(progress.stage, progress.done, progress.total, progress.note)
                finished = progress
        if finished is None or finished.stage != "report":
            raise KeyboardInterrupt
        console.print(f"Report: {self.report.resolve()}", soft_wrap=True)


@dataclass(frozen=True)
class Train:
    """Train a preset ("demo/guided") or a YAML file. A run with the same fingerprint is continued or reused."""

    config: ConfigReference
    overrides: Overrides = ()
    """Overrides, such as objective.guidance_scale=5."""
    processes: Processes = 1
    """Number of processes on this machine; on each node with --print-launch and --print-slurm."""
    detach: bool = False
    """Train in a background process that outlives this terminal and writes to log.txt in the run folder."""
    queue: bool = False
    """Train in the background once a device is free, after the jobs queued before."""
    after: Annotated[str | None, Names.RUN] = None
    """Queue the training to start after this run has finished, as a student after its teacher."""
    devices: tuple[Device, ...] = ()
    """GPUs that a training in the background may use; all by default."""
    nodes: Processes = 1
    """Number of nodes, for --print-launch, --print-slurm and --gpu."""
    print_launch: bool = False
    """Only print the torchrun and accelerate commands of this training."""
    print_slurm: bool = False
    """Only print a batch script for sbatch."""
    dry_run: bool = False
    """Only print parameters, memory, time and disk space of the training and its teachers, and which runs are reused.

    A few steps are run to measure the time, once per machine."""
    gpu: Positive | None = None
    """With --dry-run: plan for GPUs with this memory in GB instead of this machine; images need not be here."""
    hours: Annotated[int, Range(at_least=1, at_most=8760)] | None = None
    """Time limit for --print-slurm; 48 by default."""

    def execute(self) -> None:
        self._refuse_idle()
        config = load_config(self.config, self.overrides)
        count = self.processes * self.nodes
        printed = self.print_launch or self.print_slurm
        config.training.check_processes(count)
        if printed:
            self._print(config.name)
        elif self.dry_run:
            if self.gpu is None:
                check_data_path(config)
            self._plan(config)
        elif self.detach or self.queue or self.after is not None:
            check_data_path(config)
            self._launch(config)
        else:
            self._train_here(config)

    def _refuse_idle(self) -> None:
        """Raise ValueError for options that have no effect in this combination."""
        print_only = [
            f"--{name.replace('_', '-')}" for name in ("print_launch", "print_slurm", "dry_run") if getattr(self, name)
        ]
        background = [f"--{name}" for name in ("detach", "queue", "after") if getattr(self, name)]
        if len(print_only) > 1:
            raise ValueError(f"{' and '.join(print_only)} exclude each other")
        if print_only and background:
            raise ValueError(f"{print_only[0]} trains nothing, so {background[0]} has no effect; omit one of them")
        if self.devices and not background:
            raise ValueError("--devices is for --detach, --queue and --after; otherwise set CUDA_VISIBLE_DEVICES")
        if self.nodes > 1 and not (self.print_launch or self.print_slurm or self.gpu):
            raise ValueError("--nodes is for --print-launch and --print-slurm: each node has to run the command itself")
        if self.hours is not None and not self.print_slurm:
            raise ValueError("--hours is for --print-slurm")
        if self.gpu is not None and not self.dry_run:
            raise ValueError("--gpu is for --dry-run")

    def _print(self, name: str) -> None:
        from workbench.training.cluster import launch_commands, slurm_script

        arguments = [self.config, *self.overrides]
        if self.print_slurm:
            print(slurm_script(arguments, name, self.processes, self.nodes, self.hours or 48))
        else:
            print(launch_commands(arguments, self.processes, self.nodes))

    def _plan(self, config: Config) -> None:
        from rich.box import SIMPLE
        from rich.table import Table

        from workbench.training.plan import notes, plan, table

        console = Console()
        planned = plan(config, processes=self.processes * self.nodes, gpu_gigabytes=self.gpu)
        if not planned.measured and self.gpu is None:
            with console.status("measuring a few steps ..."):
                planned = planned.measure()
        header, *rows = table(planned)
        printed = Table(*header, box=SIMPLE, pad_edge=False)
        for row in rows:
            printed.add_row(*row)
        (console if console.is_terminal else Console(width=160)).print(printed)
        console.print("\n".join(notes(planned)), soft_wrap=True, highlight=False)

    def _launch(self, config: Config) -> None:
        from workbench.training.launch import launch

        queue = self.queue or self.after is not None
        after = None if self.after is None else open_run(self.after)
        launched = launch(
            config, processes=self.processes, queue=queue, devices=self.devices or None, after=after, patience=30.0
        )
        if launched.failed:
            raise ValueError(f"{launched}")
        name = launched.run.name
        Console().print(f"{launched}\n  watch: workbench watch {name}\n  stop:  workbench stop {name}", soft_wrap=True)

    def _train_here(self, config: Config) -> None:
        """Train in this process and its children; records an error of a launched process before training starts."""
        from workbench.training.launch import die_with_parent, note_failed_start, train_in_processes

        if self.processes > 1:
            code = train_in_processes(self.processes, [self.config, *self.overrides])
            if code:
                note_failed_start(ChildProcessError(f"torchrun ended with exit code {code}; see log.txt"))
            sys.exit(code)
        if "WORKBENCH_PROCESSES" in os.environ:
            die_with_parent()
        finished = _finished_in_a_read_only_folder(config)
        if finished is not None:
            Console().print(f"finished at step {finished.status['step']}: {finished.folder}", soft_wrap=True)
            return
        root = runs_root()
        try:
            check_data_path(config)
            run_fingerprint(config, root)  # raises for a missing teacher before images are encoded
            from workbench.training.loop import fit

            console = Console(quiet=os.environ.get("RANK", "0") != "0")
            with bars(console) as update:
                for record in fit(config, root, lambda done, total: update("encode images", done, total)):
                    update(f"train {config.name}", record["step"], config.training.steps, f"loss {record['loss']:.4f}")
            _leave_processes()
        except Exception as error:
            note_failed_start(error)
            raise
        run = prepare_run(config, root)
        console.print(f"{run.status['state']} at step {run.status['step']}: {run.folder}", soft_wrap=True)


def _leave_processes() -> None:
    """End the communication with the other processes: a rank that still has it open when it exits may abort."""
    import torch

    if torch.distributed.is_available() and torch.distributed.is_initialized():
        torch.distributed.destroy_process_group()


def _finished_in_a_read_only_folder(config: Config) -> Run | None:
    """The finished run of a configuration if the folder of the runs is read-only, else None."""
    root = runs_root()
    if not root.is_dir() or os.access(root, os.W_OK):
        return None
    fingerprint = run_fingerprint(config, root)
    runs = (run for run in find_runs(root) if run.fingerprint == fingerprint and run.status["state"] == "finished")
    return next(runs, None)


@dataclass(frozen=True)
class VAE:
    """Train an autoencoder on the images of any data set and write vae.safetensors and vae.json.

    `workbench vae train my-vae data.name=image-folder data.path=photos data.size=64`, then train models with
    vae.name=my-vae. Run the command again to continue after a stop.
    """

    folder: Annotated[Path, tyro.conf.Positional]
    overrides: Overrides = ()
    """Dotted options of the section data, as in training. By default the embedded Fashion-MNIST."""
    steps: Steps = 4500
    factor: Annotated[int, Range(at_least=2, at_most=16)] | None = None
    """How many pixels a latent is wide: by default 4, or 8 from 128 pixels on."""
    latent_channels: Annotated[int, Range(at_least=1, at_most=256)] = 4
    batch: Annotated[int, Range(at_least=1, at_most=10**6)] | None = None
    """Images per step: by default 64 at 32 pixels, 32 at 64, and so on."""
    learning_rate: Positive = 2e-3
    start: str | None = None
    """Autoencoder, by name or folder, whose weights the training starts from, such as kl-f4."""
    seed: Seed = 0

    def execute(self) -> None:
        data = self._data()
        import torch

        from workbench.data.images import load_images
        from workbench.data.vae import load_vae
        from workbench.evaluation.detectors.base import load_detector
        from workbench.evaluation.reconstruction import reconstruction_distance
        from workbench.files import write_json
        from workbench.training.vae import estimate_seconds, settings_for, train_vae

        console = Console()
        train_set, test_set = load_images(data, "train"), load_images(data, "test")
        settings = settings_for(
            train_set,
            factor=self.factor,
            batch=self.batch,
            steps=self.steps,
            latent_channels=self.latent_channels,
            learning_rate=self.learning_rate,
            start=self.start,
            seed=self.seed,
        )
        side = train_set.size >> (len(settings.widths) - 1)
        with console.status("measuring a few steps ..."):
            minutes = max(1, round(estimate_seconds(train_set, settings, self.folder) / 60))
        console.print(
            f"{train_set.summary}\n{test_set.summary}\n{train_set.size}x{train_set.size}x{train_set.channels} to "
            f"{side}x{side}x{settings.latent_channels}, widths {settings.widths}, batch {settings.batch}, "
            f"{settings.steps} steps: about {minutes} min on this machine. Ctrl-C saves; run again to continue.",
            soft_wrap=True,
            highlight=False,
        )
        with bars(console) as update:
            for record in train_vae(train_set, test_set, self.folder, settings):
                if "step" in record:
                    update("train VAE", record["step"], record["steps"], f"loss {record['loss']:.4f}")
        device = "cuda" if torch.cuda.is_available() else "cpu"
        try:
            vae = load_vae(str(self.folder), train_set.channels, device)
            distance = reconstruction_distance(vae, test_set, load_detector("effnet-lite0", device))
        except ValueError as error:
            console.print(f"no Frechet distance: {error}", soft_wrap=True, highlight=False)
        else:
            record["reconstruction"] |= distance
        write_json(self.folder / "vae.json", {**record, "command": self._command()})
        shown = ", ".join(f"{key} {value:.4g}" for key, value in record["reconstruction"].items())
        size = (self.folder / "vae.safetensors").stat().st_size / 1e6
        console.print(f"{self.folder}: {size:.1f} MB, reconstruction {shown}", soft_wrap=True, highlight=False)

    def _command(self) -> str:
        """This command, with the options that differ from their defaults."""
        options = {field.name: (getattr(self, field.name), field.default) for field in fields(self)}
        del options["folder"], options["overrides"]
        changed = {name: value for name, (value, default) in options.items() if value != default}
        words = [word for name, value in changed.items() for word in (f"--{name.replace('_', '-')}", f"{value}")]
        return shlex.join(["workbench", "vae", "train", "FOLDER", *self.overrides, *words])

    def _data(self) -> DataConfig:
        """The section data; ValueError for other options."""
        tree = parse_overrides(self.overrides)
        other = next((key for key in tree if key != "data"), None)
        if other is not None:
            raise ValueError(
                f"{other} is not an option of an autoencoder's training: dotted options are those of data, such as "
                f"data.path=photos; the others are --steps, --factor and so on"
            )
        config = load_config("demo/plain", ["data.limit=null", *self.overrides])  # the preset has the embedded images
        check_data_path(config)
        return config.data


@dataclass(frozen=True)
class Classifier:
    """Train the classifier with 64 features of FD-clf64 and write clf64.safetensors and clf64.json.

    With --data scenes it is clf64-scenes, which has a second head for twelve colours.
    """

    folder: Annotated[Path, tyro.conf.Positional]
    epochs: Repeats = 12
    seed: Seed = 0
    data: Literal["fashion-mnist", "scenes"] = "fashion-mnist"

    def execute(self) -> None:
        import torch

        from workbench.data.images import Images, load_images
        from workbench.data.sets.scenes import hue_twelfths
        from workbench.evaluation.detectors.clf64 import Objects, save_clf64, train_clf64

        config = DataConfig(name=self.data, source="embedded", size=32)
        sets = [load_images(config, split) for split in ("train", "test")]

        def arrays(images: Images) -> tuple[torch.Tensor, torch.Tensor]:
            return images.batch(range(len(images))), torch.from_numpy(images.labels)

        def objects(images: Images) -> Objects:
            rows = range(len(images))
            return Objects(torch.from_numpy(hue_twelfths(images.details(rows)["colour"])), images.masks(rows))

        name = "clf64" if self.data == "fashion-mnist" else f"clf64-{self.data}"
        with bars(Console()) as update:
            for record in train_clf64(
                *(array for images in sets for array in arrays(images)),
                classes=10,
                epochs=self.epochs,
                seed=self.seed,
                objects=(objects(sets[0]), objects(sets[1])) if self.data == "scenes" else None,
            ):
                note = f"test accuracy {record['test_accuracy']:.3f}"
                if "colour_accuracy" in record:
                    note += f", of colours {record['colour_accuracy']:.3f}"
                update(f"train {name}", record["epoch"], record["epochs"], note)
        self.folder.mkdir(parents=True, exist_ok=True)
        save_clf64(record["model"], self.folder, record["record"], name)
