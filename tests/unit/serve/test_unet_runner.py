"""Rows that step together are each painted with their own adapters and text, whoever comes and goes beside them."""

import itertools
import weakref

import pytest
import torch

from inpaint.models.base import load_base
from inpaint.paint.crop import working_image
from inpaint.paint.denoise import DenoisingRow, start_rows
from inpaint.serve.engine.prompt_encoder import Prompt, PromptEncoder
from inpaint.serve.engine.settings import EngineSettings
from inpaint.serve.engine.torch_executor import TorchExecutor
from inpaint.serve.engine.unet_runner import UNetRunner
from tests.adapters import made_up
from tests.unit.serve.engines import Adapters, request, varied

USES: list[tuple[tuple[int, float], ...]] = [((1, 1.0),), (), ((2, 0.5), (1, -1.0)), ((3, 1.0),)]
GUIDANCE = [1.0, 3.0, 3.0, 1.0]


@pytest.fixture(scope="module")
def executor() -> TorchExecutor:
    executor = TorchExecutor(load_base("toy"), EngineSettings(slots=3, max_rank=4, prompt_cache=8), Adapters().load)
    adapter, slots = made_up("toy", 0, rank=3), executor.runner.slots
    for i in range(3):
        slots.put(1 + i, slots.pack(varied(adapter, i)))
    return executor


@pytest.fixture(scope="module")
def texts(executor: TorchExecutor) -> PromptEncoder:
    return executor.encoder


@pytest.fixture(scope="module")
def runner(executor: TorchExecutor) -> UNetRunner:
    return executor.runner


def rows(runner: UNetRunner, texts: PromptEncoder) -> list[DenoisingRow]:
    asked = [request(i, guidance_scale=scale, steps=2) for i, scale in enumerate(GUIDANCE)]
    prompt, negative = texts.encode([Prompt("a red box"), Prompt("", is_negative=True)]).values()
    negatives = [negative if scale > 1 else None for scale in GUIDANCE]
    scenes = [working_image(runner.base.info, one) for one in asked]
    made = start_rows(runner.base, runner.schedule, asked, scenes, [prompt] * len(asked), negatives)
    for row, uses in zip(made, USES, strict=True):
        row.uses = uses
    return made


def latents(runner: UNetRunner, *batches: list[DenoisingRow]) -> list[torch.Tensor]:
    """After two steps, in the batches' order."""
    found = []
    for step in range(2):
        for number, together in enumerate(batches):
            batch = runner.advance((number, 0), together)
            if step == 1:
                found += list(batch.latents_BChw)
    runner.forget([])
    return found


@pytest.fixture(scope="module")
def alone(runner, texts) -> list[torch.Tensor]:
    with torch.inference_mode():
        return [latent for row in rows(runner, texts) for latent in latents(runner, [row])]


@torch.inference_mode()
def test_rows_with_and_without_adapters_in_any_order(runner, texts, alone):
    for order in itertools.islice(itertools.permutations(range(len(USES))), 0, None, 5):
        together = rows(runner, texts)
        found = latents(runner, [together[i] for i in order])
        torch.testing.assert_close(found, [alone[i] for i in order], atol=1e-3, rtol=1e-3)


@torch.inference_mode()
def test_batches_of_two_shapes_take_turns(runner, texts, alone):
    found = latents(runner, *([row] for row in rows(runner, texts)))
    torch.testing.assert_close(found, alone, atol=1e-3, rtol=1e-3)


@torch.inference_mode()
def test_rows_that_come_and_go_between_steps_go_on_where_they_were(runner, texts, alone):
    first, second, third, _ = rows(runner, texts)
    runner.advance((0, 0), [first, second])
    after = runner.advance((0, 0), [first, third]).latents_BChw
    torch.testing.assert_close(after[0], alone[0], atol=1e-3, rtol=1e-3)
    after = runner.advance((0, 0), [second, third]).latents_BChw
    torch.testing.assert_close(list(after), alone[1:3], atol=1e-3, rtol=1e-3)


@torch.inference_mode()
def test_a_slot_may_be_written_over_while_a_batch_that_used_it_waits(runner, texts, alone):
    row = rows(runner, texts)[3]
    runner.advance((0, 0), [row])
    kept = runner.slots.pack(varied(made_up("toy", 0, rank=3), 2))
    runner.slots.put(3, runner.slots.pack(varied(made_up("toy", 0, rank=3), 7)))
    after = runner.advance((0, 0), [row]).latents_BChw
    runner.slots.put(3, kept)
    torch.testing.assert_close(after[0], alone[3], atol=1e-3, rtol=1e-3)


@torch.inference_mode()
def test_what_a_shape_without_rows_kept_is_freed(runner, texts):
    kept = weakref.ref(runner.advance((0, 0), rows(runner, texts)))
    runner.forget([(0, 0)])
    assert kept() is not None
    runner.forget([(1, 0)])
    assert kept() is None


@torch.inference_mode()
def test_the_check_is_a_real_step_and_disturbs_nobody(executor, runner, texts, alone):
    row = rows(runner, texts)[0]
    runner.advance((0, 0), [row])
    executor.check()
    torch.testing.assert_close(runner.advance((0, 0), [row]).latents_BChw[0], alone[0], atol=1e-3, rtol=1e-3)
    bias = runner.base.unet.conv_out.bias
    before = bias.clone()
    bias.fill_(float("nan"))
    with pytest.raises(AssertionError, match="not finite"):
        executor.check()
    bias.copy_(before)
