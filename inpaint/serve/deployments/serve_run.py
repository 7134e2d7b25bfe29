"""`serve run --address local CONFIG` that can be ended without a loss, for `python -m ray_jobs.serve`.

Serve's own shutdown ends the proxies at once, and with them what clients wait for. Here applications are deleted first:
they take nothing more, and finish what they have (up to `graceful_shutdown_timeout_s`). It ends by SIGINT, which also
comes where the process that started it dies in whatever way (Linux); then nothing is left, but what is in flight may
be lost.
"""

import ctypes
import signal
import sys
import time

from ray import serve
from ray.serve.scripts import cli

_PR_SET_PDEATHSIG = 1
_shutdown_now = serve.shutdown


def finish() -> None:
    """In place of `serve.shutdown`."""
    for name in serve.status().applications:
        serve.delete(name, _blocking=False)
    while serve.status().applications:
        time.sleep(0.2)
    _shutdown_now()


if __name__ == "__main__":
    # Shells start what runs in the background with SIGINT ignored.
    signal.signal(signal.SIGINT, signal.default_int_handler)
    if sys.platform == "linux":
        ctypes.CDLL(None).prctl(_PR_SET_PDEATHSIG, signal.SIGINT)
    serve.shutdown = finish
    cli(["run", "--address", "local", sys.argv[1]])
