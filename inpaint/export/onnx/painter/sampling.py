"""What is done at each step: samplers as tables of coefficients, and the noise that a seed draws.

Shapes: S steps, K = len(COLUMNS).
"""

from collections.abc import Mapping
from typing import Any, NamedTuple

import numpy as np

COLUMNS = (
    "scale_input",  # the U-Net sees scale_input x
    "clean_latents",
    "clean_output",
    "next_latents",
    "next_output",
    "next_clean",
    "next_previous",
    "next_earlier",
    "next_noise",
    "known_clean",  # 4-channel bases: what is kept becomes known_clean (clean latents) + known_noise (first noise)
    "known_noise",
)


class Trajectory(NamedTuple):
    """Which timesteps are visited, and what is done at each: of any sampler (`inpaint.diffusion.samplers`)."""

    timesteps_S: np.ndarray
    """What the U-Net is told, float32."""
    table_SK: np.ndarray
    """float32, by `COLUMNS`."""
    start_clean: float
    """The first latents are start_clean (the photo's latents) + start_noise (noise)."""
    start_noise: float


def ddim(base: Mapping[str, Any], steps: int, strength: float = 1.0) -> Trajectory:
    """DDIM without noise (Song 2020, eq. 12): the last `int(steps * strength)` of so many steps. Raises ValueError for
    steps that there are not, or a strength that leaves none. Args: base: its `base.json`."""
    times_S = _times(base, steps)
    skipped = max(0, steps - int(steps * strength))
    if not 0 < strength <= 1 or skipped == steps:
        raise ValueError(f"strength {strength}: give more than 0 and at most 1, and so much that a step is left")
    times_S, a_T = times_S[skipped:], np.array(base["alphas_cumprod"])
    previous_S = times_S - len(a_T) // steps
    before_S = np.where(previous_S < 0, base["final_alpha_cumprod"], a_T[previous_S.clip(min=0)])
    signal_S, noise_S, left_S = np.sqrt(a_T[times_S]), np.sqrt(1 - a_T[times_S]), np.sqrt(1 - before_S)
    columns = {"scale_input": np.ones_like(signal_S), "next_clean": np.sqrt(before_S)}
    if base["prediction_type"] == "v_prediction":  # Salimans 2022, sec. 4
        columns |= {"clean_latents": signal_S, "clean_output": -noise_S}
        columns |= {"next_latents": left_S * noise_S, "next_output": left_S * signal_S}
    else:
        columns |= {"clean_latents": 1 / signal_S, "clean_output": -noise_S / signal_S, "next_output": left_S}
    columns |= {"known_clean": np.append(signal_S[1:], 1.0), "known_noise": np.append(noise_S[1:], 0.0)}
    table_SK = np.stack([columns.get(name, np.zeros_like(signal_S)) for name in COLUMNS], axis=1)
    start_clean, start_noise = (signal_S[0], noise_S[0]) if skipped else (0.0, 1.0)
    return Trajectory(times_S.astype(np.float32), table_SK.astype(np.float32), float(start_clean), float(start_noise))


def _times(base: Mapping[str, Any], steps: int) -> np.ndarray:
    """The timesteps of DDIM (Lin 2023, table 2), falling."""
    total, spacing = len(base["alphas_cumprod"]), base["timestep_spacing"] or "leading"
    if not 1 <= steps <= total:
        raise ValueError(f"steps {steps}: give 1 to {total}")
    if spacing == "linspace":
        times_S = np.linspace(0, total - 1, steps).round()[::-1]
    elif spacing == "trailing":
        times_S = np.round(np.arange(total, 0, -total / steps)[:steps]) - 1
    else:
        times_S = (np.arange(steps) * (total // steps)).round()[::-1] + base["steps_offset"]
    return times_S.astype(np.int64)


class Draws:
    """Standard normal numbers as torch's CPU generator of a seed draws them: 24 bits of the Mersenne Twister to each,
    and Box-Muller on halves of 16."""

    def __init__(self, seed: int) -> None:
        self._bits = np.random.RandomState(seed % 2**32)

    def normal(self, shape: tuple[int, ...]) -> np.ndarray:
        """The next ones, float32. Raises ValueError for fewer than 16."""
        count = int(np.prod(shape))
        if count < 16:
            raise ValueError(f"{shape}: fewer than 16 numbers")
        drawn = self._uniform(count)
        whole = count // 16 * 16
        values = drawn.copy()
        values[:whole] = _box_muller(drawn[:whole])
        if whole < count:
            values[-16:] = _box_muller(self._uniform(16))
        return values.reshape(shape)

    def _uniform(self, count: int) -> np.ndarray:
        bits = self._bits.randint(0, 2**32, count, np.uint32)
        return (bits & 0xFFFFFF).astype(np.float32) * np.float32(2**-24)


def _box_muller(uniform: np.ndarray) -> np.ndarray:
    first, second = np.split(uniform.reshape(-1, 2, 8), 2, axis=1)
    radius, angle = np.sqrt(-2 * np.log1p(-first)), np.float32(2 * np.pi) * second
    return np.concatenate([radius * np.cos(angle), radius * np.sin(angle)], axis=1).reshape(-1)
