"""LoRAs of single edits: weights changed between two steps, and changed back.

Merged, as those are that a model is opened with (`lora.py`): a step costs what it costs without them, in every
precision, and an edit gets the bytes that it would get from a model opened with its LoRAs. Nothing is ever subtracted:
what was changed is put back from a copy that was set aside, or read again from its file, so that weights don't drift.
"""

from __future__ import annotations

import logging
from abc import ABC, abstractmethod
from collections import OrderedDict
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from threading import Lock
from typing import Final
from weakref import WeakValueDictionary

import torch
from torch import Tensor, nn

from rekontext.contract import LoRARefused
from rekontext.engine.checkpoint import OpenedModel
from rekontext.engine.fp8 import Fp8Linear, quantise_rows
from rekontext.engine.layers import hold
from rekontext.engine.loading import StoredWeights
from rekontext.engine.lora import Changes, LoRAs
from rekontext.engine.packed import PackedLinear
from rekontext.engine.placement import is_out_of_memory
from rekontext.engine.pretrained import encoder_weight
from rekontext.engine.tensors import CheckpointError, TensorSource, first_of
from rekontext.engine.transformer import KontextTransformer
from rekontext.models import offered_loras

FILE_BYTES_MAX: Final = 4 * 2**30
"""Of one LoRA: of rank 256 for all of the published model's matrices it has 2.4 GB."""
_KEPT_BYTES_MAX: Final = 2 * 2**30
"""Of files that are kept in memory; the last that was asked for always is."""
_REFUSED_MAX: Final = 256
_RESERVE_BYTES: Final = 6 * 2**30
"""What copies that are set aside leave free on a GPU: steps, decoding and the libraries need it."""

_NO_FILES: Final[Mapping[str, Path]] = {}

_log = logging.getLogger(__name__)

_Stamp = tuple[str, int, int, int]
"""Path, size, mtime, which may be any, and ctime, which is when the file system knows it to have been changed."""


@dataclass(frozen=True, kw_only=True)
class Adaptation:
    """What an edit asks to have merged; equal to another that merges the same files at the same strengths.

    Attributes:
        key: the files and their strengths.
        name: how it is called in messages.
        brought: those of the files that an account brought, by name: what is wrong with them may be told.
    """

    key: tuple[tuple[_Stamp, float], ...] = ()
    name: str = field(default="", compare=False)
    brought: Mapping[str, Path] = field(default_factory=dict, compare=False)
    transformer: Changes = field(default_factory=Changes, compare=False)
    clip: Changes = field(default_factory=Changes, compare=False)
    t5: Changes = field(default_factory=Changes, compare=False)


NONE: Final = Adaptation()


