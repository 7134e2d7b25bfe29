"""The latent objective: only the hole counts, randomness follows positions, and batches do not matter."""

from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch

from inpaint.data.decode import PAINT
from inpaint.diffusion import keyed, objective
from inpaint.diffusion.objective import LossSettings
from inpaint.diffusion.schedule import add_noise, schedule_of
from inpaint.errors import InpaintError
from inpaint.evaluate.metrics import hole_figures
from inpaint.models.base import load_base
from inpaint.models.latents import Posterior
from inpaint.train.latent import LatentInpainting
from inpaint.train.objective import MicroBatch, to_hole, to_pixels
from inpaint.train.settings import Precision
from tests.tiny import SIZE, tiny_scheduler, tiny_sd, tiny_sd_inpaint, tiny_sdxl_inpaint


@pytest.fixture(scope="module")
def folders(tmp_path_factory: pytest.TempPathFactory) -> dict[int, Path]:
    return {9: tiny_sd_inpaint(tmp_path_factory.mktemp("nine")), 4: tiny_sd(tmp_path_factory.mktemp("four"))}


def module_of(folder: Path, precision: Precision = Precision.FP32, **loss: float) -> LatentInpainting:
    base = load_base(folder)
    for model in (base.unet, *base.text_encoders):
        model.requires_grad_(False)
    return LatentInpainting(base, [], seed=1, loss=LossSettings(**loss), precision=precision)


def batch_of(positions: list[int], hole: np.ndarray | None = None) -> MicroBatch:
    rng = np.random.default_rng(0)
    images = rng.integers(0, 256, (100, SIZE, SIZE, 3), dtype=np.uint8)[positions]
    holes = np.zeros((len(positions), SIZE, SIZE), dtype=np.uint8)
    holes[:, 8:24, 4:20] = 255
    if hole is not None:
        holes[:] = hole
    prompts = np.array([f"the red wood {p}" for p in positions], dtype=object)
    told = {"original_size": np.full((len(positions), 2), SIZE), "crop_top_left": np.zeros((len(positions), 2), int)}
    return {"position": np.array(positions), "image": images, "hole": holes, **told, "prompt": prompts}


@pytest.mark.parametrize("channels", [9, 4])
def test_a_sample_does_not_depend_on_its_batch(folders: dict[int, Path], channels: int) -> None:
    module = module_of(folders[channels])
    together = module(batch_of([3, 7, 11]))
    alone = torch.cat([module(batch_of([p])) for p in (3, 7, 11)])
    assert torch.allclose(together, alone, atol=1e-5)
    assert len({round(float(loss), 4) for loss in together}) == 3


def test_another_position_draws_other_noise(folders: dict[int, Path]) -> None:
    module = module_of(folders[9])
    batch = dict(batch_of([3]))
    moved = {**batch, "position": np.array([4])}
    assert abs(float(module(batch)) - float(module(moved))) > 1e-4


def test_the_gradient_is_zero_outside_the_hole() -> None:
    output = torch.randn(2, 4, 8, 8, requires_grad=True)
    area = torch.zeros(2, 1, 8, 8)
    area[:, :, 2:5, 3:7] = 1.0
    area[1, :, 6, 6] = 0.25
    objective.hole_loss(output, torch.randn(2, 4, 8, 8), area).sum().backward()
    assert output.grad is not None
    assert torch.equal(output.grad.abs().sum(1, keepdim=True) > 0, area > 0)


def test_the_loss_is_a_mean_over_the_holes_area() -> None:
    output, target = torch.zeros(2, 4, 8, 8), torch.ones(2, 4, 8, 8)
    area = torch.zeros(2, 1, 8, 8)
    area[0, :, :2, :2] = 1.0
    area[1] = 0.5
    assert torch.allclose(objective.hole_loss(output * 1, target, area), torch.ones(2))


