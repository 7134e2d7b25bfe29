"""What is known of a request when it has been answered: one JSON line in the log, and figures for whoever counts."""

import json
import logging
import time
from dataclasses import asdict, dataclass, field

logger = logging.getLogger("inpaint.serve.requests")
"""One line per request, a JSON object with the fields of `Record`."""


@dataclass(kw_only=True)
class Record:
    """One request; filled in while it is handled."""

    id: str
    dialect: str
    """openai, a1111 or own."""
    method: str
    path: str
    key: str = ""
    """Name of the API key; `-` where none is needed."""
    model: str = ""
    """As the client named it, where it was understood."""
    pixels: int = 0
    """Of the photo."""
    n: int = 0
    """Pictures asked for."""
    steps: int = 0
    """Denoising steps taken, all pictures together."""
    status: int = 0
    """Of the answer; 499 where the client left before it, and nobody received one."""
    problem: str = ""
    """Code of the problem, where there was one."""
    bytes_in: int = 0
    bytes_out: int = 0
    seconds: float = 0.0
    queue_s: float = 0.0
    """Longest of its pictures."""
    paint_s: float = 0.0
    """Longest of its pictures."""
    held: int = 0
    """Bytes that are counted for it in memory now."""
    started: float = field(default_factory=time.monotonic, repr=False)

    def log(self) -> None:
        """Write the line."""
        values = {name: value for name, value in asdict(self).items() if name not in ("started", "held")}
        values.update({name: round(values[name], 4) for name in ("seconds", "queue_s", "paint_s")})
        logger.info(json.dumps(values))


class HttpMetrics:
    """Counts nothing; subclasses do. Called on the event loop: must not block."""

    def began(self, dialect: str) -> None:
        """A request came: one more is in flight."""

    def ended(self, record: Record) -> None:
        """It was answered, or its client left: one less is in flight."""
