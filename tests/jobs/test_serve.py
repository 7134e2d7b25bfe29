"""The service as it runs: two ingresses, two painters, a bank of four slots; one instance for the module."""

import base64
import http.client
import io
import json
import shutil
import socket
import threading
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import pytest
from PIL import Image

from inpaint.data.panels import ChosenPanels
from inpaint.diffusion.ddpm import NoiseSettings, PixelSampling
from inpaint.diffusion.unet import MaskedUNet, UNetSettings
from inpaint.export.adapter_folder import load_adapter, save_adapter
from inpaint.models.adapter import apply_adapter
from inpaint.models.base import load_base
from inpaint.paint.batch import PaintSettings, read_models
from inpaint.paint.ddpm_painter import ModelCard
from inpaint.paint.painter import Painter
from inpaint.paint.request import DdpmRequest, PaintRequest, SamplingSettings
from inpaint.recipes.ddpm import MODEL, load_ddpm
from inpaint.toy.catalogue import Scene
from inpaint.toy.measure import HELD_OUT_SEED, held_out
from inpaint.toy.panels import SHEET_PROMPT, compose
from inpaint.train.checkpoint import CheckpointStore, Progress
from tests.adapters import SHIPPED, variant, write_variant
from tests.jobs.conftest import StyleRun

if TYPE_CHECKING:
    from inpaint.serve.deployments.ingress import IngressState

APP = "paint-test"
CATEGORIES = [f"CDP_{number:02}" for number in range(30)]
STEPS = 6
POLL_S = 0.2
PATIENCE_S = 180
pytestmark = pytest.mark.timeout(600)
CLOSE = 2
"""Levels of 255 by which a picture may differ from the painter's: 1e-3 in [0, 1], and rounding."""


@dataclass(frozen=True)
class Answer:
    """One HTTP answer."""

    status: int
    headers: dict[str, str]
    body: bytes

    @property
    def image(self) -> np.ndarray:
        assert self.status == 200, self.body[:500]
        return np.asarray(Image.open(io.BytesIO(self.body)).convert("RGB"))

    @property
    def json(self) -> Any:
        return json.loads(self.body)


@dataclass(frozen=True)
class Client:
    """Of the running service."""

    port: int
    registry: Path
    scene: Scene

    def send(self, **fields: object) -> http.client.HTTPConnection:
        """A /paint request on its way."""
        connection = http.client.HTTPConnection("127.0.0.1", self.port, timeout=PATIENCE_S)
        hole = Image.fromarray((~self.scene.product * 255).astype(np.uint8))
        body = {"image": _base64(Image.fromarray(self.scene.image)), "mask": _base64(hole), "prompt": "a mug"}
        body |= {"seed": 3, "steps": STEPS, **fields}
        connection.request("POST", "/paint", json.dumps(body), {"Content-Type": "application/json"})
        return connection

    def paint(self, **fields: object) -> Answer:
        return _answer(self.send(**fields))

    def get(self, path: str) -> Answer:
        connection = http.client.HTTPConnection("127.0.0.1", self.port, timeout=PATIENCE_S)
        connection.request("GET", path)
        return _answer(connection)

    def digest(self, name: str) -> str | None:
        """Of the version that all ingresses serve; empty while they differ."""
        digests = {state.digests.get(name) for state in _ingresses()}
        return digests.pop() if len(digests) == 1 else ""


@pytest.fixture(scope="module")
def client(ray_cluster: None, style: StyleRun, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Client]:
    """What `style` trains is trained before: Serve leaves no room for it on two CPUs."""
    from ray import serve
    from ray.serve.config import HTTPOptions

    from inpaint.serve.adapters.registry import RegistrySettings
    from inpaint.serve.admission import AdmissionSettings
    from inpaint.serve.apps.paint import PaintArgs
    from inpaint.serve.deployments.ingress import Ingress
    from inpaint.serve.deployments.painters import Painters
    from inpaint.serve.engine.settings import EngineSettings
    from inpaint.serve.http.limits import HttpSettings

    folder = tmp_path_factory.mktemp("service")
    registry = folder / "registry"
    shutil.copytree(SHIPPED, registry)
    for number, category in enumerate(CATEGORIES):
        write_variant(registry, category, number, of=("CDP_COS", "CDP_FOOD")[number % 2])
    args = PaintArgs(
        registry=RegistrySettings(root=str(registry), cache=str(folder / "cache"), poll_s=POLL_S),
        engine=EngineSettings(slots=4, max_rows=8),
        admission=AdmissionSettings(queue_per_painter=500),
        http=HttpSettings(host="0.0.0.0"),  # no keys are asked for all the same: it is Serve that listens
        threads=1,
    )
    with socket.create_server(("127.0.0.1", 0)) as free:
        port = free.getsockname()[1]
    serve.start(http_options=HTTPOptions(host="127.0.0.1", port=port))
    painters = Painters.options(num_replicas=2, ray_actor_options={"num_cpus": 0.5})
    ingress = Ingress.options(ray_actor_options={"num_cpus": 0.1})
    serve.run(ingress.bind(args, painters.bind(args)), name=APP, route_prefix="/")
    yield Client(port, registry, held_out(1)[0])
    serve.shutdown()


