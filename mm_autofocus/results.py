"""Keeps the results of a night in little memory: the last ones as they are, the earlier ones packed."""

from __future__ import annotations

import zlib
from collections.abc import Iterator, Sequence
from typing import overload

from pydantic_core import PydanticSerializationError

from mm_autofocus.result import FocusResult

RECENT = 32
"""How many of the last results are kept as objects."""


class ResultLog(Sequence[FocusResult]):
    """A list of results that only grows; what is read back equals what was appended.

    A result with its samples takes 8 KB as an object and below 1 KB packed, which counts after 1536 wells. One that
    JSON cannot hold (a plugin put something else into its details) stays as it is.
    """

    def __init__(self) -> None:
        self._packed: list[bytes | FocusResult] = []
        self._words = b""
        """The first result's JSON: its keys and phrases come again in every other one, so they are referred to."""
        self._recent: list[FocusResult] = []

    def append(self, result: FocusResult) -> None:
        """Add a result."""
        self._recent.append(result)
        if len(self._recent) > RECENT:
            self._packed.append(self._pack(self._recent.pop(0)))

    def clear(self) -> None:
        """Forget all results."""
        self._packed.clear()
        self._recent.clear()
        self._words = b""

    def __len__(self) -> int:
        return len(self._packed) + len(self._recent)

    def __iter__(self) -> Iterator[FocusResult]:
        for index in range(len(self)):
            yield self._at(index)

    @overload
    def __getitem__(self, index: int) -> FocusResult: ...

    @overload
    def __getitem__(self, index: slice) -> list[FocusResult]: ...

    def __getitem__(self, index: int | slice) -> FocusResult | list[FocusResult]:
        if isinstance(index, slice):
            return [self._at(i) for i in range(*index.indices(len(self)))]
        if not -len(self) <= index < len(self):
            raise IndexError(f"there are {len(self)} results, none at {index}")
        return self._at(index % len(self))

    def __eq__(self, other: object) -> bool:
        if not isinstance(other, ResultLog | list):
            return NotImplemented
        return len(self) == len(other) and all(a == b for a, b in zip(self, other, strict=True))

    __hash__ = None  # type: ignore[assignment]

    def __repr__(self) -> str:
        return f"ResultLog of {len(self)} results"

    def _at(self, index: int) -> FocusResult:
        if index >= len(self._packed):
            return self._recent[index - len(self._packed)]
        kept = self._packed[index]
        if isinstance(kept, FocusResult):
            return kept
        return self._unpack(kept)

    def _pack(self, result: FocusResult) -> bytes | FocusResult:
        try:
            text = result.model_dump_json().encode()
            self._words = self._words or text
            packing = zlib.compressobj(9, zdict=self._words)
            packed = packing.compress(text) + packing.flush()
            same = self._unpack(packed) == result
        except (PydanticSerializationError, ValueError):
            return result
        return packed if same else result  # tuples in the details become lists, NaN becomes null

    def _unpack(self, packed: bytes) -> FocusResult:
        unpacking = zlib.decompressobj(zdict=self._words)
        return FocusResult.model_validate_json(unpacking.decompress(packed) + unpacking.flush())
