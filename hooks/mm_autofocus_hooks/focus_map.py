"""The focus map: predicts the focal plane everywhere from the runs that converged, and says how sure it is."""

from __future__ import annotations

import math
import time
from collections import deque
from collections.abc import Callable, Generator, Hashable, Iterable
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING

from mm_autofocus.hookspecs import hookimpl
from mm_autofocus.request import Event, FocusRequest, Prior
from mm_autofocus.result import FocusResult, Status
from mm_autofocus.settings import Settings
from mm_autofocus_hooks.plate_model import Estimate, PlateModel, PlatePriors, Site

if TYPE_CHECKING:
    from mm_autofocus.autofocus import Autofocus

GATE_SD = 4.5
"""A result further than this from the prediction is not believed on its own."""
REJECTIONS = 3
"""After this many rejections in a row the map's SDs were too small, and the results are believed."""
SCALE_WINDOW = 40
SCALE_PRIOR = 8.0
"""The scale of the SDs starts as if this many innovations of exactly 1 SD had been seen."""
SCALE_LIMITS = (0.85, 10.0)
SPREAD_WINDOW = 200
SMALLEST_SPREAD = 0.1
"""The SDs of wells and of fields are learnt down to this fraction of the settings'."""
ANSWERS_OF_A_RUN = frozenset({"widen", "pause"})
"""Failure actions after which a converged result still comes from images, not from the policy."""
REPLAY_CAPACITY = 256


@dataclass(frozen=True, slots=True)
class LeftOut:
    """One result against the prediction of the map that learnt all the others.

    Attributes
    ----------
    site
        Where it was.
    error
        Measured minus predicted focal plane in µm.
    sd
        SD in µm that the map gives this difference, the noise of the measurement included.
    """

    site: Site
    error: float
    sd: float


@dataclass(frozen=True, slots=True)
class _Result:
    site: Site
    time: float
    z: float


