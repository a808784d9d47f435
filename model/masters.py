"""The weights that the optimizer moves, wherever DeepSpeed keeps them.

Without ZeRO they are the model's own. At stages 1 and 2, and in bfloat16, each rank holds a float32 copy of its share of
all weights, one after another in a few flat tensors; a matrix may lie on two ranks. At stage 3 each rank holds a
share of every weight. What of a weight lies where is the same arithmetic on every rank, so nobody has to ask.

Everything here that is not documented by DeepSpeed is listed in docs/libraries.md.
"""

from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from itertools import accumulate
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor

from model.transformer import Transformer


@dataclass(frozen=True)
class Piece:
    """Elements `start` to `stop` of a flattened weight, held by `rank` from `offset` of its tensor on."""

    rank: int
    start: int
    stop: int
    offset: int

    def __len__(self) -> int:
        return self.stop - self.start


@dataclass(frozen=True)
class Placed:
    """A weight, and where its pieces lie."""

    name: str
    shape: tuple[int, ...]
    pieces: tuple[Piece, ...]


@dataclass(frozen=True, eq=False)
class Master:
    """A tensor of this rank that the optimizer moves, float32, and the weights that lie in it and in its like on other ranks."""

    tensor: Tensor
    weights: tuple[Placed, ...]


def _one_after_another(
    names: list[str], shapes: list[tuple[int, ...]], offsets: list[int], share: int, ranks: int
) -> tuple[Placed, ...]:
    """Weights in a flat row of `ranks` equal shares: rank r holds elements r x share to (r + 1) x share."""
    placed = []
    for name, shape, offset in zip(names, shapes, offsets, strict=True):
        n = int(torch.Size(shape).numel())
        pieces = []
        for rank in range(offset // share, min(ranks - 1, (offset + n - 1) // share) + 1):
            first, last = max(offset, rank * share), min(offset + n, (rank + 1) * share)
            pieces.append(Piece(rank, first - offset, last - offset, first - rank * share))
        placed.append(Placed(name, shape, tuple(pieces)))
    return tuple(placed)


def _a_share_of_each(
    names: list[str], shapes: list[tuple[int, ...]], shares: list[int], ranks: int
) -> tuple[Placed, ...]:
    """Weights of which each rank holds an equal share, the last one less."""
    placed = []
    for name, shape, share, offset in zip(names, shapes, shares, accumulate(shares, initial=0), strict=False):
        n = int(torch.Size(shape).numel())
        pieces = [Piece(r, r * share, min(n, (r + 1) * share), offset) for r in range(ranks) if r * share < n]
        placed.append(Placed(name, shape, tuple(pieces)))
    return tuple(placed)


class Masters:
    """All that the optimizer moves.

    Args:
        model: whose trained weights they are.
        engine: DeepSpeed's engine around it.
    """

    def __init__(self, model: Transformer, engine: Any) -> None:
        self.engine, self.stage = engine, engine.zero_optimization_stage()
        self.rank, self.ranks = dist.get_rank(), dist.get_world_size()
        names = {id(weight): name for name, weight in model.named_parameters() if weight.requires_grad}
        if self.stage == 0:
            trained = [weight for weight in model.parameters() if weight.requires_grad]
            self.all = [
                # Every rank has all of it; the first one speaks for them.
                Master(
                    weight,
                    (Placed(names[id(weight)], tuple(weight.shape), (Piece(0, 0, weight.numel(), 0),)),),
                )
                for weight in trained
            ]
            return
        optimizer = engine.optimizer
        self.all = []
        if self.stage == 3:
            for weights, flat in zip(
                optimizer.fp16_groups, optimizer.fp32_partitioned_groups_flat, strict=True
            ):
                shares = [int(weight.partition_numel()) for weight in weights]
                shapes = [tuple(weight.ds_shape) for weight in weights]
                placed = _a_share_of_each([names[id(w)] for w in weights], shapes, shares, self.ranks)
                self.all.append(Master(flat, placed))
            return
        self.is_bf16_optimizer = hasattr(optimizer, "bf16_groups")
        groups = optimizer.bf16_groups if self.is_bf16_optimizer else optimizer.round_robin_bit16_groups
        flats = (
            optimizer.fp32_groups_flat_partition
            if self.is_bf16_optimizer
            else optimizer.single_partition_of_fp32_groups
        )
        for i, (weights, flat) in enumerate(zip(groups, flats, strict=True)):
            shapes = [tuple(weight.shape) for weight in weights]
            if self.is_bf16_optimizer:
                offsets = list(accumulate((weight.numel() for weight in weights), initial=0))[:-1]
            else:
                offsets = list(optimizer.round_robin_bit16_offsets[i])
            placed = _one_after_another(
                [names[id(w)] for w in weights], shapes, offsets, flat.numel(), self.ranks
            )
            self.all.append(Master(flat, placed))

    def tensors(self) -> list[Tensor]:
        """Those of this rank."""
        return [master.tensor for master in self.all]

    def own_pieces(self, master: Master, value: Tensor) -> Iterator[tuple[str, int, Tensor]]:
        """For each piece of a weight that this rank speaks for: name, first element, and the part of `value` in its place.

        Args:
            value: of the size of the master's tensor: itself, or one of its moments.
        """
        flat = value.detach().reshape(-1)
        for placed in master.weights:
            for piece in placed.pieces:
                if piece.rank == self.rank:
                    yield placed.name, piece.start, flat[piece.offset : piece.offset + len(piece)]

    @torch.no_grad()
    def fill(self, values: Sequence[Tensor | None], whole: Callable[[str, int, int], Tensor]) -> None:
        """Set what this rank holds, of the weights or of other tensors of their sizes, such as an optimizer's moments.

        Args:
            values: one for each of `tensors`, of its size; None is left out.
            whole: gives elements start to stop of a flattened weight by its name.
        """
        for master, value in zip(self.all, values, strict=True):
            if value is None:
                continue
            flat = value.detach().view(-1)
            for placed in master.weights:
                for piece in placed.pieces:
                    # Without ZeRO all ranks hold what the first one speaks for.
                    if self.stage == 0 or piece.rank == self.rank:
                        flat[piece.offset : piece.offset + len(piece)] = whole(
                            placed.name, piece.start, piece.stop
                        )

    @torch.no_grad()
    def fill_one_by_one(self, weights: Iterable[tuple[str, Tensor]]) -> None:
        """Set the weights from whole ones that come in any order, each on the CPU: no more than one of them need exist."""
        places = {placed.name: (master, placed) for master in self.all for placed in master.weights}
        for name, whole in weights:
            master, placed = places.pop(name)
            flat, values = master.tensor.detach().view(-1), whole.reshape(-1)
            for piece in placed.pieces:
                if self.stage == 0 or piece.rank == self.rank:
                    flat[piece.offset : piece.offset + len(piece)] = values[piece.start : piece.stop]
        assert not places, f"no values for {sorted(places)}"

    @torch.no_grad()
    def gather(self) -> dict[str, Tensor]:
        """All weights whole, float32 on the CPU, on the first rank; nothing on others. Every rank calls it."""
        found = {}
        for master in self.all:
            flat = master.tensor.detach().view(-1)
            for placed in master.weights:
                if self.stage == 0:
                    whole = flat.clone()
                else:
                    # Where the model computes, since NCCL reduces nothing that lies on the host.
                    size = torch.Size(placed.shape).numel()
                    whole = torch.zeros(size, dtype=flat.dtype, device=self.engine.device)
                    for piece in placed.pieces:
                        if piece.rank == self.rank:
                            whole[piece.start : piece.stop] = flat[piece.offset : piece.offset + len(piece)]
                    if self.ranks > 1:
                        dist.reduce(whole, 0)
                if self.rank == 0:
                    found[placed.name] = whole.float().cpu().view(placed.shape)
        return found

    @torch.no_grad()
    def refresh(self) -> None:
        """Make the weights that the model computes with follow those that the optimizer moves. Every rank calls it."""
        optimizer = self.engine.optimizer
        if self.stage == 0:
            return
        if self.stage == 3:
            self._refresh_shares(optimizer)
        elif self.is_bf16_optimizer:
            optimizer.update_lp_params()
        else:
            from deepspeed.runtime.utils import all_gather_dp_groups

            for shares, flat in zip(optimizer.parallel_partitioned_bit16_groups, self.tensors(), strict=True):
                shares[self.rank].copy_(flat)
            all_gather_dp_groups(
                groups_flat=optimizer.bit16_groups_flat,
                partitioned_param_groups=optimizer.parallel_partitioned_bit16_groups,
                dp_process_group=optimizer.real_dp_process_group,
                start_alignment_factor=optimizer.nccl_start_alignment_factor,
                allgather_bucket_size=optimizer.allgather_bucket_size,
            )

    def _refresh_shares(self, optimizer: Any) -> None:
        for i, flat in enumerate(self.tensors()):
            computed = optimizer.fp16_partitioned_groups_flat[i]
            if computed.data_ptr() != flat.data_ptr():
                computed.copy_(flat)
            shares = optimizer.fp16_partitioned_groups[i]
            for share, value in zip(shares, optimizer.unflatten(computed, shares), strict=True):
                share.data = value.data
        if optimizer.persistent_parameters:
            optimizer.persistent_parameters[0].partition(optimizer.persistent_parameters)
        self.gather_small()

    def gather_small(self) -> None:
        """At stage 3 have small weights whole on every rank, as they are between steps.

        DeepSpeed forgets it where it leaves out a step whose gradient is not finite, and then fails in the next one.
        """
        if self.stage == 3:
            small = self.engine.optimizer.persistent_parameters
            if missing := [weight for weight in small if not weight.numel()]:
                missing[0].all_gather(missing)

    @contextmanager
    def replaced_by(self, values: list[Tensor] | None) -> Iterator[None]:
        """Have other values in the place of the weights while the body runs; the weights themselves if None."""
        if values is None:
            yield
            return
        kept = [tensor.detach().clone() for tensor in self.tensors()]
        self._put(values)
        try:
            yield
        finally:
            self._put(kept)

    @torch.no_grad()
    def _put(self, values: list[Tensor]) -> None:
        for tensor, value in zip(self.tensors(), values, strict=True):
            tensor.copy_(value)
        self.refresh()
