"""Reading off between the points of a lattice."""

import math
from collections.abc import Sequence

Vertex = tuple[int, ...]


def around(coordinates: Sequence[float]) -> list[tuple[Vertex, float]]:
    """The points of the integer lattice to read off between, and their weights, which are above 0 and add up to 1.

    The corners of the simplex of Kuhn's triangulation that `coordinates` lies in: one point more than there are
    coordinates that are not whole. What is read off so is continuous, exact for linear functions, and rises along a
    coordinate where the points do.
    """
    base = [math.floor(value) for value in coordinates]
    parts = [value - floor for value, floor in zip(coordinates, base, strict=True)]
    order = sorted((axis for axis, part in enumerate(parts) if part), key=lambda axis: -parts[axis])
    corners = []
    before = 1.0
    for axis in order:
        if parts[axis] < before:
            corners.append((tuple(base), before - parts[axis]))
        base[axis] += 1
        before = parts[axis]
    corners.append((tuple(base), before))
    return corners
