"""Focus measures, and the model of how they vary over z."""

from mm_autofocus.measures.curve import CurveData, CurveFit, CurveFits, MeasurePrior, fit_peaks, no_peak_cost
from mm_autofocus.measures.registry import MEASURES, Measure, get_measure, measure_focus, noise_sd, prepared

__all__ = [
    "MEASURES",
    "CurveData",
    "CurveFit",
    "CurveFits",
    "Measure",
    "MeasurePrior",
    "fit_peaks",
    "get_measure",
    "measure_focus",
    "no_peak_cost",
    "noise_sd",
    "prepared",
]
