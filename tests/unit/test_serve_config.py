"""serve_config.yaml: what Ray Serve accepts, closed to the world, and what the application's arguments accept."""

import signal
import subprocess
from pathlib import Path
from typing import Any

import pytest
import yaml
from pydantic import ValidationError
from ray.serve.schema import ServeDeploySchema

from inpaint.errors import InpaintError
from inpaint.models.base import read_base_info
from inpaint.serve.apps import photoshoot
from inpaint.serve.apps.ddpm import DdpmArgs, build
from inpaint.serve.apps.paint import PaintArgs
from inpaint.serve.deployments.painters import Painters
from inpaint.serve.local import ServeHere, examples, serve_here, url_of, write_examples
from inpaint.stopping import StopToken
from tests.tiny import base_info

ROOT = Path(__file__).resolve().parents[2]
CONFIG = ROOT / "serve_config.yaml"


@pytest.fixture
def config() -> dict[str, Any]:
    return yaml.safe_load(CONFIG.read_text())


def test_rays_own_schema_accepts_it(config: dict[str, Any]) -> None:
    schema = ServeDeploySchema(**config)
    assert [d.name for d in schema.applications[0].deployments] == ["ingress", "painters"]


def test_rays_own_schema_is_not_a_rubber_stamp(config: dict[str, Any]) -> None:
    config["applications"][0]["deployments"][0]["num_replicas"] = "many"
    with pytest.raises(ValidationError, match="num_replicas"):
        ServeDeploySchema(**config)


def test_it_listens_on_loopback_where_no_keys_are_asked(config: dict[str, Any]) -> None:
    assert config["http_options"]["host"] == "127.0.0.1"
    args = PaintArgs(**config["applications"][0]["args"])
    assert args.http.host == "127.0.0.1"
    assert args.base == "toy"


def test_serves_own_limit_is_above_that_of_a_request(config: dict[str, Any]) -> None:
    args = PaintArgs(**config["applications"][0]["args"])
    assert config["http_options"]["request_timeout_s"] > args.http.max_timeout_s
    assert Painters._deployment_config.graceful_shutdown_timeout_s >= args.http.max_timeout_s


def test_it_asks_for_what_two_cores_have(config: dict[str, Any]) -> None:
    deployments = [one for application in config["applications"] for one in application["deployments"]]
    assert sum(d.get("num_replicas", 1) * d["ray_actor_options"]["num_cpus"] for d in deployments) <= 2


def test_the_builder_makes_an_application_of_its_arguments(config: dict[str, Any]) -> None:
    from inpaint.serve.apps.paint import build

    app = build(PaintArgs(**config["applications"][0]["args"]))
    assert app._bound_deployment.name == "ingress"


@pytest.mark.parametrize(
    ("args", "culprit"),
    [
        ({"basis": "toy"}, "basis"),
        ({"engine": {"slot": 3}}, "engine.slot"),
        ({"http": {"keys": "x"}}, "http.keys"),
        ({"registry": {"root": "x", "poll_s": 0}}, "poll_s"),
        ({"registry": {"folder": "x"}}, "registry.folder"),
        ({"steps": 0}, "steps"),
        ({"precision": "int8"}, "precision"),
        ({"admission": {"queue": 3}}, "queue"),
    ],
)
def test_wrong_arguments_are_refused_by_name(args: dict[str, Any], culprit: str) -> None:
    with pytest.raises(ValidationError, match=culprit):
        PaintArgs(**args)


def test_no_adapter_is_served_that_the_bank_cannot_hold() -> None:
    args = PaintArgs(engine={"max_rank": 8}, registry={"root": "x", "max_rank": 64})
    assert args.registry_settings.max_rank == 8


def test_the_toy_base_is_painted_without_guidance_and_others_with() -> None:
    assert PaintArgs().served(read_base_info("toy")).guidance_scale == 1.0
    assert PaintArgs(guidance_scale=3.0, steps=7).served(base_info()).guidance_scale == 3.0
    other = PaintArgs(base="/bases/mine").served(base_info(guidance_scale=7.5, steps=30))
    assert (other.name, other.guidance_scale, other.steps) == ("mine", 7.5, 30)


def test_examples_name_the_url_and_files_that_are_there(tmp_path: Path) -> None:
    write_examples(tmp_path)
    url = url_of(CONFIG.read_text())
    assert url == "http://127.0.0.1:8000"
    text = examples(url, tmp_path)
    assert all(word in text for word in ("curl ", "openai.OpenAI", "<lora:CDP_FOOD", f"{url}/paint"))
    assert all((tmp_path / name).is_file() for name in ("photo.png", "mask.png", "hole.png"))


def test_examples_name_an_ipv6_host_so_that_it_is_found() -> None:
    assert url_of("http_options: {host: '::1', port: 9}") == "http://[::1]:9"


