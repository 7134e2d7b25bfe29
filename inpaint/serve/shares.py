"""What those who ask have of something limited: an equal share each, and what is not used belongs to the others.

Who asks is the name of an API key; where none are needed, all are one. Pure.
"""


class Shares:
    """How much of a limit each key holds.

    Guaranteed: what a key may hold does not depend on how much others hold, only on how many do, so none locks another
    out; one that is alone has all of it; n keys that come one after the other hold at most 1 + 1/2 + ... + 1/n of the
    limit, until the first ones have given back what is above their share.
    """

    def __init__(self) -> None:
        self._held: dict[str, float] = {}
        """By those that hold something."""

    def share(self, key: str, limit: float) -> float:
        """Of the limit, for a key beside those that hold something."""
        return limit / len(self._held.keys() | {key})

    def held(self, key: str) -> float:
        """By a key now."""
        return self._held.get(key, 0.0)

    def take(self, key: str, amount: float) -> None:
        """Whether it fits is for the caller to see."""
        self._held[key] = self.held(key) + amount

    def give_back(self, key: str, amount: float) -> None:
        """What was taken, all at once or in parts."""
        left = self.held(key) - amount
        if left > 1e-6:
            self._held[key] = left
        else:
            self._held.pop(key, None)
