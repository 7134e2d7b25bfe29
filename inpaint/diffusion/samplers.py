"""Samplers as tables: what each step of a sampler multiplies, worked out once per (sampler, steps, strength).

Every sampler here is affine in what a step has at hand: the latents x, the model's output o, the clean sample c that
both predict, the clean sample p predicted one step before, and fresh noise z,

    c  = clean_latents x + clean_output o                                   (clamped where the schedule says so)
    x' = next_latents x + next_output o + next_clean c + next_previous p + next_noise z,

so that one `step` serves rows of different samplers, step counts and positions in one call. Each equals the diffusers
scheduler of its name, made by `from_config` of the base's. Shapes: B rows; S steps of a table; K = len(COLUMNS).
"""

from collections.abc import Callable
from dataclasses import dataclass
from enum import StrEnum
from functools import lru_cache

import numpy as np
from torch import Tensor

from inpaint.diffusion.schedule import NoiseSchedule, sampling_timesteps, spaced
from inpaint.errors import InpaintError

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
_COLUMN = {name: index for index, name in enumerate(COLUMNS)}
_SMALLEST_ALPHA = 2.0**-24
"""diffusers' stand-in for a last a_t of zero, whose sigma would be infinite."""


class Sampler(StrEnum):
    """How noise becomes a picture, step by step."""

    DDIM = "ddim"
    EULER = "euler"
    EULER_ANCESTRAL = "euler_a"
    DPMPP_2M = "dpmpp_2m"
    LCM = "lcm"


@dataclass(frozen=True, kw_only=True, eq=False)
class Trajectory:
    """The steps of one sampler from its first latents to the picture."""

    timesteps_S: np.ndarray
    """What the model is told, float32; not always whole (Euler with linspace)."""
    table_SK: np.ndarray
    """float32, by `COLUMNS`."""
    draws: bool
    """Whether every step but the last draws fresh noise."""
    start_clean: float
    """The first latents are start_clean (the image's latents) + start_noise (noise)."""
    start_noise: float

    def __len__(self) -> int:
        return len(self.timesteps_S)


@lru_cache(maxsize=512)
def trajectory(schedule: NoiseSchedule, sampler: Sampler, steps: int, strength: float = 1.0) -> Trajectory:
    """The steps taken at `strength`: the last `int(steps * strength)` of `steps`, as diffusers' inpaint pipelines.

    At strength 1 it starts from noise alone, else from the image's latents with the noise of the first step taken.

    Raises:
        InpaintError: a number of steps that this base or sampler has no timesteps for, a strength that leaves no step,
            or a stored scheduler setting that is not supported with this sampler.
    """
    for name, usual in _USUAL[sampler].items():
        if schedule.stated.get(name, usual) != usual:
            raise InpaintError(
                f"sampler {sampler}: this base's scheduler has {name} {schedule.stated[name]!r}, supported is {usual!r}"
            )
    if not 1 <= steps <= schedule.train_timesteps:
        raise InpaintError(f"steps {steps}: this base can be sampled in 1 to {schedule.train_timesteps} steps")
    taken = min(int(steps * strength), steps)
    if taken < 1:
        raise InpaintError(f"strength {strength}: of {steps} steps it leaves none; give more of either")
    return _TABLES[sampler](schedule, steps, steps - taken, strength == 1.0)


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
    return table_BK[:, _COLUMN[name]].reshape(-1, *[1] * (ndim - 1))


def _ddim(schedule: NoiseSchedule, steps: int, skipped: int, from_noise: bool) -> Trajectory:
    """eta 0 (Song 2020, eq. 12); `DDIMScheduler`."""
    alphas = _alphas(schedule)
    times_S = sampling_timesteps(schedule, steps).numpy()[skipped:]
    previous_S = times_S - schedule.train_timesteps // steps
    before_S = np.where(previous_S < 0, schedule.final_alpha_cumprod, alphas[previous_S.clip(min=0)])
    a_S = alphas[times_S]
    columns = _clean_from_alphas(schedule, a_S)
    if schedule.prediction_type == "epsilon":
        columns["next_output"] = np.sqrt(1 - before_S)
    else:
        columns["next_output"] = np.sqrt((1 - before_S) * a_S)
        columns["next_latents"] = np.sqrt((1 - before_S) * (1 - a_S))
    columns["next_clean"] = np.sqrt(before_S)
    signal, noise = np.sqrt(a_S), np.sqrt(1 - a_S)
    return _trajectory(times_S, columns, signal, noise, from_noise, first_noise=1.0)


