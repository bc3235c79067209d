"""What can be done about a focus run that failed: the actions that ``mmaf_focus_failed`` may answer with."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

ActionName = Literal["accept", "widen", "use_map", "use_last_good", "stay", "skip", "pause", "abort"]


@dataclass(frozen=True, slots=True)
class Action:
    """One step of a failure policy.

    ``name`` is one of

    - ``accept``: use the result as it is (the policy trusts it all the same);
    - ``widen``: try again in a window ``factor`` times as wide, inside the limits;
    - ``use_map``: go to ``z``, the focus map's prediction;
    - ``use_last_good``: go to ``z``, from the last run that converged nearby;
    - ``stay``: leave the knob where the run left it (where it started);
    - ``skip``: do not spend exposures here, but keep the dataset's shape;
    - ``pause``: wait until someone resumes;
    - ``abort``: end the acquisition.
    """

    name: ActionName
    z: float | None = None
    factor: float = 3.0
    reason: str = ""
