"""Samplers as tables: what each call of the U-Net multiplies, worked out once per (sampler, steps, strength, schedule).

Every sampler here is affine in what a call has at hand: the latents x, the model's output o, the clean sample c that
both predict, the clean samples p and q predicted one and two calls before, and fresh noise z,

    c  = clean_latents x + clean_output o                                   (clamped where the schedule says so)
    x' = next_latents x + next_output o + next_clean c + next_previous p + next_earlier q + next_noise z,

so that one `step` serves rows of different samplers, step counts and positions in one call. Each equals the diffusers
scheduler of its name, made by `from_config` of the base's and the setting that its `StepSchedule` names. Shapes: B
rows; S calls of a table; K = len(COLUMNS).
"""

from collections.abc import Callable
from dataclasses import dataclass, replace
from enum import StrEnum
from functools import lru_cache, partial

import numpy as np
import torch
from torch import Tensor

from inpaint.diffusion.noise_levels import (
    RAMPS,
    SPACINGS,
    Array,
    StepSchedule,
    alphas,
    euler_levels,
    multistep_levels,
    ramp_of,
)
from inpaint.diffusion.schedule import NoiseSchedule, sampling_timesteps
from inpaint.errors import InpaintError

COLUMNS = (
    "scale_input",  # the model sees scale_input x
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


class Sampler(StrEnum):
    """How noise becomes a picture, step by step."""

    DDIM = "ddim"
    EULER = "euler"
    EULER_ANCESTRAL = "euler_a"
    HEUN = "heun"
    DPMPP_2M = "dpmpp_2m"
    DPMPP_2M_SDE = "dpmpp_2m_sde"
    UNIPC = "unipc"
    LCM = "lcm"

    def calls(self, steps: int) -> int:
        """Of the U-Net, for so many steps: Heun's method makes two in each but the last."""
        return 2 * steps - 1 if self is Sampler.HEUN else steps


@dataclass(frozen=True, eq=False)
class Trajectory:
    """The calls of one sampler from its first latents to the picture."""

    timesteps_S: np.ndarray
    """What the model is told, float32; not always whole (Euler with linspace)."""
    table_SK: np.ndarray
    """float32, by `COLUMNS`."""
    start_clean: float
    """The first latents are start_clean (the image's latents) + start_noise (noise)."""
    start_noise: float
    noise_dtype: torch.dtype | None = None
    """In which fresh noise is drawn; None: in the base's."""

    def __len__(self) -> int:
        return len(self.timesteps_S)


@lru_cache(maxsize=512)
def trajectory(
    schedule: NoiseSchedule, sampler: Sampler, steps: int, strength: float = 1.0, wanted: StepSchedule | None = None
) -> Trajectory:
    """The steps taken at `strength`: the last `int(steps * strength)` of `steps`, as diffusers' inpaint pipelines.

    At strength 1 it starts from noise alone, else from the image's latents with the noise of the first step taken.
    Args: wanted: which noise levels are visited; None: those that the base's own settings say.
    Raises InpaintError for a number of steps that this base or sampler has no timesteps for, a strength that leaves no
    step, a sampler that the wanted schedule does not exist for, or a stored scheduler setting that is not supported.
    """
    check_schedule(sampler, wanted)
    _check(schedule, sampler, wanted)
    schedule.check_steps(steps)
    skipped = max(0, steps - int(steps * strength))
    if skipped == steps:
        raise InpaintError(f"strength {strength}: of {steps} steps it leaves none; give more of either")
    spaced = replace(schedule, timestep_spacing=SPACINGS[wanted]) if wanted in SPACINGS else schedule
    if sampler in _TIMED:
        return _TIMED[sampler](spaced, steps, skipped)
    ramp = ramp_of(schedule, wanted) if wanted is not None or sampler in _READS_STATED else None
    return _ON_SIGMAS[sampler](spaced, steps, skipped, ramp)


def check_schedule(sampler: Sampler, wanted: StepSchedule | None) -> None:
    """Raises InpaintError for a schedule that the sampler does not have."""
    if wanted is not None and sampler not in _ON_SIGMAS and (wanted in RAMPS or sampler is Sampler.LCM):
        raise InpaintError(
            f"schedule {wanted}: sampler {sampler} has timesteps of its own; take euler or dpmpp_2m, or leave it out"
        )


def _check(schedule: NoiseSchedule, sampler: Sampler, wanted: StepSchedule | None) -> None:
    """Raises InpaintError for stored settings that there are no tables for."""
    for name, usual in _USUAL.get(sampler, {}).items():
        if schedule.stated.get(name, usual[0]) not in usual:
            raise InpaintError(
                f"sampler {sampler}: this base's scheduler has {name} {schedule.stated[name]!r}, supported is "
                f"{usual[0]!r}; take another sampler"
            )
    if wanted is None and sampler in _READS_STATED and schedule.stated.get("use_beta_sigmas"):
        raise InpaintError("this base's scheduler has use_beta_sigmas, which is not supported; give a schedule")


def step(
    table_BK: Tensor,
    output: Tensor,
    latents: Tensor,
    previous: Tensor | None = None,
    noise: Tensor | None = None,
    *,
    earlier: Tensor | None = None,
    clip_range: float | None = None,
) -> tuple[Tensor, Tensor]:
    """What follows a call, for every row by its own line of its table; (next latents, predicted clean sample), float32.

    Args:
        table_BK: a line per row, or one for all.
        output: B x ..., what the model says at the scaled latents, in the schedule's prediction type.
        previous: the clean samples of the call before; None where no row's table reads them.
        earlier: those of the call before that.
        noise: standard normal; None where no row's table reads it.
        clip_range: `NoiseSchedule.clip_range`.
    """
    columns = table_BK.T[(..., *[None] * (latents.ndim - 1))]
    clean = columns[1] * latents + columns[2] * output
    if clip_range is not None:
        clean = clean.clamp(-clip_range, clip_range)
    following = columns[3] * latents + columns[4] * output
    following = following.addcmul_(columns[5], clean)
    if previous is not None:
        following = following.addcmul_(columns[6], previous)
    if earlier is not None:
        following = following.addcmul_(columns[7], earlier)
    if noise is not None:
        following = following.addcmul_(columns[8], noise)
    return following, clean


def column(table_BK: Tensor, name: str, ndim: int) -> Tensor:
    """One column, shaped B x 1 x ... with `ndim` dimensions."""
    return table_BK[:, COLUMNS.index(name)].reshape(-1, *[1] * (ndim - 1))


def visiting(
    schedule: NoiseSchedule, times_S: Array, before_S: Array, *, ancestral: bool = False, is_whole: bool = True
) -> Trajectory:
    """DDIM with eta 0 (Song 2020, eq. 12) at any timesteps, or samples of q(x_s | x_t, c) (Ho 2020, eq. 6 and 7) as
    `DDPMScheduler` with `variance_type="fixed_small"`. `before_S` are a_s of the timesteps that the steps lead to,
    float64. Args: is_whole: it starts from noise alone."""
    a_S = alphas(schedule)[times_S]
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
    return _trajectory(schedule, times_S, a_S, columns, first_noise=1.0 if is_whole else None)


def _ddim(schedule: NoiseSchedule, steps: int, skipped: int) -> Trajectory:
    """`DDIMScheduler`, which does not always step to the timestep that it visits next."""
    times_S = sampling_timesteps(schedule, steps).numpy()[skipped:]
    previous_S = times_S - schedule.train_timesteps // steps
    before_S = np.where(previous_S < 0, schedule.final_alpha_cumprod, alphas(schedule)[previous_S.clip(min=0)])
    return visiting(schedule, times_S, before_S, is_whole=not skipped)


def _lcm(schedule: NoiseSchedule, steps: int, skipped: int) -> Trajectory:
    """Multistep consistency sampling (Luo 2023, alg. 3); `LCMScheduler`, whose data sigma is 0.5."""
    original = int(schedule.stated.get("original_inference_steps", 50))
    if steps > original:
        raise InpaintError(f"steps {steps}: the LCM sampler takes at most {original}, and is made for 4 to 8")
    origin = np.arange(original, 0, -1) * (schedule.train_timesteps // original) - 1
    times_S = origin[np.floor(np.linspace(0, original, num=steps, endpoint=False)).astype(np.int64)][skipped:]
    scaled_S = times_S * float(schedule.stated.get("timestep_scaling", 10.0))
    a_S = alphas(schedule)[times_S]
    before_S = np.append(a_S[1:], 1.0)
    columns = {
        "next_latents": np.sqrt(before_S) * 0.25 / (scaled_S**2 + 0.25),
        "next_clean": np.sqrt(before_S) * scaled_S / np.sqrt(scaled_S**2 + 0.25),
        "next_noise": np.sqrt(1 - before_S),
    }
    return _trajectory(schedule, times_S, a_S, columns, first_noise=None if skipped else 1.0)


def _euler(
    schedule: NoiseSchedule,
    steps: int,
    skipped: int,
    ramp: StepSchedule | None,
    *,
    ancestral: bool = False,
    second_order: bool = False,
) -> Trajectory:
    """Euler's method on the probability flow (Karras 2022, alg. 2, no churn), with ancestral noise (k-diffusion), or
    Heun's; `EulerDiscreteScheduler`, `EulerAncestralDiscreteScheduler`, `HeunDiscreteScheduler`."""
    times_S, s_S = euler_levels(schedule, steps, ramp)
    # The variance of what the model sees is 1 only if the noise also carries the missing signal's.
    first_noise = float(np.sqrt(s_S[0] ** 2 + 1) if schedule.timestep_spacing == "leading" else s_S[0])
    times_S, s_S = times_S[skipped:], s_S[skipped:]
    following_S = np.append(s_S[1:], 0.0)
    up_S = ancestral * np.sqrt(following_S**2 * (s_S**2 - following_S**2) / s_S**2)
    ratio_S = np.sqrt(following_S**2 - up_S**2) / s_S
    columns = {"next_latents": ratio_S, "next_clean": 1 - ratio_S, "next_noise": up_S}
    if second_order:
        # x + (d + d') dt / 2 = x' + (d' - d) dt / 2, where x' = x + d dt; and d = (x' - p) / s' as d' = (x' - c) / s'.
        halves_S = (s_S[:-1] / s_S[1:] - 1) / 2
        ones_S = np.ones_like(halves_S)
        corrections = {"next_latents": ones_S, "next_clean": halves_S, "next_previous": -halves_S}
        zeros = np.zeros_like(s_S), np.zeros_like(halves_S)
        columns = {
            name: _in_turns(columns.get(name, zeros[0]), corrections.get(name, zeros[1]))
            for name in columns | corrections
        }
        times_S, s_S = _in_turns(times_S, times_S[1:]), _in_turns(s_S, s_S[1:])
    a_S = 1 / (s_S**2 + 1)
    columns["scale_input"] = np.sqrt(a_S)
    return _trajectory(schedule, times_S, a_S, columns, first_noise=None if skipped else first_noise)


def _in_turns(first: Array, second: Array) -> Array:
    """first[0], second[0], first[1], ..., first[-1]."""
    both = np.empty(len(first) + len(second), dtype=first.dtype)
    both[::2], both[1::2] = first, second
    return both


def _multistep(
    schedule: NoiseSchedule,
    steps: int,
    skipped: int,
    ramp: StepSchedule | None,
    *,
    sde: bool = False,
    corrected: bool = False,
) -> Trajectory:
    """DPM-Solver++(2M), midpoint, first order at both ends (Lu 2022b, alg. 2), its SDE form, or UniPC-2 with B2(h)
    (Zhao 2023, alg. 5 to 8), whose predictor is the same; `DPMSolverMultistepScheduler`, `UniPCMultistepScheduler`."""
    times_S, s_S = (levels_S[skipped:] for levels_S in multistep_levels(schedule, steps, ramp, whole=corrected))
    following_S = np.append(s_S[1:], 0.0)
    ratio_S, signal_S = following_S / s_S, 1 / np.sqrt(following_S**2 + 1)
    order = 2 if sde else 1
    shrink_S = signal_S * np.sqrt(s_S**2 + 1) * ratio_S**order
    growth_S = signal_S * (1 - ratio_S**order)
    extra_S = np.zeros_like(s_S)
    # Neither the first step nor the last, which leads to sigma 0, looks back.
    gaps = -np.diff(np.log(s_S))
    extra_S[1:-1] = 0.5 * growth_S[1:-1] * gaps[1:] / gaps[:-1]
    columns = {"next_latents": shrink_S, "next_clean": growth_S + extra_S, "next_previous": -extra_S}
    if sde:
        columns["next_noise"] = signal_S * following_S * np.sqrt(1 - ratio_S**2)
    if corrected:
        of_clean_S, of_earlier_S = _corrections(gaps, growth_S)
        columns["next_clean"] += shrink_S * of_clean_S
        columns["next_previous"] -= shrink_S * (of_clean_S + of_earlier_S)
        columns["next_earlier"] = shrink_S * of_earlier_S
    return _trajectory(
        schedule,
        times_S,
        1 / (s_S**2 + 1),
        columns,
        first_noise=None if skipped else 1.0,
        noise_dtype=torch.float32 if sde else None,
    )


def _corrections(gaps: Array, growth_S: Array) -> tuple[Array, Array]:
    """UniC: (u, w) with which x + u (c - p) + w (q - p) are the latents that the step before should have led to.

    Args: gaps: log-SNR halves between steps, S - 1. growth_S: share of c in what a step leads to.
    """
    of_clean_S, of_earlier_S = np.zeros_like(growth_S), np.zeros_like(growth_S)
    if len(gaps) == 0:
        return of_clean_S, of_earlier_S
    # The step before was of the first order at the start, so that q is not there, else of the second.
    of_clean_S[1] = 0.5 * growth_S[0]
    h, back = gaps[1:], -gaps[:-1] / gaps[1:]
    phi_1 = np.expm1(-h)
    phi_2 = phi_1 / -h - 1
    b_1, b_2 = phi_2 / phi_1, 2 * (phi_2 / -h - 0.5) / phi_1
    rho_1 = (b_2 - b_1) / (back - 1)
    of_clean_S[2:] = growth_S[1:-1] * (b_1 - rho_1)
    of_earlier_S[2:] = growth_S[1:-1] * (rho_1 - 0.5) / back
    return of_clean_S, of_earlier_S


def _trajectory(
    schedule: NoiseSchedule,
    times_S: Array,
    a_S: Array,
    columns: dict[str, Array],
    *,
    first_noise: float | None,
    noise_dtype: torch.dtype | None = None,
) -> Trajectory:
    """Columns left out are 0 (`scale_input`: 1); a_t is of what the model sees. Args: first_noise: the noise's factor
    where it starts from noise alone; None: it starts from the image."""
    signal_S, noise_S, scale_S = np.sqrt(a_S), np.sqrt(1 - a_S), columns.get("scale_input", np.ones_like(a_S))
    if schedule.prediction_type == "epsilon":  # Song 2020, eq. 9
        clean = {"clean_latents": scale_S / signal_S, "clean_output": -noise_S / signal_S}
    else:  # Salimans 2022, sec. 4
        clean = {"clean_latents": scale_S * signal_S, "clean_output": -noise_S}
    known_clean, known_noise = np.append(signal_S / scale_S, 1.0), np.append(noise_S / scale_S, 0.0)
    # After a call the kept region is noised as the next call expects it, after the last one not at all.
    known = {"known_clean": known_clean[1:], "known_noise": known_noise[1:]}
    columns = {"scale_input": scale_S, **clean, **columns, **known}
    table_SK = np.stack([columns.get(name, np.zeros_like(a_S)) for name in COLUMNS], axis=1).astype(np.float32)
    start = (float(known_clean[0]), float(known_noise[0])) if first_noise is None else (0.0, first_noise)
    return Trajectory(times_S.astype(np.float32), table_SK, *start, noise_dtype)


_TIMED: dict[Sampler, Callable[[NoiseSchedule, int, int], Trajectory]] = {Sampler.DDIM: _ddim, Sampler.LCM: _lcm}
_ON_SIGMAS: dict[Sampler, Callable[[NoiseSchedule, int, int, StepSchedule | None], Trajectory]] = {
    Sampler.EULER: _euler,
    Sampler.EULER_ANCESTRAL: partial(_euler, ancestral=True),
    Sampler.HEUN: partial(_euler, second_order=True),
    Sampler.DPMPP_2M: _multistep,
    Sampler.DPMPP_2M_SDE: partial(_multistep, sde=True),
    Sampler.UNIPC: partial(_multistep, corrected=True),
}
_READS_STATED = _ON_SIGMAS.keys() - {Sampler.EULER_ANCESTRAL}
"""Whose diffusers' schedulers read `use_karras_sigmas` and its like of a base."""
_USUAL_MULTISTEP: dict[str, tuple[object, ...]] = {
    "use_flow_sigmas": (False,),
    "final_sigmas_type": ("zero",),
    "lower_order_final": (True,),
    "solver_order": (2,),
}
_USUAL_DPMPP: dict[str, tuple[object, ...]] = {
    **_USUAL_MULTISTEP,
    "use_lu_lambdas": (False,),
    "euler_at_final": (False,),
    "solver_type": ("midpoint", "logrho", "bh1", "bh2"),
    "lambda_min_clipped": (-float("inf"),),
    "variance_type": (None,),
}
_USUAL: dict[Sampler, dict[str, tuple[object, ...]]] = {
    Sampler.EULER: {"final_sigmas_type": ("zero",), "interpolation_type": ("linear",), "timestep_type": ("discrete",)},
    Sampler.DPMPP_2M: _USUAL_DPMPP,
    Sampler.DPMPP_2M_SDE: _USUAL_DPMPP,
    Sampler.UNIPC: {
        **_USUAL_MULTISTEP,
        "solver_type": ("bh2", "midpoint", "heun", "logrho"),
        "predict_x0": (True,),
        "disable_corrector": ([],),
        "solver_p": (None,),
    },
}
"""Stored settings that `from_config` would hand on, and the values of each that the tables are made for (its default
first; solvers' names of one scheduler mean another's default)."""
