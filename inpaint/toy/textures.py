"""The backgrounds of the toy world: each a function from random numbers and coordinates to colours.

Legend: H = W = pixels of one side. Coordinates u (right) and v (down) are in [0, 1], so that any size shows the same
scene. Colours are float32 in [0, 1], shape H W 3. Textures keep to wavelengths above 5/64 of the side and to soft
edges: a small VAE cannot keep per-pixel noise, and then bounds everything that is learned on top of it.
Draws never depend on the size: a function draws all its random numbers before it looks at the coordinates.
"""

from collections.abc import Callable

import numpy as np

Array = np.ndarray
Texture = Callable[[np.random.Generator, Array, Array], Array]

TAU = 2 * np.pi


def rgb(*values: int) -> Array:
    """0-255 colour to float32 in [0, 1], shape (3,)."""
    return np.array(values, np.float32) / 255


def mix(a: Array, b: Array, amount: Array) -> Array:
    """`a` where amount is 0, `b` where it is 1; amount H W, colours (3,) or H W 3."""
    return a + (b - a) * amount[..., None]


def step(x: Array, edge: float, width: float) -> Array:
    """0 below `edge`, 1 above, smooth over `width` (Hermite, as GLSL's smoothstep)."""
    t = np.clip((x - edge) / width + 0.5, 0, 1)
    return t * t * (3 - 2 * t)


def jitter(rng: np.random.Generator, *colours: Array, light: float = 0.06, tint: float = 0.03) -> list[Array]:
    """The same small change of brightness and tint on all colours of one background."""
    gain = 1 + rng.uniform(-light, light) + rng.uniform(-tint, tint, 3)
    return [np.clip(c * gain, 0, 1).astype(np.float32) for c in colours]


def _spline(x: Array, cells: int) -> Array:
    """Weights (len(x), cells + 3) of a uniform cubic B-spline over [0, 1] with `cells` intervals."""
    t = np.clip(x, 0, 1) * cells
    distance = np.abs(t[:, None] - (np.arange(cells + 3, dtype=np.float32) - 1))
    near = 2 / 3 - distance**2 * (1 - distance / 2)
    far = np.clip(2 - distance, 0, None) ** 3 / 6
    return np.where(distance < 1, near, far).astype(np.float32)


def noise(rng: np.random.Generator, u: Array, v: Array, across: int, down: int) -> Array:
    """Smooth noise H W of about unit variance with `across` x `down` cells over the picture; u, v as from `grid`."""
    values = rng.standard_normal((down + 3, across + 3)).astype(np.float32) * 1.6
    return _spline(v[:, 0], down) @ values @ _spline(u[0], across).T


def grid(pixels: int) -> tuple[Array, Array]:
    """Pixel centres u, v, both float32 `pixels` x `pixels`, in (0, 1)."""
    line = (np.arange(pixels, dtype=np.float32) + 0.5) / pixels
    u, v = np.meshgrid(line, line)
    return u, v


def wood(rng: np.random.Generator, u: Array, v: Array) -> Array:
    """Horizontal planks with wavy grain."""
    dark, light, gap = jitter(rng, rgb(122, 70, 34), rgb(196, 132, 76), rgb(66, 36, 18))
    planks, start = rng.uniform(2.6, 3.8), rng.uniform(0, 1)
    tone, shift = rng.uniform(-0.22, 0.22, 8), rng.uniform(0, 1, 8)
    grain, phase = rng.uniform(6.5, 9.0), rng.uniform(0, 1)
    warp = noise(rng, u, v, 2, 3)
    row = v * planks + start
    plank = np.floor(row).astype(int) % 8
    wave = np.sin(TAU * (v * grain + 0.5 * warp + shift[plank] + phase)) * 0.5 + 0.5
    colour = mix(dark, light, np.clip(0.15 + 0.62 * wave + tone[plank], 0, 1).astype(np.float32))
    seam = np.abs(row - np.round(row)) / planks
    return mix(colour, gap, 0.85 * (1 - step(seam, 0.013, 0.016)))


