"""From a frame to the log scores that a search works on."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Protocol

from mm_autofocus.errors import StrategyError
from mm_autofocus.measures.curve import MeasurePrior
from mm_autofocus.measures.registry import checked, get_measure, noise_sd, prepared
from mm_autofocus.strategy import Frame


@dataclass(frozen=True, slots=True)
class Scores:
    """The scores of one frame, one entry per measure; the first measure decides.

    Attributes
    ----------
    logs
        Natural logarithms.
    noise
        SD of each logarithm from image noise.
    """

    logs: tuple[float, ...]
    noise: tuple[float, ...]

    def __post_init__(self) -> None:
        if not all(math.isfinite(value) for value in (*self.logs, *self.noise)):
            raise StrategyError(f"the scores of a frame are not finite: {self.logs}; check the camera's pixel values")

    @property
    def fine(self) -> float:
        """The deciding score itself, not its logarithm; 0 for a frame without any structure."""
        return math.exp(min(self.logs[0], 700.0)) if self.logs[0] > -700.0 else 0.0


class Scorer(Protocol):
    """What turns frames into scores; give a strategy your own to replay recorded scores without images."""

    @property
    def priors(self) -> tuple[MeasurePrior, ...]:
        """Shape of the focus curve of each measure."""
        ...

    def __call__(self, frame: Frame) -> Scores:
        """Return the scores of a frame; StrategyError when it cannot be measured."""
        ...


class ImageScorer:
    """Scores frames by focus measures of their images.

    Parameters
    ----------
    names
        Keys of `mm_autofocus.measures.MEASURES`; the first one decides.
    crop, downsample
        See `mm_autofocus.measures.prepared`.
    """

    def __init__(self, names: Sequence[str], crop: float = 1.0, downsample: int = 1) -> None:
        self._measures = tuple(get_measure(name) for name in dict.fromkeys(names))
        self._crop, self._downsample = crop, downsample

    @property
    def priors(self) -> tuple[MeasurePrior, ...]:
        """Shape of the focus curve of each measure."""
        return tuple(measure.prior for measure in self._measures)

    def __call__(self, frame: Frame) -> Scores:
        """Return the scores of a frame; StrategyError when its image cannot be measured."""
        try:
            image = prepared(frame.image, self._crop, self._downsample)
            noise = noise_sd(image)
            grey = checked(image, 2, "the frame")
            pairs = [measure.log_score(grey, noise) for measure in self._measures]
        except ValueError as error:
            raise StrategyError(f"the frame at {dict(frame.knobs)} cannot be scored: {error}") from error
        return Scores(tuple(log for log, _ in pairs), tuple(noise for _, noise in pairs))


class RecordedScorer:
    """Reads the scores from the frame's image itself, of shape (1, measures): for curves recorded without images.

    Parameters
    ----------
    priors
        Shape of the focus curve of each measure.
    noise
        SD of the logarithm of the scores.
    """

    def __init__(self, priors: tuple[MeasurePrior, ...], noise: float = 0.01) -> None:
        self._priors, self._noise = priors, noise

    @property
    def priors(self) -> tuple[MeasurePrior, ...]:
        """Shape of the focus curve of each measure."""
        return self._priors

    def __call__(self, frame: Frame) -> Scores:
        """Return the scores of a frame; StrategyError when its image holds another number of them."""
        if frame.image.shape != (1, len(self._priors)):
            raise StrategyError(
                f"recorded scores need an image of shape (1, {len(self._priors)}), got {frame.image.shape}"
            )
        values = [float(value) for value in frame.image[0]]
        logs = tuple(math.log(value) if value > 0 else -700.0 if value <= 0 else math.nan for value in values)
        return Scores(logs, (self._noise,) * len(values))