class FocusMap:
    """Learns from every converged run and predicts the focal plane at the next event.

    A result further than 4.5 SD from its prediction is set aside. If the next one, at another place, is off by the same
    amount, the plate was bumped: height and tilt are forgotten, wells and fields are kept, and both results are learnt.
    At one and the same place a false peak may repeat itself, and it takes three. Three rejections in a row that do not
    agree mean that the SDs were too small: they are widened and the results learnt.

    The SDs of wells and of fields begin at the settings' (guess them large) and follow what is found; on top of that
    every predicted SD is rescaled from the recent innovations, separately for new wells, new fields in known wells,
    and places measured before.

    Without a well name the position stands for the well, and the grid tiles for its fields.

    Parameters
    ----------
    settings
        Section ``[map]`` says what is believed beforehand; see `mm_autofocus.settings.MapSettings`.
    clock
        Seconds, at any origin; tells how long ago the last result was when the map predicts. None: the autofocus's.
    """

    def __init__(self, settings: Settings, clock: Callable[[], float] | None = None) -> None:
        self._settings = settings.map
        self._given_clock = clock
        self._clock = clock or time.monotonic
        self._reset(settings.microscope.depth_of_field_um or 1.0)

    def _reset(self, depth_of_field_um: float) -> None:
        chosen = self._settings
        self._priors = PlatePriors(
            tilt_um_per_mm=chosen.tilt_sd_um_per_mm,
            bow_um_per_cm2=chosen.bow_sd_um_per_cm2,
            well_um=chosen.well_sd_um,
            field_um=chosen.field_sd_um,
            drift_um_per_hour=chosen.drift_um_per_hour,
            measurement_um=chosen.measurement_sd_um or depth_of_field_um / 8,
        )
        self.model = PlateModel(self._priors)
        self.learnt = 0
        self.rejected = 0
        self.bumps = 0
        self._squares = {kind: deque[float](maxlen=SCALE_WINDOW) for kind in ("well", "field", "place")}
        self._variances = {kind: deque[float](maxlen=SPREAD_WINDOW) for kind in ("well", "field")}
        """What the last new wells (fields) say about the variance between wells (fields), µm²."""
        self._aside: list[_Result] = []
        self._latest: dict[Hashable, _Result] = {}
        """The last result of each field since the last bump, for `leave_one_out`."""
        self._last_time = 0.0
        self._last_clock = self._clock()

    # ------------------------------------------------------------------ hooks
    @hookimpl
    def mmaf_start(self, autofocus: Autofocus) -> None:
        """Forget everything: another acquisition may have another plate."""
        self._clock = self._given_clock or autofocus.microscope.clock
        self._reset(autofocus.depth_of_field_um)

    @hookimpl(trylast=True)
    def mmaf_predict(self, event: Event) -> Prior | None:
        """Predict the focal plane (absolute µm) now, None without coordinates or before the first result."""
        site = site_of(event)
        if site is None or not self._settings.enabled or self.model.empty:
            return None
        estimate = self.model.estimate(site, self._now())
        return Prior(estimate.mean, self._scale(site) * math.sqrt(estimate.variance))

    @hookimpl(wrapper=True)
    def mmaf_focus(self, request: FocusRequest) -> Generator[None, FocusResult | None, FocusResult | None]:
        """Doubt a first result that lies far from everything the map knows, so that the policy looks again, wider.

        The second look is believed: the plate may have been bumped.
        """
        result = yield
        site = site_of(request.event)
        if not isinstance(result, FocusResult) or not result.ok or request.attempt:
            return result
        if site is None or not self._settings.enabled:
            return result
        error, sd = self.innovation(site, result.time, result.end.get(result.knob, math.nan))
        if not abs(error) > GATE_SD * sd:
            return result
        reason = f"{error:+.2f} µm from where the focus map expects it, {abs(error) / sd:.1f} SD; {result.reason}"
        return result.model_copy(update={"status": Status.LOW_CONFIDENCE, "reason": reason})

    @hookimpl
    def mmaf_focused(self, request: FocusRequest, result: FocusResult) -> None:
        """Learn from a run that converged; what a failure policy supplied is not a measurement."""
        measured = result.ok and result.final is None and ANSWERS_OF_A_RUN.issuperset(result.action)
        z = result.end.get(result.knob, math.nan)
        site = site_of(request.event)
        if measured and site is not None and math.isfinite(z) and self._settings.enabled:
            self.learn(site, result.time, z)

    # ------------------------------------------------------------------ learning
    def learn(self, site: Site, time: float, z: float) -> bool:
        """Take in one focus result; False when it was set aside as not believable.

        Parameters
        ----------
        site
            Where it was.
        time
            When, in s; a time before an earlier result's counts as that one's.
        z
            Absolute focal plane in µm.
        """
        time = max(time, self._last_time) if self.learnt or self._aside else time
        self._last_time, self._last_clock = time, self._clock()
        result = _Result(site, time, z)
        error, sd = self.innovation(site, time, z)
        if abs(error) <= GATE_SD * sd:
            self._aside.clear()
            self._accept(result)
            return True
        self.rejected += 1
        before = self._aside[-1] if self._aside else None
        self._aside.append(result)
        enough = len(self._aside) >= REJECTIONS
        if before is not None and (before.site != site or enough) and self._agree(before, result):
            self.bumps += 1
            self._latest.clear()
            self.model.bump(max(abs(error), abs(self.innovation(before.site, before.time, before.z)[0])))
            self._believe([before, result])
            return True
        if enough:
            for each in self._aside:
                self._note(each, limit=2 * GATE_SD)
            self._believe(self._aside)
            return True
        return False

    def innovation(self, site: Site, time: float, z: float) -> tuple[float, float]:
        """Return measured minus predicted focal plane, and the SD to expect of it, both in µm.

        Before the first result the error is 0 with an SD without bounds.
        """
        if self.model.empty:
            return 0.0, math.inf
        estimate = self.model.estimate(site, time)
        return z - estimate.mean, self._scale(site) * self._spread(estimate)

    def _accept(self, result: _Result) -> None:
        if not self.model.empty:
            self._note(result, limit=GATE_SD)
            self._learn_spread()
        self.model.update(result.site, result.time, result.z)
        self._latest[result.site.field] = result
        self.learnt += 1

    def _believe(self, results: Iterable[_Result]) -> None:
        for each in list(results):
            self.model.update(each.site, each.time, each.z)
            self._latest[each.site.field] = each
            self.learnt += 1
        self._aside.clear()

    def _agree(self, first: _Result, second: _Result) -> bool:
        """True when two results set aside are off by the same amount, to within what the map is unsure of."""
        (one, one_sd), (two, two_sd) = (self.innovation(each.site, each.time, each.z) for each in (first, second))
        return abs(one - two) <= GATE_SD * math.hypot(one_sd, two_sd)

    # ------------------------------------------------------------------ the scale of the SDs
    def _kind(self, site: Site) -> str:
        if self.model.knows_field(site.field):
            return "place"
        return "field" if self.model.knows_well(site.well) else "well"

    def _scale(self, site: Site) -> float:
        squares = self._squares[self._kind(site)]
        scale = math.sqrt((SCALE_PRIOR + sum(squares)) / (SCALE_PRIOR + len(squares)))
        return min(max(scale, SCALE_LIMITS[0]), SCALE_LIMITS[1])

    def _spread(self, estimate: Estimate) -> float:
        return math.sqrt(estimate.variance + self._priors.measurement_um**2)

    def _note(self, result: _Result, limit: float) -> None:
        """Remember the innovation, in units of the unscaled SD and as a variance between wells or fields."""
        estimate = self.model.estimate(result.site, result.time)
        kind = self._kind(result.site)
        spread = self._spread(estimate)
        error = min(abs(result.z - estimate.mean), limit * self._scale(result.site) * spread)
        self._squares[kind].append((error / spread) ** 2)
        if kind in self._variances:
            priors = self.model.priors
            own = priors.well_um if kind == "well" else priors.field_um
            self._variances[kind].append((own * error / spread) ** 2)

    def _learn_spread(self) -> None:
        """Set the SD between wells and between fields to what was found, two standard errors on the safe side."""

        def found(kind: str, prior: float) -> float:
            seen = self._variances[kind]
            if not seen:
                return prior
            weight = SCALE_PRIOR + len(seen)
            variance = (SCALE_PRIOR * prior**2 + sum(seen)) / weight * (1.0 + 2.0 * math.sqrt(2.0 / weight))
            return math.sqrt(max(variance, (SMALLEST_SPREAD * prior) ** 2))

        self.model.priors = replace(
            self._priors, well_um=found("well", self._priors.well_um), field_um=found("field", self._priors.field_um)
        )

    def _now(self) -> float:
        """The time of the results, now: whatever clock they are in, it runs on from the last one."""
        return self._last_time + (self._clock() - self._last_clock)

    # ------------------------------------------------------------------ report
    def leave_one_out(self) -> list[LeftOut]:
        """Compare the last result of each field with the prediction of a map that learnt all but it.

        Results before a bump are left out. The model is linear, so a result is taken out of the estimate of its own
        place in closed form: mean and variance m, v with it and noise r give v' = 1/(1/v - 1/r),
        m' = v' (m/v - z/r) without it.
        """
        results = sorted(self._latest.values(), key=lambda result: result.time)
        model = PlateModel(self.model.priors, capacity=REPLAY_CAPACITY)
        for each in results:
            model.update(each.site, each.time, each.z)
        noise = self._priors.measurement_um**2
        left_out = []
        for each in results:
            with_it = model.estimate(each.site, each.time)
            precision = 1.0 / with_it.variance - 1.0 / noise
            if precision * noise < 1e-6:  # nothing but this result tells the place
                continue
            mean = (with_it.mean / with_it.variance - each.z / noise) / precision
            left_out.append(LeftOut(each.site, each.z - mean, math.sqrt(1.0 / precision + noise)))
        return left_out


def site_of(event: Event) -> Site | None:
    """Return the site of an event, None when it has no finite coordinates."""
    x, y = event.x, event.y
    if x is None or y is None or not (math.isfinite(x) and math.isfinite(y)):
        return None
    key = event.key
    well = event.well
    return Site(x, y, ("position", key.position) if well is None else well, (key.position, key.grid))
