"""The U-Nets: as large as promised, told what they must be told, and refusing what cannot be."""

from dataclasses import replace

import pytest
import torch

from inpaint.diffusion.blocks import SelfAttention, sinusoids
from inpaint.diffusion.unet import PRESETS, Known, MaskedUNet, UNet, UNetSettings, preset
from inpaint.errors import InpaintError

TINY = UNetSettings(channels=(8, 16, 16, 24), attention=(16,), time_width=16, dropout=0.0, classes=2)


def awake(net: torch.nn.Module) -> torch.nn.Module:
    """Its zero layers filled, so that everything it is told reaches its output."""
    generator = torch.Generator().manual_seed(0)
    with torch.no_grad():
        for parameter in net.parameters():
            if not parameter.any():
                parameter.copy_(0.2 * torch.randn(parameter.shape, generator=generator))
    return net.eval()


def inputs() -> tuple[torch.Tensor, torch.Tensor, torch.Tensor, torch.Tensor]:
    generator = torch.Generator().manual_seed(1)
    noisy, known = (torch.randn(2, 3, 8, 8, generator=generator) for _ in range(2))
    hole = torch.zeros(2, 1, 8, 8)
    hole[:, :, 2:6, 2:6] = 1
    return noisy, torch.tensor([10, 900]), known, hole


def test_the_128_px_preset_has_40_to_50_million_parameters_and_the_others_build() -> None:
    with torch.device("meta"):
        nets = {size: MaskedUNet(settings) for size, settings in PRESETS.items()}
    counts = {size: sum(parameter.numel() for parameter in net.parameters()) for size, net in nets.items()}
    assert 40e6 <= counts[128] <= 50e6
    assert sorted(counts) == [32, 64, 128, 256, 512]
    assert PRESETS[128].channels == (64, 128, 256, 512, 512, 384)


@pytest.mark.parametrize("size", sorted(PRESETS))
def test_every_preset_paints_its_own_size(size: int) -> None:
    with torch.device("meta"):
        net, image = MaskedUNet(preset(size)), torch.zeros(1, 3, size, size)
        output = net(image, torch.zeros(1, dtype=torch.int64), image, torch.zeros(1, 1, size, size))
    assert output.shape == image.shape


def test_clean_shows_known_pixels_and_never_what_lies_in_the_hole() -> None:
    net = awake(MaskedUNet(TINY))
    noisy, timesteps, known, hole = inputs()
    output = net(noisy, timesteps, known, hole)
    assert torch.equal(output, net(noisy, timesteps, known + 5 * hole, hole))
    assert not torch.allclose(output, net(noisy, timesteps, known + 5 * (1 - hole), hole))
    assert not torch.allclose(output, net(noisy + hole, timesteps, known, hole))
    assert not torch.allclose(output, net(noisy, timesteps, known * 0, hole * 0 + 1))


def test_noisy_shows_the_noisy_image_outside_the_hole_alone() -> None:
    net = awake(MaskedUNet(replace(TINY, known=Known.NOISY)))
    noisy, timesteps, known, hole = inputs()
    output = net(noisy, timesteps, known, hole)
    assert torch.equal(output, net(noisy + 5 * hole, timesteps, known + 5, hole))
    assert not torch.allclose(output, net(noisy + 5 * (1 - hole), timesteps, known, hole))


def test_timesteps_and_labels_reach_the_output_of_both_nets() -> None:
    noisy, timesteps, known, hole = inputs()
    none, first = torch.zeros(2, dtype=torch.int64), torch.ones(2, dtype=torch.int64)
    plain, masked = awake(UNet(TINY)), awake(MaskedUNet(TINY))
    for call in (
        lambda t, label: plain(noisy, t, label),
        lambda t, label: masked(noisy, t, known, hole, label),
    ):
        assert not torch.allclose(call(timesteps, none), call(timesteps + 50, none))
        assert not torch.allclose(call(timesteps, none), call(timesteps, first))
        assert torch.equal(call(timesteps, none), call(timesteps, None))


def test_rows_do_not_depend_on_each_other() -> None:
    net = awake(MaskedUNet(TINY))
    noisy, timesteps, known, hole = inputs()
    alone = net(noisy[1:], timesteps[1:], known[1:], hole[1:])
    assert torch.allclose(net(noisy, timesteps, known, hole)[1:], alone, atol=1e-5)


def test_sinusoids_in_closed_form() -> None:
    values = sinusoids(torch.tensor([3]), 4)
    expected = torch.tensor([3.0, 3.0 / 100]).sin().tolist() + torch.tensor([3.0, 3.0 / 100]).cos().tolist()
    assert values[0].tolist() == pytest.approx(expected, abs=1e-6)


def test_attention_is_softmax_attention() -> None:
    block = awake(SelfAttention(8))
    x = torch.randn(1, 8, 2, 3)
    tokens = block.norm(x).flatten(2).transpose(1, 2)
    queries, keys, values = block.queries_keys_values(tokens).chunk(3, dim=-1)
    weights = (queries @ keys.transpose(1, 2) / 8**0.5).softmax(-1)
    expected = x + block.out(weights @ values).transpose(1, 2).reshape(1, 8, 2, 3)
    assert torch.allclose(block(x), expected, atol=1e-6)


@pytest.mark.parametrize(
    ("wrong", "said"),
    [
        ({"channels": (8, 16, 24)}, "even number of widths"),
        ({"channels": (32, 64, 64, 32)}, "receives a skip of 64"),
        ({"attention": (7,)}, "widths that occur"),
        ({"dropout": 1.0}, "dropout 1.0"),
    ],
)
def test_what_cannot_be_is_refused(wrong: dict, said: str) -> None:
    with pytest.raises(InpaintError, match=said):
        replace(TINY, **wrong)


def test_an_unknown_size_names_those_there_are() -> None:
    with pytest.raises(InpaintError, match="32, 64, 128, 256, 512"):
        preset(100)
