"""The service under an open-loop load of 16 categories, beside a diffusers pipeline behind Ray Serve.

    python -m benchmarks.serving                        # eight minutes on 2 cores; expects ratios >= 1.3, share >= 0.85
    python -m benchmarks.serving --seconds 5 --rounds 1 # three minutes
    python -m benchmarks.serving --gpu sd15-inpaint     # real architectures, random weights, on a GPU

Three services stand side by side on one Ray, idle but for the one that is measured: ours, `set_adapters` per request,
and `serve.multiplexed` (`benchmarks/rivals.py`). Same base, adapters, photos, steps, precision and torch threads; the
painter has the threads, HTTP and the load generator share the other core. Saturation is answers per second while more
comes than can be done, rounds taken in turn; the table has p50, p95 and p99 at shares of what `set_adapters` can do.
`share_of_ceiling` is the U-Net rows per second of our engine at saturation over those of bare U-Net forwards at full
batch on as many threads, measured in between while nothing else runs.
"""

import argparse
import base64
import dataclasses
import io
import os
import socket
import tempfile
import threading
import time
from collections.abc import Sequence
from pathlib import Path
from statistics import median
from typing import Any

os.environ.setdefault("OMP_NUM_THREADS", "1")
# Ray runs its workers at niceness 15; here all three services have the priority of the bare forwards beside them.
os.environ.setdefault("RAY_worker_niceness", "0")

import numpy as np
import ray
import torch
from PIL import Image
from ray import serve
from ray.serve.config import HTTPOptions

from benchmarks.harness import emit, progress
from benchmarks.load import Load, Target, http_request, run_load
from benchmarks.rivals import Multiplexed, SetAdapters
from benchmarks.serving_setup import CATEGORIES, Bench, toy_bench, write_bench
from inpaint.cluster import connect
from inpaint.models.base import DTYPES, load_base
from inpaint.serve.adapters.registry import RegistrySettings
from inpaint.serve.admission import AdmissionSettings
from inpaint.serve.apps.paint import PaintArgs
from inpaint.serve.deployments.ingress import Ingress
from inpaint.serve.deployments.painters import Painters
from inpaint.serve.engine.engine import EngineStats
from inpaint.serve.engine.settings import EngineSettings
from inpaint.serve.http.limits import HttpSettings

OURS, SET, MULTIPLEXED = "ours", "set_adapters", "multiplexed"
SHARES = (0.4, 0.7, 0.9, 1.2)
"""Loads of the table, as shares of what `set_adapters` answers at saturation."""
WARM_S = 4.0
PATIENCE_S = 60.0


def deploy(bench: Bench, folder: Path, rows: int) -> dict[str, Target]:
    """The three services on one port."""
    with socket.create_server(("127.0.0.1", 0)) as free:
        port = free.getsockname()[1]
    serve.start(http_options=HTTPOptions(host="127.0.0.1", port=port))
    args = PaintArgs(
        base=bench.base,
        precision=bench.precision,
        threads=bench.threads,
        registry=RegistrySettings(root=str(bench.adapters), cache=str(folder / "cache")),
        engine=EngineSettings(max_rows=rows, max_rank=bench.rank),
        admission=AdmissionSettings(queue_per_painter=1e9),
        http=HttpSettings(max_in_flight=4096),
    )
    gpus = 0.3 if bench.device == "cuda" else 0
    given: dict[str, Any] = {"num_cpus": 0.5, "num_gpus": gpus}
    ours = Ingress.options(ray_actor_options={"num_cpus": 0.3}).bind(
        args, Painters.options(ray_actor_options=given).bind(args)
    )
    serve.run(ours, name=OURS, route_prefix="/")
    plain = (bench.rival_base, str(bench.adapters), bench.threads, bench.precision, bench.device)
    rivals: dict[str, Any] = {SET: SetAdapters, MULTIPLEXED: Multiplexed}
    for name, rival in rivals.items():
        app = rival.options(ray_actor_options=given).bind(*plain)
        serve.run(app, name=name, route_prefix=f"/{name}")
    return {OURS: Target(port, "/paint"), SET: Target(port, f"/{SET}"), MULTIPLEXED: Target(port, f"/{MULTIPLEXED}")}


def bodies(bench: Bench, target: Target) -> list[bytes]:
    """Requests over all categories, in turn."""
    requests = []
    for number in range(4 * len(CATEGORIES)):
        photo, hole = bench.photo(number)
        fields = {
            "image": _base64(photo),
            "mask": _base64(hole),
            "category": CATEGORIES[number % len(CATEGORIES)],
            "prompt": bench.prompt,
            "seed": number,
            "steps": bench.steps,
            "guidance_scale": bench.guidance_scale,
        }
        requests.append(http_request(target, fields))
    return requests


