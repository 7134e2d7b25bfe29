"""Serves `serve_config.yaml` on a Ray cluster of its own on this machine, until Ctrl-C.

    python -m ray_jobs.serve

The same as `serve run --address local serve_config.yaml`, with a photo and a hole to try it on and the commands that
paint them, printed once the service answers (half a minute). On a cluster: `serve deploy serve_config.yaml`.
"""

import subprocess
import sys
import urllib.error
import urllib.request
from dataclasses import dataclass
from pathlib import Path

import tyro

from inpaint.errors import InpaintError
from inpaint.serve.examples import examples, url_of, write_examples


@dataclass(frozen=True, kw_only=True)
class Serve:
    """What to serve."""

    config: Path = Path("serve_config.yaml")
    """Serve's configuration file."""
    examples: Path = Path("runs/serve")
    """Folder for a photo and a hole to try it on."""


def main(args: Serve) -> int:
    url = url_of(args.config.read_text())
    write_examples(args.examples)
    serve = subprocess.Popen([str(Path(sys.executable).with_name("serve")), "run", "--address", "local", args.config])
    try:
        while not ready(url):
            try:
                return serve.wait(1)  # it ended before it answered, and has said why
            except subprocess.TimeoutExpired:
                continue
        print(examples(url, args.examples), flush=True)
        return serve.wait()
    except KeyboardInterrupt:
        return serve.wait()  # it got the Ctrl-C, too


def ready(url: str) -> bool:
    try:
        with urllib.request.urlopen(f"{url}/ready", timeout=2):
            return True
    except (urllib.error.URLError, TimeoutError, ConnectionError):
        return False


if __name__ == "__main__":
    try:
        sys.exit(main(tyro.cli(Serve, description=__doc__)))
    except InpaintError as error:
        sys.exit(f"error: {error}")
