"""Serves `serve_config.yaml` on a Ray cluster of its own on this machine, until Ctrl-C or SIGTERM: it finishes
what it has, a second one ends it at once.

    python -m ray_jobs.serve

The same as `serve run --address local serve_config.yaml`, with a photo and a hole to try it on and the commands that
paint them, printed once the service answers (half a minute). On a cluster: `serve deploy serve_config.yaml`.
"""

from inpaint.command import command
from inpaint.serve.local import ServeHere, serve_here

if __name__ == "__main__":
    command(serve_here, ServeHere, __doc__, cluster=False, say=lambda _: ["the service has ended"])
