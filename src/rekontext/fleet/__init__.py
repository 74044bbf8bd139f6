"""Where edits run. The service sees only `rekontext.contract.Fleet`."""

from rekontext.fleet.local import LocalFleet
from rekontext.fleet.processes import ProcessFleet

__all__ = ["LocalFleet", "ProcessFleet"]
