"""Readers of electron images: from a pair of frames to an aberration, from one frame to a score."""

from mm_autofocus.estimators.aberration import Aberration, ColumnCalibration, PairEstimate, PairEstimator, PatchEstimate

__all__ = ["Aberration", "ColumnCalibration", "PairEstimate", "PairEstimator", "PatchEstimate"]
