"""What users did wrong, one type per way of dealing with it. Each message names the value and the way out."""


class InpaintError(ValueError):
    """Bad input or settings: the message names the value, where it came from, and what to do."""


class BadRow(InpaintError):
    """One row of a dataset cannot be used: it goes to the quarantine and the run goes on.

    Args:
        field: the column or file at fault (`mask`, `prompt`, ...).
        reason: a short fixed phrase (one of `inpaint.data.quarantine.Reason`), so that reasons can be counted.
        detail: the value, and what to do about it.
    """

    def __init__(self, field: str, reason: str, detail: str) -> None:
        super().__init__(f"{field}: {reason}: {detail}")
        self.field = field
        self.reason = reason
        self.detail = detail

    def __reduce__(self) -> tuple[type["BadRow"], tuple[str, str, str]]:
        return type(self), (self.field, self.reason, self.detail)


class TooManyBadRows(InpaintError):
    """More of the dataset is in the quarantine than `max_bad_fraction` allows: nothing was trained."""


class ClusterTooSmall(InpaintError):
    """The cluster can never fit the job; the message says what is lacking."""


class ResumeMismatch(InpaintError):
    """The checkpoint belongs to another manifest or other settings; the message says what differs."""


class CheckpointCorrupt(InpaintError):
    """A checkpoint's files do not match their recorded hashes; the reader falls back to the one before."""
