"""Transformer blocks of the generator: ViT and EAdaLN-ViT (Sec. 3.2, Eq. 5)."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from export3d.layers import MixFFN, SelfAttention, linear


class EAdaLN(nn.Module):
    """Expression adaptive layer normalisation: sigma(beta') * LN(x) + mu(beta') (Eq. 5).

    LN has no affine parameters. One linear map of beta' gives sigma and mu, initially 1 and 0: a new block is a plain
    ViT block. The entries of beta', a sum of unit vectors in R^d, are of the order 1 / sqrt(d). The map therefore gets
    sqrt(d) * beta', which has unit scale like the inputs of the layers around it.
    """

    def __init__(self, dim: int, embedding: int) -> None:
        super().__init__()
        self.norm = nn.LayerNorm(dim, eps=1e-6, elementwise_affine=False)
        self.gain = embedding**0.5
        self.modulation = linear(embedding, 2 * dim)
        nn.init.zeros_(self.modulation.weight)
        with torch.no_grad():
            self.modulation.bias[:dim] = 1.0

    def forward(self, x: Tensor, embedding: Tensor) -> Tensor:
        """x (B, N, h), beta' (B, d) to (B, N, h)."""
        sigma, mu = self.modulation(self.gain * embedding)[:, None].chunk(2, dim=-1)
        out: Tensor = sigma * self.norm(x) + mu
        return out


class ViTBlock(nn.Module):
    """x + MSA(LN(x)), then x + Mix-FFN(LN(x)); with `embedding` > 0 both LN are EAdaLN (the EAdaLN-ViT block)."""

    def __init__(self, dim: int, heads: int, ratio: int, embedding: int = 0) -> None:
        super().__init__()
        self.norm_attention = EAdaLN(dim, embedding) if embedding else nn.LayerNorm(dim, eps=1e-6)
        self.attention = SelfAttention(dim, heads)
        self.norm_ffn = EAdaLN(dim, embedding) if embedding else nn.LayerNorm(dim, eps=1e-6)
        self.ffn = MixFFN(dim, ratio)

    def forward(self, x: Tensor, height: int, width: int, embedding: Tensor | None = None) -> Tensor:
        """x (B, N, h) on a (height, width) grid, beta' (B, d) or None, to (B, N, h)."""
        given = () if embedding is None else (embedding,)
        x = x + self.attention(self.norm_attention(x, *given))
        x = x + self.ffn(self.norm_ffn(x, *given), height, width)
        return x
