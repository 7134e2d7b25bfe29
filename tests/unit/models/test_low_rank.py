"""Rows with LoRAs of their own: outputs and gradients are those of PEFT with each row's adapters alone."""

import pytest
import torch

from benchmarks.random_base import build_architecture
from inpaint.models.base import Base, load_base
from inpaint.models.layers import adapted_models
from inpaint.models.lora import LoraSettings, inject_lora, load_lora, lora_parameters
from inpaint.models.low_rank import LoraPool, Uses

RANKS = {1: 2, 2: 3}
"""Slot -> rank of the adapter in it."""
USES: list[Uses] = [((2, 1.0),), ((1, 1.0), (2, -0.5)), ((1, 2.0),), ()]
SCALE = 1.5


def drawn(base: Base, rank: int, seed: int) -> dict[str, torch.Tensor]:
    inject_lora(base, LoraSettings(rank=rank), seed=0, only=base.info.layers)
    generator = torch.Generator().manual_seed(seed)
    return {name: torch.randn(p.shape, generator=generator) * 0.2 for name, p in lora_parameters(base).items()}


def inputs() -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    generator = torch.Generator().manual_seed(0)
    return (
        torch.randn(len(USES), 9, 8, 8, generator=generator),
        torch.tensor([10, 500, 900, 20]),
        torch.randn(len(USES), 5, 16, generator=generator),
    )


@pytest.fixture
def adapters(sd_folder) -> dict[int, dict[str, torch.Tensor]]:
    found = {slot: drawn(load_base(sd_folder), rank, slot) for slot, rank in RANKS.items()}
    return {slot: {n: t for n, t in lora.items() if n.startswith("unet.")} for slot, lora in found.items()}


@pytest.fixture
def pool(sd_folder, adapters) -> tuple[Base, LoraPool]:
    base = load_base(sd_folder)
    base.unet.requires_grad_(False)
    pool = LoraPool(base.unet, "unet", slots=2, max_rank=4)
    for slot, lora in adapters.items():
        pool.put(slot, pool.pack(lora, rank=RANKS[slot], scale=SCALE))
    return base, pool


def by_peft(sd_folder, adapters, row: int) -> tuple[torch.Tensor, dict[int, dict[str, torch.Tensor]]]:
    """A row's output and its loss's gradients by slot: the sum of its adapters as one LoRA of their ranks together."""
    base = load_base(sd_folder)
    uses = USES[row]
    latents, timesteps, text = (x[row : row + 1] for x in inputs())
    if uses:
        rank = sum(RANKS[slot] for slot, _ in uses)
        stacked = {}
        for name in adapters[1]:
            parts = [adapters[slot][name] * (weight if "lora_B" in name else 1) for slot, weight in uses]
            stacked[name] = torch.cat(parts, dim=1 if "lora_B" in name else 0)
        load_lora(base, stacked, rank=rank, alpha=SCALE * rank)
    output = base.unet(latents, timesteps, encoder_hidden_states=text).sample
    if not uses:
        return output.detach(), {}
    output.square().sum().backward()
    gradients: dict[int, dict[str, torch.Tensor]] = {}
    for name, parameter in lora_parameters(base).items():
        axis, start = (1 if "lora_B" in name else 0), 0
        for slot, weight in uses:
            part = parameter.grad.narrow(axis, start, RANKS[slot]) * (weight if axis else 1)
            gradients.setdefault(slot, {})[name] = part
            start += RANKS[slot]
    return output.detach(), gradients


def test_gradients_of_several_adapters_in_one_forward_are_pefts(sd_folder, adapters, pool):
    base, lora_pool = pool
    lora_pool.packed_SRW.requires_grad_(True)
    lora_pool.install(lora_pool.gather(USES))
    output = base.unet(*inputs()[:2], encoder_hidden_states=inputs()[2]).sample
    output.square().sum().backward()

    expected = {slot: {n: torch.zeros_like(t) for n, t in lora.items()} for slot, lora in adapters.items()}
    for row in range(len(USES)):
        alone, gradients = by_peft(sd_folder, adapters, row)
        torch.testing.assert_close(output[row : row + 1].detach(), alone, atol=1e-4, rtol=1e-4)
        for slot, tensors in gradients.items():
            for name, gradient in tensors.items():
                expected[slot][name] += gradient
    for slot, rank in RANKS.items():
        packed_RW = lora_pool.packed_SRW.grad[slot, :rank]
        for layer, down_RI, up_RO in lora_pool.split(packed_RW):
            for found, half in ((down_RI, "A"), (up_RO.T * SCALE, "B")):
                wanted = expected[slot][f"{layer}.lora_{half}.weight"].flatten(1)
                torch.testing.assert_close(found, wanted, atol=1e-3 * float(wanted.abs().max()), rtol=1e-3)
    assert not lora_pool.packed_SRW.grad[0].any(), "rows without adapters train nothing"


@pytest.mark.parametrize("uses", [USES, [((1, 1.0),)] * 3 + [()], [()] * 4])
def test_with_and_without_gradients_the_output_is_the_same(pool, uses):
    base, lora_pool = pool
    lora_pool.install(lora_pool.gather(uses))
    latents, timesteps, text = inputs()
    trained = base.unet(latents, timesteps, encoder_hidden_states=text).sample
    with torch.inference_mode():
        painted = base.unet(latents, timesteps, encoder_hidden_states=text).sample
    torch.testing.assert_close(trained, painted, atol=1e-5, rtol=1e-5)


def test_training_under_autocast_mixes_types(pool):
    base, lora_pool = pool
    lora_pool.packed_SRW.requires_grad_(True)
    lora_pool.install(lora_pool.gather(USES))
    with torch.autocast("cpu", torch.bfloat16):
        base.unet(*inputs()[:2], encoder_hidden_states=inputs()[2]).sample.float().square().sum().backward()
    assert lora_pool.packed_SRW.grad[1:].abs().sum() > 0 and lora_pool.packed_SRW.grad.dtype == torch.float32


def test_layers_with_a_lora_per_row_are_those_that_a_lora_is_injected_into():
    base = build_architecture("sdxl", device="meta")
    layers = dict(base.info.layers)
    found = {}
    for prefix, model in adapted_models(base).items():
        adapted = LoraPool(model, prefix, slots=0, max_rank=1).layers
        found |= {name: (layer.out_features, layer.in_features) for name, layer in adapted.items()}
    assert found == layers
    assert sum("text_encoder_2." in name for name in layers) == 32 * 6
