"""Options of the commands around trainings and the shelf of runs."""

from dataclasses import dataclass
from pathlib import Path
from typing import Annotated

import tyro

from workbench.commands.options import Names, Reference, RunReference


@dataclass(frozen=True)
class Runs:
    """List the runs: state, step, method, options, cost, newest scores, tags."""

    filter: str = ""
    """Show runs in whose row this text stands, such as a method, a state or a tag."""
    sort: str = "created"
    """A column, such as step, loss, cost or fd-clf64; with a leading - the largest first (--sort=-step)."""


@dataclass(frozen=True)
class Watch:
    """Watch runs train, from any terminal that sees their folders; q or Ctrl-C leaves, the training goes on."""

    runs: Annotated[tuple[str, ...], tyro.conf.Positional]
    once: bool = False
    """Print what there is and leave."""


@dataclass(frozen=True)
class Stop:
    """Save after the current step and end the training, or take the run out of the queue."""

    run: RunReference


@dataclass(frozen=True)
class Pause:
    """Let a training wait after the current step, everything kept in memory and its device held."""

    run: RunReference


@dataclass(frozen=True)
class Resume:
    """Let a paused training go on, or launch one that was stopped, lost or failed again, exactly as it was."""

    run: RunReference


@dataclass(frozen=True)
class Checkpoint:
    """Save after the current step and go on."""

    run: RunReference


@dataclass(frozen=True)
class SetOption:
    """Change learning_rate, stop_step, log_every or checkpoint_every from the next step on, resumes included."""

    run: RunReference
    changes: Annotated[tuple[str, ...], tyro.conf.Positional]
    """Such as learning_rate=1e-4."""


@dataclass(frozen=True)
class Queue:
    """List the machine's queue of trainings: order, run, state, devices."""


@dataclass(frozen=True)
class QueueCancel:
    """Take a waiting run out of the queue."""

    run: Reference


@dataclass(frozen=True)
class QueueResume:
    """Start the waiting processes of the queue again, after a restart of the machine or a kill."""


@dataclass(frozen=True)
class Note:
    """Set a run's tags and notes."""

    run: Reference
    tags: tuple[str, ...] | None = None
    text: str | None = None


@dataclass(frozen=True)
class Trash:
    """Move a run to the trash folder beside the runs; one that trains, or that taught another, is refused."""

    run: Reference
    force: bool = False
    """Also one that taught another."""


@dataclass(frozen=True)
class Restore:
    """Bring a run back from the trash; without a name, list what is there."""

    name: Annotated[str | None, tyro.conf.Positional] = None


@dataclass(frozen=True)
class Unpack:
    """Place the runs of an edition's runs.zip, without weights, beside the others: tables are made of them again."""

    file: Annotated[Path, tyro.conf.Positional, Names.FILE]
