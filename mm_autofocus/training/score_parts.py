"""Training frames in parts, for workers: together what one sampler draws, whoever makes them."""

from __future__ import annotations

import copy
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, fields, replace
from typing import Any

import numpy as np
from numpy.typing import NDArray

from mm_autofocus.estimators.focus_score import FRAME
from mm_autofocus.training.score_data import ScoredImage, ScoreSampler, ScoreView, by_experts


@dataclass(frozen=True, slots=True)
class FramePart:
    """Part of what a sampler draws, light enough to be sent: the views are not in it.

    Attributes
    ----------
    sampler
        Without views.
    rng
        Where the part begins.
    count, repeats
        As of `ScoreSampler.samples`.
    labels
        Scatters the labels as experts do, from where the part begins; None for exact ones.
    """

    sampler: ScoreSampler
    rng: np.random.Generator
    count: int
    repeats: int
    labels: np.random.Generator | None = None

    def images(self, views: Sequence[ScoreView]) -> Iterator[ScoredImage]:
        """Yield the frames of this part."""
        sampler, labels = replace(self.sampler, views=views), copy.deepcopy(self.labels)
        sampler._rng = copy.deepcopy(self.rng)
        images: Iterable[ScoredImage] = sampler.samples(self.count, repeats=self.repeats)
        for image in images:
            yield image if labels is None else replace(image, score=by_experts(image.score, labels))


def parts_of(
    sampler: ScoreSampler, count: int, each: int, *, repeats: int = 1, labels: np.random.Generator | None = None
) -> list[FramePart]:
    """Return parts of ``each`` draws that together are what `ScoreSampler.samples` would yield.

    Where a part begins in the stream of random numbers is found by drawing the earlier ones without their blur.
    """
    dry = _Unblurred(**{f.name: getattr(sampler, f.name) for f in fields(sampler)})
    dry._rng = sampler._rng
    parts: list[FramePart] = []
    for first in range(0, count, each):
        if parts:
            for _ in dry.samples(parts[-1].count, repeats=repeats):
                if labels is not None:
                    by_experts(0.0, labels)
        begins = copy.deepcopy(sampler._rng), min(each, count - first), repeats, copy.deepcopy(labels)
        parts.append(FramePart(replace(sampler, views=()), *begins))
    return parts


class _Unblurred(ScoreSampler):
    """Draws what a sampler draws, in a seventh of the time that a frame and its features take, and shows nothing."""

    def blur(self, *_: Any, **__: Any) -> NDArray[np.float32]:
        return np.zeros(FRAME, np.float32)
