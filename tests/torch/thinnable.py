"""Small modules, one for each way in which channels are coupled."""

from __future__ import annotations

import torch
from torch import Tensor, nn
from torch.nn import functional


class Residual(nn.Module):
    def __init__(self, width: int = 32) -> None:
        super().__init__()
        self.stem = nn.Conv2d(3, width, 3, padding=1)
        self.one, self.norm = nn.Conv2d(width, 48, 3, padding=1, bias=False), nn.BatchNorm2d(48)
        self.two, self.last = nn.Conv2d(48, width, 3, padding=1), nn.BatchNorm2d(width)
        self.head = nn.Linear(width, 5)

    def forward(self, x: Tensor) -> Tensor:
        x = functional.relu(self.stem(x))
        x = functional.relu(x + self.last(self.two(functional.relu(self.norm(self.one(x))))))
        return self.head(x.mean((2, 3)))


class Joined(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.stem, self.left, self.right = nn.Conv2d(3, 32, 3), nn.Conv2d(32, 32, 1), nn.Conv2d(32, 48, 3, padding=1)
        self.norm, self.last = nn.BatchNorm2d(112), nn.Conv2d(112, 5, 1)

    def forward(self, x: Tensor) -> Tensor:
        x = functional.relu_(self.stem(x))
        x = torch.cat([self.left(x), x, self.right(x)], 1)
        return self.last(functional.relu(self.norm(x))).mean((2, 3))


class Grouped(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.stem, self.norm = nn.Conv2d(3, 32, 3), nn.BatchNorm2d(32)
        self.deep, self.wide = nn.Conv2d(32, 32, 3, groups=32, bias=False), nn.Conv2d(32, 64, 1, groups=32)
        self.few, self.act = nn.Conv2d(64, 64, 3, groups=16), nn.PReLU(64)
        self.last = nn.Linear(64, 5)

    def forward(self, x: Tensor) -> Tensor:
        return self.last(self.act(self.few(self.wide(self.deep(self.norm(self.stem(x)))))).mean((2, 3)))


class Flat(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.stem, self.pool = nn.Conv2d(3, 32, 3, padding=1), nn.AdaptiveAvgPool2d(2)
        self.hidden, self.norm, self.last = nn.Linear(128, 32), nn.BatchNorm1d(32), nn.Linear(32, 5)

    def forward(self, x: Tensor) -> Tensor:
        return self.last(torch.sigmoid(self.norm(self.hidden(self.pool(self.stem(x)).flatten(1)))))


class Squeezed(nn.Module):
    """Squeeze and excitation, a transposed convolution and an upsampling, parts of equal length."""

    def __init__(self) -> None:
        super().__init__()
        self.stem, self.up = nn.Conv2d(3, 64, 3), nn.ConvTranspose2d(64, 64, 2, stride=2)
        self.small, self.large, self.gate = nn.Conv2d(64, 16, 1), nn.Conv2d(16, 64, 1), nn.Conv2d(64, 64, 1)
        self.last = nn.Conv2d(32, 5, 1)

    def forward(self, x: Tensor) -> Tensor:
        x = functional.interpolate(self.up(functional.silu(self.stem(x))), scale_factor=2.0)
        x = x * torch.sigmoid(self.large(functional.relu(self.small(x.mean((2, 3), keepdim=True)))))
        one, other = self.gate(x).chunk(2, 1)
        return self.last(one * torch.sigmoid(other)).mean((2, 3))


class Shuffled(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.stem, self.last = nn.Conv2d(3, 64, 3), nn.Conv2d(64, 5, 1)

    def forward(self, x: Tensor) -> Tensor:
        x = self.stem(x)
        batch, channels, high, wide = x.shape
        x = x.view(batch, 2, channels // 2, high, wide).transpose(1, 2).reshape(batch, channels, high, wide)
        return self.last(functional.pad(x, (1, 1, 1, 1))).mean((2, 3))


class Attention(nn.Module):
    """Attention written by hand, with its sizes in attributes, as transformers' BERT writes it."""

    def __init__(self, width: int = 32, heads: int = 4, fixed: bool = False) -> None:
        super().__init__()
        self.num_heads, self.head_size, self.all_head_size = heads, width // heads, width
        self.query, self.key, self.value = (nn.Linear(width, width) for _ in range(3))
        self.out, self.fixed = nn.Linear(width, width), fixed

    def split(self, x: Tensor) -> Tensor:
        heads = 4 if self.fixed else self.num_heads
        return x.view(x.shape[0], x.shape[1], heads, self.head_size).permute(0, 2, 1, 3)

    def forward(self, x: Tensor) -> Tensor:
        query, key, value = self.split(self.query(x)), self.split(self.key(x)), self.split(self.value(x))
        seen = torch.softmax(query @ key.transpose(-1, -2) / self.head_size**0.5, -1) @ value
        return self.out(seen.permute(0, 2, 1, 3).reshape(x.shape[0], x.shape[1], self.all_head_size))


class Packed(nn.Module):
    """Attention from one projection, as timm's ViT writes it; 8 heads of 8, so that their counts look alike."""

    def __init__(self) -> None:
        super().__init__()
        self.num_heads, self.head_dim = 8, 8
        self.qkv, self.proj = nn.Linear(64, 192), nn.Linear(64, 64)

    def forward(self, x: Tensor) -> Tensor:
        batch, length, _ = x.shape
        packed = self.qkv(x).reshape(batch, length, 3, self.num_heads, self.head_dim).permute(2, 0, 3, 1, 4)
        query, key, value = packed.unbind(0)
        seen = functional.scaled_dot_product_attention(query, key, value)
        return self.proj(seen.transpose(1, 2).reshape(batch, length, self.num_heads * self.head_dim))


class Encoder(nn.Module):
    """Tokens through a layer with pre-norm attention and a hidden layer; `attention` makes the attention."""

    def __init__(self, attention: nn.Module, width: int = 32) -> None:
        super().__init__()
        self.embed, self.place = nn.Embedding(11, width), nn.Parameter(torch.randn(1, 6, width))
        self.norm, self.attention = nn.LayerNorm(width), attention
        self.hidden, self.narrow, self.last = nn.Linear(width, 64), nn.Linear(64, width), nn.Linear(width, 5)

    def forward(self, tokens: Tensor) -> Tensor:
        x = self.embed(tokens) + self.place
        y = self.norm(x)
        x = x + self.attention(y)
        return self.last((x + self.narrow(functional.gelu(self.hidden(x)))).mean(1))


class Ready(nn.Module):
    """nn.MultiheadAttention with one argument."""

    def __init__(self, batch_first: bool = True) -> None:
        super().__init__()
        self.inner = nn.MultiheadAttention(32, 4, batch_first=batch_first)

    def forward(self, x: Tensor) -> Tensor:
        return self.inner(x, x, x, need_weights=False)[0]


class Block(nn.Module):
    """A residual block; with a projection on its shortcut where the width changes."""

    def __init__(self, reads: int, makes: int, stride: int = 1) -> None:
        super().__init__()
        self.one, self.norm = nn.Conv2d(reads, makes, 3, stride, 1, bias=False), nn.BatchNorm2d(makes)
        self.two, self.last, self.act = nn.Conv2d(makes, makes, 3, 1, 1, bias=False), nn.BatchNorm2d(makes), nn.ReLU()
        self.way = nn.Sequential() if reads == makes else nn.Sequential(nn.Conv2d(reads, makes, 1, stride))

    def forward(self, x: Tensor) -> Tensor:
        return self.act(self.last(self.two(self.act(self.norm(self.one(x))))) + self.way(x))


class Blocks(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.stem = nn.Conv2d(3, 32, 3)
        self.body = nn.Sequential(Block(32, 32), Block(32, 64, 2), Block(64, 64))
        self.last = nn.Linear(64, 5)

    def forward(self, x: Tensor) -> Tensor:
        return self.last(self.body(torch.relu(self.stem(x))).mean((2, 3)))


IMAGES, TOKENS = (
    (torch.linspace(-2, 2, 2 * 3 * 8 * 8).sin().reshape(2, 3, 8, 8),),
    (torch.arange(12).reshape(2, 6) % 11,),
)
KINDS = {
    "residual": (Residual, IMAGES),
    "joined": (Joined, IMAGES),
    "grouped": (Grouped, IMAGES),
    "flat": (Flat, IMAGES),
    "squeezed": (Squeezed, IMAGES),
    "shuffled": (Shuffled, IMAGES),
    "attention": (lambda: Encoder(Attention()), TOKENS),
    "packed": (lambda: Encoder(Packed(), 64), TOKENS),
    "ready": (lambda: Encoder(Ready()), TOKENS),
    "length first": (lambda: Encoder(Ready(False)), TOKENS),
    "blocks": (Blocks, IMAGES),
}


def settled(module: nn.Module, seed: int = 0) -> nn.Module:
    """Give batch norms statistics of their own, so that a wrong slice shows."""
    generator = torch.Generator().manual_seed(seed)
    for part in module.modules():
        if isinstance(part, nn.modules.batchnorm._NormBase):
            part.running_mean.normal_(generator=generator)
            part.running_var.uniform_(0.5, 2, generator=generator)
            part.weight.data.uniform_(0.5, 2, generator=generator)
            part.bias.data.normal_(generator=generator)
    return module.eval()
