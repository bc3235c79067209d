"""What specimens of an SEM look like, one function for each kind: from a tile of the world to its brightness in 0 to 1.

Each has structure from micrometres to nanometres, so that there is something to focus on at every magnification.
Sizes are those of real specimens; the seed draws what varies between them.
"""

from __future__ import annotations

import math
from collections.abc import Callable

import numpy as np

from mm_autofocus.simulation.sem_drawing import Map, Place, Shade, Tile, comb, coverage, hashed, line

Texture = Callable[[Tile, np.random.Generator], Map]
"""Draws a tile; the generator begins the same for every tile of a specimen."""


def tissue(tile: Tile, rng: np.random.Generator) -> Map:
    """Stained neuropil: membranes, mitochondria, vesicles, myelin, cell bodies; dark stain on bright resin."""
    pixel = tile.pixel_um
    spacing, stain = rng.uniform(0.28, 0.5), rng.uniform(0.75, 1.1)
    membrane, grain = rng.uniform(0.006, 0.010), rng.uniform(0.025, 0.05)
    vesicles, slope = rng.uniform(0.4, 0.8), rng.uniform(0.2, 0.6)
    mitochondria = rng.uniform(0.16, 0.4)
    cytoplasm = tile.noise(7, 0.64, 0.02, 0.35)
    presence, bend = rng.uniform(0.3, 0.55), rng.uniform(0.1, 0.25)
    canvas = 0.72 + 0.025 * tile.noise(1, 80.0, 0.32, 0.1)
    resolved = pixel < 0.7 * spacing
    if resolved:
        cells = tile.cells(100, spacing, presence, bend * spacing)
        canvas += 0.12 * (cells.tone - 0.5)
        # Synaptic densities: walls that thicken in places.
        density = np.clip(2.0 * tile.noise(2, 0.32, 0.08) - 1.5, 0.0, 1.5)
        wall = line(np.maximum(cells.wall_um, 0.0), membrane * (1.0 + density), pixel)
        canvas -= np.float32(0.55 * stain * min(1.0, 0.16 / pixel)) * wall

    def vesicle(dx: Map, dy: Map, r: Map, u: Map, _place: Place) -> tuple[Map, Map]:
        d = np.hypot(dx, dy)
        ring = line(d - r, 0.006 / pixel, 1.0)
        return 0.34 - 0.2 * (u[4] < 0.06) + 0.0 * d, np.maximum((0.5 + 0.4 * u[3]) * ring, coverage(d - r) * 0.2)

    round_ones = tile.bodies(3, 0.06, (0.017, 0.025), vesicles)
    if resolved and round_ones.x.size:
        x_um, y_um = (start[0, 0] + v * pixel for start, v in ((tile.x, round_ones.x), (tile.y, round_ones.y)))
        bouton = cells.tone_at(x_um, y_um) < 0.28
        tile.paint(canvas, round_ones.where(bouton), vesicle, reach=1.6)

    def mitochondrion(dx: Map, dy: Map, r: Map, u: Map, _place: Place) -> tuple[Map, Map]:
        along, across = _turned(dx, dy, 2 * math.pi * u[3])
        flat = 0.35 + 0.4 * u[4]
        wobble = 1 + 0.12 * np.sin(3 * np.arctan2(across, along) + 6 * u[5])
        q = np.hypot(along, across / flat) / wobble
        d = (q - r) * flat
        cristae = comb((across + 0.15 * r * np.sin(along / r * 4 + 9 * u[6])) * pixel / 0.045, 0.17, pixel / 0.045)
        body = 0.50 + 0.1 * (u[7] - 0.5) - 0.2 * stain * cristae * coverage(d + 0.02 / pixel)
        return body - 0.35 * line(d + 0.008 / pixel, 0.009 / pixel, 1.0), coverage(d)

    def dendrite(dx: Map, dy: Map, r: Map, u: Map, place: Place) -> tuple[Map, Map]:
        along, across = _turned(dx, dy, 2 * math.pi * u[3])
        turn = np.arctan2(across, along)
        wobble = 1 + 0.15 * np.sin(2 * turn + 6 * u[5]) + 0.08 * np.sin(5 * turn + 6 * u[6])
        d = np.hypot(along, across / (0.4 + 0.5 * u[4])) / wobble - r
        d = d * (0.4 + 0.5 * u[4])
        inside = 0.78 + 0.06 * (u[7] - 0.5) + 0.035 * cytoplasm[place]
        return inside - 0.5 * stain * line(d, membrane / pixel, 1.0), coverage(d)

    tile.paint(canvas, tile.bodies(11, 2.6, (0.35, 1.1), 0.6), dendrite, reach=1.25)
    tile.paint(canvas, tile.bodies(4, 0.9, (0.12, 0.42), mitochondria), mitochondrion, reach=1.15)

    def myelin(dx: Map, dy: Map, r: Map, u: Map, _place: Place) -> tuple[Map, Map]:
        along, across = _turned(dx, dy, 2 * math.pi * u[3])
        q = np.hypot(along, across / (0.6 + 0.4 * u[4])) * (1 + 0.05 * np.sin(3 * np.arctan2(across, along) + 6 * u[5]))
        thick = (0.12 + 0.15 * u[6]) * r
        lamellae = 0.20 + 0.14 * comb((r - q) * pixel / 0.014, 0.25, pixel / 0.014)
        return np.where(q > r - thick, lamellae, 0.80 + 0.0 * q), coverage(q - r) * np.maximum(
            coverage(r - thick - q), 0.55
        )

    tile.paint(canvas, tile.bodies(5, 5.0, (0.35, 1.3), rng.uniform(0.05, 0.35)), myelin, reach=1.1)
    chromatin = tile.noise(6, 1.28, 0.04, 0.7)

    def soma(dx: Map, dy: Map, r: Map, u: Map, place: Place) -> tuple[Map, Map]:
        angle = np.arctan2(dy, dx)
        d = np.hypot(dx, dy) - r * (1 + 0.06 * np.sin(2 * angle + 6 * u[3]) + 0.04 * np.sin(5 * angle + 6 * u[4]))
        nucleus = d + r * 0.3
        outer, inner = cytoplasm[place], chromatin[place]
        value = 0.60 + 0.08 * outer
        value = value + coverage(nucleus) * (0.70 + 0.10 * np.tanh(2 * inner - 0.6) - value)
        value = value - 0.3 * line(nucleus, 0.02 / pixel, 1.0) - 0.4 * line(d, 0.01 / pixel, 1.0)
        return value, coverage(d) * 0.95

    tile.paint(canvas, tile.bodies(8, 26.0, (3.0, 5.0), 0.55), soma, reach=1.15)
    canvas += np.float32(grain) * tile.noise(9, 0.16, 0.0025, slope)
    return canvas - 0.08 * _scratches(tile, 13, rng)