@pytest.fixture(scope="module")
def painters(client: Client) -> dict[str, Painter]:
    """Category -> a painter with its adapter alone, on a base of its own."""
    found: dict[str, Painter] = {}
    for name in ("CDP_COS", "CDP_FOOD", *CATEGORIES):
        base = load_base("toy")
        apply_adapter(base, load_adapter(client.registry / name))
        found[name] = Painter(base)
    return found


def alone(client: Client, painter: Painter, category: str, seed: int, steps: int = STEPS) -> np.ndarray:
    """What the painter makes of the same request by itself."""
    request = PaintRequest(
        image=client.scene.image,
        hole=~client.scene.product,
        prompt=f"{category} background, a mug",
        seed=seed,
        sampling=SamplingSettings(steps=steps, guidance_scale=1.0),
    )
    return painter.paint([request])[0]


def test_both_shipped_adapters_paint_what_the_painter_paints(client: Client, painters: dict[str, Painter]) -> None:
    for category in ("CDP_COS", "CDP_FOOD"):
        answer = client.paint(category=category)
        assert answer.headers["x-kept-pixels-changed"] == "0"
        assert answer.headers["x-adapter-digest"] == client.digest(category)
        assert _difference(answer.image, alone(client, painters[category], category, 3)) <= CLOSE
        kept = client.scene.product
        assert (answer.image[kept] == client.scene.image[kept]).all()
        assert client.paint(category=category).body == answer.body


def test_32_categories_at_once_on_4_slots_are_each_painted_with_their_own(
    client: Client, painters: dict[str, Painter]
) -> None:
    with ThreadPoolExecutor(32) as threads:
        answers = dict(
            zip(
                painters,
                threads.map(lambda c: client.paint(category=c, seed=7, timeout_s=PATIENCE_S), painters),
                strict=True,
            )
        )
    expected = {category: alone(client, painter, category, 7) for category, painter in painters.items()}
    for category, answer in answers.items():
        assert _difference(answer.image, expected[category]) <= CLOSE, category
    distinct = {image.tobytes() for image in expected.values()}
    assert len(distinct) == 32, "adapters that paint alike would prove nothing"


def test_a_client_that_leaves_takes_its_rows_with_it(client: Client) -> None:
    connection = client.send(category="CDP_COS", steps=100, n=4, answer="json")
    _until(lambda: _running() > 0)
    connection.close()
    _until(lambda: _running() == 0)
    assert client.paint(category="CDP_COS").status == 200


def test_new_replaced_put_back_and_bad_adapters_without_a_restart(client: Client, tmp_path: Path) -> None:
    assert client.paint(category="CDP_NEW").status == 404
    write_variant(client.registry, "CDP_NEW", 100)
    scans = {state.replica: state.scans for state in _ingresses()}
    _until(lambda: bool(client.digest("CDP_NEW")))
    # Served within 5 s, which are so many looks at the registry.
    assert all(state.scans - scans[state.replica] <= 5 / POLL_S for state in _ingresses())
    first, first_digest = client.paint(category="CDP_NEW").image, client.digest("CDP_NEW")

    shutil.copytree(client.registry / "CDP_NEW", tmp_path / "old")
    write_variant(client.registry, "CDP_NEW", 101)
    _until(lambda: client.digest("CDP_NEW") not in (first_digest, ""))
    second = client.paint(category="CDP_NEW").image
    assert _difference(first, second) > CLOSE

    broken = variant("CDP_NEW", 102)
    save_adapter(client.registry / "CDP_NEW", replace(broken, card=replace(broken.card, rank=7)))
    for _ in range(10):  # whichever ingress answers
        _until(lambda: "CDP_NEW" in client.get("/catalogue").json["refused"])
    assert (client.paint(category="CDP_NEW").image == second).all()

    shutil.rmtree(client.registry / "CDP_NEW")
    shutil.copytree(tmp_path / "old", client.registry / "CDP_NEW")
    _until(lambda: client.digest("CDP_NEW") == first_digest)
    assert (client.paint(category="CDP_NEW").image == first).all()

    shutil.rmtree(client.registry / "CDP_NEW")
    _until(lambda: client.digest("CDP_NEW") is None)
    assert client.paint(category="CDP_NEW").status == 404


