"""The products of the toy world: signed distances, filled with shaded colours.

Legend: N = pixels of one side of the product's frame. A product stands in the frame x in [-aspect, aspect] (right),
y in [-1, 1] (down, 1 is the floor). Colours are float32 in [0, 1]. Distances are negative inside, in units of y.
"""

from collections.abc import Callable

import numpy as np

from inpaint.toy.textures import Array, rgb

WHITE, STEEL, COAL, CREAM = rgb(250, 250, 250), rgb(176, 182, 190), rgb(52, 54, 62), rgb(244, 234, 212)
STALK, LEAF = rgb(94, 62, 34), rgb(74, 150, 58)

COLOURS: dict[str, Array] = {
    "red": rgb(214, 34, 40),
    "orange": rgb(246, 134, 24),
    "yellow": rgb(248, 214, 40),
    "green": rgb(34, 156, 74),
    "blue": rgb(38, 84, 208),
    "pink": rgb(246, 140, 184),
    "white": rgb(236, 236, 238),
    "black": rgb(40, 40, 46),
}


class Canvas:
    """Layers of one product over nothing: `rgb` N N 3, which holds nothing of a background, and `alpha` N N."""

    def __init__(self, x: Array, y: Array, pixel: float, colour: Array) -> None:
        """Args: x, y: coordinates of the frame, N N. pixel: the width of an anti-aliased edge. colour: (3,)."""
        self.x, self.y, self.pixel, self.colour = x, y, pixel, colour
        self.rgb = np.zeros((*x.shape, 3), np.float32)
        self.alpha = np.zeros(x.shape, np.float32)

    def fill(self, distance: Array, colour: Array, shade: Array | float = 1.0) -> None:
        """A new layer that may grow the silhouette. `shade` multiplies; above 1 it goes towards white."""
        cover = np.clip(0.5 - distance / self.pixel, 0, 1)[..., None]
        light = np.asarray(shade, np.float32)[..., None]
        lit = colour * np.minimum(light, 1) + (1 - colour) * np.maximum(light - 1, 0)
        self.rgb = self.rgb * (1 - cover) + lit * cover
        self.alpha = np.maximum(self.alpha, cover[..., 0])

    def round(self, half_width: float | Array, centre: float = 0.0) -> Array:
        """Shade of an upright cylinder: light from the left, a soft stripe of shine, a dark right edge."""
        t = (self.x - centre) / half_width
        dark = 1.06 - 0.42 * np.clip(t + 0.15, 0, 2) ** 2 - 0.22 * np.clip(-t - 0.6, 0, 2)
        return dark + 0.42 * np.exp(-(((t + 0.45) / 0.2) ** 2))

    def ball(self, cx: float, cy: float, radius: float) -> Array:
        """Shade of a sphere lit from the upper left, with a shine."""
        t, s = (self.x - cx) / radius, (self.y - cy) / radius
        shine = np.exp(-((t + 0.42) ** 2 + (s + 0.45) ** 2) / 0.055)
        return 1.05 - 0.20 * ((t + 0.35) ** 2 + (s + 0.35) ** 2) + 0.55 * shine


def block(x: Array, y: Array, left: float, top: float, right: float, bottom: float, radius: float = 0.04) -> Array:
    """Distance to a rectangle with rounded corners."""
    dx = np.abs(x - (left + right) / 2) - (right - left) / 2 + radius
    dy = np.abs(y - (top + bottom) / 2) - (bottom - top) / 2 + radius
    return np.hypot(np.maximum(dx, 0), np.maximum(dy, 0)) + np.minimum(np.maximum(dx, dy), 0) - radius


def ellipse(x: Array, y: Array, cx: float, cy: float, rx: float, ry: float) -> Array:
    """Roughly the distance to an ellipse (exact on its edge)."""
    k = np.hypot((x - cx) / rx, (y - cy) / ry)
    return (k - 1) * min(rx, ry)


