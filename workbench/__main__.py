"""The command line. Each command parses its options and calls one function; errors are one sentence, exit code 2."""

import errno
import importlib
import os
import sys

import tyro

from workbench import plugins
from workbench.commands.checking import check_arguments, check_command
from workbench.commands.options import console, judge, lab, look, measure, report, sweep, train
from workbench.commands.terminal import shown, warnings_as_sentences

COMMANDS = {
    "demo": train.Demo,
    "train": train.Train,
    "runs": console.Runs,
    "watch": console.Watch,
    "stop": console.Stop,
    "pause": console.Pause,
    "resume": console.Resume,
    "checkpoint": console.Checkpoint,
    "set": console.SetOption,
    "queue": console.Queue,
    "queue-cancel": console.QueueCancel,
    "queue-resume": console.QueueResume,
    "note": console.Note,
    "trash": console.Trash,
    "restore": console.Restore,
    "unpack": console.Unpack,
    "evaluate": judge.Evaluate,
    "reference": judge.ReferenceFile,
    "compare": judge.Compare,
    "sweep": sweep.Sweep,
    "report": report.Report,
    "encode": measure.Encode,
    "import": look.ImportFile,
    "export": look.ExportRun,
    "codec-train": train.Codec,
    "classifier-train": train.Classifier,
    "bench-step": measure.BenchStep,
    "bench-loading": measure.BenchLoading,
    "bench-scores": measure.BenchScores,
    "bench-views": measure.BenchViews,
    "bench-console": measure.BenchConsole,
    "lab": lab.Lab,
    "page": lab.Page,
    "zoo": look.Zoo,
    "presets": look.Presets,
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
        _refuse(f"{error}")
    # Idle threads that spin would take the cores from another process on the machine.
    os.environ.setdefault("OMP_WAIT_POLICY", "passive")
    command = tyro.extras.subcommand_cli_from_dict(
        COMMANDS,
        prog="workbench",
        description="See, compare and use the features inside a diffusion transformer. Every command takes --plugin "
        "MODULE too: runs may then use the method, backbone or data set in that module of yours.",
        args=arguments,
    )
    try:
        check_command(command)
        with warnings_as_sentences() as came:
            _run(command)
    except ValueError as error:
        _refuse(f"{error}")
    except OSError as error:
        _refuse(sentence_of(error))
    except RuntimeError as error:  # pathlib's, where ~ stands for nothing
        if "home directory" not in str(error):
            raise
        _refuse("this user has no home directory: set HOME to a folder that can be written")
    except KeyboardInterrupt:
        print("workbench: interrupted; what was finished is kept, run it again to go on", file=sys.stderr)
        sys.exit(130)
    from workbench.runs.checkpoints import FellBack

    if FellBack in came:
        sys.exit(3)


def _refuse(sentence: str) -> None:
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


def _run(command: object) -> None:
    room = type(command).__module__.rpartition(".")[2]
    module = importlib.import_module(f"workbench.commands.{room}")
    getattr(module, type(command).__name__.lower())(command)


if __name__ == "__main__":
    main()
