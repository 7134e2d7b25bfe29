"""The DDPM's painter: kept pixels bit for bit, rows alone, classes, sizes; mask polarity; files."""

import json
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

import inpaint
from inpaint.diffusion.ddpm import NoiseSettings, PixelSampler, PixelSampling
from inpaint.diffusion.unet import Known, MaskedUNet, UNetSettings
from inpaint.errors import InpaintError
from inpaint.paint.batch import PaintSettings
from inpaint.paint.ddpm_painter import DdpmPainter, ModelCard, ReverseProcess
from inpaint.paint.request import DdpmRequest, SamplingSettings
from inpaint.recipes.ddpm import MODEL, WEIGHTS, load_ddpm
from inpaint.recipes.painting import PaintPhotos, paint_photos
from inpaint.train.checkpoint import CheckpointStore, Progress

TINY = UNetSettings(channels=(8, 16, 16, 24), attention=(16,), time_width=16, classes=2)
CARD = ModelCard(image_size=16, unet=TINY, noise=NoiseSettings(), classes=("cat", "dog"))
FAST = PixelSampling(steps=3)


def weights(scale: float = 0.05) -> dict[str, torch.Tensor]:
    """Random ones: a network whose zero layers are zero paints without looking."""
    generator = torch.Generator().manual_seed(0)
    torch.manual_seed(0)
    net = MaskedUNet(TINY)
    return {n: p.detach() + scale * torch.randn(p.shape, generator=generator) for n, p in net.named_parameters()}


@pytest.fixture(scope="module")
def painter() -> DdpmPainter:
    return DdpmPainter(CARD, weights(), max_batch=2)


def photo(height: int, width: int, seed: int = 0) -> np.ndarray:
    return np.random.default_rng(seed).integers(0, 256, (height, width, 3)).astype(np.uint8)


