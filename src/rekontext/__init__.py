"""FLUX.1 Kontext [dev] as an image-editing API on your own machines.

Nothing heavy is imported here: the engine is `rekontext.engine`, the service `rekontext.api`.
"""

from typing import Final

__version__ = "0.1.0"
AGENT: Final = f"rekontext/{__version__}"
"""Under which name it calls other hosts."""
