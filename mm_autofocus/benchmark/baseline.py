"""Compares a bench with an earlier one and says which success rates have fallen by more than their noise."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from pydantic import BaseModel, ConfigDict, ValidationError

from mm_autofocus.benchmark.intervals import fall_probability
from mm_autofocus.benchmark.tables import Row
from mm_autofocus.errors import SettingsError

LEVEL = 0.025
"""Chance of calling noise a fall, for each row."""


class BaselineRow(BaseModel):
    """Successes and cases of one method on one group."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    group: str
    method: str
    success: int
    runs: int


class Baseline(BaseModel):
    """What a bench came to, to compare later ones with."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    bench: str
    command: str
    rows: list[BaselineRow]

    @classmethod
    def of(cls, bench: str, command: str, rows: Sequence[Row]) -> Baseline:
        """Make one from a table."""
        kept = [BaselineRow(group=r.group, method=r.method, success=r.success, runs=r.runs) for r in rows]
        return cls(bench=bench, command=command, rows=kept)

    @classmethod
    def load(cls, path: Path) -> Baseline:
        """Read one.

        Raises
        ------
        SettingsError
            When the file is absent or holds something else.
        """
        try:
            return cls.model_validate_json(path.read_text(encoding="utf-8"))
        except OSError as error:
            raise SettingsError(f"the baseline {path} cannot be read: {error}") from None
        except ValidationError as error:
            raise SettingsError(f"{path} is not a baseline of a bench: {error.errors()[0]['msg']}") from None

    def save(self, path: Path) -> None:
        """Write it."""
        path.write_text(self.model_dump_json(indent=1) + "\n", encoding="utf-8")


def regressions(rows: Sequence[Row], baseline: Baseline, level: float = LEVEL) -> list[str]:
    """Return one sentence for every row of the baseline that is missing now or has fallen by more than its noise."""
    now = {(row.group, row.method): row for row in rows}
    sentences = []
    for before in baseline.rows:
        row = now.get((before.group, before.method))
        if row is None:
            sentences.append(f"{before.method} on {before.group} is in the baseline and was not run")
            continue
        p = fall_probability(row.success, row.runs, before.success, before.runs)
        if p < level:
            sentences.append(
                f"{before.method} on {before.group}: {row.success} of {row.runs}, before {before.success} of "
                f"{before.runs} (p = {p:.2g}); that is more than noise"
            )
    return sentences
