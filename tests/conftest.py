"""What all tests share: no network, one thread, fixed seeds, one embedded Ray for the session, quick tests first.

Where several processes run them (`make test`), each has a Ray of its own, and a file's tests run in one of them.
"""

import os

# Before torch and ray are imported: they read these once.
os.environ["OMP_NUM_THREADS"] = "1"
os.environ["HF_HUB_OFFLINE"] = "1"
os.environ["TOKENIZERS_PARALLELISM"] = "false"
os.environ["RAY_SERVE_REPLICA_AUTOSCALING_METRIC_PUSH_INTERVAL_S"] = "0.5"  # else a replica goes ten seconds later
os.environ["RAY_SERVE_HANDLE_AUTOSCALING_METRIC_PUSH_INTERVAL_S"] = "0.5"
os.environ["RAY_TRAIN_HEALTH_CHECK_INTERVAL_S"] = "0.2"  # else a training's end is seen two seconds late
os.environ.pop("RAY_ADDRESS", None)

import random
from collections.abc import Iterator
from pathlib import Path

import hypothesis
import numpy as np
import pytest

TESTS = Path(__file__).parent

# A busy machine is slow, not wrong.
hypothesis.settings.register_profile("inpaint", deadline=None, suppress_health_check=[hypothesis.HealthCheck.too_slow])
hypothesis.settings.load_profile("inpaint")


@pytest.fixture(autouse=True)
def _seeds() -> None:
    """Global generators in a known state, for the libraries that use them; our own code never does."""
    import torch

    random.seed(0)
    np.random.seed(0)
    torch.manual_seed(0)


@pytest.fixture(scope="session")
def ray_cluster() -> Iterator[None]:
    """The embedded Ray cluster with 2 logical CPUs, started once per session and ended with it."""
    import ray

    from inpaint.cluster import connect

    connect(num_cpus=2)
    yield
    ray.shutdown()


@pytest.fixture(scope="session")
def process_group(tmp_path_factory: pytest.TempPathFactory) -> Iterator[None]:
    """torch's group of this process alone, for the session: DeepSpeed remembers groups of one that has ended."""
    import torch.distributed as dist

    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("LOCAL_RANK", "0")
        store = tmp_path_factory.mktemp("group") / "store"
        dist.init_process_group("gloo", init_method=f"file://{store}", rank=0, world_size=1)
        yield
        dist.destroy_process_group()


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Order: rules, units without Ray, units with Ray, jobs, so that what fails fast fails first."""
    for item in items:
        if "ray_cluster" in getattr(item, "fixturenames", ()):
            item.add_marker(pytest.mark.ray)
        if _room(item) == "jobs":
            item.add_marker(pytest.mark.jobs)
    items.sort(key=_rank)


def _rank(item: pytest.Item) -> tuple[int, bool]:
    rooms = ("rules", "unit", "jobs", "chaos")
    room = _room(item)
    return (rooms.index(room) if room in rooms else len(rooms), item.get_closest_marker("ray") is not None)


def _room(item: pytest.Item) -> str:
    return item.path.relative_to(TESTS).parts[0]
