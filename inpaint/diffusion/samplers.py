"""Samplers as tables: what each step of a sampler multiplies, worked out once per (sampler, steps, strength).

Every sampler here is affine in what a step has at hand: the latents x, the model's output o, the clean sample c that
both predict, the clean sample p predicted one step before, and fresh noise z,

    c  = clean_latents x + clean_output o                                   (clamped where the schedule says so)
    x' = next_latents x + next_output o + next_clean c + next_previous p + next_noise z,

so that one `step` serves rows of different samplers, step counts and positions in one call. Each equals the diffusers
scheduler of its name, made by `from_config` of the base's. Shapes: B rows; S steps of a table; K = len(COLUMNS).
"""

from collections.abc import Callable
from dataclasses import dataclass, replace
from enum import StrEnum
from functools import lru_cache, partial

import numpy as np
from torch import Tensor

from inpaint.diffusion.schedule import NoiseSchedule, sampling_timesteps
from inpaint.errors import InpaintError

Array = np.ndarray

COLUMNS = (
    "scale_input",  # the model sees scale_input x
    "clean_latents",
    "clean_output",
    "next_latents",
    "next_output",
    "next_clean",
    "next_previous",
    "next_noise",
    "known_clean",  # 4-channel bases: what is kept becomes known_clean (clean latents) + known_noise (first noise)
    "known_noise",
)
_CLEAN, _PREVIOUS = COLUMNS.index("next_clean"), COLUMNS.index("next_previous")
_SMALLEST_ALPHA = 2.0**-24
"""diffusers' stand-in for a last a_t of zero, whose sigma would be infinite."""


class Sampler(StrEnum):
    """How noise becomes a picture, step by step."""

    DDIM = "ddim"
    EULER = "euler"
    EULER_ANCESTRAL = "euler_a"
    DPMPP_2M = "dpmpp_2m"
    LCM = "lcm"


@dataclass(frozen=True, eq=False)
class Trajectory:
    """The steps of one sampler from its first latents to the picture."""

    timesteps_S: np.ndarray
    """What the model is told, float32; not always whole (Euler with linspace)."""
    table_SK: np.ndarray
    """float32, by `COLUMNS`."""
    start_clean: float
    """The first latents are start_clean (the image's latents) + start_noise (noise)."""
    start_noise: float

    def __len__(self) -> int:
        return len(self.timesteps_S)


@lru_cache(maxsize=512)
def trajectory(schedule: NoiseSchedule, sampler: Sampler, steps: int, strength: float = 1.0) -> Trajectory:
    """The steps taken at `strength`: the last `int(steps * strength)` of `steps`, as diffusers' inpaint pipelines.

    At strength 1 it starts from noise alone, else from the image's latents with the noise of the first step taken.
    Raises InpaintError for a number of steps that this base or sampler has no timesteps for, a strength that leaves no
    step, or a stored scheduler setting that is not supported with this sampler.
    """
    for name, usual in _USUAL.get(sampler, {}).items():
        if schedule.stated.get(name, usual) != usual:
            raise InpaintError(
                f"sampler {sampler}: this base's scheduler has {name} {schedule.stated[name]!r}, supported is {usual!r}"
            )
    schedule.check_steps(steps)
    skipped = max(0, steps - int(steps * strength))
    if skipped == steps:
        raise InpaintError(f"strength {strength}: of {steps} steps it leaves none; give more of either")
    whole = _TABLES[sampler](schedule, steps)
    if not skipped:
        return whole
    table_SK = whole.table_SK[skipped:].copy()
    # The first step taken has none before it: its own clean sample stands in.
    table_SK[0, _CLEAN] += table_SK[0, _PREVIOUS]
    table_SK[0, _PREVIOUS] = 0
    known_clean, known_noise = whole.table_SK[skipped - 1, -2:].tolist()
    timesteps_S = whole.timesteps_S[skipped:]
    return replace(whole, timesteps_S=timesteps_S, table_SK=table_SK, start_clean=known_clean, start_noise=known_noise)


def step(
    table_BK: Tensor,
    output: Tensor,
    latents: Tensor,
    previous: Tensor | None = None,
    noise: Tensor | None = None,
    *,
    clip_range: float | None = None,
) -> tuple[Tensor, Tensor]:
    """One step of every row, each by its own line of its table; (next latents, predicted clean sample), float32.

    Args:
        table_BK: a line per row, or one for all.
        output: B x ..., what the model says at the scaled latents, in the schedule's prediction type.
        previous: the clean samples of the step before; None where no row's table reads them.
        noise: standard normal; None where no row's table reads it.
        clip_range: `NoiseSchedule.clip_range`.
    """
    columns = table_BK.T.reshape(len(COLUMNS), -1, *[1] * (latents.ndim - 1))
    clean = columns[1] * latents + columns[2] * output
    if clip_range is not None:
        clean = clean.clamp(-clip_range, clip_range)
    following = columns[3] * latents + columns[4] * output
    following = following.addcmul_(columns[5], clean)
    if previous is not None:
        following = following.addcmul_(columns[6], previous)
    if noise is not None:
        following = following.addcmul_(columns[7], noise)
    return following, clean


