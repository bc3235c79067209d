"""Drives one strategy once: the only place where a strategy meets hardware.

It refuses a Look outside the limits or over the budget, takes a verifying frame, never ends worse than it began, and
leaves the instrument where it was on Ctrl-C, an exception or a time-out.
"""

from __future__ import annotations

import logging
import math
import time
from collections.abc import Callable, Mapping
from typing import Any

from mm_autofocus.errors import BudgetError, CancelledError, FocusError, HardwareError, LimitError, StrategyError
from mm_autofocus.microscope import Microscope
from mm_autofocus.request import FocusRequest
from mm_autofocus.result import FocusResult, Sample, Status
from mm_autofocus.settings import VerifySettings
from mm_autofocus.strategy import Frame, Look, Strategy, Verdict
from mm_autofocus.workers import NoAnswerError, Workers

logger = logging.getLogger(__name__)

MAX_REFUSALS = 3
"""A strategy that keeps asking for what was refused is stopped after this many refusals."""

MOST_NOISE = 0.5
"""However noisy a strategy says that its scores are, an end with less than half the start's score is worse."""

OnFrame = Callable[[FocusRequest, Frame, str], None]

_WORKERS = Workers("mm-autofocus strategy")


class _Stepper:
    """Runs a strategy's code in one other thread, so that one that hangs can be given up."""

    def __init__(self, strategy: Strategy, request: FocusRequest) -> None:
        self._strategy = strategy
        self._request = request
        self._generator: Any = None
        self._ended = False
        """Whether the generator has returned or raised."""
        self._worker = _WORKERS.borrow()
        self.seconds = 0.0

    def call(self, task: Callable[[], Any], timeout: float | None) -> Any:
        """Run ``task`` in the strategy's thread and return its value, or raise what it raised."""
        began = time.perf_counter()
        try:
            return self._worker.call(task, timeout)
        except NoAnswerError:
            raise BudgetError(
                f"strategy {self._strategy.name!r} has not answered within the {timeout:.3g} s left of its budget; "
                "raise [budget] seconds or use a faster strategy"
            ) from None
        finally:
            self.seconds += time.perf_counter() - began

    def first(self) -> Any:
        self._generator = self._strategy.focus(self._request)
        return self._step(lambda: next(self._generator))

    def send(self, frame: Frame) -> Any:
        return self._step(lambda: self._generator.send(frame))

    def throw(self, error: FocusError) -> Any:
        return self._step(lambda: self._generator.throw(error))

    def _step(self, step: Callable[[], Any]) -> Any:
        try:
            return step()
        except BaseException:
            self._ended = True
            raise

    def close(self) -> None:
        """Let strategy and thread go, without waiting for either."""
        self._worker.release(None if self._ended else self._end)

    def _end(self) -> None:
        if self._generator is not None:
            self._generator.close()