def marble(rng: np.random.Generator, u: Array, v: Array) -> Array:
    """Off-white stone with clouds of grey and a few warped diagonal veins."""
    pale, cloud, vein = jitter(rng, rgb(243, 241, 238), rgb(211, 212, 218), rgb(122, 126, 140), light=0.03, tint=0.012)
    slope, count, phase = rng.uniform(0.5, 1.1) * rng.choice([-1, 1]), rng.uniform(1.5, 2.3), rng.uniform(0, 1)
    warp, strength, soft = noise(rng, u, v, 4, 4), noise(rng, u, v, 3, 3), noise(rng, u, v, 3, 3)
    colour = mix(pale, cloud, np.clip(0.42 + 0.38 * soft, 0, 1))
    along = (u + slope * v) * count + 0.20 * warp + phase
    ridge = np.abs(along - np.round(along)) / count
    main = np.exp(-((ridge / 0.022) ** 2)) * np.clip(0.62 + 0.3 * strength, 0.1, 0.95)
    across = (u - slope * v) * count * 0.8 + 0.25 * warp + 2 * phase
    ridge = np.abs(across - np.round(across)) / count
    thin = np.exp(-((ridge / 0.018) ** 2)) * np.clip(0.32 - 0.3 * strength, 0, 0.5)
    return mix(colour, vein, np.maximum(main, thin))


def grass(rng: np.random.Generator, u: Array, v: Array) -> Array:
    """Overlapping rows of blades, from far (top) to near (bottom)."""
    shade, leaf, tip = jitter(rng, rgb(36, 100, 40), rgb(64, 144, 50), rgb(136, 194, 72))
    rows = 6
    count, phase = rng.uniform(5.5, 7.5, rows), rng.uniform(0, 1, rows)
    lean, tone, offset = rng.uniform(-0.3, 0.3, rows), rng.uniform(-0.12, 0.12, rows), rng.uniform(0, 1 / rows)
    sway = noise(rng, u, v, 4, 2) * 0.25
    height = 0.8 + 0.2 * noise(rng, u, v, 8, 3)
    colour = np.broadcast_to(leaf, (*u.shape, 3))
    for row in range(rows + 1):
        k = row % rows
        root = (row + 0.55) / rows + offset - 0.06
        blade = (u + lean[k] * (v - root)) * count[k] + phase[k] + sway
        tooth = 1 - 2 * np.abs(blade - np.round(blade))
        reach = 0.25 * tooth * height
        above = v - (root - reach + 0.02)
        cover = step(above, 0, 0.035)
        ramp = np.clip(above / 0.24, 0, 1)
        paint = mix(tip, leaf, np.clip(2 * ramp + tone[k], 0, 1))
        paint = mix(paint, shade, np.clip(2 * ramp - 0.9 + tone[k], 0, 1))
        colour = mix(colour, paint, cover)
    return colour


def sky(rng: np.random.Generator, u: Array, v: Array) -> Array:
    """A blue gradient with a few flat-bottomed clouds."""
    top, low = jitter(rng, rgb(58, 132, 222), rgb(162, 208, 246), light=0.05)
    count = int(rng.integers(3, 6))
    base_u, base_v = rng.uniform(0, 1, 6), rng.permutation(6) / 6 + rng.uniform(0.02, 0.14, 6)
    width = rng.uniform(0.09, 0.15, 6)
    puff_u, puff_r = rng.uniform(-1.0, 1.0, (6, 4)), rng.uniform(0.5, 0.8, (6, 4))
    colour = mix(top, low, np.clip(v * 1.05, 0, 1))
    for k in range(count):
        body = np.zeros_like(u)
        x, y = (u - base_u[k]) / width[k], (v - base_v[k]) / width[k]
        for shift, radius in zip(puff_u[k], puff_r[k], strict=True):
            distance = (x - shift * 1.1) ** 2 + (y * 1.15 + radius * 0.45) ** 2
            body = np.maximum(body, 1 - distance / (radius * 1.25) ** 2)
        cover = step(body, 0.28, 0.55) * (1 - step(y, 0.22, 0.4))
        white = mix(rgb(255, 255, 255), rgb(214, 226, 242), np.clip(y + 0.55, 0, 1))
        colour = mix(colour, white, 0.96 * cover)
    return colour


