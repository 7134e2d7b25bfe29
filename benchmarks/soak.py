"""The running service under what real clients send, for ten minutes: does it leak, fail, or mix anything up?

    python -m benchmarks.soak                    # twelve minutes on 2 cores; expects the four bars below
    python -m benchmarks.soak --seconds 120      # three minutes; the first fifth is warm-up

Clients (openai's SDK, webuiapi, multipart forms, JSON, streams) ask side by side for pictures of many sizes and shapes
with 40 adapters, of which 8 fit the engine's bank; between them come bad bodies, long prompts and clients that leave.
Each adapter paints each scene in its own way: pictures painted beforehand, one by one with plain PEFT, are what the
detector compares with. `rss_growth_mb_per_1000`: growth of the memory of all of the service's processes per 1000
requests after the first two minutes, the median slope (<= 1). Looked at while nothing has been asked for some seconds,
so that what requests hold for a moment is not taken for growth; of mapped files all pages count, for in proportion they
would be fewer whenever another program on this machine maps them, too. `status_5xx`, `wrong_adapter` (the
nearest picture is another adapter's), `kept_pixels_changed` and `unexpected` (any other answer than it should be): 0.
"""

import argparse
import copy
import os
import random
import re
import socket
import tempfile
import threading
import time
from collections import Counter, defaultdict
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import asdict
from itertools import combinations
from pathlib import Path
from statistics import median
from typing import Any

from inpaint.heap import ENVIRONMENT

os.environ.setdefault("OMP_NUM_THREADS", "1")
os.environ.update(ENVIRONMENT)  # as `python -m ray_jobs.serve` starts it

import numpy as np
import psutil
import ray
from ray import serve
from ray.serve.config import HTTPOptions

from benchmarks.harness import emit, progress
from benchmarks.serving_setup import noised
from benchmarks.soak_clients import BAD, MAX_BODY, SCENES, Answer, Clients, Scene
from inpaint.cluster import connect
from inpaint.export.adapter_folder import load_adapter, save_adapter
from inpaint.models.adapter import apply_adapter
from inpaint.models.base import load_base
from inpaint.models.locate import TOY_BASE
from inpaint.paint.painter import Painter
from inpaint.paint.request import PaintRequest, SamplingSettings
from inpaint.serve.adapters.registry import RegistrySettings
from inpaint.serve.apps.paint import PaintArgs
from inpaint.serve.deployments.ingress import Ingress
from inpaint.serve.deployments.painters import Painters
from inpaint.serve.engine.settings import EngineSettings
from inpaint.serve.http.limits import HttpSettings

ADAPTERS, BANK = 40, 8
WARM_S = 120.0
SAMPLE_S, SETTLE_S = 12.0, 3.0
CATEGORIES = [f"CDP_{number:02}" for number in range(ADAPTERS)]


def write_adapters(folder: Path) -> None:
    """Copies of a shipped adapter, each far enough from the others that their pictures can be told apart."""
    shipped = load_adapter(TOY_BASE.parent / "adapters" / "CDP_COS")
    for number, category in enumerate(CATEGORIES):
        save_adapter(folder / category, noised(shipped, category, number, spread=1.0))


def start(folder: Path) -> int:
    """The service; its port."""
    with socket.create_server(("127.0.0.1", 0)) as free:
        port: int = free.getsockname()[1]
    serve.start(http_options=HTTPOptions(host="127.0.0.1", port=port))
    args = PaintArgs(
        threads=1,
        registry=RegistrySettings(root=str(folder / "adapters"), cache=str(folder / "cache")),
        engine=EngineSettings(slots=BANK, max_rank=8),
        http=HttpSettings(max_body_bytes=MAX_BODY),
    )
    painters = Painters.options(ray_actor_options={"num_cpus": 0.5}).bind(args)
    serve.run(Ingress.options(ray_actor_options={"num_cpus": 0.3}).bind(args, painters), name="soak", route_prefix="/")
    return port


class Detector:
    """Says whose picture it is, by what each adapter paints of each scene."""

    def __init__(self, adapters: Path, settings: dict[str, dict[str, object]]) -> None:
        """Args: settings: scene's name -> what the service said that it painted it with."""
        self._painted: dict[str, list[np.ndarray]] = {scene.name: [] for scene in SCENES}
        plain = load_base("toy")
        for category in CATEGORIES:
            adapter, base = load_adapter(adapters / category), copy.deepcopy(plain)
            apply_adapter(base, adapter)
            requests = [_request(scene, adapter.card.prompt(scene.prompt, category), settings) for scene in SCENES]
            for scene, picture in zip(SCENES, Painter(base).paint(requests), strict=True):
                self._painted[scene.name].append(picture[scene.hole].astype(np.int16))

    def category(self, scene: Scene, picture: np.ndarray) -> tuple[str, float]:
        """The nearest one's, and how far it is: mean difference of the hole's pixels in levels of 255."""
        seen = picture[scene.hole].astype(np.int16)
        distances = [float(np.abs(seen - one).mean()) for one in self._painted[scene.name]]
        return CATEGORIES[int(np.argmin(distances))], min(distances)

    def margin(self) -> float:
        """The least distance between two adapters' pictures of a scene."""
        pairs = (pair for painted in self._painted.values() for pair in combinations(painted, 2))
        return min(float(np.abs(one - other).mean()) for one, other in pairs)


