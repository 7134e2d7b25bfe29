"""Fidelity from known embeddings: closed forms, and scikit-learn's definition of average precision by hand."""

from itertools import combinations

import numpy as np
import pytest

from inpaint.errors import InpaintError
from inpaint.evaluate.fidelity import average_precision, diversity, lookalike_map, mean_similarity, prompt_similarity
from inpaint.evaluate.prompts import dreambench_prompts

X, Y = np.array([1.0, 0.0]), np.array([0.0, 2.0])
RNG = np.random.default_rng(0)


def test_similarity_is_the_mean_cosine_of_all_pairs() -> None:
    assert mean_similarity(np.stack([X, Y]), np.stack([X])) == pytest.approx(0.5)
    assert mean_similarity(np.stack([X]), np.stack([5 * X, -X])) == pytest.approx(0)
    a, b = RNG.normal(size=(3, 8)), RNG.normal(size=(4, 8))
    pairs = [p @ q / np.linalg.norm(p) / np.linalg.norm(q) for p in a for q in b]
    assert mean_similarity(a, b) == pytest.approx(np.mean(pairs))
    with pytest.raises(InpaintError, match="nothing to compare"):
        mean_similarity(a, b[:0])


def test_a_picture_is_compared_with_its_own_prompt() -> None:
    assert prompt_similarity(np.stack([X, Y]), np.stack([3 * X, Y])) == pytest.approx(1)
    assert prompt_similarity(np.stack([X, Y]), np.stack([Y, X])) == pytest.approx(0)


def test_average_precision_is_the_mean_precision_at_the_ranks_of_what_is_relevant() -> None:
    def ap(*relevant: int) -> float:
        return average_precision(-np.arange(len(relevant), dtype=float), np.array(relevant, dtype=bool))

    assert ap(1, 1, 0, 0) == 1
    assert ap(0, 1, 0, 1) == pytest.approx((1 / 2 + 2 / 4) / 2)
    assert ap(0, 0, 1) == pytest.approx(1 / 3)
    assert average_precision(np.zeros(4), np.array([True, False, False, True])) == pytest.approx((1 / 3 + 2 / 4) / 2)
    with pytest.raises(InpaintError, match="nothing in the gallery is relevant"):
        ap(0, 0)


def test_the_ranking_asks_whether_pictures_find_their_subject_among_lookalikes() -> None:
    subject, others = np.stack([X, X + 0.1 * Y]), np.stack([Y, Y + 0.1 * X, -Y])
    assert lookalike_map(np.stack([X]), subject, others) == 1
    assert lookalike_map(np.stack([Y]), subject, others) == pytest.approx((1 / 3 + 2 / 4) / 2)
    assert lookalike_map(np.stack([X, Y]), subject, others) == pytest.approx((1 + (1 / 3 + 2 / 4) / 2) / 2)


def test_diversity_is_the_distance_of_unit_features_over_places_and_layers() -> None:
    same = np.tile(RNG.normal(size=(1, 5, 8)), (3, 1, 1))
    assert diversity([same, same]) == pytest.approx(0, abs=1e-9)
    # Orthogonal everywhere: a squared distance of 2 in each layer.
    assert diversity([np.stack([[X] * 4, [Y] * 4])] * 3) == pytest.approx(6)
    layers = [RNG.normal(size=(4, 5, 8)), RNG.normal(size=(4, 3, 6))]
    units = [layer / np.linalg.norm(layer, axis=-1, keepdims=True) for layer in layers]
    pairs = [sum(((u[i] - u[j]) ** 2).sum(-1).mean() for u in units) for i, j in combinations(range(4), 2)]
    assert diversity(layers) == pytest.approx(np.mean(pairs))
    with pytest.raises(InpaintError, match="1 pictures"):
        diversity([layers[0][:1]])


def test_the_papers_prompts_are_25_for_objects_and_25_for_living_subjects() -> None:
    things, living = (dreambench_prompts("sks dog", living=is_living) for is_living in (False, True))
    assert len(set(things)) == len(set(living)) == 25 and len(set(things) & set(living)) == 15
    assert things[0] == "a sks dog in the jungle" and "a sks dog wearing a santa hat" in living
    assert "a sks dog floating in an ocean of milk" in things and all("{" not in text for text in things + living)