def tin(tile: Tile, rng: np.random.Generator) -> Map:
    """Tin balls on carbon, of all sizes from 30 nm to several µm, larger ones over smaller ones."""
    presence, tone = rng.uniform(0.25, 0.6), rng.uniform(0.42, 0.56)
    light = rng.uniform(0, 2 * math.pi)
    canvas = 0.15 + 0.035 * tile.noise(1, 40.0, 0.0025, 0.15)
    skin = 0.035 * tile.noise(2, 0.64, 0.0025, 0.3)

    def ball(dx: Map, dy: Map, r: Map, u: Map, place: Place) -> tuple[Map, Map]:
        d = np.hypot(dx, dy)
        height = np.sqrt(np.clip(1 - np.square(d / r), 0.0, 1.0))
        edge = np.minimum(0.35 / (height + 0.28) - 0.27, 0.85)
        slope = (dx * math.cos(light) + dy * math.sin(light)) / np.maximum(r, d)
        value = tone + 0.10 * (u[3] - 0.5) + 0.11 * slope + 0.52 * edge
        return value + skin[place], coverage(d - r)

    for octave, radius in enumerate(0.015 * 2.0 ** np.arange(9)):
        share = presence * (1.0 if octave < 7 else 0.3)
        tile.paint(canvas, tile.bodies(10 + octave, 5.2 * radius, (radius, 2 * radius), share), ball)
        if not tile.resolves(2 * radius):
            canvas += np.float32(0.1 * share) * (0.6 - canvas)
    for octave, radius in enumerate((0.012, 0.03, 0.07)):
        tile.paint(canvas, tile.bodies(30 + octave, 12 * radius, (radius, 2 * radius), 0.2 * presence), ball)
    return canvas


