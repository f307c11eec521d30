"""Transformer blocks of the generator: ViT and EAdaLN-ViT (Sec. 3.2, Eq. 5)."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from export3d.layers import MixFFN, SelfAttention, linear


class EAdaLN(nn.Module):
    """Expression adaptive layer normalisation: sigma(beta') * LN(x) + mu(beta') (Eq. 5).

    LN has no affine parameters. sigma and mu are one linear map of beta' that starts at sigma = 1, mu = 0, so that a
    new block is a plain ViT block. beta' is a sum of unit vectors of R^d with entries of the order 1 / sqrt(d): the map
    sees sqrt(d) * beta', inputs of unit scale as in the layers around it.
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