def wedge(x: Array, y: Array, top: float, bottom: float, half_top: float, half_bottom: float) -> Array:
    """Distance to an upright symmetric trapezium."""
    half = half_top + (half_bottom - half_top) * (y - top) / (bottom - top)
    slope = np.hypot(1, (half_bottom - half_top) / (bottom - top))
    return np.maximum((np.abs(x) - half) / slope, np.maximum(top - y, y - bottom))


def bottle(c: Canvas) -> None:
    """Round shoulders, a thin neck, a dark cap, a cream label."""
    x, y, shade = c.x, c.y, c.round(0.40)
    c.fill(block(x, y, -0.13, -0.86, 0.13, 0.0, 0.02), c.colour, c.round(0.14))
    c.fill(block(x, y, -0.40, -0.36, 0.40, 1.0, 0.24), c.colour, shade)
    c.fill(block(x, y, -0.40, 0.2, 0.40, 1.0, 0.07), c.colour, shade)
    c.fill(np.maximum(block(x, y, -0.6, 0.16, 0.6, 0.60, 0.0), np.abs(x) - 0.39), CREAM, 0.5 + 0.5 * shade)
    c.fill(block(x, y, -0.24, 0.30, 0.24, 0.46, 0.03), c.colour, shade)
    c.fill(block(x, y, -0.17, -1.0, 0.17, -0.78, 0.04), COAL, c.round(0.17))


def can(c: Canvas) -> None:
    """A drinks can: steel rims, a pale band."""
    x, y, shade = c.x, c.y, c.round(0.56)
    body = np.maximum(block(x, y, -0.56, -0.92, 0.56, 0.96, 0.10), ellipse(x, y, 0, 0, 1.2, 1.05))
    c.fill(block(x, y, -0.48, -0.98, 0.48, 1.0, 0.08), STEEL, c.round(0.48))
    c.fill(body, c.colour, shade)
    c.fill(np.maximum(np.abs(y - 0.16 + 0.25 * x) - 0.15, np.abs(x) - 0.55), CREAM, 0.5 + 0.5 * shade)
    c.fill(ellipse(x, y, 0, -0.86, 0.47, 0.13), STEEL, 1.0 + 0.3 * x)
    c.fill(ellipse(x, y, 0.05, -0.85, 0.22, 0.055), COAL)


def box(c: Canvas) -> None:
    """A carton seen from the front and a little from the right and above, with a ribbon of tape."""
    x, y = c.x, c.y
    top = np.maximum(np.abs(y + 0.79) - 0.21, np.abs(x + (y + 0.58) * 0.72 + 0.18) - 0.70)
    side = np.maximum(np.abs(x - 0.67) - 0.155, np.abs(y + (x - 0.52) * 1.39 - 0.21) - 0.79)
    c.fill(side, c.colour, 0.66)
    c.fill(top, c.colour, 1.35)
    c.fill(block(x, y, -0.88, -0.58, 0.52, 1.0, 0.02), c.colour, 1.0 - 0.1 * y)
    c.fill(np.maximum(np.abs(y + 0.79) - 0.21, np.abs(x + (y + 0.58) * 0.72 + 0.18) - 0.11), CREAM, 1.0)
    c.fill(block(x, y, -0.29, -0.58, -0.07, -0.18, 0.0), CREAM, 0.9)


def bowl(c: Canvas) -> None:
    """Half an ellipse on a foot, open at the top."""
    x, y = c.x, c.y
    shade = c.round(1.4) - 0.18 * np.clip(y, -1, 1)
    c.fill(block(x, y, -0.5, 0.7, 0.5, 1.0, 0.06), c.colour, 0.72 * c.round(0.5))
    c.fill(np.maximum(ellipse(x, y, 0, -0.70, 1.42, 1.58), -0.66 - y), c.colour, shade)
    c.fill(ellipse(x, y, 0, -0.66, 1.42, 0.32), c.colour, 1.25)
    c.fill(ellipse(x, y, 0, -0.63, 1.26, 0.23), c.colour, 0.60 - 0.12 * x)


