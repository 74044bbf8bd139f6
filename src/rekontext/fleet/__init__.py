"""Where edits run. The service sees only `rekontext.contract.Fleet`."""

from rekontext.fleet.elsewhere import ElsewhereFleet
from rekontext.fleet.local import LocalFleet
from rekontext.fleet.messages import Opening
from rekontext.fleet.processes import ProcessFleet

__all__ = ["ElsewhereFleet", "LocalFleet", "Opening", "ProcessFleet"]