def grid(tile: Tile, rng: np.random.Generator) -> Map:
    """TEM grid: copper bars, a holey carbon film, on it a cross-line replica's lines and gold grains."""
    pixel = tile.pixel_um
    pitch, bar = rng.choice([42.0, 62.0, 83.0]), rng.uniform(0.22, 0.36)
    hole, hole_pitch = rng.uniform(0.45, 0.75), rng.uniform(2.4, 4.0)
    angle = rng.uniform(0, 2 * math.pi)
    x, y = _turned(tile.x, tile.y, angle)
    rough = tile.noise(1, 10.0, 0.04, 0.7)
    canvas = 0.46 + 0.03 * tile.noise(2, 20.0, 0.005, 0.3)
    line_pitch = rng.uniform(0.35, 0.55)
    wobble = 0.03 * tile.noise(3, 2.56, 0.16)
    for phase in (x, y):
        canvas += 0.20 * comb(phase / line_pitch + wobble, rng.uniform(0.1, 0.2), pixel / line_pitch)

    def grain(dx: Map, dy: Map, r: Map, u: Map, _place: Place) -> tuple[Map, Map]:
        along, across = _turned(dx, dy, 2 * math.pi * u[3])
        d = np.hypot(along, across / (0.55 + 0.45 * u[4])) - r
        return 0.74 + 0.24 * u[5] + 0.0 * d, coverage(d)

    to_hole = np.hypot(*((v / hole_pitch - np.round(v / hole_pitch)) * hole_pitch for v in (x, y)))
    to_bar = np.maximum(*(np.abs(v / pitch - np.round(v / pitch)) for v in (x, y)))
    d = ((0.5 - 0.5 * bar - to_bar) * pitch + 0.25 * rough) / pixel  # negative on a bar, which lies at half pitches
    on_bar = coverage(d)
    copper = 0.50 + 0.09 * rough + 0.08 * tile.noise(4, 0.64, 0.0025, 0.2) + 0.25 * line(d, 1.2 / pixel, 1.0)
    canvas += on_bar * (copper - canvas)
    pit = _pebble(0.26, 0.3, 0.05 * rough)
    for octave, radius in enumerate((0.012, 0.04, 0.13)):
        tile.paint(canvas, tile.bodies(50 + octave, 7 * radius, (radius, 2 * radius), 0.4), pit, reach=1.3)
    density = rng.uniform(0.35, 0.8)
    for octave, radius in enumerate((0.003, 0.006, 0.012, 0.024)):
        tile.paint(canvas, tile.bodies(10 + octave, 6.5 * radius, (radius, 2 * radius), density), grain)
        if not tile.resolves(2 * radius):
            canvas += np.float32(0.04 * density)
    d = (to_hole - hole + 0.02 * rough) / pixel
    share = math.pi * hole**2 / hole_pitch**2
    blend = np.float32(min(1.0, max(0.0, (pixel / hole_pitch - 0.25) / 0.25)))
    inside = coverage(d) * (1 - blend) + share * blend
    canvas += (1 - on_bar) * (inside * (0.07 - canvas) + (1 - blend) * np.float32(0.2) * line(d, 0.03 / pixel, 1.0))
    dust = _pebble(0.55, 0.3, 0.05 * rough)
    for octave, radius in enumerate((0.04, 0.1, 0.25, 0.7, 2.0)):
        tile.paint(canvas, tile.bodies(30 + octave, 22 * radius, (radius, 2.5 * radius), 0.35), dust, reach=1.3)
    return canvas