def apple(c: Canvas) -> None:
    """Two lobes, a stalk and a leaf."""
    x, y = c.x, c.y
    stalk = np.maximum(np.abs(x - 0.02 - 0.12 * (y + 0.7) ** 2) - 0.06, np.abs(y + 0.72) - 0.27)
    lobes = np.minimum(ellipse(x, y, -0.30, 0.13, 0.62, 0.78), ellipse(x, y, 0.30, 0.13, 0.62, 0.78))
    body = np.minimum(lobes, ellipse(x, y, 0, 0.30, 0.78, 0.70))
    c.fill(body, c.colour, c.ball(-0.02, 0.15, 0.95))
    c.fill(ellipse(x, y, 0.02, -0.56, 0.22, 0.075), c.colour, 0.5)
    c.fill(stalk, STALK)
    p, q = (x - 0.36) * 0.9 + (y + 0.78) * -0.44, (x - 0.36) * 0.44 + (y + 0.78) * 0.9
    c.fill(ellipse(p, q, 0, 0, 0.32, 0.15), LEAF, 1.0 - 0.5 * (q > 0))


def jar(c: Canvas) -> None:
    """Squat and round-cornered, with a wide steel lid and a round label."""
    x, y, shade = c.x, c.y, c.round(0.84)
    c.fill(block(x, y, -0.84, -0.66, 0.84, 1.0, 0.30), c.colour, shade)
    c.fill(ellipse(x, y, 0, 0.22, 0.44, 0.42), CREAM, 1.0)
    c.fill(ellipse(x, y, 0, 0.22, 0.25, 0.23), c.colour, 1.0)
    c.fill(block(x, y, -0.72, -1.0, 0.72, -0.54, 0.06), STEEL, c.round(0.72))
    c.fill(block(x, y, -0.72, -0.64, 0.72, -0.54, 0.03), STEEL, 0.66 * c.round(0.72))


def mug(c: Canvas) -> None:
    """A straight cup with a big handle on the right."""
    x, y = c.x + 0.22, c.y
    ring = np.abs(ellipse(x, y, 0.72, 0.10, 0.46, 0.52)) - 0.115
    c.fill(ring, c.colour, 0.86)
    shade = c.round(0.72, -0.22)
    c.fill(block(x, y, -0.72, -0.80, 0.72, 1.0, 0.16), c.colour, shade)
    c.fill(ellipse(x, y, 0, -0.80, 0.72, 0.20), c.colour, 1.3)
    c.fill(ellipse(x, y, 0, -0.78, 0.60, 0.14), c.colour, 0.55)
    c.fill(np.maximum(np.abs(y - 0.56) - 0.09, np.abs(x) - 0.71), CREAM, 0.5 + 0.5 * shade)


def lamp(c: Canvas) -> None:
    """A coloured shade on a thin steel stem and a coloured foot."""
    x, y = c.x, c.y
    c.fill(block(x, y, -0.085, -0.2, 0.085, 0.92, 0.02), STEEL, c.round(0.09))
    c.fill(np.maximum(ellipse(x, y, 0, 1.0, 0.52, 0.26), y - 1.0), c.colour, c.round(0.52))
    c.fill(wedge(x, y, -1.0, 0.22, 0.34, 0.80), c.colour, c.round(0.36 + 0.38 * np.clip((y + 1) / 1.22, 0, 1)))
    c.fill(np.maximum(np.abs(y - 0.17) - 0.055, wedge(x, y, -1.0, 0.22, 0.34, 0.80)), CREAM, 0.95)


Drawing = Callable[[Canvas], None]

SHAPES: dict[str, tuple[Drawing, float, tuple[float, float]]] = {
    "bottle": (bottle, 0.42, (0.30, 0.34)),
    "can": (can, 0.58, (0.31, 0.38)),
    "box": (box, 0.90, (0.38, 0.50)),
    "bowl": (bowl, 1.44, (0.46, 0.55)),
    "apple": (apple, 0.94, (0.36, 0.48)),
    "jar": (jar, 0.86, (0.38, 0.48)),
    "mug": (mug, 1.08, (0.42, 0.54)),
    "lamp": (lamp, 0.82, (0.38, 0.50)),
}
"""Name -> (drawing, width over height, range of widths as a share of the picture's)."""
