"""The scores of a model, computed from embeddings.

Owns the formulas. Does not know models, images or files. All embeddings are rows of length 1, so
that a product is a cosine.

Shape suffixes: P photographs, G generated images, S subjects, T prompts, E width of an embedding.
Sources: Ruiz et al. 2022 (arXiv 2208.12242), section 4.2 (DINO, CLIP-I, CLIP-T) and its later
version (PRES, DIV); Finer-Personalization Rank (arXiv 2512.19026) for the margin.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import torch
from torch import Tensor


def identities(generated_GE: Tensor, photographs_PE: Tensor) -> Tensor:
    """Of each generated image, the mean cosine to the photographs: (G,)."""
    return (generated_GE @ photographs_PE.T).mean(dim=1)


def identity(generated_GE: Tensor, photographs_PE: Tensor) -> float:
    """Mean cosine of generated images and photographs: DINO or CLIP-I of the paper."""
    return float(identities(generated_GE, photographs_PE).mean())


def ceiling(photographs_PE: Tensor) -> float:
    """Mean cosine of different photographs of the subject; 1 for a single photograph."""
    return pairwise(photographs_PE) if len(photographs_PE) > 1 else 1.0


def pairwise(embeddings_GE: Tensor) -> float:
    """Mean cosine of all pairs of different rows."""
    count = len(embeddings_GE)
    cosines = embeddings_GE @ embeddings_GE.T
    return float((cosines.sum() - cosines.diagonal().sum()) / (count * (count - 1)))


def nearest_subjects(generated_GE: Tensor, photographs: Mapping[str, Tensor]) -> list[str]:
    """Of each generated image, the subject with the highest mean cosine to its photographs."""
    means_GS = torch.stack(
        [identities(generated_GE, rows_PE) for rows_PE in photographs.values()], dim=1
    )
    names = list(photographs)
    return [names[place] for place in means_GS.argmax(dim=1).tolist()]


def margin(
    generated_GE: Tensor, subject: str, photographs: Mapping[str, Tensor]
) -> tuple[float, float]:
    """Measure how well generated images are distinguished from look-alikes of their subject.

    Args:
        generated_GE: images of the subject.
        subject: its id.
        photographs: of each subject of the class noun, its photographs (P, E).

    Returns:
        The share of images whose nearest subject (by mean cosine to its photographs) is right, and
        the mean average precision of ranking all photographs by cosine to an image.
    """
    nearest = nearest_subjects(generated_GE, photographs)
    rows = torch.cat(list(photographs.values()))
    is_own = torch.cat(
        [torch.full((len(rows_PE),), name == subject) for name, rows_PE in photographs.items()]
    )
    ranked = is_own[(generated_GE @ rows.T).argsort(dim=1, descending=True)].float()
    hits = ranked.cumsum(dim=1) / torch.arange(1, len(rows) + 1)
    precision = float(((hits * ranked).sum(dim=1) / ranked.sum(dim=1)).mean())
    return nearest.count(subject) / len(nearest), precision


def margin_ceiling(subject: str, photographs: Mapping[str, Tensor]) -> float:
    """Share of the subject's photographs that are nearest to it, without themselves.

    1 for a single photograph, which has nothing to compare with.
    """
    mine_PE = photographs[subject]
    if len(mine_PE) < 2:
        return 1.0
    hits = 0
    for place in range(len(mine_PE)):
        others_PE = torch.cat([mine_PE[:place], mine_PE[place + 1 :]])
        rest = {**photographs, subject: others_PE}
        hits += nearest_subjects(mine_PE[place : place + 1], rest) == [subject]
    return hits / len(mine_PE)


def prompt_fidelity(generated_GE: Tensor, prompts_GE: Tensor) -> float:
    """Mean cosine of images and the texts of their own prompts: CLIP-T of the paper."""
    return float(prompt_fidelities(generated_GE, prompts_GE).mean())


def prompt_fidelities(generated_GE: Tensor, prompts_GE: Tensor) -> Tensor:
    """Cosine of each image and the text of its own prompt."""
    return (generated_GE * prompts_GE).sum(dim=1)


_SAME_TEXT = 1e-5
"""Cosines of the same text differ by less, from rounding."""


def followed(generated_GE: Tensor, prompts_GE: Tensor) -> float | None:
    """Share of images that no other prompt's text is nearer to than their own prompt's.

    A subject that looks unlike others of its class lowers `prompt_fidelity` for all prompts alike,
    and leaves this as it is. None with a single prompt, which has nothing to compare with.
    """
    if (prompts_GE @ prompts_GE.T).min() > 1 - _SAME_TEXT:
        return None
    cosines_GG = generated_GE @ prompts_GE.T
    return float((cosines_GG.diagonal() > cosines_GG.amax(dim=1) - _SAME_TEXT).float().mean())


def drift(tuned_GE: Tensor, base_GE: Tensor) -> float:
    """How far images of the same prompts and seeds have moved from the base's: 1 - mean cosine."""
    return 1.0 - float((tuned_GE * base_GE).sum(dim=1).mean())


def diversity(generated: Sequence[Tensor]) -> float:
    """Mean of 1 - cosine over pairs of images of one prompt, over prompts: DIV of the paper.

    The paper measures LPIPS; here the distance is that of the embedder.
    """
    return 1.0 - sum(pairwise(rows_GE) for rows_GE in generated) / len(generated)


COPY_DISTANCE = 0.5
"""Of a copy and its photograph, as a part of the distance of the nearest two photographs."""


def are_copies(generated_GE: Tensor, photographs_PE: Tensor) -> Tensor:
    """Which images are much nearer to a photograph than photographs are to each other: (G,) bools.

    Rows are thumbnails, and distances 1 - correlation. None is a copy, where there is only one
    photograph.
    """
    if len(photographs_PE) < 2:
        return torch.zeros(len(generated_GE), dtype=torch.bool)
    between = photographs_PE @ photographs_PE.T
    between.fill_diagonal_(-1.0)
    distances = 1 - (generated_GE @ photographs_PE.T).amax(dim=1)
    return distances < COPY_DISTANCE * (1 - between.max())


def copies(generated_GE: Tensor, photographs_PE: Tensor) -> float:
    """Share of images that nearly repeat a photograph; see `are_copies`."""
    return float(are_copies(generated_GE, photographs_PE).float().mean())