def particles(tile: Tile, rng: np.random.Generator) -> Map:
    """Gold nanoparticles on carbon: bright islands, facetted, in patches; a few aggregates."""
    patch = 0.5 + 0.5 * np.tanh(1.2 * tile.noise(1, 20.0, 1.28, 0.6))
    canvas = 0.16 + 0.02 * tile.noise(2, 10.0, 0.0025, 0.25) + 0.04 * patch
    density, largest = rng.uniform(0.45, 0.85), rng.uniform(0.05, 0.11)
    skin = 0.03 * tile.noise(3, 0.08, 0.0025, 0.3)

    def island(dx: Map, dy: Map, r: Map, u: Map, place: Place) -> tuple[Map, Map]:
        d = _lobed(dx, dy, (2, 0.10, u[3]), (3, 0.08, u[4]), (5, 0.05, u[5]))
        rim = np.square(np.square(np.clip(d / r, 0.0, 1.0)))
        return 0.66 + 0.22 * u[6] + 0.14 * rim + skin[place], coverage(d - r)

    for octave in range(6):
        radius = largest * 2.0 ** (octave - 5)
        tile.paint(canvas, tile.bodies(10 + octave, 4.4 * radius, (radius, 2 * radius), density), island, reach=1.25)
        if not tile.resolves(2 * radius):
            canvas += np.float32(0.06 * density) * (1.2 * patch)
    lump = _pebble(0.72, 0.25, 2.0 * skin)
    for octave, radius in enumerate((0.12, 0.3, 0.8, 2.0)):
        tile.paint(canvas, tile.bodies(30 + octave, 16 * radius, (radius, 2 * radius), 0.3), lump, reach=1.3)
    return np.asarray(canvas, dtype=np.float32)


def fibres(tile: Tile, rng: np.random.Generator) -> Map:
    """Filter paper: a mat of fibres in many directions and widths, with fibrils, streaks along and flakes on them."""
    pixel = tile.pixel_um
    canvas = 0.10 + 0.05 * tile.noise(1, 20.0, 0.16, 0.8)
    for octave, spacing in enumerate((0.35, 0.9, 2.4, 7.0, 20.0)):
        streak_pitch = min(0.4, spacing / 6)
        for way in range(2):
            channel, angle = 100 + 20 * octave + 7 * way, rng.uniform(0, 180)
            width, share = rng.uniform(0.35, 0.6), rng.uniform(0.4, 0.7)
            if 2 * spacing < 0.5 * pixel:
                continue
            t, cover, tone = tile.strands(channel, angle, spacing, width, share, 1.1 * spacing)
            round_edge = np.minimum(0.3 / (np.sqrt(np.maximum(1 - t * t, 0.0)) + 0.3) - 0.23, 0.8)
            streaks = comb(t * (spacing * width / 2 / streak_pitch) + 3 * tone, 0.2, pixel / streak_pitch)
            value = 0.34 + 0.2 * tone + 0.07 * t + 0.42 * round_edge + 0.07 * streaks
            canvas += cover * (0.45 + 0.07 * octave + 0.2 * tone > 0.5) * (value - canvas)
    canvas += 0.08 * tile.noise(2, 0.64, 0.0025, 0.3)
    flake = _pebble(0.6, 0.3, 0.05 * tile.noise(3, 0.32, 0.005, 0.5))
    for octave, radius in enumerate((0.012, 0.03, 0.08, 0.25)):
        tile.paint(canvas, tile.bodies(300 + octave, 14 * radius, (radius, 2 * radius), 0.3), flake, reach=1.3)
    return canvas