def bare_rows_per_second(bench: Bench, rows: int, seconds: float) -> float:
    """U-Net rows per second of forwards at full batch, and nothing else."""
    torch.set_num_threads(bench.threads)
    base = load_base(bench.base, dtype=DTYPES[bench.precision], device=bench.device)
    unet = base.unet.to(memory_format=torch.channels_last)
    side, width = unet.config.sample_size, unet.config.cross_attention_dim
    latents = torch.randn(rows, base.info.in_channels, side, side).to(base.device, base.dtype)
    latents = latents.to(memory_format=torch.channels_last)
    text = torch.randn(rows, base.tokenizers[0].model_max_length, width).to(base.device, base.dtype)
    timesteps = torch.full((rows,), 500, device=base.device)
    extra: dict[str, Any] = {}
    if base.info.is_xl:
        pooled = torch.randn(rows, base.text_encoders[1].config.projection_dim).to(base.device, base.dtype)
        extra = {"added_cond_kwargs": {"text_embeds": pooled, "time_ids": torch.zeros_like(pooled[:, :6])}}

    def forwards(for_seconds: float) -> float:
        begin, count = time.monotonic(), 0
        while (passed := time.monotonic() - begin) < for_seconds:
            unet(latents, timesteps, encoder_hidden_states=text, **extra)
            if bench.device == "cuda":
                torch.cuda.synchronize()
            count += rows
        return count / passed

    with torch.inference_mode():
        forwards(1.0)
        return forwards(seconds)


@dataclasses.dataclass(frozen=True)
class Saturation:
    """What a service does while more comes than it can do."""

    answers_per_s: float
    rows_per_s: float = 0.0
    """U-Net rows of our engine."""
    rows_per_tick: float = 0.0
    stages: dict[str, float] = dataclasses.field(default_factory=dict)
    """Share of the time that our engine's loop spent on each."""


def saturation(target: Target, requests: Sequence[bytes], guess: float, seconds: float, seed: int) -> Saturation:
    """Send half more than `guess` answers per second."""
    looks: list[tuple[float, EngineStats]] = []

    def look() -> None:
        stats = serve.get_deployment_handle("painters", OURS).broadcast("stats").results(timeout_s=PATIENCE_S)
        looks.append((time.monotonic(), stats[0]))

    timers = [threading.Timer(after, look) for after in (WARM_S, WARM_S + seconds) if target.path == "/paint"]
    for timer in timers:
        timer.start()
    load = run_load(target, requests, 1.5 * guess, WARM_S + seconds, seed=seed, patience=1.0)
    for timer in timers:
        timer.join()
    settle(target, requests)
    rate = load.throughput(WARM_S, WARM_S + seconds)
    if not looks:
        return Saturation(rate)
    (t0, first), (t1, last) = looks
    rows, ticks = last.rows - first.rows, last.ticks - first.ticks
    stages = {stage: (last.seconds[stage] - first.seconds[stage]) / (t1 - t0) for stage in last.seconds}
    return Saturation(rate, rows / (t1 - t0), rows / max(1, ticks), stages)


def guessed_rate(target: Target, requests: Sequence[bytes]) -> float:
    """Answers per second of 32 requests that come at once."""
    load = run_load(target, requests, 1000.0, 0.032, seed=0, patience=PATIENCE_S)
    return load.done_at_N.size / float(load.done_at_N.max())


def settle(target: Target, requests: Sequence[bytes]) -> None:
    """Until what was left behind is done: one request alone, answered."""
    load = run_load(target, requests[:1], 1000.0, 0.02, seed=1, patience=PATIENCE_S)
    assert load.failed < load.done_at_N.size + load.failed, f"{target.path} does not answer"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--seconds", type=float, default=12.0, help="of each measurement")
    parser.add_argument("--rounds", type=int, default=3, help="of saturation, in turn")
    parser.add_argument("--rows", type=int, default=16, help="U-Net rows per tick, at most")
    parser.add_argument("--threads", type=int, default=1, help="torch threads of each painter")
    parser.add_argument("--gpu", default=None, help="sd15-inpaint or sdxl-inpaint: random weights, on a GPU")
    args = parser.parse_args()
    with tempfile.TemporaryDirectory(prefix="serving-") as temporary:
        folder = Path(temporary)
        bench = toy_bench(folder, args.threads) if args.gpu is None else write_bench(args.gpu, folder, args.threads)
        connect(num_cpus=4)
        try:
            measure(bench, folder, args.rows, args.seconds, args.rounds)
        finally:
            serve.shutdown()
            ray.shutdown()


