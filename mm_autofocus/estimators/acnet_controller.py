"""ACNet as it is shipped: five layers in numpy, for columns whose computer has no torch."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from mm_autofocus.errors import SettingsError
from mm_autofocus.networks.acnet import STATE

if TYPE_CHECKING:
    from mm_autofocus.estimators.cards import SemCard

_SLOPE, _EPS = 0.01, 1e-5
_LAYERS = (0, 3, 6, 9)


@dataclass(frozen=True, slots=True)
class AcnetController:
    """Decides how far to turn the working distance.

    Attributes
    ----------
    card
        What it is; ``parameters["action_limit"]`` says with which largest actions it was trained.
    arrays
        State of the network of `mm_autofocus.networks.acnet.acnet`.
    """

    card: SemCard
    arrays: Mapping[str, NDArray[Any]]

    @classmethod
    def load(cls, card_path: str | Path = "", action_limit: str = "") -> AcnetController:
        """Return the controller of a card; the one that comes along when empty.

        Raises
        ------
        SettingsError
            When there is no such model, or it was trained with another ``action_limit`` (not checked when empty).
        """
        from mm_autofocus.estimators.cards import WEIGHTS, load_card

        card, arrays = load_card(card_path or WEIGHTS / "control_acnet.json", "acnet")
        trained = card.parameters.get("action_limit", "sensitivity")
        if action_limit and trained != action_limit:
            raise SettingsError(
                f'the ACNet of {card_path or "mm-autofocus"} was trained with action_limit = "{trained}", not '
                f'"{action_limit}"; set that, or train another: mm-autofocus train sem-control'
            )
        if arrays["0.weight"].shape[1] != STATE:
            raise SettingsError(f"an ACNet takes {STATE} numbers, this one {arrays['0.weight'].shape[1]}; train anew")
        return cls(card, arrays)

    def action(self, state: NDArray[np.float32]) -> float:
        """Return the change of working distance as a share of the largest, -1 to 1; ``state`` has shape (80,)."""
        a, x = self.arrays, np.asarray(state, dtype=np.float32)
        for i in _LAYERS:
            x = x @ a[f"{i}.weight"].T + a[f"{i}.bias"]
            spread = np.sqrt(a[f"{i + 1}.running_var"] + np.float32(_EPS))
            x = (x - a[f"{i + 1}.running_mean"]) / spread * a[f"{i + 1}.weight"] + a[f"{i + 1}.bias"]
            x = np.where(x > 0, x, np.float32(_SLOPE) * x)
        return float(np.tanh(x @ a["12.weight"].T + a["12.bias"])[0])
