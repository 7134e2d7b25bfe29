"""ZeRO stages, offload and world sizes are machinery: what is learned does not depend on them, nor does resuming."""

import multiprocessing
from collections.abc import Callable

import numpy as np
import pytest
import torch
from safetensors.torch import load_file
from torch.multiprocessing import start_processes

from inpaint.train.engine import LOSS_SCALE
from inpaint.train.optimizers import GROUPS
from tests.unit.train.workers import (
    GLOBAL_BATCH,
    HALF,
    STAGES,
    STEPS,
    VARIANTS,
    WHOLE,
    Tiny,
    layout_of,
    micro_batches,
    run,
    settings_of,
)

WORKERS = (1, 2, 3)
"""The global batch of 16 does not divide by 3."""
OFFLOADED = ("offload 1", "offload 3")
EXACT = [(workers, variant) for workers in WORKERS for variant in (*STAGES, *(OFFLOADED if workers < 3 else ()))]
"""What differs in machinery alone."""
HALVES = tuple(name for name in VARIANTS if name.startswith("fp16"))
States = dict[str, dict[str, dict[str, torch.Tensor]]]


@pytest.fixture(scope="module")
def ended(tmp_path_factory: pytest.TempPathFactory) -> Callable[[int, str], States]:
    """What training ended with, by number of workers and variant."""
    folders = {workers: tmp_path_factory.mktemp(f"workers{workers}") for workers in WORKERS}
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("DS_ACCELERATOR", "cpu")
        # One import for all of them: it takes longer than what they do.
        multiprocessing.set_forkserver_preload(["deepspeed", "safetensors.torch"])
        for workers, folder in folders.items():
            start_processes(run, args=(workers, str(folder)), nprocs=workers, start_method="forkserver")

    def states(workers: int, variant: str) -> States:
        found: States = {}
        for path, tensor in load_file(folders[workers] / f"{workers}-{variant}.safetensors").items():
            run_name, kind, name = path.split("/")
            found.setdefault(run_name, {}).setdefault(kind, {})[name] = tensor
        return found

    return states


def difference(a: dict[str, dict[str, torch.Tensor]], b: dict[str, dict[str, torch.Tensor]]) -> float:
    assert {k: set(v) for k, v in a.items()} == {k: set(v) for k, v in b.items()}
    return max(float((a[kind][name] - b[kind][name]).abs().max()) for kind in a for name in a[kind])


def by_hand() -> tuple[dict[str, torch.Tensor], dict[str, torch.Tensor]]:
    """The same training in plain PyTorch, and the average of its parameters in closed form."""
    settings = settings_of(0)
    module = Tiny()
    groups = [{"params": list(g.parameters.values()), "lr": g.learning_rate} for g in module.groups()]
    optimizer = torch.optim.AdamW(groups, betas=(0.9, 0.99), weight_decay=settings.weight_decay)
    rates = [group["lr"] for group in optimizer.param_groups]
    named = {name: p for group in module.groups() for name, p in group.parameters.items()}
    history = [{name: p.detach().clone() for name, p in named.items()}]
    for step in range(STEPS):
        batches = micro_batches(step, layout_of(1), 0)
        x, weight = (torch.tensor(np.concatenate([batch[key] for batch in batches])) for key in ("x", "weight"))
        for group, rate in zip(optimizer.param_groups, rates, strict=True):
            group["lr"] = rate * (1 - step / STEPS)
        optimizer.zero_grad()
        (module({"x": x.numpy()}) * weight).mean().backward()
        torch.nn.utils.clip_grad_norm_(named.values(), settings.max_grad_norm)
        optimizer.step()
        history.append({name: p.detach().clone() for name, p in named.items()})
    decays = [0.5 ** (GLOBAL_BATCH / min(40, GLOBAL_BATCH * (step + 1) / 10)) for step in range(STEPS)]
    shares = [(1 - d) * np.prod(decays[step + 1 :]) for step, d in enumerate(decays)]
    average = {
        name: float(np.prod(decays)) * history[0][name]
        + sum(float(share) * history[step + 1][name] for step, share in enumerate(shares))
        for name in named
    }
    return history[-1], average