def test_the_adapter_of_a_workload_of_ones_own_is_served(client: Client, style: StyleRun) -> None:
    shutil.copytree(style.first_adapter, client.registry / "style")
    _until(lambda: bool(client.digest("style")))
    base = load_base("toy")
    apply_adapter(base, load_adapter(style.first_adapter))
    request = PaintRequest(
        image=client.scene.image,
        hole=~client.scene.product,
        prompt=f"{style.recipe.tag}, a mug",
        seed=3,
        sampling=SamplingSettings(steps=STEPS),
    )
    (expected,) = Painter(base).paint([request])
    assert _difference(client.paint(adapters="style").image, expected) <= CLOSE
    shutil.rmtree(client.registry / "style")


def test_overload_is_told_when_to_come_back_and_nothing_is_begun(client: Client) -> None:
    connections = [client.send(category="CDP_COS", steps=120, n=10, answer="json") for _ in range(12)]
    # Two on each: a request counts for half of an ingress's queue at most.
    _until(lambda: all(state.outstanding > 1200 for state in _ingresses()))
    answer = client.paint(category="CDP_FOOD", steps=100)
    assert answer.status == 429
    assert 1 <= int(answer.headers["retry-after"]) <= 120
    for connection in connections:
        connection.close()
    _until(lambda: client.paint(category="CDP_FOOD").status == 200)


def test_a_model_of_ones_own_is_started_when_asked_for_and_let_go_after(client: Client, tmp_path: Path) -> None:
    from ray import serve
    from ray.serve.config import AutoscalingConfig, AutoscalingPolicy

    from inpaint.serve.apps.ddpm import DdpmApplication, DdpmArgs
    from inpaint.serve.deployments.model import Model

    run, card = small_ddpm(tmp_path / "run")
    policy = AutoscalingPolicy(policy_function="inpaint.serve.deployments.scaling:ByRemainingWork")
    scaling = AutoscalingConfig(
        min_replicas=0, max_replicas=1, upscale_delay_s=0, downscale_delay_s=0, look_back_period_s=0.5, policy=policy
    )
    deployment = Model.options(name="zero", ray_actor_options={"num_cpus": 0.2}, autoscaling_config=scaling)
    app = deployment.bind(DdpmApplication.start, DdpmArgs(model=str(run), threads=1))
    serve.run(app, name="ddpm-test", route_prefix="/ddpm")
    assert not _replicas("zero", "ddpm-test")
    keep = Image.fromarray((client.scene.product * 255).astype(np.uint8))
    form = {"image": Image.fromarray(client.scene.image), "mask": keep}
    connection = http.client.HTTPConnection("127.0.0.1", client.port, timeout=PATIENCE_S)
    body, kind = _form({name: _png(image) for name, image in form.items()} | {"seed": b"5", "steps": b"3"})
    connection.request("POST", "/ddpm/fill", body, {"Content-Type": kind})
    request = DdpmRequest(image=client.scene.image, hole=~client.scene.product, seed=5, sampling=PixelSampling(steps=3))
    (expected,) = load_ddpm(str(run)).paint([request])
    answer = _answer(connection)
    assert _difference(answer.image, expected) <= CLOSE
    assert json.loads(client.get("/ddpm/model").body)["image_size"] == card.image_size
    _until(lambda: not _replicas("zero", "ddpm-test"))
    serve.delete("ddpm-test")