class FocusRun:
    """One run of one strategy.

    Parameters
    ----------
    microscope
        What to drive.
    strategy
        The strategy.
    request
        What is asked; ``request.start`` is where the knobs are now.
    verify
        Whether and how strictly to check the end against the start.
    on_frame
        Called with every frame; what it raises is logged, never raised.
    """

    def __init__(
        self,
        microscope: Microscope,
        strategy: Strategy,
        request: FocusRequest,
        *,
        verify: VerifySettings | None = None,
        on_frame: OnFrame | None = None,
    ) -> None:
        self._microscope = microscope
        self._strategy = strategy
        self._request = request
        self._verify = verify or VerifySettings()
        self._on_frame = on_frame
        self._samples: list[Sample] = []
        self._start_frame: Frame | None = None
        self._last_look: Look | None = None
        """How the strategy images (camera, exposure, ROI): start and end are compared in the same way."""
        self._moved: set[str] = set()
        self._images0 = microscope.images
        self._dose0 = microscope.dose
        self._moves0 = microscope.moves
        self._began = microscope.clock()
        self._deadline = None if request.budget.seconds is None else time.monotonic() + request.budget.seconds
        self._stepper: _Stepper | None = None

    # ------------------------------------------------------------------ public
    def __call__(self) -> FocusResult:
        """Run and return the result; expected failures are in its status, not raised.

        Raises
        ------
        KeyboardInterrupt, SystemExit
            After everything was put back.
        """
        try:
            with self._microscope.preserved():
                self._microscope.apply_imaging()
                return self._conclude(dict(self._request.start), self._search())
        except CancelledError as error:
            return self._result(Status.CANCELLED, self._where(), reason=_words(error))
        except BudgetError as error:
            return self._result(Status.TIMED_OUT, self._where(), reason=_words(error))
        except FocusError as error:
            return self._result(Status.FAILED, self._where(), reason=_words(error))
        except Exception as error:
            logger.exception("focusing failed in a way that was not foreseen; the instrument was put back")
            return self._result(Status.FAILED, self._where(), reason=f"{type(error).__name__}: {_words(error)}")
        finally:
            if self._stepper is not None:
                self._stepper.close()

    # ------------------------------------------------------------------ the search
    def _search(self) -> Verdict:
        stepper = self._stepper = _Stepper(self._strategy, self._request)
        step: Callable[[], Any] = stepper.first
        refusals = 0
        while True:
            try:
                answer = stepper.call(step, self._seconds_left())
            except StopIteration as stop:
                return self._checked(stop.value)
            except FocusError:
                raise
            except Exception as error:
                raise StrategyError(
                    f"strategy {self._strategy.name!r} raised {type(error).__name__}: {error}; the stage is put back. "
                    "Report this to the strategy's author."
                ) from error
            try:
                frame = self._look(answer)
            except (LimitError, BudgetError) as refusal:
                refusals += 1
                if refusals > MAX_REFUSALS:
                    raise
                step = _thrower(stepper, refusal)  # the strategy may still answer with what it has
            else:
                step = _sender(stepper, frame)

    def _look(self, look: object) -> Frame:
        if not isinstance(look, Look):
            raise StrategyError(
                f"strategy {self._strategy.name!r} yielded {type(look).__name__}; it must yield Look and return Verdict"
            )
        self._microscope.check_cancel()
        targets = self._resolve(look)
        self._check_budget(look)
        if self._last_look is not None and _imaging(look) != _imaging(self._last_look):
            self._start_frame = None  # taken in another way than the end will be
        self._last_look = look
        return self._take(targets, "search")

    def _resolve(self, look: Look) -> dict[str, float]:
        targets: dict[str, float] = {}
        for name, value in look.targets.items():
            value = float(value) + (self._request.start[name] if look.relative else 0.0)
            targets[name] = self._allowed(name, value)
        return targets

    def _allowed(self, name: str, value: float) -> float:
        limits = self._request.limits.get(name)
        if limits is None:
            raise StrategyError(f"strategy {self._strategy.name!r} turns knob {name!r}, which the request lacks")
        value = self._microscope.knob(name).check(value)
        if value not in limits:
            raise LimitError(f"{name} = {value:g} is outside the limits of this run, [{limits.low:g}, {limits.high:g}]")
        return value

    def _check_budget(self, look: Look | None, reserve: int | None = None) -> None:
        budget = self._request.budget
        if reserve is None:
            reserve = (1 if self._start_frame is not None else 2) if self._verify.enabled else 0
        used = self._microscope.images - self._images0
        if budget.images is not None and used + 1 + reserve > budget.images:
            raise BudgetError(f"the run's {budget.images} images are spent ([budget] images)")
        left = self._seconds_left()
        if left is not None and left <= 0:
            raise BudgetError(f"the run's {budget.seconds:g} s are spent ([budget] seconds)")
        if budget.seconds is not None and self._elapsed() > budget.seconds:
            raise BudgetError(f"the run's {budget.seconds:g} s are spent ([budget] seconds)")
        if budget.dose is not None:
            imaging = self._microscope.settings.microscope
            exposure = (look.exposure_ms if look else None) or imaging.exposure_ms
            if exposure is None:
                exposure = float(self._microscope.core.get_exposure())
            each = self._microscope.dose_of(look.camera if look else None, exposure)
            dose = self._microscope.dose - self._dose0 + (1 + reserve) * each
            if dose > budget.dose:
                raise BudgetError(f"the run's dose of {budget.dose:g} {imaging.dose_unit} is spent ([budget] dose)")

    def _take(self, targets: Mapping[str, float], purpose: str) -> Frame:
        microscope, look = self._microscope, self._last_look
        for name, value in targets.items():
            self._moved.add(name)
            microscope.knob(name).set(value)
        image, exposure = microscope.snap(
            camera=look.camera if look else None,
            exposure_ms=look.exposure_ms if look else None,
            roi=look.roi if look else None,
        )
        frame = Frame(
            image=image,
            knobs={name: microscope.knob(name).get() for name in self._request.start},
            pixel_um=microscope.pixel_um,
            exposure_ms=exposure,
            seconds=self._elapsed(),
        )
        self._samples.append(Sample(knobs=dict(frame.knobs), seconds=frame.seconds, purpose=purpose))
        if self._start_frame is None and self._near(frame.knobs, self._request.start):
            self._start_frame = frame
            if purpose == "search":
                self._observe(frame, "start")
        self._observe(frame, purpose)
        return frame

    def _observe(self, frame: Frame, purpose: str) -> None:
        if self._on_frame is None:
            return
        try:
            self._on_frame(self._request, frame, purpose)
        except Exception:
            logger.exception("an observer of frames failed; focusing goes on")

    def _checked(self, verdict: object) -> Verdict:
        name = self._strategy.name
        if not isinstance(verdict, Verdict):
            raise StrategyError(f"strategy {name!r} returned {type(verdict).__name__}; it must return a Verdict")
        if not (math.isfinite(verdict.confidence) and 0.0 <= verdict.confidence <= 1.0):
            raise StrategyError(f"strategy {name!r} answered with confidence {verdict.confidence}; it must be 0 to 1")
        for knob, value in verdict.target.items():
            self._allowed(knob, value)
        return verdict

    # ------------------------------------------------------------------ the end
    def _conclude(self, start: dict[str, float], verdict: Verdict) -> FocusResult:
        status = Status(verdict.status)
        self._score_samples(verdict)
        target = {**start, **{name: float(value) for name, value in verdict.target.items()}}
        if status not in (Status.CONVERGED, Status.AT_LIMIT, Status.LOW_CONFIDENCE) or not verdict.target:
            return self._go(status, start, verdict, target, reason=verdict.reason)
        if not self._verify.enabled or self._near(target, start, fraction=0.05):
            return self._go(status, target, verdict, target, reason=verdict.reason)
        try:
            return self._verified(status, start, verdict, target)
        except BudgetError as error:
            return self._go(Status.TIMED_OUT, start, verdict, target, reason=f"{error}; not verified, so it went back")

    def _verified(
        self, status: Status, start: dict[str, float], verdict: Verdict, target: dict[str, float]
    ) -> FocusResult:
        touched = self._moved | verdict.target.keys()
        if self._start_frame is None:
            self._check_budget(self._last_look, reserve=1)
            self._take({name: start[name] for name in start.keys() & touched}, "start")
        assert self._start_frame is not None
        before = self._score(self._start_frame)
        self._check_budget(self._last_look, reserve=0)
        frame = self._take({name: target[name] for name in target.keys() & touched}, "verify")
        after = self._score(frame)
        self._samples[-1] = self._samples[-1].model_copy(update={"score": _finite(after)})
        noise = min(2.0 * _positive(verdict.details.get("score_noise")), MOST_NOISE)
        tolerance = max(self._verify.tolerance, noise)
        if after >= before - tolerance * abs(before):
            return self._go(status, target, verdict, target, reason=verdict.reason, score=after, start_score=before)
        knob = self._request.knob
        reason = (
            f"the verifying frame at {target[knob]:.2f} is less sharp ({after:.4g}) than the start at "
            f"{start[knob]:.2f} ({before:.4g}); went back"
        )
        return self._go(
            Status.LOW_CONFIDENCE, start, verdict, target, reason=reason, score=after, start_score=before,
            confidence=min(verdict.confidence, 0.2),
        )  # fmt: skip

    def _go(
        self,
        status: Status,
        where: dict[str, float],
        verdict: Verdict,
        target: dict[str, float],
        *,
        reason: str,
        score: float | None = None,
        start_score: float | None = None,
        confidence: float | None = None,
    ) -> FocusResult:
        for name in where.keys() & (self._moved | verdict.target.keys()):
            knob = self._microscope.knob(name)
            if abs(knob.get() - where[name]) > 1e-6:
                knob.set(where[name])
        return self._result(
            status,
            {name: self._microscope.knob(name).get() for name in where},
            target=target,
            confidence=verdict.confidence if confidence is None else confidence,
            reason=reason,
            score=_finite(score),
            start_score=_finite(start_score),
            details=dict(verdict.details),
        )

    def _score_samples(self, verdict: Verdict) -> None:
        searched = [i for i, sample in enumerate(self._samples) if sample.purpose == "search"]
        for i, score in zip(searched, verdict.scores, strict=False):
            self._samples[i] = self._samples[i].model_copy(update={"score": _finite(score)})

    def _score(self, frame: Frame) -> float:
        stepper = self._stepper
        assert stepper is not None
        try:
            score = float(stepper.call(lambda: self._strategy.score(frame), self._seconds_left()))
        except FocusError:
            raise
        except Exception as error:
            raise StrategyError(f"strategy {self._strategy.name!r} cannot score a frame: {error}") from error
        if math.isnan(score):
            raise StrategyError(f"strategy {self._strategy.name!r} scored a frame as NaN; the stage is put back")
        return score

    def _result(self, status: Status, end: dict[str, float], **values: Any) -> FocusResult:
        request, microscope = self._request, self._microscope
        event = request.event
        return FocusResult(
            status=status,
            strategy=self._strategy.name,
            knob=request.knob,
            start=dict(request.start),
            end=end,
            samples=tuple(self._samples),
            images=microscope.images - self._images0,
            dose=microscope.dose - self._dose0,
            moves=microscope.moves - self._moves0,
            seconds=self._elapsed(),
            compute_seconds=self._stepper.seconds if self._stepper else 0.0,
            depths={name: request.depth(name) for name in request.start},
            attempt=request.attempt,
            prior_mean=request.prior.mean if request.prior else None,
            prior_sd=request.prior.sd if request.prior else None,
            axes=dict(event.axes),
            label=event.label,
            x=event.x,
            y=event.y,
            time=microscope.clock(),
            **values,
        )

    # ------------------------------------------------------------------ small things
    def _near(self, a: Mapping[str, float], b: Mapping[str, float], fraction: float = 0.1) -> bool:
        depth = self._request.depth
        return all(abs(a[name] - b[name]) <= fraction * depth(name) for name in b if name in a)

    def _where(self) -> dict[str, float]:
        """Where the knobs really are, the start for one that does not say."""
        values = dict(self._request.start)
        for name in values:
            try:
                values[name] = self._microscope.knob(name).get()
            except FocusError as error:
                logger.warning("%s", error)
        return values

    def _elapsed(self) -> float:
        return self._microscope.clock() - self._began

    def _seconds_left(self) -> float | None:
        return None if self._deadline is None else max(self._deadline - time.monotonic(), 0.0)


