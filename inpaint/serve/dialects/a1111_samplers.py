"""A1111's names of samplers and schedules, by the fields of today ("DPM++ 2M" and "Karras") and the names of before
("DPM++ 2M Karras"). Source: what A1111 1.10 lists under /sdapi/v1/samplers and /sdapi/v1/schedulers."""

from typing import Any

from inpaint.diffusion.noise_levels import StepSchedule
from inpaint.diffusion.samplers import Sampler

SAMPLERS: dict[Sampler, tuple[str, ...]] = {
    Sampler.DDIM: ("DDIM", "ddim"),
    Sampler.EULER: ("Euler", "k_euler"),
    Sampler.EULER_ANCESTRAL: ("Euler a", "k_euler_a", "k_euler_ancestral"),
    Sampler.HEUN: ("Heun", "k_heun"),
    Sampler.DPMPP_2M: ("DPM++ 2M", "k_dpmpp_2m"),
    Sampler.DPMPP_2M_SDE: ("DPM++ 2M SDE", "k_dpmpp_2m_sde"),
    Sampler.UNIPC: ("UniPC", "unipc"),
    Sampler.LCM: ("LCM", "k_lcm"),
}
"""Our samplers -> A1111's name, then its aliases."""
SCHEDULES: dict[StepSchedule | None, tuple[str, ...]] = {
    None: ("Automatic", "automatic", ""),
    StepSchedule.UNIFORM: ("Uniform", "uniform"),
    StepSchedule.KARRAS: ("Karras", "karras", "ka"),
    StepSchedule.EXPONENTIAL: ("Exponential", "exponential"),
    StepSchedule.SGM_UNIFORM: ("SGM Uniform", "sgm_uniform", "SGMUniform"),
}
"""Our schedules -> A1111's label, its name, its aliases."""
_AUTOMATIC = {Sampler.DPMPP_2M: StepSchedule.KARRAS, Sampler.DPMPP_2M_SDE: StepSchedule.EXPONENTIAL}
"""What "Automatic" means there, where it is not what the base says."""
SCHEDULE_OF = {name.casefold(): schedule for schedule, names in SCHEDULES.items() for name in names}
"""Any name of a schedule, folded -> ours."""
SAMPLER_OF: dict[str, tuple[Sampler, StepSchedule | None]] = {
    f"{name}{ending}".casefold(): (sampler, schedule)
    for sampler, names in SAMPLERS.items()
    for name in (*names, str(sampler))
    for schedule, endings in SCHEDULES.items()
    for ending in ([""] if schedule is None else [f"{gap}{one}" for one in endings for gap in " _"])
}
"""Any name of a sampler, folded, also with a schedule behind it ("DPM++ 2M Karras", "k_dpmpp_2m_ka") -> ours."""


def read_sampler(name: str, schedule: str) -> tuple[Sampler, StepSchedule | None]:
    """What a request's `sampler_name` and `scheduler` ask for. A schedule in the sampler's name comes first, as there.
    Raises KeyError for names that are not served."""
    sampler, spacing = SAMPLER_OF[name.casefold()]
    return sampler, spacing or SCHEDULE_OF[schedule.casefold()] or _AUTOMATIC.get(sampler)


def listed_samplers() -> list[dict[str, Any]]:
    """For /sdapi/v1/samplers."""
    return [
        {
            "name": names[0],
            "aliases": list(names[1:]),
            "options": {"scheduler": str(_AUTOMATIC[sampler])} if sampler in _AUTOMATIC else {},
        }
        for sampler, names in SAMPLERS.items()
    ]


def listed_schedules() -> list[dict[str, Any]]:
    """For /sdapi/v1/schedulers."""
    return [
        {
            "name": names[1],
            "label": names[0],
            "aliases": None,
            "default_rho": 7.0 if schedule is StepSchedule.KARRAS else -1.0,
            "need_inner_model": schedule in (StepSchedule.UNIFORM, StepSchedule.SGM_UNIFORM),
        }
        for schedule, names in SCHEDULES.items()
    ]
