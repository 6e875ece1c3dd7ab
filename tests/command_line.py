"""The command line in a folder with a model file, and how it is to end."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest
from typer.testing import CliRunner, Result

from ebmppl.cli import app

Cli = Callable[..., Result]


def in_folder(folder: Path, model: str, monkeypatch: pytest.MonkeyPatch) -> Cli:
    """Runs the command line in a folder with ``model.py``."""
    monkeypatch.chdir(folder)
    monkeypatch.setenv("COLUMNS", "200")
    (folder / "model.py").write_text(model)
    return lambda *args: CliRunner().invoke(app, list(args))


def sampled(result: Result) -> str:
    """What was printed; exit code 0."""
    assert result.exit_code == 0, result.output
    return result.stdout


def refused(result: Result, *words: str) -> None:
    """Exit code 1, nothing on stdout, and one line on stderr with all the words."""
    assert result.exit_code == 1, result.output
    assert result.stdout == ""
    assert result.stderr.startswith("Error: ")
    assert result.stderr.count("\n") == 1
    for word in words:
        assert word in result.stderr
