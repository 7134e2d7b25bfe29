"""The DDPM's objective: loss in the hole alone, a function of seed and position, in closed form."""

import numpy as np
import pytest
import torch
from torch import nn

from inpaint.diffusion import keyed
from inpaint.diffusion.ddpm import NoiseSettings
from inpaint.diffusion.objective import LossSettings
from inpaint.diffusion.unet import MaskedUNet, UNetSettings
from inpaint.train.pixel import PixelInpainting
from inpaint.train.settings import Precision

TINY = UNetSettings(channels=(8, 16, 16, 24), attention=(16,), time_width=16, dropout=0.5, classes=2)


class Remembers(nn.Module):
    """In place of the network: an output that can be asked for its gradient, and what came in."""

    def __init__(self, output: torch.Tensor) -> None:
        super().__init__()
        self.output = nn.Parameter(output)
        self.image_in = nn.Conv2d(1, 1, 1)

    def forward(self, *told: torch.Tensor) -> torch.Tensor:
        self.told = told
        return self.output


def objective(unet: nn.Module, prediction: str = "epsilon", **loss: object) -> PixelInpainting:
    return PixelInpainting(
        unet,
        NoiseSettings(prediction_type=prediction),
        classes=("cat", "dog"),
        learning_rate=1e-3,
        seed=5,
        loss=LossSettings(**loss),
        precision=Precision.FP32,
    )


def batch(positions: tuple[int, ...] = (3, 4)) -> dict[str, np.ndarray]:
    rng = np.random.default_rng(0)
    hole = np.zeros((len(positions), 8, 8), dtype=np.uint8)
    hole[:, 2:5, 3:7] = 255
    return {
        "position": np.array(positions),
        "image": rng.integers(0, 256, (len(positions), 8, 8, 3)).astype(np.uint8),
        "hole": hole,
        "label": np.array(["dog", ""][: len(positions)], dtype=object),
    }


@pytest.mark.parametrize("prediction", ["epsilon", "v_prediction"])
def test_kept_pixels_have_exactly_zero_gradient(prediction: str) -> None:
    net = Remembers(torch.randn(2, 3, 8, 8))
    data = batch()
    objective(net, prediction)(data).sum().backward()
    hole = torch.from_numpy(data["hole"] > 0)[:, None].expand(2, 3, 8, 8)
    assert net.output.grad is not None
    assert torch.all(net.output.grad[~hole] == 0)
    assert torch.all(net.output.grad[hole] != 0)


def test_the_loss_in_closed_form_and_what_the_network_is_told() -> None:
    net, data = Remembers(torch.zeros(2, 3, 8, 8)), batch()
    losses = objective(net)(data)
    noise = keyed.normal(5, "noise", torch.tensor(data["position"]), (3, 8, 8))
    for row in range(2):
        assert losses[row].item() == pytest.approx(noise[row, :, 2:5, 3:7].square().mean().item(), rel=1e-5)
    noisy, timesteps, known, hole, labels = net.told
    assert labels.tolist() == [2, 0]
    assert torch.equal(hole[:, 0], torch.from_numpy(data["hole"] / 255).float())
    a = NoiseSettings().schedule().alphas_cumprod_T[timesteps].reshape(-1, 1, 1, 1)
    clean = torch.from_numpy(data["image"]).permute(0, 3, 1, 2) / 127.5 - 1
    assert torch.allclose(known, clean, atol=1e-6)
    assert torch.allclose(noisy, a.sqrt() * clean + (1 - a).sqrt() * noise, atol=1e-5)


def test_min_snr_and_debiasing_weigh_timesteps() -> None:
    net, data = Remembers(torch.zeros(2, 3, 8, 8)), batch()
    plain = objective(net)(data)
    a = NoiseSettings().schedule().alphas_cumprod_T[net.told[1]]
    ratio = a / (1 - a)
    assert torch.allclose(objective(net, min_snr_gamma=5.0)(data), plain * ratio.clamp(max=5) / ratio, rtol=1e-4)
    assert torch.allclose(objective(net, debiased=True)(data), plain * ratio.clamp(min=1e-3).rsqrt(), rtol=1e-4)


def test_a_sample_depends_on_its_position_alone() -> None:
    torch.manual_seed(0)
    net = MaskedUNet(TINY)
    for parameter in net.parameters():
        parameter.data += 0.1 * torch.randn_like(parameter)  # blocks begin as zeros, and dropout would change nothing
    module = objective(net)
    for mode in (module.eval, module.train):  # in training with a dropout of a half
        together, alone = mode()(batch()), mode()(batch((3,)))
        assert torch.allclose(together[:1], alone, atol=1e-6)
    assert not torch.allclose(module.eval()(batch()), module.train()(batch()))


def test_dropout_is_the_same_after_a_resume() -> None:
    torch.manual_seed(0)
    trained = objective(MaskedUNet(TINY)).train()
    first = trained(batch())
    torch.manual_seed(99)
    assert torch.equal(first, trained(batch()))


def test_all_weights_are_trained_under_the_names_that_the_painter_loads() -> None:
    net = MaskedUNet(TINY)
    (group,) = objective(net).groups()
    assert group.parameters.keys() == net.state_dict().keys()