def measure(bench: Bench, folder: Path, rows: int, seconds: float, rounds: int) -> None:
    """Deploy, measure, report."""
    targets = deploy(bench, folder, rows)
    requests = {name: bodies(bench, target) for name, target in targets.items()}
    guesses: dict[str, float] = {}
    for name, target in targets.items():
        for _ in range(2):  # in the first, every category is loaded and every kernel chosen
            guesses[name] = guessed_rate(target, requests[name])
        settle(target, requests[name])
    progress("warm: " + ", ".join(f"{name} {rate:.2f}/s" for name, rate in guesses.items()))
    rates: dict[str, list[float]] = {name: [] for name in targets}
    ours: list[Saturation] = []
    ceilings: list[float] = []
    for number in range(rounds):
        ceilings.append(bare_rows_per_second(bench, rows, seconds / 2))
        for name in sorted(targets, reverse=number % 2 == 1):
            reached = saturation(targets[name], requests[name], guesses[name], seconds, number)
            rates[name].append(reached.answers_per_s)
            guesses[name] = max(guesses[name], reached.answers_per_s)
            if name == OURS:
                ours.append(reached)
        told = ", ".join(f"{name} {rates[name][-1]:.2f}/s" for name in targets)
        progress(f"round {number + 1}: {told}; ceiling {ceilings[-1]:.0f} rows/s, ours {ours[-1]}")
    shares = [reached.rows_per_s / ceiling for reached, ceiling in zip(ours, ceilings, strict=True)]
    table = latencies(targets, requests, median(rates[SET]), seconds)
    figures = {
        "throughput_ratio_vs_set_adapters": median(a / b for a, b in zip(rates[OURS], rates[SET], strict=True)),
        "throughput_ratio_vs_multiplexed": median(a / b for a, b in zip(rates[OURS], rates[MULTIPLEXED], strict=True)),
        "share_of_ceiling": median(shares),
        "ahead_at_every_load": float(ahead(table)),
        **equal_p95(table),
    }
    details: dict[str, Any] = {"requests_per_s": rates, "shares": shares, "ceiling_rows_per_s": ceilings}
    details |= {"ours": [dataclasses.asdict(reached) for reached in ours]}
    emit(
        "serving",
        figures,
        **details,
        loads=table,
        bench=dataclasses.asdict(bench)
        | {"base": Path(bench.base).name, "rival_base": Path(bench.rival_base).name}
        | {"adapters": len(CATEGORIES), "max_rows": rows},
    )


def latencies(
    targets: dict[str, Target], requests: dict[str, list[bytes]], rival_rate: float, seconds: float
) -> list[dict[str, Any]]:
    """p50, p95 and p99 of each service at each load."""
    table = []
    for share in SHARES:
        for name, target in targets.items():
            load: Load = run_load(target, requests[name], share * rival_rate, seconds, seed=7, patience=PATIENCE_S)
            settle(target, requests[name])
            row = {"service": name, "share": share, "offered": load.offered, "failed": load.failed}
            row |= {f"p{int(100 * p)}": load.percentile(p) for p in (0.5, 0.95, 0.99)}
            table.append(row)
            progress(f"{share:.1f} x {rival_rate:.2f}/s, {name}: p50 {row['p50']:.2f} s, p95 {row['p95']:.2f} s")
    return table


def ahead(table: list[dict[str, Any]]) -> bool:
    """Whether our p95 is the lowest at every load."""
    by_share: dict[float, dict[str, float]] = {}
    for row in table:
        by_share.setdefault(row["share"], {})[row["service"]] = row["p95"]
    return all(p95[OURS] <= min(p95[SET], p95[MULTIPLEXED]) for p95 in by_share.values())


def equal_p95(table: list[dict[str, Any]]) -> dict[str, float]:
    """The highest load at which each service keeps the p95 that `set_adapters` has at 0.7 of its own saturation."""
    limit = next(row["p95"] for row in table if row["service"] == SET and row["share"] == 0.7)
    kept = dict.fromkeys((OURS, SET, MULTIPLEXED), 0.0)
    for row in table:
        if row["p95"] <= limit:
            kept[row["service"]] = max(kept[row["service"]], row["offered"])
    return {f"requests_per_s_at_equal_p95_{name}": rate for name, rate in kept.items()}


def _base64(picture: np.ndarray) -> str:
    file = io.BytesIO()
    Image.fromarray(picture).save(file, format="PNG")
    return base64.b64encode(file.getvalue()).decode()


if __name__ == "__main__":
    main()
