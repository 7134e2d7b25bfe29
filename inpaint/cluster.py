"""Joining a Ray cluster or starting the embedded one; what a job needs and what a cluster can give.

Guarantees: a job that can never run says so before it waits (`check_fits`); reading always keeps at least one
logical CPU beside the training workers (`plan_workers`), without which Ray Data waits for ever and says nothing.
Not covered: a cluster that is merely busy. Then Ray queues the job, as it should.
"""

import logging
import math
import os
import sys
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import psutil
import ray
import yaml

from inpaint.errors import ClusterTooSmall, InpaintError

GPU_WORKER_CPUS = 4
"""CPUs that a worker with a GPU can use: launching kernels takes one, the rest go to hashing and checkpoints."""
GIGA = 1e9
_MAX_NODES = 1000
_CHECKOUT = Path(__file__).resolve().parent.parent


@dataclass(frozen=True)
class Node:
    """What one machine offers to Ray, in logical CPUs and GPUs."""

    cpus: float
    gpus: float = 0.0
    memory: float = math.inf
    """Bytes that its processes may ask for; inf: nobody says."""

    def room(self, cpus: float, gpus: float, memory: float = 0.0) -> int:
        """How many processes of so many CPUs, GPUs and bytes it holds at once; a share of a GPU is one of a single
        GPU."""
        room = int(self.cpus / cpus + 1e-9)
        if memory and self.memory < math.inf:
            room = min(room, int(self.memory / memory))
        if not gpus:
            return room
        return min(room, int(self.gpus / gpus + 1e-9) if gpus >= 1 else int(self.gpus) * int(1 / gpus + 1e-9))


@dataclass(frozen=True, kw_only=True)
class Needs:
    """What a job asks of a cluster."""

    workers: int
    """Training workers, all alike, >= 1."""
    cpus_per_worker: float
    """Logical CPUs of each worker, > 0; fractions share a core."""
    gpus_per_worker: float = 0.0
    """GPUs of each worker; 0 trains on CPUs."""
    memory_per_worker: float = 0.0
    """Bytes that each worker asks for; 0: none are asked for."""
    data_cpus: int = 1
    """CPUs that must stay free for reading and decoding, >= 1 where Ray Data feeds the workers."""

    def __post_init__(self) -> None:
        assert self.workers >= 1 and self.cpus_per_worker > 0 and min(self.gpus_per_worker, self.data_cpus) >= 0, self


def connect(*, num_cpus: int | None = None, dashboard: bool = False) -> None:
    """Join the cluster that RAY_ADDRESS names (`ray job submit` sets it), else start an embedded one.

    It never joins a cluster that merely runs on this machine. The embedded cluster ends with the process. Its ports
    are open on every network interface (Ray 2.60 binds them so, whatever address it is given): what guards them is
    token authentication, on unless RAY_AUTH_MODE says otherwise. Calling `connect` again does nothing.

    Args:
        num_cpus: logical CPUs of an embedded cluster; None: the machine's, but at least 2, since reading and
            training need one each. Ignored when a cluster is joined.
        dashboard: whether an embedded cluster serves its dashboard (on 127.0.0.1).

    Raises:
        InpaintError: RAY_ADDRESS is the address of a job server.
        ConnectionError: no cluster answers at RAY_ADDRESS.
    """
    if ray.is_initialized():
        return
    address = os.environ.get("RAY_ADDRESS", "")
    if address.startswith(("http://", "https://")):
        raise InpaintError(
            f"RAY_ADDRESS is {address}, the address of a job server: send the command there with "
            "`ray job submit --working-dir . -- python -m ray_jobs...`, or unset RAY_ADDRESS to run it on this machine"
        )
    # Ray 2.60 turns token authentication on by itself here and warns about it. Setting RAY_AUTH_MODE instead would be
    # too late once ray is imported: no token is made, and its server dies for lack of one.
    logging.getLogger("ray._private.authentication.authentication_token_setup").setLevel(logging.ERROR)
    logging.getLogger("ray.data").setLevel(logging.WARNING)
    logging.getLogger("ray.data._internal.progress").setLevel(logging.ERROR)  # says that its bars are off, as they are
    # What workers have to say reaches the driver as errors, or through the run's channel; their raw output is a flood.
    quiet = {"logging_level": logging.WARNING, "log_to_driver": False}
    if address not in ("", "local"):
        # Workers need this package; `ray job submit` has sent it along.
        own = "RAY_JOB_CONFIG_JSON_ENV_VAR" not in os.environ and (_CHECKOUT / "pyproject.toml").is_file()
        package = {"py_modules": [str(_CHECKOUT / "inpaint")]} if own else None
        ray.init(address=address, runtime_env=package, **quiet)
        return
    # Ray Train would start a process that asks whether machines are about to be taken away: this one is not.
    os.environ.setdefault("RAY_TRAIN_ENABLE_PREEMPTION_WATCHER", "0")
    python_path = os.pathsep.join(filter(None, (str(_CHECKOUT), os.environ.get("PYTHONPATH"))))
    ray.init(
        address="local",
        num_cpus=num_cpus or max(2, usable_cores()),
        include_dashboard=dashboard,
        dashboard_host="127.0.0.1",
        object_store_memory=embedded_store_bytes(psutil.virtual_memory().total),
        runtime_env={"env_vars": {"PYTHONPATH": python_path}},
        **quiet,
    )


