"""Commands that train: a run, the demo, and the networks that the package ships."""

import os
import sys
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated

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
from workbench.config import Config, DataConfig, load_config
from workbench.config.ranges import Range, Seed, Steps
from workbench.runs.store import Run, find_runs, open_run, prepare_run, run_fingerprint, runs_root


@dataclass(frozen=True)
class Demo:
    """Train a teacher, a plain and a guided model on embedded images, and write the report that compares them.

    Stopped with Ctrl-C it saves; run again it goes on where it was.
    """

    overrides: Overrides = ()
    """Changes to all three runs, such as training.steps=200."""
    seed: Seed = 0
    """Seed of initial weights, data order and noise."""
    report: Path = Path("reports/out/demo.html")
    """Where the report goes."""

    def execute(self) -> None:
        load_config("demo/guided", self.overrides)  # what is wrong is said before anything heavy is imported
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
            f"  then scores, probes and a report. Runs go to {root}/; Ctrl-C saves, the same command goes on."
        )
        try:
            minutes = estimate_seconds(configs) / 60
            console.print(f"About {minutes:.0f} minutes on this machine if nothing is finished yet.")
        except ValueError as error:
            console.print(f"How long it takes is not known: {error}.")
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
    """Train a preset ("demo/guided") or a YAML file; the same fingerprint continues or reuses its run."""

    config: ConfigReference
    overrides: Overrides = ()
    """Dotted options, such as objective.guidance_scale=5."""
    processes: Processes = 1
    """Processes on this machine, CPU or GPU; on each node with --print-launch and --print-slurm."""
    detach: bool = False
    """Train in a process that outlives this terminal; its output goes to log.txt of the run."""
    queue: bool = False
    """Detached, when a device is free and those who asked before had their turn."""
    after: Annotated[str | None, Names.RUN] = None
    """Detached, in the queue, once this run has finished: a student after its teacher."""
    devices: tuple[Device, ...] = ()
    """GPUs that a detached training may take; all by default."""
    nodes: Processes = 1
    """Machines, for --print-launch and --print-slurm."""
    print_launch: bool = False
    """Print the torchrun and accelerate commands of this training and start nothing."""
    print_slurm: bool = False
    """Print a batch script for sbatch and start nothing."""
    dry_run: bool = False
    """Print what it would take, its teacher included: parameters, memory, time, disk, what is reused; train nothing.

    The time is measured, some seconds of real steps, once on a machine."""
    hours: Annotated[int, Range(at_least=1, at_most=8760)] | None = None
    """Time that --print-slurm asks for; 48 by default."""

    def execute(self) -> None:
        self._refuse_idle()
        config = load_config(self.config, self.overrides)
        count = self.processes * self.nodes
        printed = self.print_launch or self.print_slurm
        config.training.check_processes(count)
        if printed:
            self._print(config.name)
        elif self.dry_run:
            check_data_path(config)
            self._plan(config)
        elif self.detach or self.queue or self.after is not None:
            check_data_path(config)
            self._launch(config)
        else:
            self._train_here(config)

    def _refuse_idle(self) -> None:
        """ValueError for an option that does nothing beside the others."""
        only = [
            f"--{name.replace('_', '-')}" for name in ("print_launch", "print_slurm", "dry_run") if getattr(self, name)
        ]
        sent = [f"--{name}" for name in ("detach", "queue", "after") if getattr(self, name)]
        if len(only) > 1:
            raise ValueError(f"{' and '.join(only)} exclude each other")
        if only and sent:
            raise ValueError(f"{only[0]} starts nothing, so that {sent[0]} has no effect; leave one of them out")
        if self.devices and not sent:
            raise ValueError("--devices is for --detach, --queue and --after; here, set CUDA_VISIBLE_DEVICES")
        if self.nodes > 1 and not (self.print_launch or self.print_slurm):
            raise ValueError("--nodes is for --print-launch and --print-slurm: each node has to run the command itself")
        if self.hours is not None and not self.print_slurm:
            raise ValueError("--hours is for --print-slurm")

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
        found = plan(config, processes=self.processes)
        if not found.measured:
            with console.status("measuring a few steps ..."):
                found = found.measure()
        head, *rows = table(found)
        drawn = Table(*head, box=SIMPLE, pad_edge=False)
        for row in rows:
            drawn.add_row(*row)
        (console if console.is_terminal else Console(width=160)).print(drawn)
        console.print("\n".join(notes(found)), soft_wrap=True, highlight=False)

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
        """In this process and its children; one that was launched says so if it fails before it trains."""
        from workbench.training.launch import die_with_parent, note_failed_start, train_in_processes

        if self.processes > 1:
            code = train_in_processes(self.processes, [self.config, *self.overrides])
            if code:
                note_failed_start(ChildProcessError(f"torchrun ended with exit code {code}; see log.txt"))
            sys.exit(code)
        if "WORKBENCH_PROCESSES" in os.environ:
            die_with_parent()
        done = _finished_in_a_folder_of_others(config)
        if done is not None:
            Console().print(f"finished at step {done.status['step']}: {done.folder}", soft_wrap=True)
            return
        root = runs_root()
        try:
            check_data_path(config)
            run_fingerprint(config, root)  # a teacher that is missing is refused before images are encoded
            from workbench.training.loop import fit

            console = Console(quiet=os.environ.get("RANK", "0") != "0")
            with bars(console) as update:
                for record in fit(config, root, lambda done, total: update("encode images", done, total)):
                    update(f"train {config.name}", record["step"], config.training.steps, f"loss {record['loss']:.4f}")
        except Exception as error:
            note_failed_start(error)
            raise
        run = prepare_run(config, root)
        console.print(f"{run.status['state']} at step {run.status['step']}: {run.folder}", soft_wrap=True)