class Gate:
    """Lets clients pause for a moment: memory is looked at while nothing is in flight, for what is then held is kept
    for nothing."""

    def __init__(self) -> None:
        self._changed = threading.Condition()
        self._open, self._inside = True, 0

    def __enter__(self) -> None:
        with self._changed:
            self._changed.wait_for(lambda: self._open)
            self._inside += 1

    def __exit__(self, *_: object) -> None:
        with self._changed:
            self._inside -= 1
            self._changed.notify_all()

    @contextmanager
    def closed(self) -> Iterator[None]:
        """While all are outside."""
        with self._changed:
            self._open = False
            self._changed.wait_for(lambda: not self._inside)
        yield
        with self._changed:
            self._open = True
            self._changed.notify_all()


class Memory(threading.Thread):
    """Samples of (requests answered so far, MB of all processes below this one)."""

    def __init__(self, gate: Gate, answered: Callable[[], int], warm_s: float) -> None:
        super().__init__(daemon=True)
        self._gate, self._answered, self._warm_s, self._stop_now = gate, answered, warm_s, threading.Event()
        self.samples: list[tuple[int, float]] = []
        self.by_process: list[dict[str, float]] = []

    def run(self) -> None:
        wait = self._warm_s
        while not self._stop_now.wait(wait):
            wait = SAMPLE_S
            with self._gate.closed():
                time.sleep(SETTLE_S)
                by_process = resident_mb()
            self.samples.append((self._answered(), sum(by_process.values())))
            self.by_process.append(by_process)

    def stop(self) -> None:
        self._stop_now.set()
        self.join()

    def growth(self, column: Sequence[float] | None = None) -> float:
        """MB per 1000 requests: the median of the slopes between all samples (Theil and Sen), which a process that
        comes or goes does not move."""
        column = column or [mb for _, mb in self.samples]
        slopes = [
            1000 * (column[j] - column[i]) / (self.samples[j][0] - self.samples[i][0])
            for i, j in combinations(range(len(self.samples)), 2)
            if self.samples[j][0] > self.samples[i][0]
        ]
        return median(slopes) if slopes else float("nan")

    def columns(self) -> dict[str, list[float]]:
        """MB of each kind of process, sample by sample."""
        names = sorted({name for one in self.by_process for name in one})
        return {name: [round(one.get(name, 0.0), 1) for one in self.by_process] for name in names}

    def growth_by_process(self) -> dict[str, float]:
        """The same for each kind of process."""
        return {name: round(self.growth(column), 3) for name, column in self.columns().items()}


def resident_mb() -> dict[str, float]:
    """MB of the processes below this one, by their titles: their own and their shared memory in proportion (only they
    share it), and all that they map of files, whoever else on this machine maps it, too."""
    found: defaultdict[str, float] = defaultdict(float)
    for process in psutil.Process().children(recursive=True):
        try:
            title = " ".join(process.cmdline()).strip() or process.name()
            if title.startswith("ray::"):
                title = re.split(r"[.(]", title)[0].strip()
            else:
                title = " ".join(Path(part).name for part in title.split()[:3] if not part.startswith("-"))
            about = Path(f"/proc/{process.pid}")
            own = _kb(about / "smaps_rollup", "Pss_Anon", "Pss_Shmem")
            found[title] += (own + _kb(about / "status", "RssFile")) / 1024
        except (psutil.NoSuchProcess, psutil.ZombieProcess, FileNotFoundError, ProcessLookupError):
            continue
    return dict(found)


def _kb(file: Path, *names: str) -> int:
    """Sum of these lines of a file below /proc."""
    lines = (line.split() for line in file.read_text().splitlines())
    return sum(int(words[1]) for words in lines if words and words[0].rstrip(":") in names)


def _request(scene: Scene, prompt: str, settings: dict[str, dict[str, object]]) -> PaintRequest:
    sampling = SamplingSettings(**settings[scene.name])  # type: ignore[arg-type]
    return PaintRequest(image=scene.photo, hole=scene.hole, prompt=prompt, seed=scene.seed, sampling=sampling)