def embedded_store_bytes(memory: int) -> int:
    """Size of the embedded cluster's object store on a machine with `memory` bytes; it spills to disk beyond that."""
    return min(2 * 1024**3, int(0.3 * memory))


def cluster_nodes() -> tuple[Node, ...]:
    """The machines that the connected cluster has, or can grow to where an autoscaler's limits are known."""
    # Ray 2.60 fills `ray._private.state.get_cluster_config` on managed platforms only: a cluster of `ray up` has its
    # limits in the file from which its autoscaler runs, on the head, where jobs run too.
    bootstrap = Path("~/ray_bootstrap_config.yaml").expanduser()
    if os.environ.get("RAY_ADDRESS") and bootstrap.is_file():
        most = autoscaler_nodes(yaml.safe_load(bootstrap.read_text()))
        if most is not None:
            return most
    return tuple(_node(n["Resources"]) for n in ray.nodes() if n["Alive"])


def check_fits(needs: Needs, nodes: Sequence[Node]) -> None:
    """Refuse a job that the machines could never run, even when idle and fully grown; on KubeRay, warn.

    Raises:
        ClusterTooSmall: naming what is asked, what there is and what is short.
    """
    if nodes_hold(needs, nodes):
        return
    cpus, gpus, memory = sum(n.cpus for n in nodes), sum(n.gpus for n in nodes), sum(n.memory for n in nodes) / GIGA
    shapes = ", ".join(_told(n.cpus, n.gpus, n.memory) for n in sorted(set(nodes), key=lambda n: -n.cpus))
    short = [
        f"{want - have:.4g} more {kind} ({want:.4g} asked, {have:.4g} there)"
        for kind, want, have in (
            ("CPU", needs.workers * needs.cpus_per_worker + needs.data_cpus, cpus),
            ("GPU", needs.workers * needs.gpus_per_worker, gpus),
            ("GB of memory", needs.workers * needs.memory_per_worker / GIGA, memory),
        )
        if want > have
    ] or [f"machines large enough: in all there would be enough, but the machines have {shapes}"]
    message = (
        f"{needs.workers} worker(s) of {_told(needs.cpus_per_worker, needs.gpus_per_worker, needs.memory_per_worker)}, "
        f"with {needs.data_cpus} CPU left for reading, do not fit this cluster of {len(nodes)} machine(s): it lacks "
        f"{' and '.join(short)}. Ask for fewer workers, or raise max_workers in cluster.yaml"
    )
    if os.environ.get("RAY_USAGE_STATS_KUBERAY_IN_USE") == "1":
        # Its autoscaler keeps the limits outside Ray, so what is missing may still come.
        logging.getLogger(__name__).warning("Waiting for machines: %s", message)
        return
    raise ClusterTooSmall(message)


def _told(cpus: float, gpus: float, memory: float) -> str:
    told = f"{cpus:g} CPU + {gpus:g} GPU"
    return f"{told} + {memory / GIGA:.3g} GB" if 0 < memory < math.inf else told


def check_together(needs: Sequence[Needs], nodes: Sequence[Node]) -> None:
    """Refuse several groups of workers that do not fit side by side, though each alone does. Raises ClusterTooSmall."""
    cpus = sum(one.workers * one.cpus_per_worker + one.data_cpus for one in needs)
    for kind, wanted, there in (
        ("CPU", cpus, sum(node.cpus for node in nodes)),
        ("GPU", sum(one.workers * one.gpus_per_worker for one in needs), sum(node.gpus for node in nodes)),
    ):
        if wanted > there + 1e-6 and os.environ.get("RAY_USAGE_STATS_KUBERAY_IN_USE") != "1":
            raise ClusterTooSmall(
                f"{len(needs)} stages side by side ask for {wanted:g} {kind}, the cluster has {there:g}: give their "
                "pools fewer actors, or smaller shares"
            )


