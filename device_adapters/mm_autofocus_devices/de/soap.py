"""The column behind DE-TEM-Channel: a SOAP client that believes nothing it has not read back.

The channel accepts a misspelt argument as 0 and answers ``success = 1``, so every setting is read back and compared.
Names and arguments are those of its WSDL; ``setDefocus`` takes µm although its argument is called ``defocus-m``.
"""

from __future__ import annotations

import http.client
import math
import threading
from dataclasses import dataclass
from xml.etree import ElementTree
from xml.sax.saxutils import escape

from mm_autofocus.errors import HardwareError, LimitError

MAX_ANSWER = 1 << 20
"""Longest answer that is read, bytes."""

_ENVELOPE = (
    '<?xml version="1.0" encoding="UTF-8"?>'
    '<SOAP-ENV:Envelope xmlns:SOAP-ENV="http://schemas.xmlsoap.org/soap/envelope/" '
    'xmlns:ns="http://tempuri.org/ns.xsd"><SOAP-ENV:Body>{body}</SOAP-ENV:Body></SOAP-ENV:Envelope>'
)


@dataclass(frozen=True, slots=True)
class Control:
    """One setting of the column: how it is read and set.

    Attributes
    ----------
    getter, answers
        Operation that reads it, and the names of the values in its answer.
    setter, arguments
        Operation that sets it, and the names of its arguments; empty when it can only be read.
    low, high
        What the channel takes, in ``unit``.
    tolerance
        How far the read-back may be from what was set; infinite where the column snaps to steps of its own.
    asks
        Arguments of the getter.
    """

    getter: str
    answers: tuple[str, ...]
    setter: str = ""
    arguments: tuple[str, ...] = ()
    low: float = -math.inf
    high: float = math.inf
    tolerance: float = 1e-3
    unit: str = ""
    asks: tuple[tuple[str, str], ...] = ()


_PAIR = ("floatone", "floattwo")
_XY = ("x", "y")

CONTROLS: dict[str, Control] = {
    "defocus": Control("getDeFocusValue", ("floatResult",), "setDefocus", ("defocus-m",), -200, 200, 2e-3, "µm"),
    "intensity": Control("getIntensity", ("floatResult",), "setIntensity", ("value",), 0, 1, 1e-4),
    "magnification": Control(
        "getProperty",
        ("value",),
        "setMagnification",
        ("mag",),
        10,
        5e6,
        math.inf,
        asks=(("property", "Magnification"),),
    ),
    "spot_size": Control("getSpotSize", ("shortResult",), "setSpotSize", ("spot",), 1, 11, 0.1),
    "screen": Control("getScreenPosition", ("shortResult",), "setScreenPosition", ("pos",), 0, 2, 0.1),
    "beam_blank": Control("getBeamBlankState", ("intResult",), "setBeamBlank", ("blank",), 0, 1, 0.1),
    "beam_shift": Control("getBeamShift", _PAIR, "setBeamShift", _XY, -50, 50, 1e-3, "µm"),
    "beam_tilt": Control("getBeamTilt", _PAIR, "setBeamTilt", _XY, -1, 1, 1e-4),
    "objective_stigmator": Control("getObjectiveStig", _PAIR, "setObjectiveStig", _XY, -1, 1, 1e-4),
    "condenser_stigmator": Control("getCondenserStig", _PAIR, "setCondenserStig", _XY, -1, 1, 1e-4),
    "high_tension": Control("getAccelVoltage", ("floatResult",), unit="V"),
    "valves": Control("getColumnValveStatus", ("shortResult",)),
}
"""What can be read and set, by name."""


