"""Commands that train: runs, the demo, methods side by side, the shipped networks."""

import os
import sys

from workbench.commands.bars import bars
from workbench.commands.checking import check_data_path
from workbench.commands.terminal import Console
from workbench.config import Config, DataConfig, load_config
from workbench.runs.store import Run, find_runs, open_run, prepare_run, run_fingerprint, runs_root


def demo(command) -> None:
    """Three runs, their scores and a report."""
    load_config("demo/guided", command.overrides)  # what is wrong is said before anything heavy is imported
    from workbench.reporting.demo import demo_configs, estimate_seconds, run_demo

    console, root = Console(), runs_root()
    configs = demo_configs(command.seed, command.overrides)
    plain = configs["plain"]
    console.print(
        f"Self-Transcendence, demo edition: {plain.data.name}, SiT-{plain.backbone.options['size']}, "
        f"batch {plain.training.batch}\n"
        f"  1. teacher  VAE-aligned, {configs['teacher'].training.steps} steps\n"
        f"  2. plain    no alignment, {plain.training.steps} steps\n"
        f"  3. guided   by the teacher's features at w = {configs['guided'].objective.options['guidance_scale']:g}, "
        f"{configs['guided'].training.steps} steps\n"
        f"  then scores, probes and a report. Runs go to {root}/; Ctrl-C saves, the same command goes on."
    )
    console.print(f"About {estimate_seconds(configs) / 60:.0f} minutes on this machine if nothing is finished yet.")
    finished = None
    with bars(console) as update:
        for progress in run_demo(root, command.report, command.seed, command.overrides):
            update(progress.stage, progress.done, progress.total, progress.note)
            finished = progress
    if finished is None or finished.stage != "report":
        raise KeyboardInterrupt
    console.print(f"Report: {command.report.resolve()}", soft_wrap=True)


def train(command) -> None:
    """One run, in this process or in several."""
    _refuse_idle(command)
    config = load_config(command.config, command.overrides)
    count = command.processes * command.nodes
    printed = command.print_launch or command.print_slurm
    config.training.check_processes(count)
    if printed:
        _print(command, config.name)
    elif command.dry_run:
        check_data_path(config)
        _plan(command, config)
    elif command.detach or command.queue or command.after is not None:
        check_data_path(config)
        _launch(command, config)
    else:
        _train_here(command, config)


def _refuse_idle(command) -> None:
    """ValueError for an option that does nothing beside the others."""
    only = [
        f"--{name.replace('_', '-')}" for name in ("print_launch", "print_slurm", "dry_run") if getattr(command, name)
    ]
    sent = [f"--{name}" for name in ("detach", "queue", "after") if getattr(command, name)]
    if len(only) > 1:
        raise ValueError(f"{' and '.join(only)} exclude each other")
    if only and sent:
        raise ValueError(f"{only[0]} starts nothing, so that {sent[0]} has no effect; leave one of them out")
    if command.devices and not sent:
        raise ValueError("--devices is for --detach, --queue and --after; here, set CUDA_VISIBLE_DEVICES")
    if command.nodes > 1 and not (command.print_launch or command.print_slurm):
        raise ValueError("--nodes is for --print-launch and --print-slurm: each node has to run the command itself")
    if command.hours is not None and not command.print_slurm:
        raise ValueError("--hours is for --print-slurm")


def _print(command, name: str) -> None:
    from workbench.training.cluster import launch_commands, slurm_script

    arguments = [command.config, *command.overrides]
    if command.print_slurm:
        print(slurm_script(arguments, name, command.processes, command.nodes, command.hours or 48))
    else:
        print(launch_commands(arguments, command.processes, command.nodes))


def _plan(command, config: Config) -> None:
    from rich.box import SIMPLE
    from rich.table import Table

    from workbench.training.plan import notes, plan, table

    console = Console()
    found = plan(config, processes=command.processes)
    if not found.measured:
        with console.status("measuring a few steps ..."):
            found = found.measure()
    head, *rows = table(found)
    drawn = Table(*head, box=SIMPLE, pad_edge=False)
    for row in rows:
        drawn.add_row(*row)
    (console if console.is_terminal else Console(width=160)).print(drawn)
    console.print("\n".join(notes(found)), soft_wrap=True, highlight=False)


def _launch(command, config: Config) -> None:
    from workbench.training.launch import launch

    queue = command.queue or command.after is not None
    after = None if command.after is None else open_run(command.after)
    launched = launch(
        config, processes=command.processes, queue=queue, devices=command.devices or None, after=after, patience=30.0
    )
    if launched.failed:
        raise ValueError(f"{launched}")
    name = launched.run.name
    Console().print(f"{launched}\n  watch: workbench watch {name}\n  stop:  workbench stop {name}", soft_wrap=True)


def _train_here(command, config: Config) -> None:
    """In this process and its children; one that was launched says so if it fails before it trains."""
    from workbench.training.launch import die_with_parent, note_failed_start, train_in_processes

    if command.processes > 1:
        code = train_in_processes(command.processes, [command.config, *command.overrides])
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


def codec(command) -> None:
    """A codec for 32x32 images."""
    from workbench.data.images import load_images
    from workbench.training.codec import CodecTraining, train_codec

    config = DataConfig(name=command.data, source="embedded")
    settings = CodecTraining(steps=command.steps, seed=command.seed)
    console = Console()
    with bars(console) as update:
        for record in train_codec(load_images(config, "train"), load_images(config, "test"), command.folder, settings):
            if "step" in record:
                update("train codec", record["step"], record["steps"], f"loss {record['loss']:.4f}")
    console.print(f"{command.folder}: reconstruction {record['reconstruction']}")


def classifier(command) -> None:
    """The detector behind FD-clf64."""
    import torch

    from workbench.data.images import load_images
    from workbench.evaluation.clf64 import save_clf64, train_clf64

    config = DataConfig(source="embedded")
    train_set, test_set = load_images(config, "train"), load_images(config, "test")

    def arrays(images):
        return images.batch(range(len(images))), torch.from_numpy(images.labels)

    with bars(Console()) as update:
        for record in train_clf64(
            *arrays(train_set), *arrays(test_set), classes=10, epochs=command.epochs, seed=command.seed
        ):
            note = f"test accuracy {record['test_accuracy']:.3f}"
            update("train clf64", record["epoch"], record["epochs"], note)
    command.folder.mkdir(parents=True, exist_ok=True)
    save_clf64(record["model"], command.folder, record["record"])
