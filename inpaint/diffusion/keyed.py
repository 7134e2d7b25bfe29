"""Random numbers by counter, made on the device where they are used: a function of (seed, purpose, position).

Philox-4x32-10 (Salmon et al. 2011) in integer operations of torch, so that every device draws the same words and none
waits for the CPU. Normal numbers are equal across devices but for the rounding of log, cos and sin.
Shapes: B positions; W counters of four words.
"""

import hashlib
import math
from functools import lru_cache

import torch
from torch import Tensor

_WORD = 0xFFFFFFFF
_MULTIPLIERS = (0xD2511F53, 0xCD9E8D57)
_KEY_STEPS = (0x9E3779B9, 0xBB67AE85)
_ROUNDS = 10
_GOLDEN_RATIO = 0x9E3779B9


def normal(seed: int, purpose: str, positions_B: Tensor, shape: tuple[int, ...]) -> Tensor:
    """Standard normal numbers, float32 `(B, *shape)`, on the positions' device; a row depends on its position alone.

    Box and Muller's transform (1958) of two words each. A negative position draws what position 0 draws.
    """
    count = math.prod(shape)
    first, second, third, fourth = _words(seed, purpose, positions_B, -(-count // 4))
    radius = torch.stack([first, third], 1).float().add_(0.5).mul_(2.0**-32).log_().mul_(-2).sqrt_()
    angle = torch.stack([second, fourth], 1).float().mul_(2 * math.pi * 2.0**-32)
    pairs = torch.cat([angle.cos().mul_(radius), angle.sin_().mul_(radius)], 1)
    return pairs.flatten(1)[:, :count].reshape(-1, *shape)


def spread(seed: int, purpose: str, positions_B: Tensor) -> Tensor:
    """One float64 in [0, 1) per position, on the positions' device: those of any run, or of every k-th, lie evenly.

    Multiples of the golden ratio (Weyl's sequence), from a random start.
    """
    return (positions_B * _GOLDEN_RATIO + _start(seed, purpose)).bitwise_and_(_WORD).double() * 2.0**-32


@lru_cache(maxsize=256)
def _start(seed: int, purpose: str) -> int:
    return int(_words(seed, purpose, torch.zeros(1, dtype=torch.int64), 1)[0])


def philox(key: tuple[int, int], counter: tuple[Tensor, Tensor, Tensor, Tensor]) -> tuple[Tensor, ...]:
    """Four random words of 32 bits for each counter of four words, all int64 (Salmon 2011, section 3.3)."""
    a, b, c, d = counter
    for turn in range(_ROUNDS):
        first, second = a * _MULTIPLIERS[0], c * _MULTIPLIERS[1]
        keys = [(word + turn * step) & _WORD for word, step in zip(key, _KEY_STEPS, strict=True)]
        # The products have 64 bits: the shift's sign extension is masked away.
        a, c = (
            (product >> 32).bitwise_and_(_WORD).bitwise_xor_(other).bitwise_xor_(k)
            for product, other, k in ((second, b, keys[0]), (first, d, keys[1]))
        )
        b, d = second.bitwise_and_(_WORD), first.bitwise_and_(_WORD)
    return a, b, c, d


def _words(seed: int, purpose: str, positions_B: Tensor, counters: int) -> tuple[Tensor, ...]:
    """Four times B x W words: a counter is (its number, 0, the position's low half, its high half)."""
    shape = (len(positions_B), counters)
    positions_B1 = positions_B.clamp(min=0)[:, None]
    number = torch.arange(counters, device=positions_B.device).expand(shape)
    low, high = (positions_B1 & _WORD).expand(shape), (positions_B1 >> 32).expand(shape)
    return philox(_key(seed, purpose), (number, torch.zeros_like(number), low, high))


@lru_cache(maxsize=256)
def _key(seed: int, purpose: str) -> tuple[int, int]:
    digest = hashlib.blake2b(f"{seed}/{purpose}".encode(), digest_size=8).digest()
    return int.from_bytes(digest[:4], "little"), int.from_bytes(digest[4:], "little")
