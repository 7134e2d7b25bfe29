"""Commands, one per file. Nothing imports from here."""

import os

# transformers prints a page about image processors that are not used here; it reads this once, at import.
os.environ.setdefault("TRANSFORMERS_VERBOSITY", "error")
