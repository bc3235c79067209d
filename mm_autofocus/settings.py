"""autofocus.toml: one file that says everything, checked before anything moves.

Every section is a frozen model; a misspelt key, a wrong value or reversed limits is a `SettingsError` that names the
key, the value and what is allowed.
"""

from __future__ import annotations

import difflib
import math
import re
import tomllib
from collections.abc import Mapping
from pathlib import Path
from typing import Annotated, Any, Literal, Self, TypeVar

from pydantic import BaseModel, BeforeValidator, ConfigDict, Field, ValidationError, field_validator, model_validator

from mm_autofocus.errors import SettingsError
from mm_autofocus.policy import ActionName
from mm_autofocus.request import Budget, Limits

ModelT = TypeVar("ModelT", bound=BaseModel)



class Section(BaseModel):
    """Base of the sections: frozen; unknown keys, infinities and NaN are errors."""

    model_config = ConfigDict(frozen=True, extra="forbid", allow_inf_nan=False)


class MicroscopeSettings(Section):
    """How to image while focusing, and what the optics are.

    Attributes
    ----------
    camera
        Label of the camera to focus with; empty for the core's camera.
    exposure_ms
        Exposure while focusing, None to keep the core's.
    channel
        ``"Group/Preset"`` to focus in, for instance ``"Channel/DAPI"``; empty to keep the current one.
    binning
        Binning while focusing, None to keep it.
    roi
        Camera ROI (x, y, width, height) while focusing, None for the present one.
    depth_of_field_um
        Depth of field; None: from ``na``, ``wavelength_um``, ``immersion_index`` and the pixel size.
    na, wavelength_um, immersion_index
        Numerical aperture, emission wavelength and refractive index of the immersion medium.
    dose_per_ms, dose_unit
        What one ms of open shutter costs the specimen, for the counters and the dose budget.
    dose_property
        ``"Device/Property"`` that says what one image at the present settings costs, in ``dose_unit``, where the dose
        depends on more than the exposure (the field of view of an electron beam); it takes the place of
        ``dose_per_ms``. Empty: not used.
    dark_cameras
        Cameras that image without the lamp (a laser autofocus's): the shutter stays closed, and they cost no dose.
    snap_timeout_s
        After this time a camera that has not answered counts as failed.
    snap_retries
        How often a failed snap is repeated before the run fails.
    """

    camera: str = ""
    exposure_ms: float | None = Field(default=None, gt=0, allow_inf_nan=False)
    channel: str = ""
    binning: int | None = Field(default=None, ge=1)
    roi: tuple[int, int, int, int] | None = None
    depth_of_field_um: float | None = Field(default=None, gt=0, allow_inf_nan=False)
    na: float | None = Field(default=None, gt=0, le=1.7)
    wavelength_um: float = Field(default=0.52, gt=0.1, lt=20)
    immersion_index: float = Field(default=1.0, ge=1.0, le=1.8)
    dose_per_ms: float = Field(default=1.0, ge=0, allow_inf_nan=False)
    dose_unit: str = "ms"
    dose_property: str = ""
    dark_cameras: tuple[str, ...] = ()
    snap_timeout_s: float = Field(default=30.0, gt=0, allow_inf_nan=False)
    snap_retries: int = Field(default=1, ge=0, le=10)

    @field_validator("channel")
    @classmethod
    def _group_and_preset(cls, value: str) -> str:
        if value and value.count("/") != 1:
            raise ValueError('must be "Group/Preset", for instance "Channel/DAPI"')
        return value

    @field_validator("dose_property")
    @classmethod
    def _device_and_property(cls, value: str) -> str:
        if value and value.count("/") != 1:
            raise ValueError('must be "Device/Property", for instance "Camera/FrameDose"')
        return value


def _as_limits(value: object) -> object:
    if isinstance(value, list | tuple):
        if len(value) != 2 or not all(isinstance(v, int | float) and math.isfinite(v) for v in value):
            raise ValueError("must be two finite numbers [low, high]")
        low, high = float(value[0]), float(value[1])
        if low >= high:
            raise ValueError(f"are reversed or empty: low {low} must be below high {high}")
        return Limits(low, high)
    return value


LimitsField = Annotated[Limits, BeforeValidator(_as_limits)]