@pytest.mark.parametrize("channels", [9, 4])
def test_the_loss_within_masks_is_that_part_of_it_whatever_the_hole(folders: dict[int, Path], channels: int) -> None:
    module = module_of(folders[channels])
    batch = batch_of([3, 5], np.full((SIZE, SIZE), 255, dtype=np.uint8))
    halves = np.zeros((2, SIZE, SIZE), dtype=np.uint8)
    halves[:, : SIZE // 2] = 255
    upper, lower = (module({**batch, "area": area}) for area in (halves, 255 - halves))
    assert torch.allclose((upper + lower) / 2, module(batch), atol=1e-5)
    assert (upper - lower).abs().min() > 1e-3


def test_what_is_kept_does_not_reach_a_nine_channel_base_but_through_the_masked_image(
    folders: dict[int, Path],
) -> None:
    module = module_of(folders[9])
    batch = dict(batch_of([5]))
    seen = dict(batch, input=np.where(batch["hole"][..., None] > 0, 0, batch["image"]).astype(np.uint8))
    assert float(module(seen)) == pytest.approx(float(module(batch)), abs=1e-6)
    other = dict(batch, input=255 - batch["image"])
    assert abs(float(module(other)) - float(module(batch))) > 1e-5


def test_pixels_and_holes_have_their_ranges() -> None:
    pixels = to_pixels(np.array([[[[0, 127, 255]]]], dtype=np.uint8), torch.device("cpu"))
    assert pixels.shape == (1, 3, 1, 1)
    assert pixels.flatten().tolist() == pytest.approx([-1.0, -1 / 255, 1.0], abs=1e-6)
    hole = to_hole(np.array([[[0, 255]]], dtype=np.uint8), torch.device("cpu"))
    assert hole.shape == (1, 1, 1, 2)
    assert hole.flatten().tolist() == [0.0, 1.0]


def test_loss_weights_follow_their_formulas() -> None:
    for prediction, plus in (("epsilon", 0.0), ("v_prediction", 1.0)):
        schedule = schedule_of(tiny_scheduler(prediction))
        timesteps = torch.tensor([0, 200, 999])
        alphas = schedule.alphas_cumprod_T[timesteps].double()
        ratio = alphas / (1 - alphas)
        expected = ratio.clamp(max=5.0) / (ratio + plus)
        found = objective.timestep_weight(schedule, timesteps, LossSettings(min_snr_gamma=5.0)).double()
        assert torch.allclose(found, expected, rtol=1e-4)
        debiased = ratio**-0.5 if prediction == "epsilon" else 1 / (ratio + 1)
        found = objective.timestep_weight(schedule, timesteps, LossSettings(debiased=True)).double()
        assert torch.allclose(found, debiased, rtol=1e-3)
        both = objective.timestep_weight(schedule, timesteps, LossSettings(debiased=True, min_snr_gamma=5.0)).double()
        assert torch.allclose(both, expected * debiased, rtol=1e-3)
        assert torch.equal(objective.timestep_weight(schedule, timesteps, LossSettings()), torch.ones(3))


def test_settings_change_the_loss(folders: dict[int, Path]) -> None:
    plain = float(module_of(folders[9])(batch_of([2])))
    assert float(module_of(folders[9], min_snr_gamma=1e-3)(batch_of([2]))) < plain
    assert abs(float(module_of(folders[9], noise_offset=0.5)(batch_of([2]))) - plain) > 1e-4
    assert abs(float(module_of(folders[9], debiased=True)(batch_of([2]))) - plain) > 1e-4


def test_what_is_kept_counts_only_when_asked_for(folders: dict[int, Path]) -> None:
    data = batch_of([2])
    whole = {**data, "hole": np.full_like(data["hole"], 255)}
    plain, kept = (module_of(folders[9], **loss) for loss in ({}, {"kept_weight": 2.0}))
    assert float(kept(data)) > float(plain(data)) + 0.1
    assert torch.equal(kept(whole), plain(whole))
    with pytest.raises(InpaintError, match=r"kept_weight 1.0: for bases of 9 channels"):
        LossSettings(kept_weight=1.0).check_kept(denoised=False)


def test_a_shift_draws_noisier_timesteps_more_often() -> None:
    def noisiest_third(shift: float) -> float:
        diffusion = objective.HoleDiffusion(schedule_of(tiny_scheduler()), LossSettings(timestep_shift=shift), seed=0)
        timesteps = diffusion.noise(torch.zeros(1000, 1, 1, 1), torch.arange(1000)).timesteps_B
        assert timesteps.max() < 1000
        return float((timesteps >= 1000 * 2 / 3).double().mean())

    shares = {shift: noisiest_third(shift) for shift in (0.5, 1.0, 3.0)}
    assert shares == pytest.approx({0.5: 0.2, 1.0: 1 / 3, 3.0: 0.6}, abs=0.01)
    with pytest.raises(InpaintError, match="timestep_shift 0"):
        LossSettings(timestep_shift=0)


def test_bf16_is_near_fp32(folders: dict[int, Path]) -> None:
    exact = module_of(folders[9])(batch_of([1, 2]))
    half = module_of(folders[9], Precision.BF16)(batch_of([1, 2]))
    assert half.dtype == torch.float32
    assert torch.allclose(exact, half, rtol=0.05)
    assert not torch.equal(exact, half)


class Sees(torch.nn.Module):
    """In place of the U-Net: remembers what it is shown."""

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.conv_in = torch.nn.Conv2d(channels, 1, 1)

    def forward(self, inputs: torch.Tensor, timesteps: torch.Tensor, **told: Any) -> object:
        self.inputs, self.timesteps, self.told = inputs, timesteps, told
        return SimpleNamespace(sample=torch.zeros_like(inputs[:, :4]))


def test_a_four_channel_base_is_shown_what_painting_shows_it(folders: dict[int, Path]) -> None:
    """Everything noised to t, the known region too: painting noises it as the next step expects it."""
    module = module_of(folders[4])
    module.unet = Sees(4)
    batch = batch_of([3])
    module(batch)
    image, _ = module.encode_batch(batch, to_hole(batch["hole"], torch.device("cpu")))
    position = torch.tensor([3])
    clean, noise = (keyed.normal(1, purpose, position, image.shape) for purpose in ("vae", "noise"))
    expected = add_noise(module.diffusion.schedule, image.sample(clean), noise, module.unet.timesteps)
    assert torch.allclose(module.unet.inputs, expected, atol=1e-6)


@pytest.mark.parametrize("precision", [Precision.FP32, Precision.BF16])
def test_sdxl_is_told_each_rows_own_size_and_crop(precision: Precision, tmp_path: Path) -> None:
    module = module_of(tiny_sdxl_inpaint(tmp_path, in_channels=4), precision)
    module.unet = Sees(4)
    sizes = {"original_size": np.array([[1333, 2000], [640, 481]]), "crop_top_left": np.array([[0, 17], [8, 0]])}
    module({**batch_of([3, 7]), **sizes})
    told = module.unet.told["added_cond_kwargs"]
    assert told["time_ids"].tolist() == [[1333, 2000, 0, 17, SIZE, SIZE], [640, 481, 8, 0, SIZE, SIZE]]
    assert told["text_embeds"].shape[0] == 2 and (told["text_embeds"][0] != told["text_embeds"][1]).any()


def test_latents_may_come_from_elsewhere(folders: dict[int, Path]) -> None:
    module = module_of(folders[9])
    batch, calls = batch_of([5, 6]), []

    def stored(given: MicroBatch, hole: torch.Tensor) -> tuple[Posterior, Posterior | None]:
        calls.append(given)
        return module._encode(given, hole)

    base = load_base(folders[9])
    other = LatentInpainting(base, [], seed=1, loss=LossSettings(), precision=Precision.FP32, encode_batch=stored)
    assert torch.equal(other(batch), module(batch)) and len(calls) == 1


def test_texts_that_are_not_trained_are_encoded_once_and_what_is_kept_is_bounded(folders: dict[int, Path]) -> None:
    base = load_base(folders[9]).to("cpu")
    made = {"seed": 1, "loss": LossSettings(), "precision": Precision.FP32}
    once = LatentInpainting(base, [], **made, texts_once=True)
    seen: list[int] = []
    base.text_encoders[0].register_forward_hook(lambda *_: seen.append(1))
    first, again = once(batch_of([3, 7])), once(batch_of([7, 3]))
    assert len(seen) == 2 and torch.allclose(first, again.flip(0), atol=1e-5)
    assert torch.allclose(LatentInpainting(base, [], **made)(batch_of([3, 7])), first, atol=1e-5)
    assert once.texts is not None
    once.texts.most_bytes = 1
    for prompt in ("a", "b", "a", "a"):
        once.texts.of([prompt])
    assert len(seen) == 3 + 3 and len(once.texts._known) == 1


def test_a_validation_has_randomness_of_its_own_and_repeats_it(folders: dict[int, Path]) -> None:
    module = module_of(folders[9])
    batch = batch_of([0, 1])
    first = module(batch, validating=True)
    assert torch.equal(first, module(batch, validating=True))
    assert not torch.allclose(first, module(batch))
    with torch.random.fork_rng():
        torch.manual_seed(5)
        before = torch.random.get_rng_state()
        module(batch, validating=True)
        assert torch.equal(before, torch.random.get_rng_state()), "the training's dropout goes on as it was"


def test_it_paints_its_samples(folders: dict[int, Path]) -> None:
    batch = batch_of([0, 1, 2])
    painted = module_of(folders[9]).paint(batch, 2)
    assert [sample.picture.shape for sample in painted] == [(SIZE, 3 * SIZE + 8, 3)] * 2
    for sample, truth, hole in zip(painted, batch["image"], batch["hole"], strict=False):
        assert sample.figures == hole_figures(sample.picture[:, -SIZE:], truth, hole >= PAINT)
        assert {"psnr", "ssim", "l1"} == sample.figures.keys()
