"""Nobody waits in silence: plans leave a CPU for reading, and what cannot fit is refused with the numbers."""

import pytest
import yaml

from inpaint.cluster import (
    Needs,
    Node,
    autoscaler_nodes,
    check_fits,
    cluster_nodes,
    connect,
    embedded_store_bytes,
    nodes_hold,
    plan_workers,
    usable_cores,
    worker_threads,
)
from inpaint.errors import ClusterTooSmall, InpaintError

LAPTOP = (Node(2),)
GIB = 1024**3


@pytest.mark.parametrize(
    ("workers", "nodes", "cpus"),
    [
        (1, LAPTOP, 1.0),
        (2, LAPTOP, 0.5),
        (4, LAPTOP, 0.25),
        (2, (Node(16),), 6.0),
        (2, (Node(4), Node(4), Node(4)), 4.0),
        (3, (Node(0), Node(4), Node(4)), 2.0),
    ],
)
def test_plan_leaves_a_cpu_for_reading(workers: int, nodes: tuple[Node, ...], cpus: float) -> None:
    assert plan_workers(workers, use_gpu=False, nodes=nodes) == cpus
    assert nodes_hold(Needs(workers=workers, cpus_per_worker=cpus, data_cpus=1), nodes)


@pytest.mark.parametrize("workers", range(1, 9))
@pytest.mark.parametrize("cpus", [2, 3, 4, 7, 16, 96])
def test_every_plan_on_one_machine_fits_it(workers: int, cpus: int) -> None:
    nodes = (Node(cpus, 8),)
    for use_gpu in (False, True):
        needs = Needs(
            workers=workers,
            cpus_per_worker=plan_workers(workers, use_gpu, nodes),
            gpus_per_worker=float(use_gpu),
            data_cpus=1,
        )
        check_fits(needs, nodes)


def test_gpu_workers_ask_for_few_cpus() -> None:
    assert plan_workers(4, use_gpu=True, nodes=(Node(96, 8),)) == 4.0
    assert plan_workers(2, use_gpu=True, nodes=(Node(8), Node(4, 1), Node(4, 1))) == 4.0


def test_a_share_of_a_gpu_is_of_a_single_one() -> None:
    assert [Node(8, 2).room(1, gpus) for gpus in (0, 0.25, 0.5, 0.6, 1, 2)] == [8, 8, 4, 2, 2, 1]
    assert Node(1, 2).room(1, 0.5) == 1
    with pytest.raises(ClusterTooSmall):
        check_fits(Needs(workers=3, cpus_per_worker=1, gpus_per_worker=0.6, data_cpus=0), (Node(8, 2),))


def test_missing_gpus_are_named() -> None:
    needs = Needs(workers=2, cpus_per_worker=1, gpus_per_worker=1)
    with pytest.raises(ClusterTooSmall, match=r"lacks 2 more GPU \(2 asked, 0 there\)"):
        check_fits(needs, (Node(8),))


def test_missing_cpu_for_reading_is_named() -> None:
    with pytest.raises(ClusterTooSmall, match=r"1 CPU left for reading.*1 more CPU \(3 asked, 2 there\)"):
        check_fits(Needs(workers=2, cpus_per_worker=1), LAPTOP)


def test_machines_too_small_each_are_named() -> None:
    with pytest.raises(ClusterTooSmall, match="machines large enough.*4 CPU"):
        check_fits(Needs(workers=2, cpus_per_worker=6), (Node(4),) * 8)


def test_an_empty_cluster_is_too_small() -> None:
    assert plan_workers(2, use_gpu=False, nodes=()) == 1.0
    with pytest.raises(ClusterTooSmall, match="3 more CPU"):
        check_fits(Needs(workers=2, cpus_per_worker=1), ())


def test_on_kuberay_whose_limits_are_unknown_it_warns(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setenv("RAY_USAGE_STATS_KUBERAY_IN_USE", "1")
    check_fits(Needs(workers=2, cpus_per_worker=1, gpus_per_worker=1), (Node(8),))
    assert "2 more GPU" in caplog.text


@pytest.mark.parametrize("bad", [{"workers": 0}, {"cpus_per_worker": 0}, {"gpus_per_worker": -1}])
def test_nonsense_needs_are_our_own_error(bad: dict[str, float]) -> None:
    with pytest.raises(AssertionError, match=next(iter(bad))):
        Needs(**{"workers": 1, "cpus_per_worker": 1, **bad})  # type: ignore[arg-type]


def test_a_cluster_that_grows_from_zero_gpus_is_not_refused() -> None:
    config = yaml.safe_load(
        """
        max_workers: 8
        head_node_type: head
        available_node_types:
          head: {resources: {CPU: 0}}
          cpu: {resources: {CPU: 8}, min_workers: 0, max_workers: 4}
          gpu: {resources: {CPU: 8, GPU: 1}, min_workers: 0}
        """
    )
    nodes = autoscaler_nodes(config)
    assert nodes is not None
    assert sorted(nodes, key=lambda n: (n.gpus, n.cpus)) == [Node(0), *[Node(8)] * 4, *[Node(8, 1)] * 8]
    check_fits(Needs(workers=4, cpus_per_worker=4, gpus_per_worker=1), nodes)


def test_unknown_machine_sizes_are_not_guessed() -> None:
    assert autoscaler_nodes({}) is None
    assert autoscaler_nodes({"available_node_types": {"gpu": {"max_workers": 2}}}) is None


def test_threads_stay_within_what_a_process_has() -> None:
    assert worker_threads(0.5) == 1
    assert worker_threads(1.9) == 1
    assert worker_threads(10_000) == usable_cores()


def test_the_embedded_store_is_bounded() -> None:
    assert embedded_store_bytes(4 * GIB) == int(0.3 * 4 * GIB)
    assert embedded_store_bytes(512 * GIB) == 2 * GIB


def test_the_address_of_a_job_server_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    import ray

    monkeypatch.setattr(ray, "is_initialized", lambda: False)
    monkeypatch.setenv("RAY_ADDRESS", "http://127.0.0.1:8265")
    with pytest.raises(InpaintError, match="ray job submit"):
        connect()


def test_reading_runs_beside_planned_workers_and_waits_beside_greedy_ones(ray_cluster: None) -> None:
    """Why `plan_workers` exists: with every logical CPU taken, Ray Data waits without a word."""
    import ray

    @ray.remote
    class Worker:
        def read(self) -> int:
            return sum(len(batch["id"]) for batch in ray.data.range(32).map_batches(lambda b: b).iter_batches())

    def reads(cpus: float, seconds: float) -> bool:
        workers = [Worker.options(num_cpus=cpus).remote() for _ in range(2)]
        try:
            return ray.get([w.read.remote() for w in workers], timeout=seconds) == [32, 32]
        except ray.exceptions.GetTimeoutError:
            return False
        finally:
            for worker in workers:
                ray.kill(worker)

    assert reads(plan_workers(2, use_gpu=False, nodes=cluster_nodes()), seconds=60)
    assert not reads(1.0, seconds=5)
