"""Subject and prompt fidelity from embeddings, as DreamBooth (Ruiz 2023, section 4.1) measures them. Pure numpy.

Shapes: N, M pictures; D features; L layers; T tokens. No embedding needs to be normalised.
"""

from collections.abc import Sequence

import numpy as np

from inpaint.errors import InpaintError

PUBLISHED = {
    "real photos": (0.774, 0.885, None),
    "DreamBooth (Imagen)": (0.696, 0.812, 0.306),
    "DreamBooth (Stable Diffusion)": (0.668, 0.803, 0.305),
    "Textual Inversion (Stable Diffusion)": (0.569, 0.780, 0.255),
}
"""DINO, CLIP-I and CLIP-T of the paper's table 1: 30 subjects, 25 prompts each, 4 pictures per prompt."""


def mean_similarity(a_ND: np.ndarray, b_MD: np.ndarray) -> float:
    """Mean cosine over all pairs. Of generated pictures and a subject's photos: DINO, CLIP-I; of pictures of the class
    and a subject's photos: PRES, which is high where the class has become the subject. Raises InpaintError: none."""
    if not len(a_ND) or not len(b_MD):
        raise InpaintError(f"{len(a_ND)} and {len(b_MD)} pictures: there is nothing to compare")
    return float(np.mean(_unit(a_ND) @ _unit(b_MD).T))


def prompt_similarity(images_ND: np.ndarray, texts_ND: np.ndarray) -> float:
    """CLIP-T: mean cosine of each picture and its own prompt."""
    assert images_ND.shape == texts_ND.shape and len(images_ND), "a prompt for each picture"
    return float(np.mean(np.sum(_unit(images_ND) * _unit(texts_ND), axis=-1)))


def diversity(layers_LNTD: Sequence[np.ndarray]) -> float:
    """DIV: mean perceptual distance of all pairs of pictures of one prompt; 0 where all are the same.

    LPIPS's distance (Zhang 2018, eq. 1) with equal weights, over a backbone's layers in place of AlexNet's: unit
    features of each place, squared differences, mean over places, sum over layers. Not the paper's number. Raises
    InpaintError for fewer than two pictures.
    """
    count = len(layers_LNTD[0])
    if count < 2:
        raise InpaintError(f"diversity of {count} pictures: make at least 2 of each prompt")
    total = np.zeros((count, count))
    for layer_NTD in layers_LNTD:
        unit_NTD = _unit(layer_NTD)
        # |a - b|^2 = 2 - 2 ab of unit vectors.
        total += 2 - 2 * np.einsum("ntd,mtd->nm", unit_NTD, unit_NTD) / layer_NTD.shape[1]
    return float(total[np.triu_indices(count, 1)].mean())


def average_precision(scores_N: np.ndarray, is_relevant_N: np.ndarray) -> float:
    """Of a ranking by falling score: the mean, over what is relevant, of the precision at its rank. Where scores are
    equal, what is not relevant comes first. Raises InpaintError where nothing is relevant."""
    if not is_relevant_N.any():
        raise InpaintError("nothing in the gallery is relevant: give photos of the subject")
    order = np.lexsort((is_relevant_N, -scores_N))
    hits_N = is_relevant_N[order]
    precision_N = np.cumsum(hits_N) / np.arange(1, len(hits_N) + 1)
    return float(precision_N[hits_N].mean())


def lookalike_map(generated_ND: np.ndarray, subject_MD: np.ndarray, lookalikes_KD: np.ndarray) -> float:
    """Finer-Personalization Rank (arXiv 2512.19026): each generated picture is a query into a gallery of the subject's
    photos and those of look-alikes; mean average precision. Chance gives about the subject's share of it."""
    gallery = np.concatenate([subject_MD, lookalikes_KD])
    is_subject = np.arange(len(gallery)) < len(subject_MD)
    scores = _unit(generated_ND) @ _unit(gallery).T
    return float(np.mean([average_precision(row, is_subject) for row in scores]))


def _unit(features: np.ndarray) -> np.ndarray:
    wide = features.astype(np.float64)
    return wide / np.maximum(np.linalg.norm(wide, axis=-1, keepdims=True), 1e-12)
