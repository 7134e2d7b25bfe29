"""The cluster road: what `ray job submit --working-dir .` uploads is enough to import and to run tasks."""

import os
import sys
import urllib.error
import urllib.request
from pathlib import Path

import pytest

from tests.jobs.conftest import ROOT, RayHead, run

PROBE = """
import inpaint, inpaint.cluster, ray
inpaint.cluster.connect()
@ray.remote
def where():
    import inpaint
    return inpaint.__file__
address = ray.get_runtime_context().gcs_address
print("driver", inpaint.__file__, "worker", ray.get(where.remote()), inpaint.cluster.cluster_nodes(), address)
"""


def test_a_submitted_job_joins_its_cluster_and_uses_the_uploaded_code(ray_head: RayHead) -> None:
    result = ray_head.submit("python", "-c", PROBE)
    assert result.succeeded, result.logs
    assert said(result.logs).count("working_dir_files") == 2, result.logs
    assert "Node(cpus=2.0, gpus=0.0, memory=" in said(result.logs)
    assert head_port(ray_head) in said(result.logs)


def test_a_failing_job_is_seen_to_fail(ray_head: RayHead) -> None:
    result = ray_head.submit("python", "-c", "raise SystemExit('no such thing')")
    assert not result.succeeded
    assert "no such thing" in result.logs


def test_the_job_server_refuses_whoever_has_no_token(ray_head: RayHead) -> None:
    with pytest.raises(urllib.error.HTTPError, match="401|403"):
        urllib.request.urlopen(f"{ray_head.dashboard_url}/api/jobs/", timeout=10)


def test_a_local_command_joins_the_cluster_that_RAY_ADDRESS_names_and_brings_its_code(
    ray_head: RayHead, tmp_path: Path
) -> None:
    env = {**ray_head.env, "PYTHONPATH": str(ROOT), "RAY_ADDRESS": ray_head.gcs_address}
    result = run([sys.executable, "-c", PROBE], cwd=tmp_path, env=env)
    assert result.succeeded, result.logs
    assert head_port(ray_head) in said(result.logs)
    assert "py_modules_files" in said(result.logs)


def test_a_local_command_joins_no_cluster_that_merely_runs_here(ray_head: RayHead, tmp_path: Path) -> None:
    result = run([sys.executable, "-c", PROBE], cwd=tmp_path, env={**os.environ, "PYTHONPATH": str(ROOT)})
    assert result.succeeded, result.logs
    assert head_port(ray_head) not in said(result.logs)
    assert f"driver {ROOT}" in said(result.logs)


def said(logs: str) -> str:
    """The probe's own line."""
    return next(line for line in logs.splitlines() if line.startswith("driver "))


def head_port(head: RayHead) -> str:
    return f":{head.gcs_address.rpartition(':')[2]}"
