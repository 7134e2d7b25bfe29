"""A DDPM behind HTTP: polarity, limits, what shares a batch, and clients that leave."""

import asyncio
import io
import threading
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager

import numpy as np
import pytest
import torch
from PIL import Image
from starlette.testclient import TestClient

from inpaint.diffusion.ddpm import NoiseSettings, PixelSampling
from inpaint.diffusion.unet import MaskedUNet, UNetSettings
from inpaint.errors import InpaintError
from inpaint.paint.ddpm_painter import DdpmPainter, ModelCard
from inpaint.paint.request import DdpmRequest
from inpaint.serve.apps.ddpm import DdpmApplication, DdpmArgs, batcher_of
from inpaint.serve.batcher import Batcher
from inpaint.serve.http.receipt import read_receipt
from inpaint.serve.service import Overloaded

SIDE = 16
UNET = UNetSettings(channels=(8, 8, 16, 16), attention=(), time_width=16, classes=2)
CARD = ModelCard(image_size=SIDE, unet=UNET, noise=NoiseSettings(), classes=("cat", "dog"))


class Painting:
    """Notes batches, and waits in each network call until it is let go."""

    def __init__(self) -> None:
        self.batches: list[list[int]] = []
        self.began = threading.Event()
        self.go = threading.Event()
        self.abandoned = threading.Event()
        self.on_fault: Callable[[], object] = lambda: None

    def paint(
        self, requests: Sequence[DdpmRequest], on_frame: Callable[[int, int, np.ndarray], None] | None = None
    ) -> list[np.ndarray]:
        self.batches.append([request.seed for request in requests])
        if any(request.seed == 13 for request in requests):
            self.on_fault()
            raise InpaintError("seed 13: give another")
        self.began.set()
        assert self.go.wait(60)
        assert on_frame is not None
        try:
            on_frame(1, 1, np.zeros(0))
        except BaseException:
            self.abandoned.set()
            raise
        return [np.where(r.hole[..., None], np.uint8(r.seed), r.image) for r in requests]

    def shape_of(self, request: DdpmRequest) -> tuple[int, int]:
        return request.hole.shape


def request(seed: int, *, steps: int = 4) -> DdpmRequest:
    image = np.full((SIDE, SIDE, 3), 200, dtype=np.uint8)
    return DdpmRequest(
        image=image, hole=np.ones((SIDE, SIDE), dtype=bool), seed=seed, sampling=PixelSampling(steps=steps)
    )


async def until(event: threading.Event) -> None:
    assert await asyncio.to_thread(event.wait, 60)


def test_what_waits_is_painted_together_and_each_gets_its_own() -> None:
    painting = Painting()

    async def run() -> list[np.ndarray]:
        batcher = batcher_of(painting, max_batch=3)
        first = asyncio.create_task(batcher.submit(request(0)))
        await until(painting.began)
        rest = [asyncio.create_task(batcher.submit(request(seed))) for seed in range(1, 5)]
        other = asyncio.create_task(batcher.submit(request(9, steps=7)))
        await asyncio.sleep(0)
        painting.go.set()
        return await asyncio.gather(first, *rest, other)

    pictures = asyncio.run(run())
    assert [int(picture[0, 0, 0]) for picture in pictures] == [0, 1, 2, 3, 4, 9]
    assert painting.batches == [[0], [1, 2, 3], [4], [9]], "at most three, and only with equal steps"


def test_a_request_at_fault_fails_alone() -> None:
    painting = Painting()
    painting.go.set()

    async def run() -> list[object]:
        batcher = batcher_of(painting)
        return await asyncio.gather(*(batcher.submit(request(s)) for s in (1, 13, 2)), return_exceptions=True)

    one, bad, two = asyncio.run(run())
    assert isinstance(one, np.ndarray) and isinstance(two, np.ndarray)
    assert isinstance(bad, InpaintError) and "seed 13" in str(bad)


def test_who_went_beside_a_request_at_fault_is_not_painted_again() -> None:
    painting = Painting()

    async def run() -> None:
        batcher = batcher_of(painting)
        first = asyncio.create_task(batcher.submit(request(0)))
        await until(painting.began)
        gone, bad, good = (asyncio.create_task(batcher.submit(request(seed))) for seed in (1, 13, 2))
        await asyncio.sleep(0)
        loop = asyncio.get_running_loop()
        painting.on_fault = lambda: loop.call_soon_threadsafe(gone.cancel)
        painting.go.set()
        await asyncio.gather(first, gone, bad, good, return_exceptions=True)
        assert int(good.result()[0, 0, 0]) == 2

    asyncio.run(run())
    assert painting.batches == [[0], [1, 13, 2], [13], [2]]


def test_who_has_gone_is_not_painted_and_an_abandoned_batch_ends() -> None:
    painting = Painting()

    async def run() -> None:
        batcher = batcher_of(painting)
        running = asyncio.create_task(batcher.submit(request(1)))
        await until(painting.began)
        waiting = asyncio.create_task(batcher.submit(request(2)))
        await asyncio.sleep(0)
        for task in (running, waiting):
            task.cancel()
        await asyncio.gather(running, waiting, return_exceptions=True)
        painting.go.set()
        await until(painting.abandoned)
        assert int((await batcher.submit(request(3)))[0, 0, 0]) == 3, "it goes on"

    asyncio.run(run())
    assert painting.batches == [[1], [3]]


def test_who_goes_before_the_batch_begins_is_not_painted() -> None:
    painting = Painting()
    painting.go.set()

    async def run() -> None:
        batcher = batcher_of(painting)
        gone = asyncio.create_task(batcher.submit(request(1)))
        await asyncio.sleep(0)
        gone.cancel()
        await batcher.submit(request(2))

    asyncio.run(run())
    assert painting.batches == [[2]]


