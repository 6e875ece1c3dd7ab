"""What goes wrong, said in one line on stderr; exit codes."""

from __future__ import annotations

import traceback
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import typer

from ebmppl.errors import EnergyError, SamplingError, SamplingWarning

FAILED = 1  # what the user can mend; usage errors are 2, as everywhere
INTERRUPTED = 130  # Ctrl-C, as the shell says it


class UserError(ValueError):
    """What was asked for can't be done as it was asked; the message says what was wanted and what came."""


@contextmanager
def in_one_line(file: Path | None = None, *, debug: bool = False) -> Iterator[None]:
    """Turn every error inside into one line on stderr and exit code 1.

    Args:
        file: the user's file, whose line is named where the error comes from there.
        debug: print the traceback too.
    """
    try:
        with _warnings_in_one_line():
            yield
    except (typer.Exit, typer.Abort, BrokenPipeError):
        raise
    except KeyboardInterrupt:
        say("Interrupted.")
        raise typer.Exit(INTERRUPTED) from None
    except Exception as error:
        if debug:
            traceback.print_exc()
        say(f"Error: {describe(error, file)}")
        raise typer.Exit(FAILED) from None


def describe(error: BaseException, file: Path | None) -> str:
    """One line for an error: where in the user's file, its type unless the library speaks, its message."""
    where = _line_in(error, file)
    message = " ".join(str(error).split())
    where = "" if isinstance(error, UserError) and where in message else where  # it is said already
    ours = isinstance(error, (UserError, EnergyError, SamplingError)) or (type(error) is ValueError and not where)
    words = message if ours else f"{type(error).__name__}: {message}" if message else type(error).__name__
    return f"{where}: {words}" if where else words


def say(text: str) -> None:
    """A line on stderr."""
    typer.echo(text, err=True)


def _line_in(error: BaseException | None, file: Path | None) -> str:
    """The innermost line of the user's file from which an error, or what caused it, came."""
    line = 0
    while error is not None and file is not None:
        lines = [n for frame, n in traceback.walk_tb(error.__traceback__) if frame.f_code.co_filename == str(file)]
        line, error = (lines[-1] if lines else line), error.__cause__
    return f"{file.name}, line {line}" if file is not None and line else ""


@contextmanager
def _warnings_in_one_line() -> Iterator[None]:
    def show(message: Warning | str, *_: object, **__: object) -> None:
        say(f"Warning: {' '.join(str(message).split())}")

    with warnings.catch_warnings():
        warnings.simplefilter("always", SamplingWarning)
        warnings.filterwarnings("ignore", message="interrupted", category=SamplingWarning)  # said by the command itself
        warnings.showwarning = show
        yield