def _finished_in_a_folder_of_others(config: Config) -> Run | None:
    """The run of a configuration if it has finished and can only be read, so that nothing is left to be done."""
    root = runs_root()
    if not root.is_dir() or os.access(root, os.W_OK):
        return None
    mark = run_fingerprint(config, root)
    found = [run for run in find_runs(root) if run.fingerprint == mark and run.status["state"] == "finished"]
    return found[0] if found else None


@dataclass(frozen=True)
class VAE:
    """Train the VAE on the training images and write vae.safetensors and vae.json.

    A training that was stopped goes on when it is asked for again.
    """

    folder: Annotated[Path, tyro.conf.Positional]
    steps: Steps = 4500
    seed: Seed = 0
    data: str = "fashion-mnist"

    def execute(self) -> None:
        from workbench.data.images import load_images
        from workbench.training.vae import VaeTraining, train_vae

        config = DataConfig(name=self.data, source="embedded")
        settings = VaeTraining(steps=self.steps, seed=self.seed)
        console = Console()
        with bars(console) as update:
            for record in train_vae(load_images(config, "train"), load_images(config, "test"), self.folder, settings):
                if "step" in record:
                    update("train VAE", record["step"], record["steps"], f"loss {record['loss']:.4f}")
        console.print(f"{self.folder}: reconstruction {record['reconstruction']}")


@dataclass(frozen=True)
class Classifier:
    """Train the 64-dimension classifier that FD-clf64 uses and write clf64.safetensors and clf64.json."""

    folder: Annotated[Path, tyro.conf.Positional]
    epochs: Repeats = 12
    seed: Seed = 0

    def execute(self) -> None:
        import torch

        from workbench.data.images import load_images
        from workbench.evaluation.detectors.clf64 import save_clf64, train_clf64

        config = DataConfig(source="embedded")
        train_set, test_set = load_images(config, "train"), load_images(config, "test")

        def arrays(images):
            return images.batch(range(len(images))), torch.from_numpy(images.labels)

        with bars(Console()) as update:
            for record in train_clf64(
                *arrays(train_set), *arrays(test_set), classes=10, epochs=self.epochs, seed=self.seed
            ):
                note = f"test accuracy {record['test_accuracy']:.3f}"
                update("train clf64", record["epoch"], record["epochs"], note)
        self.folder.mkdir(parents=True, exist_ok=True)
        save_clf64(record["model"], self.folder, record["record"])
