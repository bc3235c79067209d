"""One alignment by wobble: wobble, read, move the targets, wobble again; search for a lost beam; calibrate itself."""

from __future__ import annotations

import math
from collections.abc import Generator
from contextlib import suppress
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np

from mm_autofocus.errors import SettingsError
from mm_autofocus.estimators.beam_disc import Beam, Disc, fit_disc
from mm_autofocus.estimators.response import ResponseMap, fit_response
from mm_autofocus.estimators.wobble_alignment import Trouble, WobbleEstimate, estimate_wobble
from mm_autofocus.request import FocusRequest
from mm_autofocus.result import Status
from mm_autofocus.strategies.alignment import Array, Stop, Walk, chance_inside, spiral
from mm_autofocus.strategies.aperture_settings import ApertureSettings
from mm_autofocus.strategies.beam_centring import BeamCentringSettings, Centring, place
from mm_autofocus.strategy import FocusGenerator, Frame, Image, Look, Verdict

if TYPE_CHECKING:
    from mm_autofocus.networks.aperture_model import ApertureModel

_REPEATS = 3
"""A wobble whose beam leaves the frame is repeated with another amplitude at most so often."""
_TRIM = 0.25
"""A last offset above this share of the tolerance is taken out at the end."""
_HARDLY = 2 * 0.06**2
"""Variance of the vector beyond which the beam counts as lost."""
_SURE = 0.95
"""The chance of being aligned at which no further round is made."""
_ADVICE = {
    Trouble.SATURATED: "the detector is saturated; shorten the exposure or spread the beam",
    Trouble.TOO_LARGE: "the disc is larger than the frame; lower the magnification or the wobble",
    Trouble.SILENT: "the beam does not change while the lens is wobbled: the lens does not respond, or the camera "
    "shows an old image. Check the lens supply and the live image",
    Trouble.NO_BEAM: "no beam on the detector",
    Trouble.TOO_FEW: "too few frames have the beam on the detector; lower the wobble or the magnification",
}  # fmt: skip


@dataclass(frozen=True, slots=True)
class _Seen:
    """One wobble, read."""

    position: Array
    estimate: WobbleEstimate
    lens: tuple[float, ...]
    side: int
    """Shorter side of the frames, px."""
    offset: Array | None = None
    """What a network said; None with disc geometry."""


Wobbling = Generator[Look, Frame, _Seen]


