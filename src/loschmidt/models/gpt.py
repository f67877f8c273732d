"""A small GPT: causal attention and an MLP in each layer, layer norm before both, logits by the embedding itself.

Symbols: E symbols and P positions embedded; x = drop(E[symbol] + P[position]); then for each layer
x += drop(Wo attention(Wq y, Wk y, Wv y)), y = norm(x), and x += drop(W2 gelu(W1 y + b1) + b2), y = norm(x);
logits = E norm(x): embedding and unembedding are one tensor. (Radford et al. 2019, "GPT-2", without biases of
projections and norms, and with no dropout inside the attention.)
"""

import torch
import torch.nn.functional as F
from torch import nn

from ..errors import InvalidSetting
from ..exact import random


class GPT(nn.Module):
    """Logits of the next symbol at each position.

    Guarantees: position i sees positions up to i only. The kernels are matrix products, softmax and
    `F.embedding`, whose gradients are deterministic on the CPU, and on CUDA with
    `torch.use_deterministic_algorithms(True)`; fused attention is not used, since its backward need not be.

    Weights are normal with standard deviation fan_in^-1/2 (embeddings: width^-1/2; the two matrices that write to
    the residual stream: smaller by (2 layers)^-1/2), biases 0, gains 1, drawn in float64 and rounded to `dtype`.
    109,568 parameters by default, with 97 symbols.

    Args:
        symbols: size of the vocabulary.
        context: positions; inputs may be shorter.
        width: of the residual stream.
        layers: how many.
        heads: of each attention; divides the width.
        dropout: share of the embedding and of each layer's two outputs that is dropped in train mode.
        seed: of the initial weights, alone: no global generator is read or moved.
        dtype: of the parameters.

    Raises:
        InvalidSetting: heads that do not divide the width.
    """

    def __init__(
        self,
        symbols: int,
        context: int = 64,
        width: int = 64,
        layers: int = 2,
        heads: int = 4,
        dropout: float = 0.1,
        *,
        seed: int = 0,
        dtype: torch.dtype = torch.float32,
    ):
        super().__init__()
        if width % heads:
            raise InvalidSetting(f"heads: {heads} does not divide width {width}.", "give heads that do")
        generator = torch.Generator().manual_seed(random.key("gpt", seed) & ((1 << 63) - 1))

        def normal(*shape: int, scale: float = 1.0) -> nn.Parameter:  # the last dimension is the fan-in
            draw = torch.randn(shape, generator=generator, dtype=torch.float64) * (scale * shape[-1] ** -0.5)
            return nn.Parameter(draw.to(dtype))

        self.token, self.position = normal(symbols, width), normal(context, width)
        self.layers = nn.ModuleList(_Layer(width, heads, dropout, (2 * layers) ** -0.5, normal) for _ in range(layers))
        self.gain, self.drop = nn.Parameter(torch.ones(width, dtype=dtype)), nn.Dropout(dropout)

    def forward(self, symbols: torch.Tensor) -> torch.Tensor:
        """Logits (n, length, symbols) for symbols (n, length), int64, length at most the context."""
        length = symbols.shape[1]
        x = self.drop(F.embedding(symbols, self.token) + self.position[:length])
        future = x.new_full((length, length), float("-inf")).triu(1)
        for layer in self.layers:
            x = layer(x, future)
        return F.linear(_norm(x, self.gain), self.token)


class _Layer(nn.Module):
    def __init__(self, width: int, heads: int, dropout: float, scale: float, normal):
        super().__init__()
        self.heads, self.drop = heads, nn.Dropout(dropout)
        self.query_key_value, self.out = normal(3 * width, width), normal(width, width, scale=scale)
        self.up, self.down = normal(4 * width, width), normal(width, 4 * width, scale=scale)
        dtype = self.up.dtype
        self.up_bias, self.down_bias = (nn.Parameter(torch.zeros(n, dtype=dtype)) for n in (4 * width, width))
        self.gain_attention, self.gain_mlp = (nn.Parameter(torch.ones(width, dtype=dtype)) for _ in range(2))

    def forward(self, x: torch.Tensor, future: torch.Tensor) -> torch.Tensor:
        x = x + self.drop(F.linear(self._attend(_norm(x, self.gain_attention), future), self.out))
        up = F.gelu(F.linear(_norm(x, self.gain_mlp), self.up, self.up_bias))
        return x + self.drop(F.linear(up, self.down, self.down_bias))

    def _attend(self, x: torch.Tensor, future: torch.Tensor) -> torch.Tensor:
        n, length, width = x.shape
        split = F.linear(x, self.query_key_value).view(n, length, 3, self.heads, width // self.heads)
        query, key, value = split.permute(2, 0, 3, 1, 4)  # each (n, heads, length, width / heads)
        scores = query @ (key * (width // self.heads) ** -0.5).transpose(-1, -2)
        weights = (scores + future).softmax(-1)
        return (weights @ value).transpose(1, 2).reshape(n, length, width)


def _norm(x: torch.Tensor, gain: torch.Tensor) -> torch.Tensor:
    return F.layer_norm(x, gain.shape, gain)
