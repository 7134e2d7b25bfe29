"""What a stack of rows adds, layer by layer, is each row's own, in whatever order the rows stand."""

import itertools

import pytest
import torch

from inpaint.models.base import load_base
from inpaint.paint.crop import scene_of
from inpaint.paint.denoise import Row, start_rows
from inpaint.serve.engine.lanes import Machine
from inpaint.serve.engine.settings import EngineSettings
from inpaint.serve.engine.text import TextDesk, Wish
from tests.unit.serve.engines import made_up, request, varied

USES: list[tuple[tuple[int, float], ...]] = [((1, 1.0),), (), ((2, 0.5), (1, -1.0)), ((3, 1.0),)]
GUIDANCE = [1.0, 3.0, 3.0, 1.0]


@pytest.fixture(scope="module")
def texts(machine: Machine) -> TextDesk:
    return TextDesk(machine.base, machine.bank, cached=8)


@pytest.fixture(scope="module")
def machine() -> Machine:
    machine = Machine(load_base("toy"), EngineSettings(slots=3, max_rank=4))
    adapter = made_up("toy", 0, rank=3)
    for i in range(3):
        assert machine.bank.acquire([f"a{i}"])
        assert machine.bank.put(f"a{i}", machine.bank.pack(varied(adapter, i)))
    return machine


def rows(machine: Machine, texts: TextDesk) -> list[Row]:
    asked = [request(i, guidance_scale=scale, steps=2) for i, scale in enumerate(GUIDANCE)]
    prompt, negative = texts.encode([Wish("a red box"), Wish("", is_negative=True)])
    negatives = [negative if scale > 1 else None for scale in GUIDANCE]
    scenes = [scene_of(machine.base, one) for one in asked]
    made = start_rows(machine.base, machine.schedule, asked, scenes, [prompt] * len(asked), negatives)
    for row, uses in zip(made, USES, strict=True):
        row.uses = uses
    return made


def run(machine: Machine, together: list[Row]) -> None:
    stack = machine.stack(together)
    for _ in range(2):
        machine.install(stack)
        stack.batch.advance(machine.unet)
    stack.batch.split()


@torch.inference_mode()
def test_rows_with_and_without_adapters_in_any_order(machine, texts):
    alone = rows(machine, texts)
    for row in alone:
        run(machine, [row])
    for order in itertools.islice(itertools.permutations(range(len(USES))), 0, None, 5):
        together = rows(machine, texts)
        run(machine, [together[i] for i in order])
        for one, other in zip(together, alone, strict=True):
            torch.testing.assert_close(one.latents_Chw, other.latents_Chw, atol=1e-3, rtol=1e-3)


@torch.inference_mode()
def test_two_stacks_take_turns(machine, texts):
    alone, shared = rows(machine, texts), rows(machine, texts)
    for row in alone:
        run(machine, [row])
    stacks = [machine.stack([row]) for row in shared]
    for _ in range(2):
        for stack in stacks:
            machine.install(stack)
            stack.batch.advance(machine.unet)
    for stack, wanted in zip(stacks, alone, strict=True):
        stack.batch.split()
        torch.testing.assert_close(stack.batch.rows[0].latents_Chw, wanted.latents_Chw, atol=1e-3, rtol=1e-3)
