"""What a stack of rows adds, layer by layer, is each row's own, in whatever order the rows stand."""

import itertools

import pytest
import torch

from inpaint.models.base import load_base
from inpaint.paint.crop import working_image
from inpaint.paint.denoise import DenoisingRow, start_rows
from inpaint.serve.engine.prompt_encoder import Prompt, PromptEncoder
from inpaint.serve.engine.settings import EngineSettings
from inpaint.serve.engine.unet_runner import UNetRunner
from tests.unit.serve.engines import made_up, request, varied

USES: list[tuple[tuple[int, float], ...]] = [((1, 1.0),), (), ((2, 0.5), (1, -1.0)), ((3, 1.0),)]
GUIDANCE = [1.0, 3.0, 3.0, 1.0]


@pytest.fixture(scope="module")
def texts(runner: UNetRunner) -> PromptEncoder:
    return PromptEncoder(runner.base, runner.bank, cached=8)


@pytest.fixture(scope="module")
def runner() -> UNetRunner:
    runner = UNetRunner(load_base("toy"), EngineSettings(slots=3, max_rank=4))
    adapter = made_up("toy", 0, rank=3)
    for i in range(3):
        assert runner.bank.acquire([f"a{i}"])
        assert runner.bank.put(f"a{i}", runner.bank.pack(varied(adapter, i)))
    return runner


def rows(runner: UNetRunner, texts: PromptEncoder) -> list[DenoisingRow]:
    asked = [request(i, guidance_scale=scale, steps=2) for i, scale in enumerate(GUIDANCE)]
    prompt, negative = texts.encode([Prompt("a red box"), Prompt("", is_negative=True)])
    negatives = [negative if scale > 1 else None for scale in GUIDANCE]
    scenes = [working_image(runner.base.info, one) for one in asked]
    made = start_rows(runner.base, runner.schedule, asked, scenes, [prompt] * len(asked), negatives)
    for row, uses in zip(made, USES, strict=True):
        row.uses = uses
    return made


def run(runner: UNetRunner, together: list[DenoisingRow]) -> None:
    stack = runner.stack(together)
    for _ in range(2):
        runner.install(stack)
        stack.batch.advance(runner.unet)
    stack.batch.split()


@torch.inference_mode()
def test_rows_with_and_without_adapters_in_any_order(runner, texts):
    alone = rows(runner, texts)
    for row in alone:
        run(runner, [row])
    for order in itertools.islice(itertools.permutations(range(len(USES))), 0, None, 5):
        together = rows(runner, texts)
        run(runner, [together[i] for i in order])
        for one, other in zip(together, alone, strict=True):
            torch.testing.assert_close(one.latents_Chw, other.latents_Chw, atol=1e-3, rtol=1e-3)


@torch.inference_mode()
def test_two_stacks_take_turns(runner, texts):
    alone, shared = rows(runner, texts), rows(runner, texts)
    for row in alone:
        run(runner, [row])
    stacks = [runner.stack([row]) for row in shared]
    for _ in range(2):
        for stack in stacks:
            runner.install(stack)
            stack.batch.advance(runner.unet)
    for stack, wanted in zip(stacks, alone, strict=True):
        stack.batch.split()
        torch.testing.assert_close(stack.batch.rows[0].latents_Chw, wanted.latents_Chw, atol=1e-3, rtol=1e-3)