@pytest.mark.parametrize("kind", [KeyboardInterrupt, RuntimeError])
def test_however_it_ends_the_service_ends_with_it(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, kind: type) -> None:
    sent = []

    class Serving:
        """In place of the process that serves."""

        def __init__(self, command: list[str], env: dict[str, str], start_new_session: bool) -> None:
            self.ends = False

        def send_signal(self, number: int) -> None:
            sent.append(number)
            self.ends = True

        def wait(self, timeout: float | None = None) -> int:
            if self.ends:
                return 0
            raise subprocess.TimeoutExpired("serve", timeout or 0)

    class Interrupted:
        @property
        def requested(self) -> bool:
            raise kind

    monkeypatch.setattr(subprocess, "Popen", Serving)
    with pytest.raises(kind):
        serve_here(ServeHere(config=CONFIG, examples=tmp_path), stop=Interrupted())
    assert sent == [signal.SIGINT]


def test_a_service_that_a_signal_has_reached_too_has_not_ended_by_itself(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """As systemd's `KillMode=control-group` sends it."""
    stop = StopToken()

    class Stopped:
        def __init__(self, command: list[str], env: dict[str, str], start_new_session: bool) -> None:
            self.is_asked = stop.request

        def wait(self, timeout: float | None = None) -> int:
            self.is_asked()
            return -15

        def send_signal(self, number: int) -> None:
            pass

    monkeypatch.setattr(subprocess, "Popen", Stopped)
    serve_here(ServeHere(config=CONFIG, examples=tmp_path), stop=stop)
    monkeypatch.setattr(Stopped, "wait", lambda self, timeout=None: 1)
    with pytest.raises(InpaintError, match="exit code 1"):
        serve_here(ServeHere(config=CONFIG, examples=tmp_path))


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_a_second_signal_ends_at_once_what_the_service_still_does(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, number: signal.Signals
) -> None:
    sent = []

    class Draining:
        """In place of the process that serves: it ends when it is told to for the second time."""

        def __init__(self, command: list[str], env: dict[str, str], start_new_session: bool) -> None:
            pass

        def send_signal(self, number: int) -> None:
            sent.append(number)

        def terminate(self) -> None:
            self.send_signal(signal.SIGTERM)

        def wait(self, timeout: float | None = None) -> int:
            assert timeout is None
            signal.raise_signal(number)
            return 0

    stop = StopToken()
    stop.request()
    before = [signal.getsignal(one) for one in (signal.SIGTERM, signal.SIGINT)]
    monkeypatch.setattr(subprocess, "Popen", Draining)
    serve_here(ServeHere(config=CONFIG, examples=tmp_path), stop=stop)
    assert sent == [signal.SIGINT, signal.SIGTERM]
    assert before == [signal.getsignal(one) for one in (signal.SIGTERM, signal.SIGINT)]


def test_panels_are_painted_by_the_small_sdxl_base_and_its_adapter(config: dict[str, Any]) -> None:
    paint, panels = ServeDeploySchema(**config).applications
    assert (panels.route_prefix, panels.import_path) == ("/panels", paint.import_path)
    args = PaintArgs(**panels.args)
    assert args.base == "toy-sdxl" and args.http == PaintArgs(**paint.args).http
    assert [path.name for path in Path(args.registry_settings.root).iterdir()] == ["panels"]
    assert args.registry_settings.max_rank == 64, "what train_panel_lora makes by default fits"
    assert [d.name for d in panels.deployments] == [d.name for d in paint.deployments]


def test_the_photoshoot_that_it_shows_is_accepted_too() -> None:
    lines = CONFIG.read_text().splitlines()
    first = lines.index("  # - name: photoshoot")
    last = next(number for number in range(first, len(lines)) if not lines[number])
    shown = [line.replace("  # ", "  ", 1) for line in lines[first:last]]
    app = ServeDeploySchema(**yaml.safe_load("\n".join([*lines[:first], *shown]))).applications[-1]
    assert (app.route_prefix, app.import_path) == ("/shoot", f"{photoshoot.__name__}:build")
    args = photoshoot.PhotoshootArgs(**app.args)
    assert (args.pictures.control, args.finder.finder) == ("depth", "grounding-dino")
    ingress = photoshoot.build(photoshoot.PhotoshootArgs())._bound_deployment
    behind = [bound._bound_deployment.name for bound in ingress.init_args[1:]]
    assert {d.name for d in app.deployments} == set(behind) == {"painters", "finders"}


def test_the_model_of_ones_own_that_it_shows_is_accepted_too() -> None:
    lines = CONFIG.read_text().splitlines()
    first = next(number for number, line in enumerate(lines) if line == "  # - name: ddpm")
    shown = [line.replace("  # ", "  ", 1) for line in lines[first:]]
    schema = ServeDeploySchema(**yaml.safe_load("\n".join([*lines[:first], *shown])))
    app = schema.applications[-1]
    assert (app.route_prefix, app.import_path) == ("/ddpm", f"{build.__module__}:{build.__name__}")
    args = DdpmArgs(**app.args)
    assert args.model == "runs/mine"
    assert [d.name for d in app.deployments] == [build(args)._bound_deployment.name]
