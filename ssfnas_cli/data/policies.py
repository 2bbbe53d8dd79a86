"""TrivialAugment and RandAugment: random ops on an image, after its crop and its flip.

The ops, their strengths and their draws are torchvision's (transforms.v2). Each image is changed in a fork of torch's
random state that is seeded by the image's own numbers, so the result depends neither on its batch nor on the process
that makes it.
"""

from __future__ import annotations

import contextlib
import functools
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any, Literal

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from ssfnas_cli.console import log
from ssfnas_cli.settings import RetrainSettings

TRIVIAL_SHIFT = 32  # pixels that TrivialAugment shifts an image by at most, whatever its side


@dataclass(frozen=True)
class Policy:
    """What is done to training images beside crop and flip.

    Attributes:
        name: `trivial` is one op of random strength an image (Müller and Hutter, 2021, the wide space); `rand` is
            `num_ops` ops of the strength `magnitude`, of 0 to 30 (Cubuk et al., 2020).
    """

    name: Literal["trivial", "rand"]
    num_ops: int = 2
    magnitude: int = 9

    def __call__(self, images: np.ndarray, uniforms: NDArray[np.float32]) -> np.ndarray:
        """Images uint8 [N, H, W, C] of 1 or 3 channels -> the same, changed.

        A grey image has no colour to change, so that op leaves it as it is.

        Args:
            uniforms: a row for each image; columns 5 and 6 are used.
        """
        transform = _transform(self)
        pixels = torch.from_numpy(images).permute(0, 3, 1, 2)
        changed = []
        with _forked_on_one_thread() as reseed:
            for image, seed in zip(pixels, seeds(uniforms), strict=True):
                reseed(seed)
                changed.append(transform(image))
        return torch.stack(changed).permute(0, 2, 3, 1).contiguous().numpy()


def build_policy(settings: RetrainSettings, image_size: int) -> Policy | None:
    """The policy that the settings ask for. It warns of images that are too small for it."""
    if settings.augment == "none":
        return None
    if settings.augment == "trivial" and image_size < TRIVIAL_SHIFT:
        log.warning(
            "augment=trivial: shifts some images by up to %d pixels, and these have %d a side; augment=rand shifts by "
            "a share of the side",
            TRIVIAL_SHIFT,
            image_size,
        )
    return Policy(settings.augment, settings.rand_ops, settings.rand_magnitude)


def seeds(uniforms: NDArray[np.float32]) -> list[int]:
    """A seed of 32 bits, which is what torch's generator uses of one, for each row."""
    high, low = ((uniforms[:, column].astype(np.float64) * 2**24).astype(np.int64) for column in (5, 6))
    return ((high << 8) | (low >> 16)).tolist()


@functools.cache
def _transform(policy: Policy) -> Callable[[Tensor], Tensor]:
    from torchvision.transforms import v2  # its import takes a second

    if policy.name == "trivial":
        return v2.TrivialAugmentWide()
    return v2.RandAugment(policy.num_ops, policy.magnitude)


@contextlib.contextmanager
def _forked_on_one_thread() -> Iterator[Callable[[int], Any]]:
    """Within, torch's random state may be reseeded by what is yielded, and sums do not depend on the threads."""
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        with torch.random.fork_rng(devices=[]):
            yield torch.default_generator.manual_seed  # torch.manual_seed would reseed the GPU, too
    finally:
        torch.set_num_threads(threads)