def test_panels_are_painted_beside_it_by_the_shipped_sdxl_base_and_its_adapter(client: Client) -> None:
    from ray import serve

    from inpaint.serve.adapters.registry import RegistrySettings
    from inpaint.serve.apps.paint import PaintArgs
    from inpaint.serve.deployments.ingress import Ingress
    from inpaint.serve.deployments.painters import Painters

    args = PaintArgs(base="toy-sdxl", registry=RegistrySettings(root="toy-sdxl"), threads=1)
    small = {"num_cpus": 0.1}
    app = Ingress.options(ray_actor_options=small).bind(args, Painters.options(ray_actor_options=small).bind(args))
    serve.run(app, name="panels-test", route_prefix="/panels")
    composite, chosen, seed = compose(HELD_OUT_SEED, 0).image, ChosenPanels((1, 2)), 4
    fields = {"panels": "1,2", "adapters": "panels", "prompt": SHEET_PROMPT, "seed": str(seed), "steps": str(STEPS)}
    body, kind = _form({"image": _png(Image.fromarray(composite)), **{k: v.encode() for k, v in fields.items()}})
    connection = http.client.HTTPConnection("127.0.0.1", client.port, timeout=PATIENCE_S)
    connection.request("POST", "/panels/paint", body, {"Content-Type": kind})
    answer = _answer(connection)
    settings = PaintSettings(
        base="toy-sdxl", adapter=f"{args.registry_settings.root}/panels", sampling=SamplingSettings(steps=STEPS)
    )
    models, hole = read_models(settings), chosen.hole(composite)
    (expected,) = models.painter("cpu", 1).paint([models.request(composite, hole, SHEET_PROMPT, seed)])
    assert _difference(answer.image, expected) <= CLOSE
    assert (answer.image[~hole] == composite[~hole]).all() and answer.headers["x-kept-pixels-changed"] == "0"
    serve.delete("panels-test")


def test_an_application_of_ones_own_is_served_beside_it(client: Client) -> None:
    from ray import serve

    from tests.jobs.own_application import EnlargeArgs, build

    serve.run(build(EnlargeArgs(threads=1)), name="own-test", route_prefix="/own")
    connection = http.client.HTTPConnection("127.0.0.1", client.port, timeout=PATIENCE_S)
    body, kind = _form({"image": _png(Image.fromarray(client.scene.image)), "factor": b"2"})
    connection.request("POST", "/own/enlarge", body, {"Content-Type": kind})
    assert (_answer(connection).image[::2, ::2] == client.scene.image).all()
    serve.delete("own-test")


def small_ddpm(run: Path) -> tuple[Path, ModelCard]:
    """The run of a training that has just begun."""
    card = ModelCard(
        image_size=16, unet=UNetSettings(channels=(8, 8, 16, 16), attention=(), time_width=16), noise=NoiseSettings()
    )
    run.mkdir()
    (run / MODEL).write_text(json.dumps(card.to_json()))
    progress = Progress(samples=0, steps=0, seed=0, manifest="m")
    CheckpointStore(str(run / "checkpoints")).save({"trained": MaskedUNet(card.unet).state_dict()}, progress)
    return run, card


def _form(parts: dict[str, bytes]) -> tuple[bytes, str]:
    """A multipart body and its content type."""
    pieces = [
        f'--edge\r\nContent-Disposition: form-data; name="{name}"\r\n\r\n'.encode() + data + b"\r\n"
        for name, data in parts.items()
    ]
    return b"".join(pieces) + b"--edge--\r\n", "multipart/form-data; boundary=edge"


def _png(image: Image.Image) -> bytes:
    file = io.BytesIO()
    image.save(file, format="PNG")
    return file.getvalue()


def test_a_painter_killed_under_load_costs_no_answer(client: Client, painters: dict[str, Painter]) -> None:
    import ray

    chosen = CATEGORIES[:6]
    begun = threading.Barrier(len(chosen) + 1)

    def paint_twice(category: str) -> list[Answer]:
        begun.wait(PATIENCE_S)
        return [client.paint(category=category, seed=seed, steps=30, timeout_s=PATIENCE_S) for seed in (11, 12)]

    with ThreadPoolExecutor(len(chosen)) as threads:
        work = {category: threads.submit(paint_twice, category) for category in chosen}
        begun.wait(PATIENCE_S)
        _until(lambda: min(_orders()) > 0)
        ray.kill(next(iter(_replicas("painters").values())))
        answers = {category: future.result(PATIENCE_S) for category, future in work.items()}
    for category, pair in answers.items():
        for seed, answer in zip((11, 12), pair, strict=True):
            assert _difference(answer.image, alone(client, painters[category], category, seed, steps=30)) <= CLOSE