@pytest.mark.parametrize(("workers", "variant"), EXACT)
def test_validation_is_of_the_average_and_leaves_the_training_alone(
    ended: Callable[[int, str], States], workers: int, variant: str
) -> None:
    module = Tiny()
    with torch.no_grad():
        for name, value in ended(1, "0")["whole"]["ema"].items():
            module.get_parameter(name).copy_(value)
        batches = micro_batches(0, layout_of(1), 0)
        expected = sum(float((module(batch) * torch.tensor(batch["weight"])).sum()) for batch in batches)
    states = ended(workers, variant)
    assert float(states["validation"]["of the average"]["loss"]) == pytest.approx(expected, rel=1e-4)
    assert difference(states["whole"], states["resumed"]) == 0.0, "the other one was not validated"


def test_one_worker_does_what_plain_pytorch_does(ended: Callable[[int, str], States]) -> None:
    trained, average = by_hand()
    state = ended(1, "0")["whole"]
    assert difference({"trained": trained, "ema": average}, {kind: state[kind] for kind in ("trained", "ema")}) <= 1e-6


@pytest.mark.parametrize(("workers", "variant"), EXACT)
def test_every_stage_and_world_size_ends_with_the_same_state(
    ended: Callable[[int, str], States], workers: int, variant: str
) -> None:
    reference, states = ended(1, "0"), ended(workers, variant)
    assert set(states["whole"]) == {"trained", "exp_avg", "exp_avg_sq", "ema", "count"}
    assert difference(states["whole"], reference["whole"]) <= 1e-5


@pytest.mark.parametrize(
    ("workers", "variant"), [(workers, name) for workers in WORKERS for name in (VARIANTS if workers < 3 else STAGES)]
)
def test_a_gathered_state_continues_exactly(ended: Callable[[int, str], States], workers: int, variant: str) -> None:
    states = ended(workers, variant)
    assert difference(states["whole"], states["resumed"]) == 0.0


@pytest.mark.parametrize("variant", HALVES)
def test_fp16_skips_steps_that_overflow_and_keeps_where_its_scale_stands(
    ended: Callable[[int, str], States], variant: str
) -> None:
    states = ended(2, variant)
    steps = states["expected"]["count"]["steps"].tolist()
    assert 0 < steps[HALF] < HALF, "some were made, some skipped"
    scale = states["middle"][LOSS_SCALE]
    assert float(scale["cur_hysteresis"]) == 1, "no longer what it starts with"
    assert float(scale["cur_iter"]) == HALF


@pytest.mark.parametrize("variant", VARIANTS)
def test_what_is_averaged_are_the_fp32_masters_after_each_step_that_was_made(
    ended: Callable[[int, str], States], variant: str
) -> None:
    states = ended(1, variant)
    assert difference({"ema": states["whole"]["ema"]}, {"ema": states["expected"]["ema"]}) <= 1e-6
    if variant in HALVES:
        rounded = {name: value.half().float() for name, value in states["whole"]["trained"].items()}
        assert difference({"": states["whole"]["trained"]}, {"": rounded}) > 0.0, "these are masters"


@pytest.mark.parametrize("variant", WHOLE)
def test_optimizers_that_need_whole_parameters_learn_the_same_on_any_number_of_workers(
    ended: Callable[[int, str], States], variant: str
) -> None:
    one, two = ended(1, variant), ended(2, variant)
    for states in (one, two):
        assert set(states["middle"]) - {GROUPS} == set(states["whole"]) - {GROUPS, "count"}
    if variant == "adamw8bit":
        assert {tensor.dtype for tensor in one["whole"]["state1"].values()} == {torch.uint8, torch.float32}
    if variant == "prodigy":
        middle, end = (one[run][GROUPS] for run in ("middle", "whole"))
        assert (int(middle["0.k"]), int(end["0.k"])) == (HALF, STEPS)
        assert float(middle["0.d_numerator"]) != float(end["0.d_numerator"]), "what its estimate is made of"
    # Sums in another order: the last bit of a moment can fall into the next of 256 levels.
    trained = [{"trained": states["whole"]["trained"]} for states in (one, two)]
    assert difference(*trained) <= (1e-3 if variant == "adamw8bit" else 1e-5)