def _lcm(schedule: NoiseSchedule, steps: int, skipped: int, from_noise: bool) -> Trajectory:
    """Multistep consistency sampling (Luo 2023, alg. 3); `LCMScheduler`, whose data sigma is 0.5."""
    original = int(schedule.stated.get("original_inference_steps", 50))
    if steps > original:
        raise InpaintError(f"steps {steps}: the LCM sampler takes at most {original}, and is made for 4 to 8")
    origin = np.arange(original, 0, -1) * (schedule.train_timesteps // original) - 1
    times = origin[np.floor(np.linspace(0, original, num=steps, endpoint=False)).astype(np.int64)]
    times_S = times[skipped:]
    alphas = _alphas(schedule)
    a_S = alphas[times_S]
    following_S = alphas[np.append(times_S[1:], times_S[-1])]
    scaled_S = times_S * float(schedule.stated.get("timestep_scaling", 10.0))
    keep_S, trust_S = 0.25 / (scaled_S**2 + 0.25), scaled_S / np.sqrt(scaled_S**2 + 0.25)
    signal_S = np.append(np.sqrt(following_S[:-1]), 1.0)
    columns = _clean_from_alphas(schedule, a_S)
    columns["next_latents"], columns["next_clean"] = signal_S * keep_S, signal_S * trust_S
    columns["next_noise"] = np.append(np.sqrt(1 - following_S[:-1]), 0.0)
    return _trajectory(times_S, columns, np.sqrt(a_S), np.sqrt(1 - a_S), from_noise, first_noise=1.0, draws=True)


def _euler(schedule: NoiseSchedule, steps: int, skipped: int, from_noise: bool, ancestral: bool = False) -> Trajectory:
    """Euler's method on the probability flow (Karras 2022, alg. 2, no churn), or with ancestral noise (k-diffusion);
    `EulerDiscreteScheduler`, `EulerAncestralDiscreteScheduler`."""
    spacing = schedule.timestep_spacing or "linspace"
    if spacing == "linspace":
        times = np.linspace(0, schedule.train_timesteps - 1, steps, dtype=np.float32)[::-1].astype(np.float64)
    else:
        times = spaced(schedule, spacing, steps).numpy().astype(np.float64)
    sigmas = _sigmas(schedule, times)
    # The variance of what the model sees is 1 only if the noise also carries the missing signal's.
    first_noise = sigmas[0] if spacing != "leading" else np.sqrt(sigmas[0] ** 2 + 1)
    s_S, following_S = sigmas[skipped:-1], sigmas[skipped + 1 :]
    up_S = np.zeros_like(s_S)
    if ancestral:
        up_S = np.sqrt(following_S**2 * (s_S**2 - following_S**2) / s_S**2)
    ratio_S = np.sqrt(following_S**2 - up_S**2) / s_S
    columns = {"scale_input": 1 / np.sqrt(s_S**2 + 1), "next_latents": ratio_S, "next_clean": 1 - ratio_S}
    if schedule.prediction_type == "epsilon":
        columns |= {"clean_latents": np.ones_like(s_S), "clean_output": -s_S}
    else:
        columns |= {"clean_latents": 1 / (s_S**2 + 1), "clean_output": -s_S / np.sqrt(s_S**2 + 1)}
    columns["next_noise"] = up_S
    signal_S = np.ones_like(s_S)
    return _trajectory(
        times[skipped:], columns, signal_S, s_S, from_noise, first_noise=float(first_noise), draws=ancestral
    )


def _euler_ancestral(schedule: NoiseSchedule, steps: int, skipped: int, from_noise: bool) -> Trajectory:
    return _euler(schedule, steps, skipped, from_noise, ancestral=True)


def _dpmpp_2m(schedule: NoiseSchedule, steps: int, skipped: int, from_noise: bool) -> Trajectory:
    """DPM-Solver++(2M), midpoint, first order at both ends (Lu 2022b, alg. 2); `DPMSolverMultistepScheduler`."""
    count, spacing = schedule.train_timesteps, schedule.timestep_spacing or "linspace"
    if steps >= count:
        raise InpaintError(f"steps {steps}: the DPM++ 2M sampler takes at most {count - 1} on this base")
    if spacing == "leading":
        times = (np.arange(steps, 0, -1) * (count // (steps + 1))) + schedule.steps_offset
    elif spacing == "linspace":
        times = np.linspace(0, count - 1, steps + 1).round()[:0:-1].astype(np.int64)
    else:
        times = spaced(schedule, spacing, steps).numpy()
    sigmas = _sigmas(schedule, times)[skipped:]
    s_S, following_S = sigmas[:-1], sigmas[1:]
    # What diffusers calls alpha_t and sigma_t: the shares of signal and noise at each sigma.
    signal, noise = 1 / np.sqrt(sigmas**2 + 1), sigmas / np.sqrt(sigmas**2 + 1)
    growth_S = signal[1:] * (1 - following_S / s_S)
    extra_S = np.zeros_like(s_S)
    with np.errstate(divide="ignore"):
        logs = -np.log(sigmas)
    # Neither the first step taken nor the last, which leads to sigma 0, looks back.
    ahead, behind = np.diff(logs)[1:-1], np.diff(logs)[:-2]
    extra_S[1:-1] = 0.5 * growth_S[1:-1] * ahead / behind
    columns = {"next_latents": noise[1:] / noise[:-1], "next_clean": growth_S + extra_S, "next_previous": -extra_S}
    if schedule.prediction_type == "epsilon":
        columns |= {"clean_latents": 1 / signal[:-1], "clean_output": -noise[:-1] / signal[:-1]}
    else:
        columns |= {"clean_latents": signal[:-1], "clean_output": -noise[:-1]}
    return _trajectory(times[skipped:], columns, signal[:-1], noise[:-1], from_noise, first_noise=1.0)


def _alphas(schedule: NoiseSchedule) -> np.ndarray:
    return schedule.alphas_cumprod_T.double().cpu().numpy()


def _sigmas(schedule: NoiseSchedule, times_S: np.ndarray) -> np.ndarray:
    """Noise over signal at each timestep, interpolated, and 0 behind the last: S + 1."""
    alphas = _alphas(schedule).clip(min=_SMALLEST_ALPHA)
    sigmas_T = np.sqrt((1 - alphas) / alphas)
    return np.append(np.interp(times_S, np.arange(len(sigmas_T)), sigmas_T), 0.0)


def _clean_from_alphas(schedule: NoiseSchedule, a_S: np.ndarray) -> dict[str, np.ndarray]:
    """The columns that predict the clean sample (Song 2020, eq. 9; Salimans 2022, sec. 4)."""
    if schedule.prediction_type == "epsilon":
        return {"clean_latents": 1 / np.sqrt(a_S), "clean_output": -np.sqrt(1 - a_S) / np.sqrt(a_S)}
    return {"clean_latents": np.sqrt(a_S), "clean_output": -np.sqrt(1 - a_S)}


def _trajectory(
    times_S: np.ndarray,
    columns: dict[str, np.ndarray],
    signal_S: np.ndarray,
    noise_S: np.ndarray,
    from_noise: bool,
    *,
    first_noise: float,
    draws: bool = False,
) -> Trajectory:
    """Columns left out are 0 (`scale_input`: 1); `signal`, `noise`: shares in the latents before each step."""
    table_SK = np.zeros((len(times_S), len(COLUMNS)), dtype=np.float32)
    table_SK[:, _COLUMN["scale_input"]] = 1.0
    # After a step the kept region is noised as the next step expects it, after the last one not at all.
    columns = {**columns, "known_clean": np.append(signal_S[1:], 1.0), "known_noise": np.append(noise_S[1:], 0.0)}
    for name, values_S in columns.items():
        table_SK[:, _COLUMN[name]] = values_S
    return Trajectory(
        timesteps_S=times_S.astype(np.float32),
        table_SK=table_SK,
        draws=draws,
        start_clean=0.0 if from_noise else float(signal_S[0]),
        start_noise=first_noise if from_noise else float(noise_S[0]),
    )


_TABLES: dict[Sampler, Callable[[NoiseSchedule, int, int, bool], Trajectory]] = {
    Sampler.DDIM: _ddim,
    Sampler.EULER: _euler,
    Sampler.EULER_ANCESTRAL: _euler_ancestral,
    Sampler.DPMPP_2M: _dpmpp_2m,
    Sampler.LCM: _lcm,
}
_SIGMA_SETTINGS: dict[str, object] = {
    "use_karras_sigmas": False,
    "use_exponential_sigmas": False,
    "use_beta_sigmas": False,
    "final_sigmas_type": "zero",
}
_USUAL: dict[Sampler, dict[str, object]] = {
    Sampler.DDIM: {},
    Sampler.LCM: {},
    Sampler.EULER_ANCESTRAL: {},
    Sampler.EULER: {**_SIGMA_SETTINGS, "interpolation_type": "linear", "timestep_type": "discrete"},
    Sampler.DPMPP_2M: {
        **_SIGMA_SETTINGS,
        "algorithm_type": "dpmsolver++",
        "solver_order": 2,
        "solver_type": "midpoint",
        "lower_order_final": True,
        "euler_at_final": False,
        "use_lu_lambdas": False,
        "use_flow_sigmas": False,
        "lambda_min_clipped": -float("inf"),
        "variance_type": None,
    },
}
"""Stored settings that `from_config` would hand on, and the only value of each that the tables are made for."""
