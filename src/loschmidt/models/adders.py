"""Other networks that learn to add: the transformer with a smooth activation, and multilayer perceptrons.

Symbols: p numbers; A, B the first layer's columns of the two numbers, c its biases, U the last layer:
logits = U act(A[a] + B[b] + c). With act(x) = x^2 its solution is known (Gromov, arXiv 2301.02679).
"""

import torch
import torch.nn.functional as F
from torch import nn

from ..errors import InvalidSetting
from ..exact import random
from .transformer import OneLayerTransformer

ACTIVATIONS = {"relu": F.relu, "gelu": F.gelu, "square": torch.square}
"""By name."""


class SmoothTransformer(OneLayerTransformer):
    """The one-layer transformer with GELU in place of ReLU: the same weights, and derivatives without kinks.

    Keys and values are computed once for each number at each place, and looked up for pairs: fewer products.
    """

    def forward(self, numbers: torch.Tensor) -> torch.Tensor:
        """Logits (n, p) for pairs (n, 2), int64."""
        end = self.token[self.p] + self.position[2]
        x = end + self._look(numbers, end)
        x = x + F.linear(F.gelu(F.linear(x, self.up, self.up_bias)), self.down, self.down_bias)
        return F.linear(x, self.unembed)

    def _look(self, numbers: torch.Tensor, end: torch.Tensor) -> torch.Tensor:
        n, split = numbers.shape[0], (self.heads, self.width // self.heads)
        query = F.linear(end, self.query) * split[1] ** -0.5
        table = self.token[: self.p] + self.position[:2, None]  # (place, number, width)
        scores = (F.linear(table, self.key) * query).view(2 * self.p, *split).sum(-1)
        score = (F.linear(end, self.key) * query).view(split).sum(-1)
        place = torch.arange(2, device=numbers.device) * self.p
        rows = numbers + place
        weights = torch.cat([F.embedding(rows, scores), score.expand(n, 1, -1)], 1).softmax(1)[..., None]
        values = F.embedding(rows, F.linear(table, self.value).view(2 * self.p, self.width)).view(n, 2, *split)
        values = (values * weights[:, :2]).sum(1) + F.linear(end, self.value).view(split) * weights[:, 2]
        return F.linear(values.reshape(n, self.width), self.out)


class PairMLP(nn.Module):
    """Logits of a + b, by one hidden layer that sees both numbers as one-hot vectors.

    Weights are normal: of the first layer with standard deviation 2^-1/2 (two inputs are 1), of the last with
    hidden^-1/2; biases 0; drawn in float64 and rounded to `dtype`.

    Args:
        p: numbers.
        hidden: units.
        activation: "relu", "gelu" or "square".
        seed: of the initial weights, alone: no global generator is read or moved.
        dtype: of the parameters.

    Raises:
        InvalidSetting: an unknown activation.
    """

    def __init__(
        self,
        p: int = 31,
        hidden: int = 128,
        activation: str = "square",
        *,
        seed: int = 0,
        dtype: torch.dtype = torch.float32,
    ):
        super().__init__()
        if activation not in ACTIVATIONS:
            raise InvalidSetting(f"activation={activation!r} is unknown.", f"use one of {', '.join(ACTIVATIONS)}.")
        self.p, self.act = p, ACTIVATIONS[activation]
        generator = torch.Generator().manual_seed(random.key("pair mlp", seed) & ((1 << 63) - 1))

        def normal(rows: int, columns: int, scale: float) -> nn.Parameter:
            return nn.Parameter(
                (torch.randn(rows, columns, generator=generator, dtype=torch.float64) * scale).to(dtype)
            )

        self.left, self.right = normal(p, hidden, 2**-0.5), normal(p, hidden, 2**-0.5)
        self.bias = nn.Parameter(torch.zeros(hidden, dtype=dtype))
        self.unembed = normal(p, hidden, hidden**-0.5)

    def forward(self, numbers: torch.Tensor) -> torch.Tensor:
        """Logits (n, p) for pairs (n, 2), int64."""
        x = F.embedding(numbers[:, 0], self.left) + F.embedding(numbers[:, 1], self.right) + self.bias
        return F.linear(self.act(x), self.unembed)