def test_an_ingress_that_dies_costs_no_request_of_another_and_a_new_one_knows_what_it_must(client: Client) -> None:
    import ray

    # Both ingresses, and room for all that is asked: the painter that the test before has killed is there again.
    _until(lambda: [state.limit for state in _ingresses()] == [500.0, 500.0])
    before = _ingresses()
    with ThreadPoolExecutor(8) as threads:
        asked = [threads.submit(client.paint, category="CDP_COS", steps=60, timeout_s=PATIENCE_S) for _ in range(8)]
        _until(lambda: sum(state.outstanding for state in _ingresses()) == 8 * 60)
        lost, other = sorted(_ingresses(), key=lambda state: state.outstanding)
        ray.kill(_replicas("ingress")[lost.replica])
        done = [future.exception() is None and future.result().status == 200 for future in asked]
    assert done.count(False) <= lost.outstanding / 60 < 8
    assert client.paint(category="CDP_COS").status == 200, "the other one answers meanwhile"
    _until(lambda: [state.limit for state in _ingresses()] == [500.0, 500.0])
    (new,) = (state for state in _ingresses() if state.replica not in {state.replica for state in before})
    assert new.digests == other.digests
    assert all(client.paint(category="CDP_COS").status == 200 for _ in range(6))


def test_a_request_is_followed_and_stopped_by_whichever_ingress_is_asked(client: Client) -> None:
    def post(path: str, **body: object) -> Answer:
        connection = http.client.HTTPConnection("127.0.0.1", client.port, timeout=PATIENCE_S)
        connection.request("POST", f"/sdapi/v1/{path}", json.dumps(body), {"Content-Type": "application/json"})
        return _answer(connection)

    def current() -> str | None:
        return client.get("/sdapi/v1/progress?id_task=mine&skip_current_image=true").json["current_task"]

    assert len(_ingresses()) == 2
    photo = _base64(Image.fromarray(client.scene.image))
    with ThreadPoolExecutor(1) as threads:
        long = {"init_images": [photo], "prompt": "", "steps": 150, "n_iter": 4, "denoising_strength": 1.0}
        asked = threads.submit(post, "img2img", force_task_id="mine", **long)
        _until(lambda: current() == "mine")
        assert [current() for _ in range(8)] == ["mine"] * 8
        assert post("interrupt", id_task="mine").status == 200
        assert json.loads(asked.result().json["info"])["interrupted"]


def test_a_service_that_is_stopped_finishes_what_it_has(client: Client, painters: dict[str, Painter]) -> None:
    from ray import serve

    with ThreadPoolExecutor(1) as threads:
        asked = threads.submit(client.paint, category="CDP_COS", seed=5, steps=60)
        _until(lambda: _running() > 0)
        serve.delete(APP)
        assert _difference(asked.result().image, alone(client, painters["CDP_COS"], "CDP_COS", 5, steps=60)) <= CLOSE


def _replicas(deployment: str, app: str = APP) -> dict[str, Any]:
    """Serve's names of a deployment's replicas -> their actors."""
    import ray
    from ray.util import list_named_actors

    start = f"SERVE_REPLICA::{app}#{deployment}#"
    named = [one for one in list_named_actors(all_namespaces=True) if one["name"].startswith(start)]
    return {one["name"].rpartition("#")[2]: ray.get_actor(**one) for one in named}


def _ingresses() -> "list[IngressState]":
    """All of them; none while one that Serve knows of is dead."""
    from ray import serve
    from ray.exceptions import RayActorError

    try:
        return serve.get_deployment_handle("ingress", APP).broadcast("state").results(timeout_s=PATIENCE_S)
    except RayActorError:
        return []


def _running() -> int:
    """Orders in all painters, waiting ones included."""
    return sum(_orders())


def _orders() -> list[int]:
    """Orders in each painter."""
    from ray import serve

    stats = serve.get_deployment_handle("painters", APP).broadcast("stats").results(timeout_s=PATIENCE_S)
    return [one.running + one.queued for one in stats]


def _until(condition: Callable[[], bool]) -> None:
    deadline = time.monotonic() + PATIENCE_S
    while not condition():
        assert time.monotonic() < deadline, "waited in vain"
        time.sleep(0.05)


def _difference(one: np.ndarray, other: np.ndarray) -> int:
    return int(np.abs(one.astype(int) - other.astype(int)).max())


def _base64(image: Image.Image) -> str:
    return base64.b64encode(_png(image)).decode()


def _answer(connection: http.client.HTTPConnection) -> Answer:
    response = connection.getresponse()
    body = response.read()
    connection.close()
    return Answer(response.status, {name.lower(): value for name, value in response.getheaders()}, body)
