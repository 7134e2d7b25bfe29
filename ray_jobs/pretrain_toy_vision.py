"""Make the small captioner (BLIP) and finder (CLIPSeg) of the toy world that ship with the package, from nothing.

    python -m ray_jobs.pretrain_toy_vision --output runs/toy-vision

Two minutes on a CPU, to see it run (they will not know much):

    python -m ray_jobs.pretrain_toy_vision --output runs/short --images 500 --blip.samples 1600 --clipseg.samples 1600

The full command takes some 35 minutes on one core; `python -m benchmarks.photoshoot` measures what they know.
"""

from inpaint.command import command
from inpaint.recipes.toy_vision import PretrainToyVision, pretrain_toy_vision

if __name__ == "__main__":
    command(
        pretrain_toy_vision,
        PretrainToyVision,
        __doc__,
        say=lambda made: [f"model: {folder}" for folder in made],
        cluster=False,
    )