class KnobSettings(Section):
    """One scalar of the instrument.

    Attributes
    ----------
    device
        Label of the device; empty for the core's focus stage.
    axis
        "z" for a stage, "x" or "y" for one axis of an XY stage, "property" for a device property.
    property
        Name of the property when ``axis`` is "property".
    limits
        Absolute limits ``[low, high]`` in the knob's unit. None: those the device states itself; a device that
        states none must be given limits here.
    max_step
        Longest single move; longer ones are made in several. None: no bound.
    settle_ms
        Wait after each move.
    backlash
        Every move ends in this direction, from at least this far: > 0 upward, < 0 downward, 0 does nothing.
    tolerance
        How far the read-back position may be from the target before the move counts as failed.
    depth
        Full width, in the knob's unit, within which the image counts as in focus (a stigmator's 0.5 a.u.). None: the
        microscope's depth of field.
    unit
        Unit of the knob, for messages.
    """

    device: str = ""
    axis: Literal["z", "x", "y", "property"] = "z"
    property: str = ""
    limits: LimitsField | None = None
    max_step: float | None = Field(default=None, gt=0, allow_inf_nan=False)
    settle_ms: float = Field(default=0.0, ge=0, le=60_000)
    backlash: float = Field(default=0.0, allow_inf_nan=False)
    tolerance: float = Field(default=1.0, gt=0, allow_inf_nan=False)
    depth: float | None = Field(default=None, gt=0, allow_inf_nan=False)
    unit: str = "µm"

    @model_validator(mode="after")
    def _property_needs_a_name(self) -> Self:
        if (self.axis == "property") != bool(self.property):
            raise ValueError('axis = "property" and property = "Name" go together')
        return self


class BudgetSettings(Section):
    """What one focus run may spend; None means no limit."""

    images: int | None = Field(default=80, ge=1)
    seconds: float | None = Field(default=60.0, gt=0)
    dose: float | None = Field(default=None, gt=0)

    def budget(self) -> Budget:
        """Return the budget as the runs use it."""
        return Budget(self.images, self.seconds, self.dose)


class StackSettings(Section):
    """How a focus result places the images: where the focal plane lies in a stack, and each channel's offset.

    Attributes
    ----------
    focal_plane
        "first", "middle" or "last" slice of the plan, or a fraction 0 to 1 of the stack from its first slice.
    channel_offsets
        Offset in µm by channel name, relative to the channel that the autofocus images in.
    """

    focal_plane: Literal["first", "middle", "last"] | Annotated[float, Field(ge=0, le=1)] = "middle"
    channel_offsets: dict[str, Annotated[float, Field(allow_inf_nan=False)]] = {}


class ScheduleSettings(Section):
    """When to focus.

    Attributes
    ----------
    every
        "position" (default; each position and grid tile at each time), "well", "channel", "time", "event",
        "unsure" (when the focus map's SD exceeds ``unsure_um``), or "never".
    frames, minutes
        Not again before this many events at that place, or this long, have passed since the last run there; 0: no
        wait.
    unsure_um
        With "unsure": focus when the map's SD exceeds this. None: a quarter of the depth of field.
    channels
        Only at events of these channels; empty for all.
    """

    every: Literal["position", "well", "channel", "time", "event", "unsure", "never"] = "position"
    frames: int = Field(default=0, ge=0)
    minutes: float = Field(default=0.0, ge=0)
    unsure_um: float | None = Field(default=None, gt=0)
    channels: tuple[str, ...] = ()


def _as_chain(value: object) -> object:
    return (value,) if isinstance(value, str) else value


Chain = Annotated[tuple[ActionName, ...], BeforeValidator(_as_chain), Field(min_length=1)]


class FailureSettings(Section):
    """What to do when a run does not converge: for each status a chain of actions, tried in order.

    Attributes
    ----------
    no_signal, at_limit, low_confidence, timed_out, failed
        The chain for that status. The last action of a chain is final. After no_signal, "widen" is left out where the
        focus map knew where to look (the field is blank), until three runs in a row have failed.
    widen_factor
        How much wider the window of a "widen" is.
    abort_after
        Abort the acquisition after this many failures in a row; 0 never.
    map_sd_um
        The map is used only where its SD is below this; None: always when it has an answer.
    """

    no_signal: Chain = ("widen", "use_map", "use_last_good", "stay")
    at_limit: Chain = ("widen", "use_map", "use_last_good", "stay")
    low_confidence: Chain = ("widen", "use_map", "accept")
    timed_out: Chain = ("use_map", "use_last_good", "stay")
    failed: Chain = ("use_map", "use_last_good", "stay")
    widen_factor: float = Field(default=3.0, gt=1, le=100)
    abort_after: int = Field(default=0, ge=0)
    map_sd_um: float | None = Field(default=None, gt=0)

    def chain(self, status: str) -> tuple[ActionName, ...]:
        """Return the chain of actions for a status (``cancelled`` always ends in abort)."""
        chain: tuple[ActionName, ...] = getattr(self, status, ("abort",))
        return chain


class MapSettings(Section):
    """The focus map: a Kalman filter over plate shape, wells, fields and drift (all SDs in µm).

    Attributes
    ----------
    enabled
        False to focus every time without a prior.
    tilt_sd_um_per_mm, bow_sd_um_per_cm2
        Prior SD of the plate's tilt, and of its curvature.
    well_sd_um, field_sd_um
        SD of the height from well to well, and from field to field inside a well.
    drift_um_per_hour
        SD of the drift rate.
    measurement_sd_um
        SD of one focus result; None: an eighth of the depth of field.
    """

    enabled: bool = True
    tilt_sd_um_per_mm: float = Field(default=2.0, gt=0)
    bow_sd_um_per_cm2: float = Field(default=5.0, gt=0)
    well_sd_um: float = Field(default=4.0, gt=0)
    field_sd_um: float = Field(default=1.0, gt=0)
    drift_um_per_hour: float = Field(default=3.0, ge=0)
    measurement_sd_um: float | None = Field(default=None, gt=0)


