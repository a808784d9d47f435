"""Whether the documents of a batch, which do not see each other, go through attention together."""


def are_packed(*, is_cuda: bool, is_float32: bool, head_dim: int) -> bool:
    """Whether there is a kernel for them (`torch.nn.attention.varlen`): none on a CPU, in float32, or for such heads."""
    return is_cuda and not is_float32 and head_dim % 8 == 0 and head_dim <= 256
