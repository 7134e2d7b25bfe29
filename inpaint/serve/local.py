"""A service on this machine, with something to try it on: a photo with its hole, and the commands of three clients."""

import os
import signal
import subprocess
import sys
import urllib.request
from contextlib import suppress
from dataclasses import dataclass
from http.client import HTTPException
from pathlib import Path
from typing import Any

import numpy as np
import yaml
from PIL import Image

from inpaint.errors import InpaintError
from inpaint.heap import ENVIRONMENT
from inpaint.stopping import StopToken
from inpaint.toy.catalogue import render
from inpaint.toy.measure import HELD_OUT_SEED
from inpaint.toy.panels import SHEET_PROMPT, compose

_SIGNALS = (signal.SIGTERM, signal.SIGINT)


@dataclass(frozen=True, kw_only=True)
class ServeHere:
    """Settings of `python -m ray_jobs.serve`."""

    config: Path = Path("serve_config.yaml")
    """Serve's configuration file."""
    examples: Path = Path("runs/serve")
    """Folder for a photo and a hole to try it on."""


def serve_here(settings: ServeHere, *, stop: StopToken | None = None) -> None:
    """Serve on a Ray cluster of its own until `stop` is requested; prints examples once the service answers. Main
    thread only: SIGTERM or Ctrl-C while the service finishes what it has makes it give that up, and end.

    Raises:
        InpaintError: an unusable configuration, or the service ended by itself.
    """
    stop = stop or StopToken()
    if not settings.config.is_file():
        raise InpaintError(f"config {settings.config}: no such file; run it from the project's folder, or name one")
    url = url_of(settings.config.read_text(encoding="utf-8"))
    write_examples(settings.examples)
    command = [sys.executable, "-m", "inpaint.serve.deployments.serve_run", str(settings.config)]
    # A session of its own: a Ctrl-C reaches it once, from here.
    serve, answered = subprocess.Popen(command, env=ENVIRONMENT | os.environ, start_new_session=True), False
    try:
        while not stop.requested:
            with suppress(subprocess.TimeoutExpired):
                code = serve.wait(0.5)
                if not stop.requested:  # some send their signal to all processes at once
                    raise InpaintError(f"the service ended with exit code {code}; it has said why above")
            if not answered:
                with suppress(OSError, HTTPException), urllib.request.urlopen(f"{url}/ready", timeout=2):
                    answered = True
                    print(examples(url, settings.examples), flush=True)
    finally:
        # However this ends: nothing else ends the service.
        serve.send_signal(signal.SIGINT)
        before = {number: signal.signal(number, lambda *_: serve.terminate()) for number in _SIGNALS}
        serve.wait()
        for number, handler in before.items():
            signal.signal(number, handler)


def write_examples(folder: Path) -> None:
    """`photo.png`, `mask.png` (white = paint) and `hole.png` (transparent = paint): a toy product, all around it; and
    `sheet.png`, a composite of four views of one."""
    scene = render(HELD_OUT_SEED, 0)
    folder.mkdir(parents=True, exist_ok=True)
    mask = np.where(scene.product, 0, 255).astype(np.uint8)
    Image.fromarray(scene.image).save(folder / "photo.png")
    Image.fromarray(mask).save(folder / "mask.png")
    Image.fromarray(np.dstack([scene.image, 255 - mask])).save(folder / "hole.png")
    Image.fromarray(compose(HELD_OUT_SEED, 0).image).save(folder / "sheet.png")


def url_of(config: str) -> str:
    """Where the service of this `serve_config.yaml` answers. Raises InpaintError for what is no such file."""
    try:
        parsed: Any = yaml.safe_load(config)
        http = parsed.get("http_options", {})
        host = http.get("host", "127.0.0.1")
        return f"http://{f'[{host}]' if ':' in host else host}:{http.get('port', 8000)}"
    except (yaml.YAMLError, AttributeError) as error:
        raise InpaintError(f"not a configuration of Ray Serve: {error}") from error


def examples(url: str, folder: Path) -> str:
    """Commands, ready to paste."""
    photo, mask, hole = (folder / name for name in ("photo.png", "mask.png", "hole.png"))
    return f"""
The service answers at {url} (all it can do: {url}/docs). Try it from another terminal:

curl -o {folder}/curl.png -F image=@{photo} -F mask=@{mask} -F category=CDP_FOOD \\
    -F prompt='a blue apple' {url}/paint

curl -o {folder}/panels.png -F image=@{folder / "sheet.png"} -F panels=2,3 -F adapters=panels -F guidance_scale=6 \\
    -F prompt='{SHEET_PROMPT}' {url}/panels/paint          # the first one waits for a painter to start

python - <<'EOF'                                    # pip install openai
import base64, openai, pathlib
client = openai.OpenAI(base_url="{url}/v1", api_key="none")
answer = client.images.edit(model="CDP_COS", prompt="a blue apple",
    image=open("{photo}", "rb"), mask=open("{hole}", "rb"))
pathlib.Path("{folder}/openai.png").write_bytes(base64.b64decode(answer.data[0].b64_json))
EOF

python - <<'EOF'                                    # what A1111's clients send: the adapter as a tag in the prompt
import base64, json, pathlib, urllib.request
read = lambda name: base64.b64encode(pathlib.Path(name).read_bytes()).decode()
body = {{"prompt": "a blue apple <lora:CDP_FOOD:0.8>", "init_images": [read("{photo}")], "mask": read("{mask}"),
    "denoising_strength": 1.0, "steps": 25}}
request = urllib.request.Request("{url}/sdapi/v1/img2img", json.dumps(body).encode(),
    {{"Content-Type": "application/json"}})
answer = json.load(urllib.request.urlopen(request))
pathlib.Path("{folder}/a1111.png").write_bytes(base64.b64decode(answer["images"][0]))
EOF
"""