class RecorderSettings(Section):
    """Where results are kept.

    Attributes
    ----------
    folder
        Folder for ``focus.jsonl`` and the thumbnails; empty to keep results in memory only.
    thumbnails
        Keep a small before and after image of every run for the report.
    thumbnail_px
        Longest side of a thumbnail.
    """

    folder: str = ""
    thumbnails: bool = True
    thumbnail_px: int = Field(default=160, ge=16, le=1024)


class VerifySettings(Section):
    """The verifying frame: a run never ends worse than it began.

    Attributes
    ----------
    enabled
        False to trust the strategy's verdict without a frame.
    tolerance
        The end may score this fraction lower than the start and still count as no worse (noise, bleaching).
    """

    enabled: bool = True
    tolerance: float = Field(default=0.03, ge=0, lt=1)


class Settings(Section):
    """The whole of autofocus.toml."""

    strategy: tuple[str, ...] = ("sweep",)
    min_confidence: float = Field(default=0.5, ge=0, le=1)
    microscope: MicroscopeSettings = MicroscopeSettings()
    knobs: dict[str, KnobSettings] = {"z": KnobSettings()}
    budget: BudgetSettings = BudgetSettings()
    verify: VerifySettings = VerifySettings()
    stack: StackSettings = StackSettings()
    schedule: ScheduleSettings = ScheduleSettings()
    failure: FailureSettings = FailureSettings()
    map: MapSettings = MapSettings()
    recorder: RecorderSettings = RecorderSettings()
    strategies: dict[str, dict[str, Any]] = {}
    plugins: dict[str, dict[str, Any]] = {}
    disable: tuple[str, ...] = ()
    seed: int = 0

    @field_validator("strategy", mode="before")
    @classmethod
    def _one_or_more(cls, value: object) -> object:
        return (value,) if isinstance(value, str) else value

    @field_validator("strategy")
    @classmethod
    def _not_empty(cls, value: tuple[str, ...]) -> tuple[str, ...]:
        if not value or not all(value):
            raise ValueError('must name a strategy, for instance "sweep"')
        return value

    @classmethod
    def load(cls, path: str | Path) -> Settings:
        """Read a TOML file.

        Raises
        ------
        SettingsError
            When the file is absent, is not TOML, or a key or a value is wrong.
        """
        path = Path(path)
        try:
            data = tomllib.loads(path.read_text(encoding="utf-8"))
        except FileNotFoundError:
            raise SettingsError(f"settings file {path} does not exist; `mm-autofocus settings` prints one") from None
        except (OSError, UnicodeDecodeError) as error:
            raise SettingsError(f"settings file {path} cannot be read: {error}") from error
        except tomllib.TOMLDecodeError as error:
            raise SettingsError(f"settings file {path} is not valid TOML: {error}") from error
        return cls.parse(data, source=str(path))

    @classmethod
    def parse(cls, data: Mapping[str, Any], source: str = "settings") -> Settings:
        """Check a mapping; see `load` for the errors."""
        return validate(cls, data, source)


def validate(model: type[ModelT], data: Mapping[str, Any], source: str) -> ModelT:
    """Check ``data`` against a model and say what is wrong in the user's terms.

    Raises
    ------
    SettingsError
        One line for each wrong key: its dotted name, the value, what is allowed.
    """
    try:
        return model.model_validate(dict(data))
    except ValidationError as error:
        lines = [_explain(model, item) for item in error.errors()]
        raise SettingsError(f"{source}: " + "; ".join(dict.fromkeys(lines))) from None


_BRANCH = re.compile(r"(function|constrained)-|(literal|tuple|list|dict)\[|(float|int|str|bool)$")
"""What pydantic adds to the path of an error inside a union; no key of ours looks like that."""


def _explain(model: type[BaseModel], item: Any) -> str:
    location = [str(part) for part in item["loc"] if not _BRANCH.match(str(part))]
    key = ".".join(location)
    if item["type"] == "extra_forbidden":
        allowed = _allowed_keys(model, location[:-1])
        close = difflib.get_close_matches(location[-1], allowed, n=1)
        hint = f'; did you mean "{close[0]}"?' if close else "."
        return f'unknown key "{key}"{hint} Allowed here: {", ".join(sorted(allowed))}'
    message = item["msg"].removeprefix("Value error, ").removeprefix("Input ")
    return f'"{key}" = {item["input"]!r}: {message[0].lower() + message[1:] if message else "is not allowed"}'


def _allowed_keys(model: type[BaseModel], path: list[str]) -> list[str]:
    current: Any = model
    for part in path:
        field = getattr(current, "model_fields", {}).get(part)
        annotation = field.annotation if field is not None else None
        if isinstance(annotation, type) and issubclass(annotation, BaseModel):
            current = annotation
        elif current is Settings and part == "knobs":
            continue
        elif path[:1] == ["knobs"]:
            current = KnobSettings
    return list(getattr(current, "model_fields", {}))