def column(table_BK: Tensor, name: str, ndim: int) -> Tensor:
    """One column, shaped B x 1 x ... with `ndim` dimensions."""
    return table_BK[:, COLUMNS.index(name)].reshape(-1, *[1] * (ndim - 1))


def visiting(schedule: NoiseSchedule, times_S: Array, before_S: Array, *, ancestral: bool = False) -> Trajectory:
    """DDIM with eta 0 (Song 2020, eq. 12) at any timesteps, or samples of q(x_s | x_t, c) (Ho 2020, eq. 6 and 7) as
    `DDPMScheduler` with `variance_type="fixed_small"`. `before_S` are a_s of the timesteps that the steps lead to,
    float64."""
    a_S = _alphas(schedule)[times_S]
    columns = {"next_clean": np.sqrt(before_S)}
    if ancestral:
        kept_S, share_S = a_S / before_S, (1 - before_S) / (1 - a_S)
        columns["next_clean"] *= (1 - kept_S) / (1 - a_S)
        columns |= {"next_latents": np.sqrt(kept_S) * share_S, "next_noise": np.sqrt((1 - kept_S) * share_S)}
    elif schedule.prediction_type == "epsilon":
        columns["next_output"] = np.sqrt(1 - before_S)
    else:
        columns["next_output"] = np.sqrt((1 - before_S) * a_S)
        columns["next_latents"] = np.sqrt((1 - before_S) * (1 - a_S))
    return _trajectory(schedule, times_S, a_S, columns)


def _ddim(schedule: NoiseSchedule, steps: int) -> Trajectory:
    """`DDIMScheduler`, which does not always step to the timestep that it visits next."""
    times_S = sampling_timesteps(schedule, steps).numpy()
    previous_S = times_S - schedule.train_timesteps // steps
    before_S = np.where(previous_S < 0, schedule.final_alpha_cumprod, _alphas(schedule)[previous_S.clip(min=0)])
    return visiting(schedule, times_S, before_S)


