"""The settings of a command: its flags, the environment and .env together."""

from __future__ import annotations

from rekontext.cli.failure import CommandFailed
from rekontext.settings import Settings, SettingsError, load_settings


def settings_of(**flags: object) -> Settings:
    """What is set, with the flags over all else.

    Raises:
        CommandFailed: a setting is wrong.
    """
    try:
        return load_settings(**flags)
    except SettingsError as fault:
        raise CommandFailed(str(fault)) from fault
