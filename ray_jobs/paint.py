"""Paint the holes of a CSV's or folder's photos, or of one photo; what is outside the holes stays bit for bit.

    python -m ray_jobs.paint --data set.csv --base toy --adapter ADAPTER --output runs/painted

`set.csv`: input, mask (white = paint), output, prompt, category. Run again, it goes on. Paths may be URLs. One photo:

    python -m ray_jobs.paint --image a.jpg --mask m.png --prompt "a red box on wood" --base toy --output a_painted.png

A model of one's own has masks that are black where to fill:

    python -m ray_jobs.paint --model RUN --image image.png --mask mask.png --output output.png
"""

import sys

import tyro

from inpaint.errors import InpaintError
from inpaint.recipes.paint import Paint, paint
from inpaint.stopping import stop_on_signals

if __name__ == "__main__":
    try:
        config = tyro.cli(Paint, description=__doc__)
        with stop_on_signals() as stop:
            print(paint(config, stop=stop))
    except InpaintError as error:
        print(f"error: {error}", file=sys.stderr)
        sys.exit(2)