class ApertureRun:
    """One alignment: what it has seen so far, and what it does next.

    Parameters
    ----------
    settings, response, model
        The strategy's: see `mm_autofocus.strategies.aperture.Aperture`.
    request
        What is asked.
    """

    def __init__(
        self,
        settings: ApertureSettings,
        response: ResponseMap | None,
        model: ApertureModel | None,
        request: FocusRequest,
    ) -> None:
        s = settings
        self._s, self._model = s, model
        self._search_knobs: tuple[str, str] = s.search_knobs or s.target_knobs
        knobs = tuple(dict.fromkeys((s.wobble_knob, *s.target_knobs, *self._search_knobs)))
        self.walk = Walk("aperture", request, knobs, {"camera": s.camera, "exposure_ms": s.exposure_ms})
        self._tolerance = s.tolerance or min(request.depth(name) for name in s.target_knobs) / 2
        self._lens = float(request.start[s.wobble_knob])
        self._map = response.scaled(s.aperture_ratio) if response is not None else None
        self._own = False
        """True once it has calibrated itself."""
        self._wobbles: list[_Seen] = []
        self._scores: list[float] = []
        self._searched = 0
        self._trail: list[dict[str, Any]] = []

    def details(self) -> dict[str, Any]:
        """Return every wobble's answer, for the report."""
        wobbles = [
            {
                "position": [round(float(p), 3) for p in seen.position],
                "vector": [_plain(v) for v in seen.estimate.vector],
                "crossing": [_plain(v) for v in seen.estimate.crossing],
                "radii": [_plain(v) for v in seen.estimate.radii],
                "discs": [[_plain(d.x), _plain(d.y), _plain(d.radius)] for d in seen.estimate.discs],
                "strange": list(seen.estimate.strange),
                "lens": [_plain(v) for v in seen.lens],
                "trouble": seen.estimate.trouble.value if seen.estimate.trouble else None,
            }
            for seen in self._wobbles
        ]
        response = [list(row) for row in self._map.matrix] if self._map is not None else None
        return {"wobbles": wobbles, "corrections": self._trail, "response": response, "searched": self._searched}

    # ------------------------------------------------------------------ the alignment
    def align(self) -> FocusGenerator:
        """Wobble, find the beam if it is lost, calibrate if need be, then correct until a wobble confirms."""
        s, knobs = self._s, self._s.target_knobs
        here = yield from self._wobble()
        lost = here.estimate.trouble in (Trouble.NO_BEAM, Trouble.TOO_FEW)
        if here.estimate.good:
            lost = _merit(here.estimate) > _HARDLY or (
                self._search_knobs != knobs and not all(0.05 < v / here.side < 0.95 for v in here.estimate.crossing)
            )
        if s.search_step > 0 and lost:
            here = yield from self._found(here)
        if not here.estimate.good:
            self._give_up(here.estimate)
        if self._map is None and self._model is None:
            here = yield from self._calibrate(here)
        confirmed = False
        chance = 0.0
        for turn in range(s.rounds + 1):
            offset, covariance = self._offset(here)
            chance = chance_inside(offset, covariance, self._tolerance) * _trust(here.estimate)
            self._trail.append({
                "offset": [round(float(v), 3) for v in offset],
                "sigma": [round(math.sqrt(float(v)), 3) for v in np.diag(covariance)],
                "chance": round(chance, 4),
            })  # fmt: skip
            confirmed = len(self._wobbles) > 1 or float(np.abs(offset).max()) < self._tolerance
            if confirmed and (chance > _SURE or turn == s.rounds):
                break
            if turn == s.rounds:
                break
            target = here.position - offset
            if chance > 0.5 and turn and float(np.abs(offset).max()) < 1.0:
                break  # less than a step of the drive is left
            self._check_reach(target)
            if self.walk.images_left() < s.count:
                break
            there = yield from self._wobble(dict(zip(knobs, (float(v) for v in target), strict=True)))
            if not there.estimate.good:
                self._give_up(there.estimate)
            self._learn(here, there)
            here = there
        where = {name: self.walk.at[name] for name in dict.fromkeys((*knobs, *self._search_knobs))}
        offset, covariance = self._offset(here)
        if chance > s.min_confidence and confirmed and float(np.abs(offset).max()) > _TRIM * self._tolerance:
            # what the last wobble still saw is taken out too; it is less than the tolerance, and needs no other wobble
            for name, value in zip(knobs, here.position - offset, strict=True):
                where[name] = self.walk.clip(name, float(round(value)) if self._tolerance > 1 else float(value))
            chance = max(chance, chance_inside(np.zeros(2), covariance, self._tolerance) * _trust(here.estimate))
        if chance < s.min_confidence:
            reason = (
                f"after {len(self._wobbles)} wobbles the chance of being within {self._tolerance:g} of the centre is "
                f"{chance:.2f}"
            )
            return Verdict(where, chance, Status.LOW_CONFIDENCE, reason, tuple(self._scores), self.details())
        last = np.hypot(*self._offset(here)[0])
        reason = f"the beam pulses on itself: {last:.1f} from the centre after {len(self._wobbles)} wobbles"
        return Verdict(where, chance, Status.CONVERGED, reason, tuple(self._scores), self.details())

    def _offset(self, seen: _Seen) -> tuple[Array, Array]:
        """How far the targets are from aligned, and the covariance, in their units."""
        if self._model is not None:
            assert seen.offset is not None
            return seen.offset, self._model.covariance
        assert self._map is not None
        v = seen.estimate.v
        # a quarter of a unit: integer steps of the drive, and its play
        return self._map.offset(v), self._map.covariance(v, seen.estimate.cov) + 0.25 * np.eye(2)

    def _check_reach(self, target: Array) -> None:
        for name, value in zip(self._s.target_knobs, target, strict=True):
            limits = self.walk.request.limits[name]
            if abs(value - limits.clip(float(value))) > self._tolerance:
                raise Stop(
                    Status.AT_LIMIT,
                    f"the beam is centred with {name} at about {value:.0f}, outside its limits [{limits.low:g}, "
                    f"{limits.high:g}]; nothing is gained by going there. Choose the hole again, or widen the limits",
                )

    def _give_up(self, estimate: WobbleEstimate) -> None:
        assert estimate.trouble is not None
        searched = f" after a search of {self._searched} positions" if self._searched else ""
        raise Stop(Status.NO_SIGNAL, _ADVICE[estimate.trouble] + searched)

    def _learn(self, before: _Seen, after: _Seen) -> None:
        """Check that the targets moved the beam, and improve the map by what the move did."""
        moved = after.position - before.position
        length = float(np.hypot(*moved))
        change = after.estimate.v - before.estimate.v
        if self._map is None:
            return
        seen = float(np.hypot(*(self._map.m @ change)))
        noise = math.sqrt(float(np.trace(self._map.m @ (before.estimate.cov + after.estimate.cov) @ self._map.m.T)))
        if length > 6 * noise + 4 * self._tolerance and seen < 0.1 * length:
            raise Stop(
                Status.NO_SIGNAL,
                f"{' and '.join(self._s.target_knobs)} were moved by {length:.0f}, and the beam did not follow: the "
                "drive is blocked or the wrong one. Check it before trying again",
            )
        if self._own:  # every wobble of this run is a sample of its calibration
            with suppress(SettingsError):
                self._map = self._fitted(self._wobbles)
        elif length > 8 * noise + 2.0:
            self._map = self._map.updated(moved, change, weight=min(1.0, 0.5 + length / (100 * noise + length)))

    # ------------------------------------------------------------------ looking
    def _wobble(self, targets: dict[str, float] | None = None) -> Wobbling:
        """Wobble; where the beam leaves the frame, again with an amplitude and a middle that show it.

        What is measured depends neither on the amplitude nor on the middle of the wobble.
        """
        s = self._s
        half = s.wobble if s.wobble_absolute else s.wobble * abs(self._lens)
        if half == 0:
            raise Stop(
                Status.NO_SIGNAL,
                f"{s.wobble_knob!r} stands at 0, of which no fraction can be wobbled; set wobble_absolute = true and "
                "wobble in the knob's unit",
            )
        middle = self._lens
        seen = yield from self._one_wobble(middle, half, targets)
        for _ in range(_REPEATS):
            shown = sum(_well_seen(disc) for disc in seen.estimate.discs)
            clear = shown > 0.6 * s.count and _precise(seen.estimate)
            better = None if clear or self.walk.images_left() < 3 * s.count else self._better(seen, half)
            if better is None:
                break
            middle, half = better
            other = yield from self._one_wobble(middle, half, None)
            if _merit(other.estimate) >= _merit(seen.estimate):
                break
            seen = other
        self._wobbles.append(seen)
        return seen

    def _better(self, seen: _Seen, half: float) -> tuple[float, float] | None:
        """Return the middle and amplitude of a wobble that would show more; None when nothing was seen.

        Best is a wobble about crossover that takes the far edge of the disc to 0.45 of the frame.
        """
        s, estimate = self._s, seen.estimate
        lens, radii = np.array(seen.lens), np.array(estimate.radii)
        shown = [v for v, disc in zip(seen.lens, estimate.discs, strict=True) if _well_seen(disc)]
        known = np.isfinite(radii)
        if known.sum() >= 3 and estimate.good:
            slope, start = np.polyfit(lens[known], radii[known], 1)
            if abs(slope) > 1e-9:
                limits = self.walk.request.limits[s.wobble_knob]
                middle = float(np.clip(-start / slope, lens.min() - 2 * half, lens.max() + 2 * half))
                reach = 1.0 + float(np.hypot(*estimate.v))
                wanted = min(max(0.45 * seen.side / reach, 15.0) / abs(float(slope)), half)
                if limits.low + wanted < middle < limits.high - wanted:
                    same = abs(middle - float(lens.mean())) < 0.1 * half and wanted > 0.9 * half
                    return None if same else (middle, wanted)
        return (float(np.mean(shown)), half / 2) if shown else None

    def _one_wobble(self, middle: float, half: float, targets: dict[str, float] | None) -> Wobbling:
        """Image at every lens value in ascending order, so that hysteresis is always the same; late frames again."""
        s = self._s
        values = [self.walk.clip(s.wobble_knob, v) for v in middle + half * np.linspace(-1.0, 1.0, s.count)]
        if max(values) - min(values) < half:
            limits = self.walk.request.limits[s.wobble_knob]
            raise Stop(
                Status.AT_LIMIT,
                f"the limits [{limits.low:g}, {limits.high:g}] of {s.wobble_knob!r} leave no room for a wobble of "
                f"±{half:g} about {middle:g}",
            )
        frames: list[Image] = []
        for value in values:
            frame = yield from self.walk.look({s.wobble_knob: value, **(targets or {})})
            targets = None
            frames.append(frame.image)
        estimate = estimate_wobble(frames, values)
        self._scores += [_shown(disc) for disc in estimate.discs]
        again = [] if estimate.trouble is Trouble.SILENT else list(estimate.repeated[: s.retakes])
        for index in again:
            if self.walk.images_left() < 1:
                break
            frame = yield from self.walk.look({s.wobble_knob: values[index]})
            frames[index] = frame.image
            self._scores.append(_shown(fit_disc(frame.image)))
        if again:
            estimate = estimate_wobble(frames, values)
        offset = self._model.offset(frames) if self._model is not None and estimate.good else None
        side = min(frames[0].shape)
        return _Seen(self.walk.position(s.target_knobs), estimate, tuple(values), side, offset)

    def _calibrate(self, first: _Seen) -> Wobbling:
        """Measure the response by small known moves, towards where there is room; return the last wobble."""
        s, knobs = self._s, self._s.target_knobs
        origin, step = first.position, s.calibration_step
        pattern = [(1, 0), (0, 1), (-1, 0), (0, -1)][: s.calibration_points - 1]
        seen = [first]
        for dx, dy in pattern:
            point = {}
            for name, start, d in zip(knobs, origin, (dx, dy), strict=True):
                limits = self.walk.request.limits[name]
                there = float(start + d * step)
                point[name] = there if there in limits else float(start - d * step)
            here = yield from self._wobble(point)
            if here.estimate.good:
                seen.append(here)
        self._own = True
        try:
            self._map = self._fitted(seen)
        except SettingsError as error:
            raise Stop(Status.NO_SIGNAL, f"it could not calibrate itself: {error}") from error
        return seen[-1]

    def _fitted(self, seen: list[_Seen]) -> ResponseMap:
        good = [each for each in seen if each.estimate.good]
        return fit_response(
            self._s.target_knobs,
            np.array([each.position for each in good]),
            np.array([each.estimate.v for each in good]),
            covariances=[each.estimate.cov for each in good],
        )

    def _found(self, best: _Seen) -> Wobbling:
        """Bring the beam back onto the detector: a spiral of single frames, then a wobble where it was seen best."""
        s, knobs = self._s, self._search_knobs
        limits = [self.walk.request.limits[name] for name in knobs]
        start = self.walk.position(knobs)
        middle = np.array([(each.low + each.high) / 2 for each in limits])
        # a window of known limits is searched from its middle outwards; without one, from where it stands
        bounded = all(each.width <= 2.5 * s.search_radius for each in limits)
        lens = {s.wobble_knob: self._lens}
        for point in spiral(middle if bounded else start, s.search_step, s.search_radius):
            if not all(value in each for value, each in zip(point, limits, strict=True)):
                continue
            if self.walk.images_left() < 4 * s.count:
                raise Stop(Status.NO_SIGNAL, f"{_ADVICE[Trouble.NO_BEAM]}; the images were spent on the search")
            targets = {name: float(v) for name, v in zip(knobs, point, strict=True)}
            frame = yield from self.walk.look({**lens, **targets})
            self._searched += 1
            disc = fit_disc(frame.image)
            self._scores.append(_shown(disc))
            if disc.beam in (Beam.NONE, Beam.SATURATED):
                continue
            if knobs != s.target_knobs and disc.beam.usable:
                yield from self._centred(knobs, frame, disc)
            here = yield from self._wobble()
            if here.estimate.good and _merit(here.estimate) < _HARDLY:
                return here
            if _merit(here.estimate) < _merit(best.estimate):
                best = here
        if best.estimate.good:  # the best there was, hardly seen
            return (yield from self._wobble(dict(zip(s.target_knobs, (float(v) for v in best.position), strict=True))))
        return best

    def _centred(self, knobs: tuple[str, str], frame: Frame, disc: Disc) -> Generator[Look, Frame, None]:
        """Bring a beam that was found at the frame's edge to its middle, with the knobs that it was found with."""
        s = self._s
        centring = Centring(
            self.walk, BeamCentringSettings(target_knobs=knobs, step=s.search_step / 8, tolerance=0.05, rounds=2)
        )
        with suppress(Stop):  # whether that was good enough the wobble will tell
            yield from centring.centre(place(disc, frame, (0.5, 0.5)))
        self._scores += [float(score > 0) for score in centring.scores]


def _trust(estimate: WobbleEstimate) -> float:
    """Factor on the confidence for what the covariance does not know: few, strange or ambiguous frames."""
    usable = estimate.visible
    share = len(estimate.strange) / max(usable, 1)
    factor = 1.0 if share <= 0.3 else 0.5
    if usable - len(estimate.strange) < 4:
        factor *= 0.7
    if estimate.ambiguity < 1.0:
        factor *= 0.6
    return factor


def _precise(estimate: WobbleEstimate) -> bool:
    return _merit(estimate) < 2 * 0.03**2


def _merit(estimate: WobbleEstimate) -> float:
    """Variance of the vector, ten times that where the signs of the radii are in doubt; lower is better."""
    if not estimate.good:
        return math.inf
    return float(np.trace(estimate.cov)) * (10.0 if estimate.ambiguity < 1.0 else 1.0)


def _shown(disc: Disc) -> float:
    """Score of one frame: the share of the disc that it shows."""
    return disc.visible if disc.beam.usable else 0.0


def _well_seen(disc: Disc) -> bool:
    return disc.beam.usable and disc.visible > 0.3


def _plain(value: float) -> float | None:
    return round(float(value), 4) if math.isfinite(value) else None
