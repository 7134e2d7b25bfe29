"""An adapter in the formats of others, each proven to paint what it paints here.

    python -m ray_jobs.export --adapter runs/demo/training/adapters/CDP_FOOD --to diffusers kohya merged --output export

A LoRA of others becomes an adapter of ours the same way:

    python -m ray_jobs.export --adapter style.safetensors --base BASE --to diffusers --output style
"""

from inpaint.command import command
from inpaint.recipes.exporting import ExportAdapter, export_adapter

if __name__ == "__main__":
    command(export_adapter, ExportAdapter, __doc__, say=lambda lines: lines, cluster=False)