class Soak:
    """What the clients found."""

    def __init__(self, port: int, adapters: Path) -> None:
        self.port = port
        self.counts: Counter[str] = Counter()
        self.statuses: Counter[int] = Counter()
        self.wrong: list[str] = []
        self.farthest = 0.0
        self.kept_changed = 0
        self.gate = Gate()
        self._lock = threading.Lock()
        with Clients(port) as clients:
            sampling = {scene.name: dict(clients.ask(scene, CATEGORIES[0])[0].receipt.sampling) for scene in SCENES}
        self.detector = Detector(adapters, sampling)

    def answered(self) -> int:
        return sum(self.statuses.values())

    def client(self, seed: int, until: float) -> None:
        """One of many: asks, waits, asks again."""
        rng = random.Random(seed)
        with Clients(self.port) as clients:
            while time.monotonic() < until:
                with self.gate:
                    self._ask(clients, rng)

    def _ask(self, clients: Clients, rng: random.Random) -> None:
        kind = rng.random()
        if kind < 0.1:
            bad = rng.choice(BAD)
            status = clients.send_bad(bad)
            self._count(f"bad {bad.name}", [status], None if status in bad.expected else f"{bad.name}: {status}")
        elif kind < 0.16:
            clients.leave(rng.choice(SCENES), rng.choice(CATEGORIES), after_s=rng.uniform(0, 0.4), rng=rng)
            self._count("left", [499], None)
        else:
            scene, category = rng.choice(SCENES), rng.choice(CATEGORIES)
            self._judge(scene, category, clients.ask(scene, category))

    def _judge(self, scene: Scene, category: str, answers: Sequence[Answer]) -> None:
        wrong = None
        for answer in answers:
            if answer.picture is None:
                wrong = f"{scene.name}: {answer.status} {answer.problem}"
                continue
            if answer.exact:
                changed = int((answer.picture != scene.photo).any(axis=-1)[~scene.hole].sum())
                self.kept_changed += changed
            if answer.number == 0:
                found, distance = self.detector.category(scene, answer.picture)
                self.farthest = max(self.farthest, distance)
                if found != category:
                    self.wrong.append(f"{scene.name}: {category} asked, {found} came ({distance:.2f})")
        self._count(scene.name, [answers[0].status], wrong)

    def _count(self, what: str, statuses: Sequence[int], unexpected: str | None) -> None:
        with self._lock:
            self.counts[what] += 1
            self.statuses.update(statuses)
            if unexpected:
                self.counts["unexpected"] += 1
                progress(f"unexpected: {unexpected}")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--seconds", type=float, default=600.0, help="under load")
    parser.add_argument("--clients", type=int, default=12, help="side by side")
    args = parser.parse_args()
    with tempfile.TemporaryDirectory(prefix="soak-") as temporary:
        folder = Path(temporary)
        write_adapters(folder / "adapters")
        connect(num_cpus=4)
        try:
            figures, details = measure(folder, args.seconds, args.clients)
        finally:
            serve.shutdown()
            ray.shutdown()
    # Last: what Ray says of its end would follow the line of JSON.
    emit("soak", figures, **details)


def measure(folder: Path, seconds: float, clients: int) -> tuple[dict[str, float], dict[str, Any]]:
    """Start and soak: figures and details."""
    soak = Soak(start(folder), folder / "adapters")
    progress(f"serving; two adapters' pictures of a scene differ by {soak.detector.margin():.2f} levels or more")
    memory = Memory(soak.gate, soak.answered, min(WARM_S, seconds / 5))
    until = time.monotonic() + seconds
    threads = [threading.Thread(target=soak.client, args=(seed, until)) for seed in range(clients)]
    memory.start()
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    memory.stop()
    (stats,) = serve.get_deployment_handle("painters", "soak").broadcast("stats").results(timeout_s=60)
    figures = {
        "rss_growth_mb_per_1000": memory.growth(),
        "status_5xx": sum(count for status, count in soak.statuses.items() if status >= 500),
        "wrong_adapter": len(soak.wrong),
        "kept_pixels_changed": soak.kept_changed,
        "unexpected": soak.counts["unexpected"],
        "requests": soak.answered(),
    }
    details = {
        "growth_by_process": memory.growth_by_process(),
        "memory_mb": [round(mb) for _, mb in memory.samples],
        "memory_mb_by_process": memory.columns(),
        "counts": dict(soak.counts),
        "statuses": dict(soak.statuses),
        "wrong": soak.wrong[:20],
        "farthest": soak.farthest,
        "margin": soak.detector.margin(),
        "engine": asdict(stats),
    }
    return figures, details


if __name__ == "__main__":
    main()