def test_work_and_kinds_that_are_broken_leave_nobody_waiting() -> None:
    async def run() -> list[object]:
        short: Batcher[int, int] = Batcher(lambda requests, tick: [1])
        unkind: Batcher[int, int] = Batcher(lambda requests, tick: requests, lambda request: 1 // request)
        work = [short.submit(1), short.submit(2), unkind.submit(0), unkind.submit(3)]
        async with asyncio.timeout(30):
            return await asyncio.gather(*work, return_exceptions=True)

    one, two, three, four = asyncio.run(run())
    assert isinstance(one, ValueError) and isinstance(two, ValueError)
    assert isinstance(three, ZeroDivisionError) and four == 3


def test_a_check_beside_a_batch_that_fails_sees_work_done_or_raises() -> None:
    began, go = threading.Event(), threading.Event()

    def work(requests: Sequence[int], tick: Callable[[], None]) -> list[int]:
        began.set()
        assert go.wait(60)
        raise RuntimeError("the model is broken")

    async def run() -> None:
        batcher: Batcher[int, int] = Batcher(work)
        painting = asyncio.create_task(batcher.submit(1))
        await until(began)
        checking = asyncio.create_task(batcher.check(2, 60))
        await asyncio.sleep(0)
        go.set()
        for task in (painting, checking):
            with pytest.raises(RuntimeError, match="broken"):
                await task

    asyncio.run(run())


def test_the_queue_is_bounded() -> None:
    painting = Painting()

    async def run() -> None:
        batcher = batcher_of(painting, max_waiting=1)
        first = asyncio.create_task(batcher.submit(request(1)))
        await until(painting.began)
        second = asyncio.create_task(batcher.submit(request(2)))
        await asyncio.sleep(0)
        with pytest.raises(Overloaded) as refused:
            await batcher.submit(request(3))
        assert refused.value.retry_after_s > 0
        painting.go.set()
        await asyncio.gather(first, second)

    asyncio.run(run())


@contextmanager
def serving(**settings: float) -> Iterator[TestClient]:
    torch.manual_seed(0)
    painter = DdpmPainter(CARD, MaskedUNet(UNET).state_dict())
    app = DdpmApplication(DdpmArgs(model="runs/mine", **settings), painter).http()
    with TestClient(app, raise_server_exceptions=False) as client:
        yield client


@pytest.fixture(scope="module")
def client() -> Iterator[TestClient]:
    with serving() as client:
        yield client


PHOTO = np.random.default_rng(0).integers(0, 255, (24, 24, 3), dtype=np.uint8)


def png(pixels: np.ndarray) -> bytes:
    file = io.BytesIO()
    Image.fromarray(pixels).save(file, "PNG")
    return file.getvalue()


def left_black() -> np.ndarray:
    mask = np.full((24, 24), 255, dtype=np.uint8)
    mask[:, :10] = 0
    return mask


def ask(client: TestClient, mask: np.ndarray | None = None, **settings: object):
    files = {"image": ("a", png(PHOTO)), "mask": ("b", png(left_black() if mask is None else mask))}
    return client.post("/fill", files=files, data={"seed": "3", "steps": "2", **settings})


def test_black_is_filled_and_white_kept_bit_for_bit(client: TestClient) -> None:
    answer = ask(client, label="dog")
    assert answer.status_code == 200, answer.text
    picture = np.asarray(Image.open(io.BytesIO(answer.content)))
    assert (picture[:, 10:] == PHOTO[:, 10:]).all()
    assert (picture[:, :10] != PHOTO[:, :10]).any()
    assert answer.headers["x-kept-pixels-changed"] == "0"
    assert ask(client, label="dog").content == answer.content, "one seed, one picture"
    receipt = read_receipt(answer.content)
    assert (receipt.base, receipt.seed, receipt.sampling["steps"]) == ("mine", 3, 2)
    assert receipt.base_revision == answer.headers["x-base-revision"]


def test_a_transparent_mask_is_refused_and_told_that_black_is_filled(client: TestClient) -> None:
    answer = ask(client, np.zeros((24, 24, 4), dtype=np.uint8))
    assert answer.json()["code"] == "ambiguous_mask" and "black = paint" in answer.json()["detail"]


def test_a_mask_without_black_gives_the_photo_back(client: TestClient) -> None:
    answer = ask(client, np.full((24, 24), 255, dtype=np.uint8))
    assert (np.asarray(Image.open(io.BytesIO(answer.content))) == PHOTO).all()


@pytest.mark.parametrize(
    ("settings", "field"),
    [
        ({"steps": "0"}, "steps"),
        ({"steps": "nan"}, "steps"),
        ({"sampler": "euler"}, "sampler"),
        ({"label": "horse"}, "label"),
        ({"guidance_scale": "4"}, "guidance_scale"),
        ({"jump_count": "1000"}, "jump_count"),
        ({"prompt": "a horse"}, "prompt"),
        ({"mask": np.zeros((9, 9), dtype=np.uint8)}, "mask"),
    ],
)
def test_bad_input_is_told_by_field(client: TestClient, settings: dict, field: str) -> None:
    answer = ask(client, **settings)
    assert answer.status_code == 400, answer.text
    assert answer.json()["field"] == field


def test_the_model_is_described(client: TestClient) -> None:
    described = client.get("/model").json()
    assert described["image_size"] == SIDE and described["classes"] == ["cat", "dog"]
    assert client.get("/ready").status_code == 200


def test_it_is_not_ready_while_it_cannot_paint() -> None:
    with serving(health_timeout_s=1e-9) as client:
        assert client.get("/ready").status_code == 503 and client.get("/health").status_code == 200