def hole(height: int, width: int) -> np.ndarray:
    found = np.zeros((height, width), dtype=bool)
    found[height // 4 : height // 2, width // 3 : 2 * width // 3] = True
    return found


@pytest.mark.parametrize("size", [(16, 16), (64, 64), (37, 61), (9, 40)])
def test_kept_pixels_are_the_originals_at_any_size(painter: DdpmPainter, size: tuple[int, int]) -> None:
    image, where = photo(*size), hole(*size)
    (result,) = painter.paint([DdpmRequest(image=image, hole=where, sampling=FAST)])
    assert result.shape == image.shape
    assert np.array_equal(result[~where], image[~where])
    assert not np.array_equal(result[where], image[where])


def test_a_picture_does_not_depend_on_what_shares_its_batch(painter: DdpmPainter) -> None:
    requests = [DdpmRequest(image=photo(16, 16, i), hole=hole(16, 16), seed=i, sampling=FAST) for i in range(3)]
    together = painter.paint(requests)
    for request, picture in zip(requests, together, strict=True):
        (alone,) = painter.paint([request])
        assert np.abs(alone.astype(int) - picture).max() <= 1
    assert not np.array_equal(together[0][hole(16, 16)], together[1][hole(16, 16)])


def test_the_same_seed_is_the_same_picture_and_another_is_another(painter: DdpmPainter) -> None:
    def of(seed: int) -> np.ndarray:
        return painter.paint([DdpmRequest(image=photo(16, 16), hole=hole(16, 16), seed=seed, sampling=FAST)])[0]

    assert np.array_equal(of(1), of(1))
    assert not np.array_equal(of(1), of(2))


def test_a_label_and_guidance_change_the_picture_and_unknown_ones_are_refused(painter: DdpmPainter) -> None:
    def of(label: str, scale: float = 1.0) -> np.ndarray:
        request = DdpmRequest(image=photo(16, 16), hole=hole(16, 16), label=label, guidance_scale=scale, sampling=FAST)
        return painter.paint([request])[0]

    pictures = [of(""), of("cat"), of("dog"), of("dog", 6.0)]
    assert all(not np.array_equal(a, b) for i, a in enumerate(pictures) for b in pictures[:i])
    with pytest.raises(InpaintError, match="cat, dog"):
        of("bird")
    with pytest.raises(InpaintError, match="give a label"):
        of("", 2.0)


def test_no_hole_costs_nothing(painter: DdpmPainter) -> None:
    calls = []
    request = DdpmRequest(image=photo(16, 16), hole=np.zeros((16, 16), dtype=bool))
    (result,) = painter.paint([request], on_frame=lambda *call: calls.append(call))
    assert np.array_equal(result, request.image)
    assert not calls


def test_frames_show_the_way_and_the_last_is_the_result(painter: DdpmPainter) -> None:
    frames = ReverseProcess(frames=4)
    sampling = PixelSampling(steps=8, sampler=PixelSampler.DDPM, jump_length=4, jump_count=2)
    request = DdpmRequest(image=photo(16, 16), hole=hole(16, 16), sampling=sampling)
    (result,) = painter.paint([request], on_frame=frames)
    strip = frames.strip()
    assert strip.shape == (16, 4 * 16 + 3 * 4, 3)
    assert np.array_equal(strip[:, -16:], result)


def test_a_card_survives_its_file() -> None:
    card = ModelCard(
        image_size=32,
        unet=UNetSettings(patch=2, known=Known.NOISY),
        noise=NoiseSettings(prediction_type="v_prediction"),
    )
    assert ModelCard.from_json(json.loads(json.dumps(card.to_json()))) == card
    with pytest.raises(InpaintError, match="not the description"):
        ModelCard.from_json({"image_size": 32})


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A run's folder whose moving average differs from its weights."""
    folder = tmp_path_factory.mktemp("run")
    (folder / MODEL).write_text(json.dumps(CARD.to_json()))
    progress = Progress(samples=1, steps=1, seed=0, manifest="")
    CheckpointStore(str(folder / "checkpoints")).save({"trained": weights(0.3), "ema": weights()}, progress)
    return folder


def test_the_moving_average_paints(run: Path, painter: DdpmPainter) -> None:
    request = DdpmRequest(image=photo(16, 16), hole=hole(16, 16), sampling=FAST)
    assert np.array_equal(load_ddpm(str(run), device="cpu").paint([request])[0], painter.paint([request])[0])


def test_what_is_no_run_is_refused(tmp_path: Path, run: Path) -> None:
    with pytest.raises(InpaintError, match="train_ddpm"):
        load_ddpm(str(tmp_path))
    (tmp_path / MODEL).write_text((run / MODEL).read_text())
    with pytest.raises(InpaintError, match="no checkpoint yet"):
        load_ddpm(str(tmp_path))
    (tmp_path / WEIGHTS).write_bytes(b"half a fi")
    with pytest.raises(InpaintError, match="model.safetensors is damaged"):
        load_ddpm(str(tmp_path))


def files(folder: Path, image: np.ndarray, mask: np.ndarray) -> tuple[Path, Path]:
    Image.fromarray(image).save(folder / "image.png")
    Image.fromarray(mask).save(folder / "mask.png")
    return folder / "image.png", folder / "mask.png"


def test_white_is_kept_and_black_is_filled(tmp_path: Path, run: Path) -> None:
    image, mask = photo(40, 40), np.where(hole(40, 40), 0, 255).astype(np.uint8)
    steps = []
    result = inpaint.inpaint_image(
        *files(tmp_path, image, mask),
        run,
        num_denoising_steps=3,
        save_result=tmp_path / "out.png",
        display_reverse=tmp_path / "way.png",
        device="cpu",
        on_step=lambda done, total: steps.append((done, total)),
    )
    assert np.array_equal(result[mask == 255], image[mask == 255])
    assert not np.array_equal(result[mask == 0], image[mask == 0])
    assert np.array_equal(np.asarray(Image.open(tmp_path / "out.png")), result)
    assert np.asarray(Image.open(tmp_path / "out_comparison.png")).shape == (40, 3 * 40 + 8, 3)
    assert (tmp_path / "way.png").is_file()
    assert steps == [(1, 3), (2, 3), (3, 3)]


def test_painted_small_and_returned_large_keeps_the_scaled_originals_pixels(tmp_path: Path, run: Path) -> None:
    image, where = photo(20, 30), hole(20, 30)
    paths = files(tmp_path, image, np.where(where, 0, 255).astype(np.uint8))
    result = inpaint.inpaint_image(*paths, run, 3, output_size=90, device="cpu")
    scaled = np.asarray(Image.fromarray(image).resize((90, 60), Image.Resampling.LANCZOS))
    kept = np.kron(~where, np.ones((3, 3), dtype=bool))
    assert result.shape == (60, 90, 3)
    assert np.array_equal(result[kept], scaled[kept])


@pytest.mark.parametrize("mode", ["L", "RGBA", "P", "I;16"])
def test_grey_transparent_palette_and_16_bit_images_are_painted(tmp_path: Path, run: Path, mode: str) -> None:
    image, mask = tmp_path / "image.png", tmp_path / "mask.png"
    if mode == "I;16":
        Image.fromarray(np.full((33, 21), 40_000, dtype=np.uint16)).save(image)
    else:
        Image.fromarray(photo(33, 21)).convert(mode).save(image)
    Image.fromarray(np.where(hole(33, 21), 0, 255).astype(np.uint8)).save(mask)
    assert inpaint.inpaint_image(image, mask, run, 2, device="cpu").shape == (33, 21, 3)


def test_an_all_white_mask_and_another_size_are_refused(tmp_path: Path, run: Path) -> None:
    white = files(tmp_path, photo(20, 20), np.full((20, 20), 255, dtype=np.uint8))
    with pytest.raises(InpaintError, match="no pixel is black"):
        inpaint.inpaint_image(*white, run)
    other = files(tmp_path, photo(20, 20), np.zeros((20, 21), dtype=np.uint8))
    with pytest.raises(InpaintError, match="same size"):
        inpaint.inpaint_image(*other, run)
    with pytest.raises(InpaintError, match=".png"):
        inpaint.inpaint_image(*other, run, save_result=tmp_path / "a.jpg")


def test_the_command_fills_what_the_function_fills(tmp_path: Path, run: Path) -> None:
    image, mask = files(tmp_path, photo(20, 30), np.where(hole(20, 30), 0, 255).astype(np.uint8))
    asked = SamplingSettings(feather=2, guidance_scale=3.0)
    config = PaintPhotos(
        model=str(run),
        image=str(image),
        mask=str(mask),
        output=str(tmp_path / "out.png"),
        label="dog",
        output_size=40,
        display_reverse=str(tmp_path / "way.png"),
        sampling=PixelSampling(steps=3),
        settings=PaintSettings(seed=4, sampling=asked),
    )
    assert paint_photos(config) == str(tmp_path / "out_comparison.png")
    settings = {"label": "dog", "guidance_scale": 3.0, "feather": 2, "seed": 4, "output_size": 40}
    expected = inpaint.inpaint_image(image, mask, run, 3, **settings)
    assert np.array_equal(np.asarray(Image.open(tmp_path / "out.png")), expected)
    assert (tmp_path / "way.png").is_file()
    assert not np.array_equal(inpaint.inpaint_image(image, mask, run, 3, **{**settings, "feather": 0}), expected)


def test_set_seed_is_the_seed_of_pictures_and_of_the_libraries(tmp_path: Path, run: Path) -> None:
    paths = files(tmp_path, photo(16, 16), np.where(hole(16, 16), 0, 255).astype(np.uint8))
    pictures = []
    for seed in (3, 3, 4):
        inpaint.set_seed(seed)
        pictures.append((inpaint.inpaint_image(*paths, run, 3, device="cpu"), torch.rand(1), np.random.rand()))
    inpaint.set_seed(0)
    assert np.array_equal(pictures[0][0], pictures[1][0]) and pictures[0][1:] == pictures[1][1:]
    assert not np.array_equal(pictures[0][0], pictures[2][0]) and pictures[0][2] != pictures[2][2]
    with pytest.raises(InpaintError):
        inpaint.set_seed(-1)
