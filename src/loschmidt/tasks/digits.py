"""Handwritten digits: scikit-learn's 1,797 images of 8 x 8 pixels, shifted and with noise, anew in each epoch.

Source of the images: Alpaydin and Kaynak, "Optical Recognition of Handwritten Digits", UCI repository, 1998.
"""

import numpy as np
import torch
import torch.nn.functional as F
from torch import nn

from ..data import permutation
from ..errors import InvalidSetting
from ..models import CNN
from .base import Task

Images = tuple[torch.Tensor, torch.Tensor]

_NOISE = 0.05  # standard deviation; pixels are 0 (paper) to 1 (ink)


def digits(train_fraction: float = 0.8, seed: int = 0, dtype: torch.dtype = torch.float32) -> Task:
    """A small convolutional network learns to tell ten digits apart.

    Args:
        train_fraction: share of the images to train on, rounded to whole images.
        seed: of the split and of the initial weights.
        dtype: of images and model: torch.float32 or torch.float64.

    Returns:
        A task whose `train` and `test` are (images (n, 1, 8, 8) in `dtype`, 0 paper to 1 ink; labels (n,) int64),
        and whose `augment` shifts an image by up to one pixel each way and adds noise.

    Raises:
        InvalidSetting: scikit-learn is missing; a train_fraction that leaves nothing to train or to test on;
            another dtype.
    """
    try:
        from sklearn.datasets import load_digits
    except ImportError:
        raise InvalidSetting(
            "task digits: its images come with scikit-learn, which is not installed.",
            "pip install 'loschmidt[data]'",
        ) from None
    if dtype not in (torch.float32, torch.float64):
        raise InvalidSetting(f"dtype: {dtype}; augmentation is done in numpy.", "use torch.float32 or torch.float64.")
    read = load_digits()
    images = torch.from_numpy(read.images / 16).to(dtype)[:, None]
    labels = torch.from_numpy(read.target).long()
    count = round(train_fraction * len(images))
    if not 0 < count < len(images):
        raise InvalidSetting(
            f"train_fraction: {train_fraction} of {len(images)} images leaves none to train or to test on.",
            "give a fraction between 0 and 1",
        )
    order = permutation(len(images), "split", "digits", seed)

    def part(ids: torch.Tensor) -> Images:
        ids = ids.sort().values
        return images[ids], labels[ids]

    return Task(
        name="digits",
        model=CNN(seed=seed, dtype=dtype),
        train=part(order[:count]),
        test=part(order[count:]),
        loss=loss,
        accuracy=accuracy,
        settings={
            "train_fraction": train_fraction,
            "seed": seed,
            "dtype": str(dtype).removeprefix("torch."),
        },
        batch_size=64,
        augment=augment,
        answer="digits right",
    )


def augment(sample: Images, rng: np.random.Generator) -> Images:
    """One image (1, 8, 8), shifted by up to a pixel each way (paper moves in from outside), with noise added.

    In numpy, since for 64 pixels a call of torch costs more than its arithmetic.
    """
    image, label = sample
    pixels = image.numpy()[0]
    height, width = pixels.shape
    down, right = divmod(int(9 * rng.random()), 3)
    canvas = rng.standard_normal((height + 2, width + 2), pixels.dtype)
    canvas *= _NOISE
    canvas[down : down + height, right : right + width] += pixels
    return torch.from_numpy(canvas[None, 1:-1, 1:-1]), label


def loss(model: nn.Module, batch: Images) -> torch.Tensor:
    """Mean cross entropy of the digit, in nats."""
    images, labels = batch
    return F.cross_entropy(model(images), labels)


@torch.no_grad()
def accuracy(model: nn.Module, data: Images) -> float:
    """Share of images whose likeliest digit is right."""
    images, labels = data
    return (model(images).argmax(1) == labels).double().mean().item()
