"""Where a training runs: the processes that share its batches, and the workers that make its data set."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, TypeVar

from mm_autofocus.parallel import in_parallel
from mm_autofocus.training.distributed import ALONE, Rank

Result = TypeVar("Result")
Told = Callable[[int, int], None]
"""Called with (parts made, parts in all)."""


@dataclass(frozen=True, slots=True)
class Machines:
    """What a training may use.

    Attributes
    ----------
    process
        Which of the processes of ``torchrun`` this is.
    workers, scheduler
        See `mm_autofocus.parallel.in_parallel`.
    """

    process: Rank = ALONE
    workers: int = 0
    scheduler: str = ""

    def make(
        self, function: Callable[..., Result], common: object, parts: Sequence[Any], told: Told | None = None
    ) -> list[Result]:
        """Make the parts of a data set; return them in order, the same wherever they were made, to every process.

        Parameters
        ----------
        function
            Importable; called with ``common``, unless None, and one part, which holds the seed of whatever it draws.
        common
            What all parts are made from; None for nothing.
        parts
            On the workers if there are any, else in turn by the processes that train, or here.
        told
            Told about progress.

        Raises
        ------
        Exception
            What the making of a part raised.
        """
        size = self.process.size
        shared = size > 1 and not self.workers and not self.scheduler
        mine = range(self.process.rank, len(parts), size) if shared else range(len(parts))
        made: dict[int, Result] = {}
        if shared or self.process.writes:
            chosen = [parts[i] for i in mine]
            for done in in_parallel(function, chosen, common=common, workers=self.workers, scheduler=self.scheduler):
                if done.error is not None:
                    raise done.error
                made[mine[done.index]] = done.result  # type: ignore[assignment]
                if told is not None and self.process.writes:
                    told(len(made), len(mine))
        if shared:
            made = {i: result for part in self.process.gathered(made) for i, result in part.items()}
        else:
            made = self.process.from_first(made)
        return [made[i] for i in range(len(parts))]


HERE = Machines()
"""One process, this one."""
