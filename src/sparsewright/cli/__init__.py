"""Floor 11: the command line. One file per verb, no logic; a user's mistake is one line and exit code 2."""

from .app import app, main

__all__ = ["app", "main"]
