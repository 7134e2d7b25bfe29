"""What the deployments use of Ray Serve beyond its public interface, all of it, so that another version is looked at
here.

Tried on Ray 2.60 (`tests/unit/serve/test_serve_internals.py` says so).
"""

from concurrent.futures import ThreadPoolExecutor

from ray.exceptions import NodeDiedError, ObjectLostError, RayActorError, WorkerCrashedError
from ray.serve.context import _get_global_client

from inpaint.serve.http.limits import HttpSettings

TRIED_ON = "2.60"
LOST = (RayActorError, ObjectLostError, NodeDiedError, WorkerCrashedError)
"""What a call on a replica that has died raises."""


def listening(settings: HttpSettings) -> HttpSettings:
    """The settings with the address that Serve's proxies really listen on, by which it is judged whether keys are
    needed; called in a replica."""
    with ThreadPoolExecutor(1) as thread:  # Ray warns of its calls on an event loop, where Serve makes replicas
        host = thread.submit(lambda: _get_global_client().http_config.host).result()
    return settings.model_copy(update={"host": host}) if host else settings
