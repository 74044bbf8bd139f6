"""Where edits run. The service sees only `rekontext.contract.Fleet`."""

from rekontext.fleet.local import LocalFleet

__all__ = ["LocalFleet"]
