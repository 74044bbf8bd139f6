"""The command line. Nothing heavy is imported before a command runs: `rekontext --help` must answer at once."""

from rekontext.cli.main import main

__all__ = ["main"]