class Hotswap:
    """What is merged into a model's weights for the edit at hand.

    Args:
        folder: where the LoRAs on offer lie; None offers none.

    Attributes:
        merged: what is merged now; None after a failure half way, until the next `merge`.
    """

    def __init__(self, parts: OpenedModel, folder: Path | None) -> None:
        self.merged: Adaptation | None = NONE
        self._folder = folder
        self._parts = parts
        self._transformer = _Transformer(parts.transformer, parts.stored, opened_in_fp8=parts.placement.fp8)
        self._clip, self._t5 = _Encoder(parts.clip), _Encoder(parts.t5)
        self._sources: OrderedDict[_Stamp, TensorSource] = OrderedDict()
        # Those that edits hold as well: a queue in turns must not open the file for each of its edits.
        self._alive: WeakValueDictionary[_Stamp, TensorSource] = WeakValueDictionary()
        self._refused: dict[tuple[tuple[_Stamp, float], ...], str] = {}
        self._reading = Lock()

    def find(self, loras: Sequence[tuple[str, float]], brought: Mapping[str, Path] = _NO_FILES) -> Adaptation:
        """What an edit asks for, read, and checked in all but its values. On any thread.

        Args:
            brought: files beside those on offer, by name.

        Raises:
            LoRARefused: one isn't on offer, can't be read, or was made for another model.
        """
        if not loras:
            return NONE
        merged, key = LoRAs(), []
        files = offered_loras(self._folder) if any(name not in brought for name, _ in loras) else {}
        for name, strength in loras:
            file = brought.get(name) or files.get(name)
            if file is None:
                raise LoRARefused(f"the LoRA {name} isn't on offer here; on offer: {first_of(files) or 'none'}")
            with _refusing(name, brought):
                stamp, source = self._read(file)
                merged.add(source, name, strength)
            key.append((stamp, strength))
        if (known := self._refused.get(tuple(key))) is not None:
            raise LoRARefused(known)
        with _refusing(" and ".join(merged.names), brought):
            return Adaptation(
                key=tuple(key),
                name=" and ".join(merged.names),
                brought=brought,
                transformer=merged.of_transformer(self._transformer.shapes),
                clip=merged.of_encoder("clip", self._parts.clip),
                t5=merged.of_encoder("t5", self._parts.t5),
            )

    def merge(self, wanted: Adaptation) -> bool:
        """Have exactly these merged. Nothing may be computing with the weights meanwhile.

        Returns:
            Whether the text encoders changed, and what was encoded before isn't what it would be now.

        Raises:
            LoRARefused: a change isn't finite. The next call mends what was begun.
            CheckpointError: a weight can't be read again.
            RuntimeError: the device has no memory for it, or failed.
        """
        is_mending, self.merged = self.merged is None, None
        try:
            with torch.no_grad():
                self._transformer.merge(wanted.transformer, of=wanted)
                is_other = [
                    held.merge(changes, of=wanted)
                    for held, changes in ((self._clip, wanted.clip), (self._t5, wanted.t5))
                ]
        except LoRARefused as refusal:  # of the same files: merging them again would be for nothing
            self._refused[wanted.key] = str(refusal)
            while len(self._refused) > _REFUSED_MAX:
                del self._refused[next(iter(self._refused))]
            raise
        self.merged = wanted
        # What a failure left half done may have put back all that there was to put back, and nobody was told.
        return is_mending or any(is_other)

    @property
    def has_copies(self) -> bool:
        """Whether memory was taken to be faster, which `release` gives back."""
        return self._transformer.has_copies

    def release(self) -> None:
        """Do without them."""
        self._transformer.release()

    def _read(self, file: Path) -> tuple[_Stamp, TensorSource]:
        """A file's tensors, and by what it is known to be the same as before."""
        try:
            about = file.stat()
        except OSError as error:
            raise CheckpointError(f"{file} can't be read: {error.strerror}") from error
        stamp = (str(file), about.st_size, about.st_mtime_ns, about.st_ctime_ns)
        with self._reading:
            source = self._alive.get(stamp)
            if source is None:
                if about.st_size > FILE_BYTES_MAX:
                    raise CheckpointError(f"{file} has {about.st_size} bytes: a LoRA has at most {FILE_BYTES_MAX}")
                source = self._alive[stamp] = TensorSource([file], mapped=False)
            self._keep(stamp, source)
            return stamp, source

    def _keep(self, stamp: _Stamp, source: TensorSource) -> None:
        """Have a file in memory before its edit's turn, when the device would wait for the disk."""
        try:
            source.keep()
        except OSError as error:
            raise CheckpointError(f"{source.label} can't be read: {error.strerror}") from error
        self._sources[stamp] = source
        self._sources.move_to_end(stamp)
        while len(self._sources) > 1 and sum(size for _, size, *_ in self._sources) > _KEPT_BYTES_MAX:
            _, other = self._sources.popitem(last=False)
            other.forget()  # edits that wait for it read it when it is their turn


@contextmanager
def _refusing(loras: str, brought: Mapping[str, Path]) -> Iterator[None]:
    """What is wrong with a file is for whoever has it: for the operator's log, or for the caller who brought it."""
    try:
        yield
    except CheckpointError as error:
        why = str(error)
        for name, file in brought.items():
            if str(file) in why:
                told = f"the LoRA {name} can't be merged into this model: {why.replace(str(file), name)}"
                raise LoRARefused(told) from error
        _log.error("the LoRA %s can't be merged: %s", loras, error)
        raise LoRARefused(f"the LoRA {loras} can't be merged into this model; the server's log says why") from error
    except Exception as error:
        # A stranger's file ends no engine. What the device says of itself is no file's fault.
        if not brought or is_out_of_memory(error) or isinstance(error, (LoRARefused, torch.AcceleratorError)):
            raise
        _log.exception("the LoRA %s can't be merged", loras)
        raise LoRARefused(f"the LoRA {loras} can't be merged into this model: it holds what no LoRA does") from error


class _Held(ABC):
    """One part of a model, of which some weights are changed."""

    def __init__(self) -> None:
        self._changed: set[str] = set()

    def merge(self, changes: Changes, *, of: Adaptation) -> bool:
        """Have exactly the changes that are those of some LoRAs. Returns whether anything was done for it."""
        others = sorted(self._changed.union(changes))
        for name in others:
            if name in changes:
                self._set_aside(name)
                self._changed.add(name)
                wide = self._wide(name)
                with _refusing(of.name, of.brought):
                    wide = changes.merged(name, wide)
                self._put(name, wide)
            else:
                self._restore(name)
                self._changed.discard(name)
        return bool(others)

    @abstractmethod
    def _set_aside(self, name: str) -> None:
        """Called before a weight is changed, each time."""

    @abstractmethod
    def _wide(self, name: str) -> Tensor:
        """A weight as it is without changes, in float32; the caller's own."""

    @abstractmethod
    def _put(self, name: str, wide: Tensor) -> None:
        """Hold this weight from now on, rounded as all are."""

    @abstractmethod
    def _restore(self, name: str) -> None:
        """Hold the weight without changes again."""


