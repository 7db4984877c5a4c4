"""Command line: each command is a dataclass of `workbench.cli`; errors are one sentence, exit code 2."""

import errno
import os
import sys
from collections.abc import Callable
from typing import NoReturn

import tyro

from workbench import plugins
from workbench.cli import check, data, evaluate, files, lab, report, runs, sweep, train
from workbench.cli.arguments import Command, check_arguments, check_command
from workbench.cli.terminal import shown, warnings_as_sentences
from workbench.training.slots import WAITING

COMMANDS: dict[str, Callable[..., Command]] = {
    "demo": train.Demo,
    "train": train.Train,
    "runs": runs.Runs,
    "watch": runs.Watch,
    "stop": runs.Stop,
    "pause": runs.Pause,
    "resume": runs.Resume,
    "checkpoint": runs.Checkpoint,
    "set": runs.SetOption,
    "queue": runs.Queue,
    "queue-cancel": runs.QueueCancel,
    "queue-resume": runs.QueueResume,
    "note": runs.Note,
    "trash": runs.Trash,
    "restore": runs.Restore,
    "unpack": runs.Unpack,
    "evaluate": evaluate.Evaluate,
    "reference": evaluate.ReferenceFile,
    "compare": evaluate.Compare,
    "sweep": sweep.Sweep,
    "report": report.Report,
    "encode": data.Encode,
    "import": files.ImportFile,
    "export": files.ExportRun,
    "vae-train": train.VAE,
    "classifier-train": train.Classifier,
    "lab": lab.Lab,
    "page": lab.Page,
    "lesson": lab.LessonPages,
    "check-gpu": check.CheckGpu,
    "zoo": files.Zoo,
    "presets": files.Presets,
}


def main(arguments: list[str] | None = None) -> None:
    """Run one command. Exit codes: 0 success, 2 user error, 130 interrupted.

    The exit code is 3 if the command succeeded with an older checkpoint because the newest is damaged or missing.
    """
    arguments = list(sys.argv[1:] if arguments is None else arguments)
    try:
        arguments = plugins.allow_named(arguments)
        # "vae train" reads better than "vae-train", so two words are joined to one command.
        if len(arguments) > 1 and f"{arguments[0]}-{arguments[1]}" in COMMANDS:
            arguments[:2] = [f"{arguments[0]}-{arguments[1]}"]
        check_arguments(arguments, COMMANDS)
    except ValueError as error:
        refuse(f"{error}")
    for name, value in WAITING.items():
        os.environ.setdefault(name, value)
    execute(
        tyro.extras.subcommand_cli_from_dict(
            COMMANDS,
            prog="workbench",
            description="View, compare and use the internal features of a diffusion transformer. Every command also "
            "takes --plugin MODULE, which allows runs to use the plug-ins in that module.",
            args=arguments,
        )
    )


def execute(command: Command) -> None:
    """Check a command and execute it, with the exit codes of `main`."""
    try:
        check_command(command)
        with warnings_as_sentences() as came:
            command.execute()
    except ValueError as error:
        refuse(f"{error}")
    except OSError as error:
        refuse(sentence_of(error))
    except RuntimeError as error:  # raised by pathlib if ~ cannot be expanded
        if "home directory" not in str(error):
            raise
        refuse("this user has no home directory: set HOME to a writable folder")
    except KeyboardInterrupt:
        print("workbench: interrupted; finished parts are kept, run it again to continue", file=sys.stderr)
        sys.exit(130)
    from workbench.runs.checkpoints import FellBack

    if FellBack in came:
        sys.exit(3)


def refuse(sentence: str) -> NoReturn:
    """End with a sentence for the user and exit code 2."""
    print(f"workbench: {shown(' '.join(sentence.split()))}", file=sys.stderr)
    sys.exit(2)


def sentence_of(error: OSError) -> str:
    """An OSError as one sentence, with its file or, if it names none, the folders that are written to."""
    from workbench.runs.store import runs_root

    if not error.strerror:
        return f"{error}"
    if error.filename is not None:
        named = [name for name in (error.filename, error.filename2) if name is not None]
        place = " -> ".join(os.path.abspath(os.fsdecode(n)) if isinstance(n, str | bytes) else f"{n}" for n in named)
    else:
        place = f"a file in the runs folder {runs_root().absolute()}, or the requested file,"
    more = {
        errno.ENOSPC: ": free some space there, or set WORKBENCH_RUNS to a folder on another disk",
        errno.EDQUOT: ": free some space there, or set WORKBENCH_RUNS to a folder on another disk",
        errno.EROFS: ": choose a writable folder; WORKBENCH_RUNS is the runs folder",
        errno.EACCES: ": choose a writable folder; WORKBENCH_RUNS is the runs folder",
    }.get(error.errno or 0, "")
    return f"{place} cannot be used: {error.strerror}{more}"


if __name__ == "__main__":
    main()