def wing(tile: Tile, rng: np.random.Generator) -> Map:
    """Butterfly wing: shingled scales with ridges along, cross-ribs between them, lamellae on the ridges."""
    pixel = tile.pixel_um
    length, breadth = rng.uniform(70, 110), rng.uniform(40, 60)
    ridge, rib = rng.uniform(1.4, 2.2), rng.uniform(0.45, 0.7)
    x, y = _turned(tile.x, tile.y, rng.uniform(0, 2 * math.pi))
    # Scales overlap like tiles of a roof: the tip of each row hides the root of the next.
    column = np.floor(x / breadth)
    teeth = 5 * np.abs(np.mod(x / breadth * 4, 1) - 0.5)
    tip = (y + 0.5 * length * np.mod(column, 2) + 3 * tile.noise(1, 40.0, 10.0) + teeth) / length
    row = np.floor(tip)
    tip = tip - row
    seen = row.astype(np.int64), column.astype(np.int64)
    u = [hashed(tile.key(50 + k), *seen) for k in range(4)]
    lean = np.radians(16 * (u[0] - 0.5))
    across = x * np.cos(lean) - y * np.sin(lean) + 0.12 * ridge * tile.noise(2, 10.0, 1.28)
    along = x * np.sin(lean) + y * np.cos(lean)
    index = np.round(across / ridge)
    phase = hashed(tile.key(60), index.astype(np.int64), seen[0])
    crest = comb(across / ridge, 0.13, pixel / ridge)
    shelf = comb(along / rib + phase + 0.10 * tile.noise(3, 1.28, 0.16), 0.16, pixel / rib)
    lamella = comb((along + 0.4 * across) / 0.085, 0.25, pixel / 0.085)
    floor = 0.14 + 0.06 * tile.noise(4, 0.32, 0.0025, 0.3)
    canvas = floor + 0.18 * (u[1] - 0.5) + 0.38 * shelf * (1 - 0.8 * crest) + 0.5 * crest * (0.75 + 0.25 * lamella)
    inside = np.minimum(np.abs(x / breadth - column - 0.5) * -1 + 0.5, 0.5) * breadth
    canvas = canvas - 0.12 * line(inside, 1.2, pixel) + 0.2 * line(inside - 0.8, 0.25, pixel)
    canvas = canvas + 0.05 * tile.noise(5, 0.08, 0.0025, 0.2) + 0.04 * tile.noise(6, 20.0, 0.64, 0.2)
    notch = line(tip * length, 2.5, pixel) * 0.16
    canvas = np.ascontiguousarray(canvas - notch, dtype=np.float32)
    bead = _pebble(0.7, 0.2, 0.05 * tile.noise(7, 0.16, 0.0025, 0.4))
    for octave, radius in enumerate((0.01, 0.03, 0.1, 0.4, 1.5)):
        tile.paint(canvas, tile.bodies(80 + octave, 18 * radius, (radius, 2 * radius), 0.25), bead, reach=1.3)
    return canvas


def fabric(tile: Tile, rng: np.random.Generator) -> Map:
    """Woven cloth: yarns over and under each other, of twisted fibres with striated, flaked skin."""
    pixel = tile.pixel_um
    pitch, fibre, twist = rng.uniform(60, 140), rng.uniform(7, 13), rng.uniform(0.1, 0.35)
    x, y = _turned(tile.x, tile.y, rng.uniform(0, 2 * math.pi))
    x = x + 0.04 * pitch * tile.noise(1, 160.0, 20.0)
    y = y + 0.04 * pitch * tile.noise(2, 160.0, 20.0)
    top = np.mod(np.floor(x / pitch) + np.floor(y / pitch), 2) == 0
    across, along = np.where(top, x, y), np.where(top, y, x)
    t = 2 * (across / pitch - np.floor(across / pitch)) - 1
    dip = 2 * (along / pitch - np.floor(along / pitch)) - 1
    v = (across + twist * along + 0.15 * fibre * tile.noise(3, 80.0, 5.0)) / fibre
    index = np.floor(v)
    f = 2 * (v - index) - 1
    tone = hashed(tile.key(40), index.astype(np.int64), top.astype(np.int64))
    edge = np.minimum(0.3 / (np.sqrt(np.maximum(1 - f * f, 0.0)) + 0.25) - 0.24, 0.8)
    resolved = np.float32(min(1.0, max(0.0, (0.5 - pixel / fibre) / 0.25)))
    striae = comb(f * (fibre / 1.3) + 0.35 * tile.noise(4, 2.56, 0.32), 0.22, pixel / 0.65)
    canvas = 0.44 + resolved * (0.16 * (tone - 0.5) + 0.36 * edge + 0.08 * f) - 0.06 * striae
    canvas = canvas * (1 - 0.55 * np.abs(t) ** 4) * (1 - 0.30 * dip**4)
    canvas = canvas + 0.09 * tile.noise(5, 1.28, 0.0025, 0.4)
    canvas = np.ascontiguousarray(canvas, dtype=np.float32)
    flake = _pebble(0.66, 0.25, 0.06 * tile.noise(6, 0.32, 0.005, 0.6))
    for octave, radius in enumerate((0.007, 0.02, 0.06, 0.2, 0.6)):
        tile.paint(canvas, tile.bodies(60 + octave, 15 * radius, (radius, 2.5 * radius), 0.3), flake, reach=1.3)
    return canvas