class _Encoder(_Held):
    """A text encoder: what is changed of it is seldom much, and set aside on the host for good."""

    def __init__(self, encoder: nn.Module) -> None:
        super().__init__()
        self._encoder = encoder
        self._originals: dict[str, Tensor] = {}

    def _set_aside(self, name: str) -> None:
        if name not in self._originals:
            self._originals[name] = encoder_weight(self._encoder, name).to("cpu", copy=True)

    def _wide(self, name: str) -> Tensor:
        device = encoder_weight(self._encoder, name).device
        return self._originals[name].to(device, torch.float32, copy=True)

    def _put(self, name: str, wide: Tensor) -> None:
        encoder_weight(self._encoder, name).copy_(wide)

    def _restore(self, name: str) -> None:
        encoder_weight(self._encoder, name).copy_(self._originals[name])


class _Transformer(_Held):
    """The transformer, however its weights are held.

    On a GPU with room for it, what is changed is set aside there; without, or on a CPU, it is read from its file again.

    Args:
        opened_in_fp8: what its file has in e4m3 is held as it is there. After a fall to fp8 it is not: all was
            quantised then, from what was held.
    """

    def __init__(self, transformer: KontextTransformer, stored: StoredWeights | None, *, opened_in_fp8: bool) -> None:
        super().__init__()
        self._transformer = transformer
        self._stored = stored
        self._opened_in_fp8 = opened_in_fp8
        self.shapes: Mapping[str, Tensor] = (
            dict(transformer.named_parameters()) if stored is None else stored.parameters
        )
        self._originals: dict[str, tuple[Tensor, ...]] = {}

    @property
    def has_copies(self) -> bool:
        """Of weights that could be read from their file as well."""
        return bool(self._originals) and self._stored is not None

    def release(self) -> None:
        """Forget what was set aside."""
        self._originals.clear()

    def merge(self, changes: Changes, *, of: Adaptation) -> bool:
        """As `_Held.merge`."""
        is_other = super().merge(changes, of=of)
        # Even if nothing was done now: before it a failure may have come between a change and this.
        self._transformer.weights_changed()
        return is_other

    def _set_aside(self, name: str) -> None:
        if name in self._changed or name in self._originals:
            return
        held = self._held(name)
        if held and (self._stored is None or self._has_room(held)):
            self._originals[name] = tuple(tensor.clone() for tensor in held)

    def _wide(self, name: str) -> Tensor:
        device, stored = self._transformer.device, self._stored
        weight, *scale = self._originals.get(name, (None,))
        if weight is not None and (stored is None or (not scale and stored.is_exact(name))):
            wide = weight.to(device, torch.float32, copy=True)
            return wide * scale[0] if scale else wide
        assert stored is not None, "what is stored nowhere was set aside"
        return stored.wide(name, device=device)

    def _put(self, name: str, wide: Tensor) -> None:
        module, kind = self._place(name)
        if isinstance(module, PackedLinear):
            module.hold(kind, wide.to(self._transformer.dtype))
        elif self._is_small(name):
            self._hold(name, quantise_rows(wide.to(self._transformer.device, self._transformer.dtype)))
        else:
            self._hold(name, (wide,))

    def _restore(self, name: str) -> None:
        device, stored = self._transformer.device, self._stored
        if name in self._originals:
            self._hold(name, self._originals[name])
            return
        assert stored is not None, "what is stored nowhere was set aside"
        if self._is_small(name) and self._opened_in_fp8:
            self._hold(name, stored.read_e4m3(name, device=device))
        else:
            self._put(name, stored.read(name, device=device))

    def _hold(self, name: str, tensors: tuple[Tensor, ...]) -> None:
        for held, tensor in zip(self._held(name), tensors, strict=True):
            hold(held, tensor)

    def _is_small(self, name: str) -> bool:
        """Whether it is held in e4m3, with a scale."""
        return len(self._held(name)) == 2

    def _held(self, name: str) -> tuple[Tensor, ...]:
        """The tensors that a weight is, in place, a scale behind it if it has one; none if it is packed."""
        module, kind = self._place(name)
        if isinstance(module, PackedLinear):
            return ()
        if isinstance(module, Fp8Linear) and kind == "weight":
            return module.weight, module.scale
        weight: Tensor = getattr(module, kind)
        return (weight,)

    def _place(self, name: str) -> tuple[nn.Module, str]:
        path, _, kind = name.rpartition(".")
        return self._transformer.get_submodule(path), kind

    def _has_room(self, held: tuple[Tensor, ...]) -> bool:
        """Whether copies fit beside all that edits need."""
        device = self._transformer.device
        if any(tensor.device.type != "cuda" for tensor in held):
            return False
        free, _ = torch.cuda.mem_get_info(device)
        free += torch.cuda.memory_reserved(device) - torch.cuda.memory_allocated(device)
        return sum(tensor.nbytes for tensor in held) + _RESERVE_BYTES <= free
