"""The wire: one app, one file per surface, one file that turns errors into answers. Never imports torch."""

from rekontext.api.app import create_app

__all__ = ["create_app"]
