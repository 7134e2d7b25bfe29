"""cluster.yaml: what Ray's launcher accepts, closed to the world, and large enough for the job that it is made for."""

from pathlib import Path
from typing import Any

import pytest
import yaml
from ray.autoscaler._private.util import prepare_config, validate_config

from inpaint.cluster import Needs, Node, autoscaler_nodes, check_fits, plan_workers

ROOT = Path(__file__).resolve().parents[2]


@pytest.fixture
def config() -> dict[str, Any]:
    return yaml.safe_load((ROOT / "cluster.yaml").read_text())


def test_rays_own_schema_accepts_it(config: dict[str, Any]) -> None:
    validate_config(prepare_config(config))


def test_rays_own_schema_is_not_a_rubber_stamp(config: dict[str, Any]) -> None:
    import jsonschema

    config["available_node_types"]["head"]["min_wokers"] = 1
    with pytest.raises(jsonschema.ValidationError, match="min_wokers"):
        validate_config(prepare_config(config))


def test_dashboard_and_job_server_listen_on_loopback(config: dict[str, Any]) -> None:
    start = " ".join(config["head_start_ray_commands"])
    assert "--dashboard-host=127.0.0.1" in start
    assert "0.0.0.0" not in start
    assert not config["provider"]["security_group"].get("IpPermissions")


def test_every_machine_asks_for_the_token_and_has_it(config: dict[str, Any]) -> None:
    for commands in (config["head_start_ray_commands"], config["worker_start_ray_commands"]):
        starts = [c for c in commands if "ray start" in c]
        assert len(starts) == 1
        assert starts[0].startswith("RAY_AUTH_MODE=token ray start ")
    assert "--env RAY_AUTH_MODE=token" in config["docker"]["run_options"]
    assert config["file_mounts"]["~/.ray/auth_token"] == "~/.ray/auth_token"


def test_versions_are_those_of_the_constraints(config: dict[str, Any]) -> None:
    pins = dict(line.split("==") for line in (ROOT / "constraints.txt").read_text().splitlines() if "==" in line)
    assert f"ray:{pins['ray']}-" in config["docker"]["image"]
    mounted = {remote: local for remote, local in config["file_mounts"].items() if "constraints" in remote}
    assert list(mounted.values()) == ["./constraints.txt"]
    assert all(next(iter(mounted)) in command for command in config["setup_commands"])


def test_gpus_start_at_zero_and_jobs_know_that_they_can_come(config: dict[str, Any]) -> None:
    assert config["available_node_types"]["gpu-train"]["min_workers"] == 0
    nodes = autoscaler_nodes(config)
    assert nodes is not None
    assert nodes.count(Node(8, 1)) == 8
    assert nodes.count(Node(0)) == 1
    cpus = plan_workers(8, use_gpu=True, nodes=nodes)
    check_fits(Needs(workers=8, cpus_per_worker=cpus, gpus_per_worker=1, data_cpus=16), nodes)
