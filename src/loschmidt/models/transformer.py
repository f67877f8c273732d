"""The transformer that learns to add: one layer, three tokens `a b =`, an answer read off at `=`.

Symbols: E tokens and P positions embedded; x = E[token] + P[position], then
x += Wo attention(Wq x, Wk x, Wv x), then x += W2 relu(W1 x + b1) + b2, logits = U x.
No layer norm; unembedding not tied to the embedding (the model of Nanda et al., arXiv 2301.05217, smaller).
"""

import torch
import torch.nn.functional as F
from torch import nn

from ..errors import InvalidSetting
from ..exact import random


class OneLayerTransformer(nn.Module):
    """Logits of the answer to `a b =`, over p classes.

    Guarantees: the function is that of the plain transformer (with or without a causal mask: `=` comes last
    and sees everything); only what `=` needs is computed, so it is several times faster. The query is one
    vector for all examples, since `=` is the same token in all of them. Embeddings are looked up with
    `F.embedding`, whose gradient is deterministic on CUDA, too.

    Weights are normal with standard deviation fan_in^-1/2 (embeddings: width^-1/2), biases 0, drawn in
    float64 and rounded to `dtype`, so that dtypes start from the same point. 31,056 parameters by default.

    Args:
        p: numbers, tokens 0 to p - 1; `=` is token p, inside.
        width: of the residual stream.
        heads: of the attention; divides the width.
        hidden: of the MLP.
        seed: of the initial weights, alone: no global generator is read or moved.
        dtype: of the parameters.
    """

    def __init__(
        self,
        p: int = 31,
        width: int = 48,
        heads: int = 4,
        hidden: int = 192,
        *,
        seed: int = 0,
        dtype: torch.dtype = torch.float32,
    ):
        super().__init__()
        if width % heads:
            raise InvalidSetting(f"heads: {heads} does not divide width {width}.", "give heads that do")
        self.p, self.width, self.heads = p, width, heads
        generator = torch.Generator().manual_seed(random.key("transformer", seed) & ((1 << 63) - 1))

        def normal(*shape: int) -> nn.Parameter:  # the last dimension is the fan-in, of embeddings the width
            draw = torch.randn(shape, generator=generator, dtype=torch.float64) * shape[-1] ** -0.5
            return nn.Parameter(draw.to(dtype))

        self.token, self.position = normal(p + 1, width), normal(3, width)
        self.query, self.key, self.value, self.out = (normal(width, width) for _ in range(4))
        self.up, self.up_bias = normal(hidden, width), nn.Parameter(torch.zeros(hidden, dtype=dtype))
        self.down, self.down_bias = normal(width, hidden), nn.Parameter(torch.zeros(width, dtype=dtype))
        self.unembed = normal(p, width)

    def forward(self, numbers: torch.Tensor) -> torch.Tensor:
        """Logits (n, p) for pairs (n, 2), int64."""
        end = self.token[self.p] + self.position[2]
        x = end + self._attend(F.embedding(numbers, self.token) + self.position[:2], end)
        x = x + F.linear(F.relu(F.linear(x, self.up, self.up_bias)), self.down, self.down_bias)
        return F.linear(x, self.unembed)

    def _attend(self, x: torch.Tensor, end: torch.Tensor) -> torch.Tensor:
        # Sums of products: with heads of 12 and three positions, bmm spends its time on calls.
        n, split = x.shape[0], (self.heads, self.width // self.heads)
        query = F.linear(end, self.query) * split[1] ** -0.5
        scores = (F.linear(x, self.key) * query).view(n, 2, *split).sum(-1)
        score = (F.linear(end, self.key) * query).view(split).sum(-1)
        weights = torch.cat([scores, score.expand(n, 1, -1)], 1).softmax(1)[..., None]
        values = (F.linear(x, self.value).view(n, 2, *split) * weights[:, :2]).sum(1)
        values = values + F.linear(end, self.value).view(split) * weights[:, 2]
        return F.linear(values.reshape(n, self.width), self.out)