class TemChannel:
    """The column of one microscope. All methods may be called from any thread.

    Parameters
    ----------
    host, port
        Where DE-TEM-Channel listens.
    timeout_s
        For each request.
    """

    def __init__(self, host: str = "127.0.0.1", port: int = 5002, *, timeout_s: float = 10.0) -> None:
        self.host, self.port, self.timeout_s = host, port, timeout_s
        self._lock = threading.RLock()

    def get(self, name: str) -> tuple[float, ...]:
        """Return the present value (one number, or x and y) of a control.

        Raises
        ------
        HardwareError
            When the channel does not answer, or not with numbers.
        """
        control = CONTROLS[name]
        answer = self.call(control.getter, **dict(control.asks))
        values = []
        for key in control.answers:
            try:
                values.append(float(answer[key]))
            except (KeyError, ValueError):
                raise HardwareError(
                    f"the TEM channel at {self._where} answered {control.getter} without a number {key!r}: {answer}"
                ) from None
            if not math.isfinite(values[-1]):
                raise HardwareError(f"the TEM channel at {self._where} says that {name} is {values[-1]}")
        return tuple(values)

    def set(self, name: str, *values: float) -> tuple[float, ...]:
        """Set a control and return what it reads back.

        A request whose answer is lost is not repeated: the read-back tells whether it was done.

        Raises
        ------
        LimitError
            For a value outside the control's range, or NaN; nothing has moved.
        HardwareError
            When the channel refuses, or the read-back differs by more than the control's tolerance.
        """
        control = CONTROLS[name]
        if len(values) != len(control.arguments):
            raise ValueError(f"{name} takes {len(control.arguments)} values, not {len(values)}")
        for value in values:
            if not control.low <= value <= control.high:
                raise LimitError(
                    f"{name} = {value:g} {control.unit} is outside [{control.low:g}, {control.high:g}] "
                    f"{control.unit}; nothing has moved"
                )
        lost: HardwareError | None = None
        refused = False
        with self._lock:
            try:
                texts = {key: f"{value:.9G}" for key, value in zip(control.arguments, values, strict=True)}
                refused = self.call(control.setter, **texts).get("success") != "1"
            except HardwareError as error:
                lost = error
            now = self.get(name)
        off = max(abs(a - b) for a, b in zip(now, values, strict=True))
        if refused or off > control.tolerance:
            raise HardwareError(
                f"the column was told {control.setter} {_text(values)} {control.unit} but {name} reads {_text(now)}"
                f"{' (refused)' if refused else ''}; check the microscope's mode and the dialect of the channel"
            ) from lost
        return now

    def call(self, operation: str, **fields: str) -> dict[str, str]:
        """Send one request and return the values of its answer, by name.

        Raises
        ------
        HardwareError
            When the channel cannot be reached, does not answer in time, or answers with a fault.
        """
        inner = "".join(f"<{key}>{escape(text)}</{key}>" for key, text in fields.items())
        body = _ENVELOPE.format(body=f"<ns:{operation}>{inner}</ns:{operation}>").encode()
        with self._lock:
            connection = http.client.HTTPConnection(self.host, self.port, timeout=self.timeout_s)
            try:
                connection.request("POST", "/", body, {"Content-Type": "text/xml; charset=utf-8", "SOAPAction": '""'})
                text = connection.getresponse().read(MAX_ANSWER + 1)
            except (OSError, http.client.HTTPException) as error:
                raise HardwareError(
                    f"the TEM channel at {self._where} did not answer {operation}: {error or type(error).__name__}. "
                    "Is DE-TEM-Channel running, and the port right?"
                ) from error
            finally:
                connection.close()
        return _answer(text, operation)

    @property
    def _where(self) -> str:
        return f"{self.host}:{self.port}"


def _answer(text: bytes, operation: str) -> dict[str, str]:
    """Read the values of a SOAP answer, whatever its prefixes."""
    if len(text) > MAX_ANSWER or b"<!DOCTYPE" in text:  # a document type could define entities that explode
        raise HardwareError(f"the TEM channel's answer to {operation} is not one that is read ({len(text)} bytes)")
    try:
        root = ElementTree.fromstring(text)
    except ElementTree.ParseError as error:
        raise HardwareError(f"the TEM channel's answer to {operation} is not XML: {error}") from None
    body = next((element for element in root.iter() if _local(element.tag) == "Body"), None)
    answers = list(body) if body is not None else []
    if not answers:
        raise HardwareError(f"the TEM channel's answer to {operation} has no body")
    values = {_local(child.tag): (child.text or "").strip() for child in answers[0]}
    if _local(answers[0].tag) == "Fault":
        raise HardwareError(f"the TEM channel refused {operation}: {values.get('faultstring', 'no reason given')}")
    return values


def _local(tag: str) -> str:
    return tag.rsplit("}", 1)[-1].rsplit(":", 1)[-1]


def _text(values: tuple[float, ...]) -> str:
    return ", ".join(f"{value:g}" for value in values)
