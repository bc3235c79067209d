"""Where the fields of a plate lie in its map: wells by name, the plate they fit on, and the fields inside a well."""

from __future__ import annotations

import math
import re
from collections.abc import Sequence

_WELL = re.compile(r"([A-Z]{1,2})(\d{1,2})")
_PLATES = ((2, 3), (3, 4), (4, 6), (6, 8), (8, 12), (16, 24), (32, 48))
_FILLED = 0.88  # of a well's pitch; the rest is the gap between wells


def row_and_column(well: str) -> tuple[int, int] | None:
    """Return the zero-based row and column of a well ("B7" is (1, 6), "AA1" is (26, 0)), None for other names."""
    match = _WELL.fullmatch(well)
    if match is None or int(match.group(2)) < 1:
        return None
    row = 0
    for letter in match.group(1):
        row = row * 26 + ord(letter) - ord("A") + 1
    return row - 1, int(match.group(2)) - 1


def row_name(row: int) -> str:
    """Return the letters of a plate row: 0 is "A", 25 "Z", 26 "AA"."""
    return (chr(ord("A") + row // 26 - 1) if row >= 26 else "") + chr(ord("A") + row % 26)


class Plate:
    """The smallest standard plate that holds the given wells, each divided into as many cells as a well has fields.

    Parameters
    ----------
    wells
        Row and column of each field's well; fields of one well fill its cells in this order.

    Attributes
    ----------
    rows, columns
        Size of the plate.
    cells
        Number of cells of a well along x and y.
    places
        Row, column and cell number of each field.
    """

    def __init__(self, wells: Sequence[tuple[int, int]]) -> None:
        seen: dict[tuple[int, int], int] = {}
        self.places: list[tuple[int, int, int]] = []
        for well in wells:
            self.places.append((*well, seen.get(well, 0)))
            seen[well] = seen.get(well, 0) + 1
        most = max(seen.values())
        across = math.ceil(math.sqrt(most))
        self.cells = (across, math.ceil(most / across))
        need = (max(row for row, _ in wells) + 1, max(column for _, column in wells) + 1)
        fitting = (plate for plate in _PLATES if plate[0] >= need[0] and plate[1] >= need[1])
        self.rows, self.columns = next(fitting, need)

    @property
    def boxes(self) -> list[list[float]]:
        """The rectangle [x0, x1, y0, y1] of each field, in wells."""
        across, down = self.cells
        width, height = _FILLED / across, _FILLED / down
        found = []
        for row, column, k in self.places:
            x, y = column - _FILLED / 2 + width * (k % across), row - _FILLED / 2 + height * (k // across)
            found.append([round(value, 4) for value in (x, x + width, y, y + height)])
        return found

    def edges(self, axis: int) -> list[float]:
        """Return the edges of all cells and gaps along x (0) or y (1), in wells."""
        n, wells = self.cells[axis], (self.columns, self.rows)[axis]
        return [round(well - _FILLED / 2 + _FILLED * i / n, 4) for well in range(wells) for i in range(n + 1)]

    def cell(self, place: tuple[int, int, int]) -> tuple[int, int]:
        """Return the row and column of a field among the cells and gaps that `edges` bounds."""
        row, column, k = place
        across, down = self.cells
        return row * (down + 1) + k // across, column * (across + 1) + k % across
