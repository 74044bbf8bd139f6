"""The settings of a command: its flags, the environment and .env together; and who may see what it keeps by them."""

from __future__ import annotations

import os

from rekontext.cli.failure import CommandFailed
from rekontext.settings import Settings, SettingsError, load_settings


def keep_private() -> None:
    """Have what this process writes from now on be for its user alone, and what those write that it starts.

    A data folder that the service makes lets nobody else in; one that was there before may be open to everybody.
    """
    os.umask(0o077)


def settings_of(**flags: object) -> Settings:
    """What is set, with the flags over all else.

    Raises:
        CommandFailed: a setting is wrong.
    """
    try:
        return load_settings(**flags)
    except SettingsError as fault:
        raise CommandFailed(str(fault)) from fault