def cloth(rng: np.random.Generator, u: Array, v: Array) -> Array:
    """A red and white gingham tablecloth, slightly turned and waved."""
    white, red = jitter(rng, rgb(250, 245, 240), rgb(206, 30, 46), light=0.04)
    cells, turn, phase = rng.uniform(3.6, 5.2), rng.uniform(-0.22, 0.22), rng.uniform(0, 1, 2)
    wave, fold = noise(rng, u, v, 2, 2) * 0.05, noise(rng, u, v, 3, 3)
    x = ((u - 0.5) * np.cos(turn) - (v - 0.5) * np.sin(turn)) * cells + wave + phase[0]
    y = ((u - 0.5) * np.sin(turn) + (v - 0.5) * np.cos(turn)) * cells + wave + phase[1]
    soft = 0.018 * cells
    stripe_x = step(np.abs(x - np.round(x)), 0.25, soft)
    stripe_y = step(np.abs(y - np.round(y)), 0.25, soft)
    amount = 0.5 * (stripe_x + stripe_y)
    return mix(white, red, amount) * (1 + 0.035 * np.clip(fold, -2, 2))[..., None]


def bricks(rng: np.random.Generator, u: Array, v: Array) -> Array:
    """A running-bond wall: bricks of different tone, pale mortar."""
    dark, light, mortar = jitter(rng, rgb(112, 44, 34), rgb(178, 84, 58), rgb(196, 182, 170))
    rows, shift = rng.uniform(5.2, 6.6), rng.uniform(0, 1, 2)
    tones = rng.uniform(0, 1, (16, 16)).astype(np.float32)
    wash = noise(rng, u, v, 4, 4)
    y = v * rows + shift[0]
    row = np.floor(y).astype(int)
    x = u * rows * 0.46 + shift[1] + 0.5 * (row % 2)
    column = np.floor(x).astype(int)
    edge = np.minimum(np.abs(y - np.round(y)) / rows, np.abs(x - np.round(x)) / (rows * 0.46))
    tone = np.clip(tones[row % 16, column % 16] + 0.12 * wash, 0, 1)
    lit = 1.06 - 0.16 * (y - row)
    return mix(mortar, mix(dark, light, tone) * lit[..., None], step(edge, 0.015, 0.018))


def sand(rng: np.random.Generator, u: Array, v: Array) -> Array:
    """Pale dunes with curved ripples: slow on the lit side, quick into the shade."""
    lit, shade = jitter(rng, rgb(246, 222, 164), rgb(206, 164, 98))
    count, tilt, phase = rng.uniform(5.0, 7.0), rng.uniform(-0.5, 0.5), rng.uniform(0, 1)
    warp, dune = noise(rng, u, v, 2, 2), noise(rng, u, v, 2, 2)
    along = TAU * ((v + tilt * u) * count + 0.55 * warp + phase)
    ripple = np.sin(along + 0.6 * np.sin(along))
    return mix(lit, shade, np.clip(0.42 + 0.30 * ripple + 0.14 * dune, 0, 1))


def velvet(rng: np.random.Generator, u: Array, v: Array) -> Array:
    """A purple curtain in hanging folds."""
    deep, body, sheen = jitter(rng, rgb(50, 20, 86), rgb(112, 52, 166), rgb(186, 132, 228))
    count, phase, lean = rng.uniform(3.0, 4.6), rng.uniform(0, 1), rng.uniform(-0.35, 0.35)
    warp, light = noise(rng, u, v, 2, 2), noise(rng, u, v, 4, 2)
    along = TAU * ((u + lean * v) * count + 0.33 * warp + phase)
    fold = 0.5 + 0.5 * np.sin(along + 0.5 * np.sin(along))
    colour = mix(deep, body, np.clip(fold * 1.5, 0, 1))
    return mix(colour, sheen, np.clip((fold - 0.66) * 2.2 + 0.10 * light, 0, 0.9) * step(fold, 0.55, 0.3))


TEXTURES: dict[str, Texture] = {
    texture.__name__: texture for texture in (wood, marble, grass, sky, cloth, bricks, sand, velvet)
}