def powder(tile: Tile, rng: np.random.Generator) -> Map:
    """Crushed crystal: angular grains of all sizes, flat facets with sharp straight edges."""
    canvas = 0.2 + 0.05 * tile.noise(1, 20.0, 0.0025, 0.5)
    presence = rng.uniform(0.5, 0.8)

    def crystal(dx: Map, dy: Map, r: Map, u: Map, _place: Place) -> tuple[Map, Map]:
        d = np.full(np.broadcast_shapes(dx.shape, dy.shape, r.shape), -np.inf, np.float32)
        for k in range(5):
            angle = 2 * math.pi * (k / 5 + u[3] + 0.12 * np.sin(9 * u[4] + 2.4 * k))
            d = np.maximum(d, dx * np.cos(angle) + dy * np.sin(angle) - r * (0.62 + 0.3 * np.sin(17 * u[5] + k) ** 2))
        angle = 2 * math.pi * u[6]
        first = dx * np.cos(angle) + dy * np.sin(angle) - 0.15 * r
        second = dx * np.cos(angle + 2) + dy * np.sin(angle + 2) + 0.1 * r
        value = 0.34 + 0.3 * u[7] + 0.16 * coverage(first) - 0.18 * coverage(np.maximum(second, -first))
        ridge = np.maximum(line(first, 0.7, 1.0) * coverage(d), line(d + 1.0, 0.7, 1.0))
        return value + 0.18 * ridge, coverage(d)

    for octave, radius in enumerate(0.012 * 2.0 ** np.arange(10)):
        tile.paint(canvas, tile.bodies(10 + octave, 4.2 * radius, (radius, 2 * radius), presence), crystal, reach=1.2)
        if not tile.resolves(2 * radius):
            canvas += np.float32(0.2 * presence) * (0.45 - canvas)
    for octave, radius in enumerate((0.006, 0.012, 0.03, 0.08, 0.2)):
        tile.paint(canvas, tile.bodies(40 + octave, 9 * radius, (radius, 2 * radius), 0.35), crystal, reach=1.2)
    canvas += 0.035 * tile.noise(2, 0.16, 0.0025, 0.15)
    return canvas


def resin(tile: Tile) -> Map:
    """Empty resin or bare support: almost nothing, but for a little dirt."""
    canvas = 0.58 + 0.006 * tile.noise(900, 20.0, 0.08, 0.3) + np.zeros((1, 1), np.float32)
    speck = _pebble(0.45, 0.5, 0.0 * canvas)
    for octave, radius in enumerate((0.03, 0.09)):
        tile.paint(canvas, tile.bodies(910 + octave, 45 * radius, (radius, 2 * radius), 0.25), speck, reach=1.3)
    return canvas


def _pebble(tone: float, spread: float, skin: Map) -> Shade:
    """Return the shade of an irregular lump with bright edges."""

    def shade(dx: Map, dy: Map, r: Map, u: Map, place: Place) -> tuple[Map, Map]:
        d = _lobed(dx, dy, (2, 0.18, u[3]), (5, 0.10, u[4]))
        rim = np.square(np.square(np.clip(d / r, 0.0, 1.0)))
        return tone + spread * (u[5] - 0.5) + 0.2 * rim + skin[place], coverage(d - r)

    return shade


def _lobed(dx: Map, dy: Map, *lobes: tuple[int, float, Map]) -> Map:
    """Return the distance from a body's centre over its outline 1 + Σ amplitude sin(order θ + 2π phase)."""
    d = np.sqrt(np.square(dx) + np.square(dy))
    first = (dx + 1j * dy) / np.maximum(d, np.float32(1e-6))
    power, reached, outline = first, 1, np.ones_like(d)
    for order, amplitude, phase in lobes:
        for _ in range(order - reached):
            power = power * first
        reached = order
        turn = np.float32(2.0 * math.pi) * phase
        outline += np.float32(amplitude) * (power.imag * np.cos(turn) + power.real * np.sin(turn))
    return np.asarray(d / outline)


def _turned(x: Map, y: Map, angle: float | Map) -> tuple[Map, Map]:
    """Return coordinates along and across a direction, radians from x towards y."""
    c, s = np.cos(angle), np.sin(angle)
    return np.asarray(x * c + y * s), np.asarray(y * c - x * s)


def _scratches(tile: Tile, channel: int, rng: np.random.Generator) -> Map:
    """Return knife marks: rare fine lines across the whole section, all of one direction."""
    t, cover, tone = tile.strands(channel, rng.uniform(0, 180), 9.0, 0.012, 0.35, 0.0)
    return np.asarray(cover * tone * (1 - np.square(t)))
