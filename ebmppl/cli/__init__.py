"""The command line: ``ebmppl sample``, ``ebmppl summary``. The only place where strings become objects."""

from ebmppl.cli.app import app, main

__all__ = ["app", "main"]
