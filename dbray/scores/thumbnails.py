"""Thumbnails of images, to find copies of photographs.

An embedder of identities is close for every good image of a subject, so it cannot tell a copy. A
copy has also the photograph's background, light and pose: all of them show in a thumbnail.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import torch
from PIL import Image, ImageOps
from torch import Tensor
from torch.nn.functional import normalize

SIDE = 16


def thumbnails(images: Sequence[np.ndarray]) -> Tensor:
    """Return a row of length 1 for each RGB image, cropped to its square: (G, SIDE * SIDE * 3).

    Brightness and contrast do not count: the product of two rows is the correlation of their
    pixels.
    """
    small = [ImageOps.fit(Image.fromarray(image), (SIDE, SIDE)) for image in images]
    rows = torch.from_numpy(np.stack([np.asarray(one) for one in small])).flatten(1).float()
    return normalize(rows - rows.mean(dim=1, keepdim=True))