def start_values(microscope: Microscope, names: tuple[str, ...]) -> dict[str, float]:
    """Read where the knobs are, for a request.

    Raises
    ------
    HardwareError
        When one does not say, or stands outside its limits.
    """
    values = {}
    for name in names:
        knob = microscope.knob(name)
        value = knob.get()
        if not knob.limits.low - knob.tolerance <= value <= knob.limits.high + knob.tolerance:
            raise HardwareError(
                f"knob {name!r} (device {knob.device!r}) stands at {value:g}, outside its limits "
                f"[{knob.limits.low:g}, {knob.limits.high:g}]; bring it inside by hand before focusing"
            )
        values[name] = knob.limits.clip(value)
    return values


def _imaging(look: Look) -> tuple[object, ...]:
    return look.camera, look.exposure_ms, look.roi


def _sender(stepper: _Stepper, frame: Frame) -> Callable[[], Any]:
    return lambda: stepper.send(frame)


def _thrower(stepper: _Stepper, error: FocusError) -> Callable[[], Any]:
    return lambda: stepper.throw(error)


def _words(error: Exception) -> str:
    return " ".join([str(error), *getattr(error, "__notes__", ())])


def _finite(value: float | None) -> float | None:
    return value if value is not None and math.isfinite(value) else None


def _positive(value: object) -> float:
    return float(value) if isinstance(value, int | float) and math.isfinite(value) and value > 0 else 0.0
