"""Shapes by name: one dial, the depth, from which the rest of a shape follows.

Width grows with depth, 64 features a block, as nanochat has it (github.com/karpathy/nanochat); so parameters grow with its
cube. Heads have 64 features, 128 from a width of 1,024 on (Llama, arXiv 2302.13971, table 2). A name counts the matrices of the
blocks, and from 124M on, which has the shape of GPT-2's smallest model, an embedding of 50,257 tokens, too.
"""

from typing import Any

DEPTHS = {
    "3M": 4,
    "11M": 6,
    "30M": 8,
    "124M": 12,
    "350M": 18,
    "1B": 26,
    "3B": 38,
    "7B": 52,
}


def shape_of(size: str) -> dict[str, Any]:
    """Depth, width, heads and context of a size.

    Raises:
        ValueError: if there is no such size.
    """
    if size not in DEPTHS:
        raise ValueError(
            f"there is no size {size!r}: take one of {', '.join(DEPTHS)}, or n_layers and d_model"
        )
    depth = DEPTHS[size]
    width = 64 * depth
    return {
        "n_layers": depth,
        "d_model": width,
        "n_heads": width // (64 if width < 1024 else 128),
        "context_length": 256 if depth <= 4 else 512 if depth <= 8 else 1024 if depth <= 18 else 2048,
    }
