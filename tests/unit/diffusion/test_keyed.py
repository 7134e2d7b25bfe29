"""Random numbers by counter: Philox's published words, the distributions, a row depends on its position alone."""

import pytest
import torch

from inpaint.diffusion.keyed import normal, philox, spread

ALL = 0xFFFFFFFF
KNOWN = [  # kat_vectors of Random123 1.14, philox4x32 with ten rounds: counter, key, answer
    ((0, 0, 0, 0), (0, 0), (0x6627E8D5, 0xE169C58D, 0xBC57AC4C, 0x9B00DBD8)),
    ((ALL, ALL, ALL, ALL), (ALL, ALL), (0x408F276D, 0x41C83B0E, 0xA20BC7C6, 0x6D5451FD)),
    (
        (0x243F6A88, 0x85A308D3, 0x13198A2E, 0x03707344),
        (0xA4093822, 0x299F31D0),
        (0xD16CFE09, 0x94FDCCEB, 0x5001E420, 0x24126EA1),
    ),
]


@pytest.mark.parametrize(("counter", "key", "answer"), KNOWN)
def test_the_words_are_philox(counter: tuple[int, ...], key: tuple[int, int], answer: tuple[int, ...]) -> None:
    a, b, c, d = (torch.tensor([word]) for word in counter)
    assert tuple(int(word) for word in philox(key, (a, b, c, d))) == answer


def test_a_row_depends_on_its_position_alone() -> None:
    together = normal(3, "noise", torch.tensor([7, 2**40, 5]), (2, 3, 5))
    for row, position in enumerate((7, 2**40, 5)):
        assert torch.equal(together[row], normal(3, "noise", torch.tensor([position]), (2, 3, 5))[0])
    assert not torch.equal(together[0], together[1])
    for other in (normal(4, "noise", torch.tensor([7]), (2, 3, 5)), normal(3, "vae", torch.tensor([7]), (2, 3, 5))):
        assert not torch.equal(together[0], other[0])


def test_numbers_are_distributed_as_they_should_be() -> None:
    drawn = normal(0, "noise", torch.arange(64), (4, 16, 16))
    assert drawn.dtype == torch.float32
    ranks = (torch.arange(drawn.numel()) + 0.5).double() / drawn.numel()
    assert float((torch.special.ndtr(drawn.flatten().double().sort().values) - ranks).abs().max()) < 0.01
    assert float(torch.corrcoef(drawn.flatten(1))[0, 1:].abs().max()) < 0.2


def test_padding_draws_something_finite() -> None:
    assert torch.isfinite(normal(0, "noise", torch.tensor([-1]), (3,))).all()


@pytest.mark.parametrize("count", [1, 5, 64, 100])
@pytest.mark.parametrize("every", [1, 2, 3, 7])
def test_timesteps_are_spread_evenly_over_any_run_and_every_kth_position(count: int, every: int) -> None:
    for seed, first in ((0, 0), (1, 10**9)):
        shares = spread(seed, "timestep", torch.arange(count) * every + first).sort().values
        assert float(shares[0]) >= 0 and float(shares[-1]) < 1
        gaps = torch.diff(shares, prepend=shares[-1:] - 1)
        assert float(gaps.max()) <= (2 if every == 1 else 5) / count
    assert not torch.equal(shares, spread(2, "timestep", torch.arange(count) * every + first).sort().values)
    assert not torch.equal(
        spread(1, "validation timestep", torch.tensor([0])), spread(1, "timestep", torch.tensor([0]))
    )
