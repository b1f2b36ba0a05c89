"""The application and its door: verbs are found here, errors end here."""

import errno
import os
import sys
import traceback
from collections.abc import Sequence
from pathlib import Path
from typing import Annotated

import typer

from ..core import SparsewrightError, file_error
from . import bench, doctor, export, init, inspect, pack, profile, report, run, search, sparsify, targets, train, verify
from . import list as list_verb

# What a full disk, a read-only folder or missing rights answer, from whatever library wrote.
_DISK_ERRORS = frozenset({errno.ENOSPC, errno.EROFS, errno.EACCES, errno.EPERM, errno.EDQUOT})
_DISK_WORDS = ("No space left on device", "Read-only file system")

app = typer.Typer(
    name="sparsewright",
    help="Make PyTorch models sparse so that they really get smaller and faster, and prove it.",
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
    rich_markup_mode=None,
    context_settings={"help_option_names": ["-h", "--help"]},
)


def _print_version(wanted: bool) -> None:
    if wanted:
        from .. import __version__

        typer.echo(f"sparsewright {__version__}")
        raise typer.Exit


@app.callback()
def _options(
    version: Annotated[
        bool, typer.Option("--version", callback=_print_version, is_eager=True, help="Print the version.")
    ] = False,
) -> None:
    """Make PyTorch models sparse so that they really get smaller and faster, and prove it."""


app.command("init")(init.init)
app.command("run")(run.run)
app.command("doctor")(doctor.doctor)
app.command("profile")(profile.profile)
app.command("targets")(targets.targets)
app.command("search")(search.search)
app.command("sparsify")(sparsify.sparsify)
app.command("train")(train.train)
app.command("pack")(pack.pack)
app.command("bench")(bench.bench)
app.command("inspect")(inspect.inspect)
app.command("export")(export.export)
app.command("verify")(verify.verify)
app.command("report")(report.report)
app.command("list")(list_verb.list_)


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the command line.

    Args:
        arguments: without the program's name; None: the process's own.

    Returns:
        Exit code: 0 done, 2 a user's mistake or a limit of the machine, 130 interrupted. A fault of ours keeps its
        traceback and ends with 1.
    """
    try:
        app(args=None if arguments is None else list(arguments), prog_name="sparsewright")
    except SystemExit as end:
        return end.code if isinstance(end.code, int) else int(bool(end.code))
    except KeyboardInterrupt:
        print("sparsewright: interrupted; what is done is kept, run the same command to go on.", file=sys.stderr)
        return 130
    except SparsewrightError as error:
        return _refuse(error)
    except BrokenPipeError:
        # The reader of our output has gone, as with `| head`.
        sys.stdout = open(os.devnull, "w")  # noqa: SIM115
        return 0
    except Exception as error:
        if not _is_disk_error(error):
            raise
        if os.environ.get("SPARSEWRIGHT_DEBUG") == "1":
            traceback.print_exc()
        where = getattr(error, "filename", None) or "The file"
        own = error if isinstance(error, OSError) else OSError(str(error))
        return _refuse(file_error(own, Path(str(where))))
    return 0


def _refuse(error: SparsewrightError) -> int:
    if os.environ.get("SPARSEWRIGHT_DEBUG") == "1":
        traceback.print_exception(error)
    print(f"sparsewright: {' '.join(str(error).split())}", file=sys.stderr)
    return 2


def _is_disk_error(error: Exception) -> bool:
    if isinstance(error, OSError) and error.errno in _DISK_ERRORS:
        return True
    # safetensors and torch tell a full disk in words.
    return any(word in str(error) for word in _DISK_WORDS)