def _lcm(schedule: NoiseSchedule, steps: int) -> Trajectory:
    """Multistep consistency sampling (Luo 2023, alg. 3); `LCMScheduler`, whose data sigma is 0.5."""
    original = int(schedule.stated.get("original_inference_steps", 50))
    if steps > original:
        raise InpaintError(f"steps {steps}: the LCM sampler takes at most {original}, and is made for 4 to 8")
    origin = np.arange(original, 0, -1) * (schedule.train_timesteps // original) - 1
    times_S = origin[np.floor(np.linspace(0, original, num=steps, endpoint=False)).astype(np.int64)]
    scaled_S = times_S * float(schedule.stated.get("timestep_scaling", 10.0))
    a_S = _alphas(schedule)[times_S]
    before_S = np.append(a_S[1:], 1.0)
    columns = {
        "next_latents": np.sqrt(before_S) * 0.25 / (scaled_S**2 + 0.25),
        "next_clean": np.sqrt(before_S) * scaled_S / np.sqrt(scaled_S**2 + 0.25),
        "next_noise": np.sqrt(1 - before_S),
    }
    return _trajectory(schedule, times_S, a_S, columns)


def _euler(schedule: NoiseSchedule, steps: int, *, ancestral: bool = False) -> Trajectory:
    """Euler's method on the probability flow (Karras 2022, alg. 2, no churn), or with ancestral noise (k-diffusion);
    `EulerDiscreteScheduler`, `EulerAncestralDiscreteScheduler`."""
    if schedule.timestep_spacing in (None, "linspace"):
        times_S = np.linspace(0, schedule.train_timesteps - 1, steps, dtype=np.float32)[::-1]
    else:
        times_S = sampling_timesteps(schedule, steps).numpy()
    s_S = _sigmas(schedule, times_S)
    following_S = np.append(s_S[1:], 0.0)
    up_S = ancestral * np.sqrt(following_S**2 * (s_S**2 - following_S**2) / s_S**2)
    ratio_S = np.sqrt(following_S**2 - up_S**2) / s_S
    a_S = 1 / (s_S**2 + 1)
    columns = {"scale_input": np.sqrt(a_S), "next_latents": ratio_S, "next_clean": 1 - ratio_S, "next_noise": up_S}
    # The variance of what the model sees is 1 only if the noise also carries the missing signal's.
    first_noise = np.sqrt(s_S[0] ** 2 + 1) if schedule.timestep_spacing == "leading" else s_S[0]
    return _trajectory(schedule, times_S, a_S, columns, first_noise=float(first_noise))


def _dpmpp_2m(schedule: NoiseSchedule, steps: int) -> Trajectory:
    """DPM-Solver++(2M), midpoint, first order at both ends (Lu 2022b, alg. 2); `DPMSolverMultistepScheduler`."""
    count, spacing = schedule.train_timesteps, schedule.timestep_spacing
    if steps >= count:
        raise InpaintError(f"steps {steps}: the DPM++ 2M sampler takes at most {count - 1} on this base")
    if spacing == "leading":
        times_S = (np.arange(steps, 0, -1) * (count // (steps + 1))) + schedule.steps_offset
    elif spacing == "trailing":
        times_S = sampling_timesteps(schedule, steps).numpy()
    else:
        times_S = np.linspace(0, count - 1, steps + 1).round()[:0:-1].astype(np.int64)
    s_S = _sigmas(schedule, times_S)
    following_S = np.append(s_S[1:], 0.0)
    shrink_S = np.sqrt((s_S**2 + 1) / (following_S**2 + 1)) * following_S / s_S
    growth_S = (1 - following_S / s_S) / np.sqrt(following_S**2 + 1)
    extra_S = np.zeros(steps)
    # Neither the first step nor the last, which leads to sigma 0, looks back.
    gaps = np.diff(-np.log(s_S))
    extra_S[1:-1] = 0.5 * growth_S[1:-1] * gaps[1:] / gaps[:-1]
    columns = {"next_latents": shrink_S, "next_clean": growth_S + extra_S, "next_previous": -extra_S}
    return _trajectory(schedule, times_S, 1 / (s_S**2 + 1), columns)


def _alphas(schedule: NoiseSchedule) -> Array:
    return schedule.alphas_cumprod_T.double().cpu().numpy()


def _sigmas(schedule: NoiseSchedule, times_S: Array) -> Array:
    """Noise over signal at each timestep, interpolated."""
    alphas = _alphas(schedule).clip(min=_SMALLEST_ALPHA)
    return np.interp(times_S, np.arange(len(alphas)), np.sqrt((1 - alphas) / alphas))


def _trajectory(
    schedule: NoiseSchedule, times_S: Array, a_S: Array, columns: dict[str, Array], *, first_noise: float = 1.0
) -> Trajectory:
    """All steps, from noise alone. Columns left out are 0 (`scale_input`: 1); a_t is of what the model sees."""
    signal_S, noise_S, scale_S = np.sqrt(a_S), np.sqrt(1 - a_S), columns.get("scale_input", np.ones_like(a_S))
    if schedule.prediction_type == "epsilon":  # Song 2020, eq. 9
        clean = {"clean_latents": scale_S / signal_S, "clean_output": -noise_S / signal_S}
    else:  # Salimans 2022, sec. 4
        clean = {"clean_latents": scale_S * signal_S, "clean_output": -noise_S}
    # After a step the kept region is noised as the next step expects it, after the last one not at all.
    known_clean, known_noise = np.append((signal_S / scale_S)[1:], 1.0), np.append((noise_S / scale_S)[1:], 0.0)
    columns = {"scale_input": scale_S, **clean, **columns, "known_clean": known_clean, "known_noise": known_noise}
    table_SK = np.stack([columns.get(name, np.zeros_like(a_S)) for name in COLUMNS], axis=1).astype(np.float32)
    return Trajectory(times_S.astype(np.float32), table_SK, start_clean=0.0, start_noise=first_noise)


_TABLES: dict[Sampler, Callable[[NoiseSchedule, int], Trajectory]] = {
    Sampler.DDIM: _ddim,
    Sampler.EULER: _euler,
    Sampler.EULER_ANCESTRAL: partial(_euler, ancestral=True),
    Sampler.DPMPP_2M: _dpmpp_2m,
    Sampler.LCM: _lcm,
}
_OFF = ("use_karras_sigmas", "use_exponential_sigmas", "use_beta_sigmas")
_USUAL: dict[Sampler, dict[str, object]] = {
    Sampler.EULER: {
        **dict.fromkeys(_OFF, False),
        "final_sigmas_type": "zero",
        "interpolation_type": "linear",
        "timestep_type": "discrete",
    },
    Sampler.DPMPP_2M: {
        **dict.fromkeys((*_OFF, "use_lu_lambdas", "use_flow_sigmas", "euler_at_final"), False),
        "final_sigmas_type": "zero",
        "lower_order_final": True,
        "algorithm_type": "dpmsolver++",
        "solver_order": 2,
        "solver_type": "midpoint",
        "lambda_min_clipped": -float("inf"),
        "variance_type": None,
    },
}
"""Stored settings that `from_config` would hand on, and the only value of each that the tables are made for."""
