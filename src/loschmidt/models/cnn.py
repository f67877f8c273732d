"""A small convolutional network for 8 x 8 images: three convolutions with batch norm, a mean, a linear layer.

x = relu(norm(C1 x)); x = relu(norm(C2 x)), 4 x 4 from here on; x = relu(norm(C3 x)); logits = W drop(mean x) + b.
"""

import torch
import torch.nn.functional as F
from torch import nn

from ..exact import random


class CNN(nn.Module):
    """Logits of the class of an image.

    Guarantees: strided convolutions and a mean instead of max pooling, whose gradient is not deterministic on
    CUDA; there, convolutions want `torch.use_deterministic_algorithms(True)`. Batch norm's running statistics are
    buffers that every forward in train mode changes.

    Weights are normal with variance 2 / fan_in (the last layer: 1 / fan_in), gains 1, biases 0, drawn in float64
    and rounded to `dtype`. 14,458 parameters by default.

    Args:
        classes: how many.
        width: channels of the first convolution; the others have twice as many.
        dropout: share of the features that is dropped in train mode, before the last layer.
        seed: of the initial weights, alone: no global generator is read or moved.
        dtype: of the parameters.
    """

    def __init__(
        self,
        classes: int = 10,
        width: int = 16,
        dropout: float = 0.2,
        *,
        seed: int = 0,
        dtype: torch.dtype = torch.float32,
    ):
        super().__init__()
        generator = torch.Generator().manual_seed(random.key("cnn", seed) & ((1 << 63) - 1))

        def normal(*shape: int, variance: float) -> nn.Parameter:
            draw = torch.randn(shape, generator=generator, dtype=torch.float64)
            return nn.Parameter((draw * (variance / draw[0].numel()) ** 0.5).to(dtype))

        channels = (1, width, 2 * width, 2 * width)
        self.kernels = nn.ParameterList(normal(channels[i + 1], channels[i], 3, 3, variance=2) for i in range(3))
        self.norms = nn.ModuleList(nn.BatchNorm2d(n, dtype=dtype) for n in channels[1:])
        self.drop = nn.Dropout(dropout)
        self.out = normal(classes, channels[-1], variance=1)
        self.out_bias = nn.Parameter(torch.zeros(classes, dtype=dtype))

    def forward(self, images: torch.Tensor) -> torch.Tensor:
        """Logits (n, classes) for images (n, 1, height, width), in the dtype of the parameters."""
        x = images
        for kernel, norm, stride in zip(self.kernels, self.norms, (1, 2, 1), strict=True):
            x = F.relu(norm(F.conv2d(x, kernel, stride=stride, padding=1)))
        return F.linear(self.drop(x.mean((2, 3))), self.out, self.out_bias)
