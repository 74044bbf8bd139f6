"""How an engine's process comes to be."""

from __future__ import annotations

import pytest

from rekontext.fleet.child import placed


@pytest.mark.parametrize(
    ("device", "visible", "expected"),
    [
        ("cpu", None, ("cpu", None)),
        ("", None, (None, None)),
        ("cuda", None, ("cuda", "0")),
        ("cuda:3", None, ("cuda", "3")),
        ("cuda:1", "4,6", ("cuda", "6")),
        ("cuda:1", "GPU-5f, GPU-7a", ("cuda", "GPU-7a")),
        ("cuda:2", "4,6", ("cuda:2", "4,6")),
        ("cuda:0", "", ("cuda:0", "")),
    ],
)
def test_a_process_sees_its_own_gpu_only(
    device: str, visible: str | None, expected: tuple[str | None, str | None]
) -> None:
    """And none that the service itself was not to see; the engine refuses that."""
    name, environment = placed(device, {} if visible is None else {"CUDA_VISIBLE_DEVICES": visible})
    assert (name, environment.get("CUDA_VISIBLE_DEVICES")) == expected
