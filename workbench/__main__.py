"""The command line: each name is a class of `workbench.cli`, made of its arguments and executed.

Errors are one sentence, with exit code 2.
"""

import errno
import os
import sys
from typing import NoReturn

import tyro

from workbench import plugins
from workbench.cli import data, evaluate, files, lab, report, runs, sweep, train
from workbench.cli.arguments import Command, check_arguments, check_command
from workbench.cli.terminal import shown, warnings_as_sentences

COMMANDS: dict[str, type[Command]] = {
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
    "codec-train": train.Codec,
    "classifier-train": train.Classifier,
    "lab": lab.Lab,
    "page": lab.Page,
    "zoo": files.Zoo,
    "presets": files.Presets,
}


def main(arguments: list[str] | None = None) -> None:
    """Run one command; exit code 0, 2 for what the user can mend, 130 when interrupted.

    It is 3 if all was done, but with an older checkpoint than was to be expected.
    """
    arguments = list(sys.argv[1:] if arguments is None else arguments)
    try:
        arguments = plugins.allow_named(arguments)
        # "codec train" reads better than "codec-train": two words make one command.
        if len(arguments) > 1 and f"{arguments[0]}-{arguments[1]}" in COMMANDS:
            arguments[:2] = [f"{arguments[0]}-{arguments[1]}"]
        check_arguments(arguments, COMMANDS)
    except ValueError as error:
        refuse(f"{error}")
    # Idle threads that spin would take the cores from another process on the machine.
    os.environ.setdefault("OMP_WAIT_POLICY", "passive")
    execute(
        tyro.extras.subcommand_cli_from_dict(
            COMMANDS,
            prog="workbench",
            description="See, compare and use the features inside a diffusion transformer. Every command takes "
            "--plugin MODULE too: runs may then use what is in that module of yours.",
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
    except RuntimeError as error:  # pathlib's, where ~ stands for nothing
        if "home directory" not in str(error):
            raise
        refuse("this user has no home directory: set HOME to a folder that can be written")
    except KeyboardInterrupt:
        print("workbench: interrupted; what was finished is kept, run it again to go on", file=sys.stderr)
        sys.exit(130)
    from workbench.runs.checkpoints import FellBack

    if FellBack in came:
        sys.exit(3)


def refuse(sentence: str) -> NoReturn:
    """End with a sentence for the user and exit code 2."""
    print(f"workbench: {shown(' '.join(sentence.split()))}", file=sys.stderr)
    sys.exit(2)


def sentence_of(error: OSError) -> str:
    """What the system refused, with the file or, where it names none, the folders that are written to."""
    from workbench.runs.store import runs_root

    if not error.strerror:
        return f"{error}"
    if error.filename is not None:
        named = [name for name in (error.filename, error.filename2) if name is not None]
        place = " -> ".join(os.path.abspath(name) if isinstance(name, str | bytes) else f"{name}" for name in named)
    else:
        place = f"a file among the runs in {runs_root().absolute()}, or the file that was asked for,"
    more = {
        errno.ENOSPC: ": free some space there, or set WORKBENCH_RUNS to a folder on another disk",
        errno.EDQUOT: ": free some space there, or set WORKBENCH_RUNS to a folder on another disk",
        errno.EROFS: ": choose a folder that can be written; WORKBENCH_RUNS is that of the runs",
        errno.EACCES: ": choose a folder that can be written; WORKBENCH_RUNS is that of the runs",
    }.get(error.errno, "")
    return f"{place} cannot be used: {error.strerror}{more}"


if __name__ == "__main__":
    main()
