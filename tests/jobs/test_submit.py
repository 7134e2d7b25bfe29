"""The cluster road: what `ray job submit --working-dir .` uploads is enough to import and to run tasks."""

import urllib.error
import urllib.request

import pytest

from tests.jobs.conftest import RayHead

PROBE = """
import inpaint, inpaint.cluster, ray
inpaint.cluster.connect()
@ray.remote
def where():
    import inpaint
    return inpaint.__file__
print("driver", inpaint.__file__, "worker", ray.get(where.remote()), "nodes", inpaint.cluster.cluster_nodes())
"""


def test_a_submitted_job_joins_its_cluster_and_uses_the_uploaded_code(ray_head: RayHead) -> None:
    result = ray_head.submit("python", "-c", PROBE)
    assert result.succeeded, result.logs
    line = next(line for line in result.logs.splitlines() if line.startswith("driver "))
    assert line.count("working_dir_files") == 2, line
    assert "Node(cpus=2.0, gpus=0.0)" in line


def test_a_failing_job_is_seen_to_fail(ray_head: RayHead) -> None:
    result = ray_head.submit("python", "-c", "raise SystemExit('no such thing')")
    assert not result.succeeded
    assert "no such thing" in result.logs


def test_the_job_server_refuses_whoever_has_no_token(ray_head: RayHead) -> None:
    with pytest.raises(urllib.error.HTTPError, match="401|403"):
        urllib.request.urlopen(f"{ray_head.dashboard_url}/api/jobs/", timeout=10)