def plan_actors(
    actors: int | None, cpus: float | None, one: Needs, nodes: Sequence[Node], *, batches: int, stages: int
) -> Needs:
    """How many actors of what size, never more than batches, of each of so many stages.

    Args:
        actors: so many; None: as many as the GPUs hold, or one per CPU machine; of several stages one per GPU.
        cpus: of each; None: what its machine has, shared among them, or 1 beside a GPU.
        one: what else each needs, and what must stay free.

    Raises:
        ClusterTooSmall: they do not fit.
    """
    gpus = one.gpus_per_worker
    room = [node.room(cpus or 1.0 / stages, gpus, one.memory_per_worker) for node in nodes]
    if stages > 1 and gpus:
        room = [min(count, int(node.gpus)) for node, count in zip(nodes, room, strict=True)]
    most = sum(room) if gpus else sum(count > 0 for count in room)
    workers = min(actors or max(1, most), batches)
    planned = 1.0 if gpus else max(1.0, plan_workers(workers, False, nodes, one.data_cpus, one.memory_per_worker))
    needs = replace(one, workers=workers, cpus_per_worker=cpus or planned / stages)
    check_fits(needs, nodes)
    return needs


def nodes_hold(needs: Needs, nodes: Sequence[Node]) -> bool:
    """Whether idle `nodes` hold all workers at once and still have `data_cpus` whole CPUs free."""
    to_place, free_cpus = needs.workers, 0
    # Workers go to GPU machines with few CPUs first, which leaves the most whole CPUs for reading.
    for node in sorted(nodes, key=lambda n: (n.gpus == 0, n.cpus)):
        room = node.room(needs.cpus_per_worker, needs.gpus_per_worker, needs.memory_per_worker)
        here = min(room, to_place)
        to_place -= here
        free_cpus += int(node.cpus - here * needs.cpus_per_worker + 1e-9)
    return to_place == 0 and free_cpus >= needs.data_cpus


def reading_cpus(nodes: Sequence[Node]) -> int:
    """CPUs that are left for reading: a quarter, and never less than one."""
    return max(1, int(sum(n.cpus for n in nodes) // 4))


def plan_workers(
    workers: int, use_gpu: bool, nodes: Sequence[Node], data_cpus: int | None = None, memory: float = 0.0
) -> float:
    """CPUs to ask for per worker, such that `data_cpus` stay free, by default those for reading.

    Two workers on two CPUs get 0.5 each and leave one; two workers on sixteen get 6 each and leave four. A worker with
    a GPU asks for few. Args: memory: bytes that each asks for.
    """
    if data_cpus is None:
        data_cpus = reading_cpus(nodes)
    most = int((sum(n.cpus for n in nodes) - data_cpus) / workers)
    if use_gpu:
        most = min(most, GPU_WORKER_CPUS)
    for cpus in (*range(most, 0, -1), 0.5, 0.25, 0.1, 0.05, 0.01):
        needs = Needs(
            workers=workers,
            cpus_per_worker=cpus,
            gpus_per_worker=float(use_gpu),
            memory_per_worker=memory,
            data_cpus=data_cpus,
        )
        if nodes_hold(needs, nodes):
            return float(cpus)
    # Nothing fits: ask for a whole CPU each, so that `check_fits` names the shortage in plain numbers.
    return 1.0


def worker_threads(cpus: float) -> int:
    """Threads for a process that was given `cpus` logical CPUs: at least one, never more than the machine lets it run.

    More threads than cores makes a U-Net step up to 50 times slower.
    """
    return max(1, min(int(cpus), usable_cores()))


def usable_cores() -> int:
    """Cores that this process may run on: its affinity, and its container's quota."""
    cores = len(os.sched_getaffinity(0)) if sys.platform == "linux" else os.cpu_count() or 1
    quota = Path("/sys/fs/cgroup/cpu.max")
    if quota.is_file():
        allowed, _, period = quota.read_text().partition(" ")
        if allowed != "max":
            cores = min(cores, max(1, int(allowed) // int(period)))
    return cores


def autoscaler_nodes(config: Mapping[str, object]) -> tuple[Node, ...] | None:
    """The machines that a launcher configuration (`ray up`) can grow to; None where it does not say.

    Args:
        config: the parsed YAML, with `available_node_types`, `head_node_type` and `max_workers`.
    """
    types = config.get("available_node_types")
    if not isinstance(types, Mapping):
        return None
    nodes: list[Node] = []
    for name, kind in types.items():
        resources = kind.get("resources")
        if not resources:
            return None
        is_head = name == config.get("head_node_type")
        count = 1 if is_head else int(kind.get("max_workers", config.get("max_workers", 0)))
        nodes += [_node(resources)] * min(count, _MAX_NODES)
    return tuple(nodes)


def _node(resources: Mapping[str, float]) -> Node:
    memory = resources.get("memory")
    return Node(
        cpus=float(resources.get("CPU", 0)),
        gpus=float(resources.get("GPU", 0)),
        memory=math.inf if memory is None else float(memory),
    )
