"""Optimizers and the learning-rate schedule."""

import math
from collections.abc import Callable, Iterable, Iterator, Sequence
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor, nn

from model.config import TrainConfig
from model.masters import Masters, Piece, Placed

# Coefficients of the first iterations of Polar Express (Amsel et al. 2025, arXiv 2505.16932, algorithm 1).
POLAR_EXPRESS = (
    (8.28721201814563, -23.595886519098837, 17.300387312530933),
    (4.107059111542203, -2.9478499167379106, 0.5448431082926601),
    (3.9486908534822946, -2.908902115962949, 0.5518191394370137),
)


def orthogonalize(matrices: Tensor) -> Tensor:
    """Nearest semi-orthogonal matrices of a stack (N, rows, columns), approximately.

    Newton-Schulz iterations with Polar Express coefficients: singular values move towards 1.
    """
    transposed = matrices.shape[1] > matrices.shape[2]
    x = matrices.mT if transposed else matrices
    x = x / (x.norm(dim=(1, 2), keepdim=True) * 1.01 + 1e-7)
    for a, b, c in POLAR_EXPRESS:
        gram = x @ x.mT
        x = a * x + (b * gram + c * gram @ gram) @ x
    return x.mT if transposed else x


class _Exchange:
    """How matrices of one shape, of which each rank holds pieces, come together on one rank each, and back.

    A matrix is worked on by the rank that holds most of it, and among equals by the one that has least to do. What lies
    there already is not sent: at ZeRO stages 1 and 2 only matrices on a border between ranks travel.

    Args:
        matrices: of one shape, in the same order on every rank.
        busy: elements that each rank works on already; it is added to.
    """

    def __init__(self, matrices: Sequence[Placed], rank: int, busy: list[int]) -> None:
        self.shape = matrices[0].shape
        owned_by = []
        for matrix in matrices:
            held = [0] * len(busy)
            for piece in matrix.pieces:
                held[piece.rank] += len(piece)
            owner = min(range(len(busy)), key=lambda r: (-held[r], busy[r], r))
            busy[owner] += sum(held)
            owned_by.append(owner)
        pairs = list(zip(matrices, owned_by, strict=True))
        self.own = [matrix for matrix, owner in pairs if owner == rank]
        self.travels = any(piece.rank != owner for matrix, owner in pairs for piece in matrix.pieces)
        ranks = range(len(busy))
        # What this rank holds of the matrices of each other one, and what each other one holds of its own.
        self.held = [
            [
                piece
                for matrix, owner in pairs
                if owner == other
                for piece in matrix.pieces
                if piece.rank == rank
            ]
            for other in ranks
        ]
        self.gathered = [
            [
                (i, piece)
                for i, matrix in enumerate(self.own)
                for piece in matrix.pieces
                if piece.rank == other
            ]
            for other in ranks
        ]

    def _send(self, parts: list[Tensor], sent: list[int], received: list[int], like: Tensor) -> Tensor:
        packed = torch.cat(parts) if parts else like.new_empty(0)
        if not self.travels:
            return packed
        arrived = like.new_empty(sum(received))
        dist.all_to_all_single(arrived, packed, received, sent)
        return arrived

    def gather(self, of_piece: Callable[[Piece], Tensor], like: Tensor) -> Tensor:
        """The matrices that this rank works on, whole: (n, rows, columns).

        Args:
            of_piece: what this rank holds of a matrix.
            like: a tensor of the same dtype and device.
        """
        held = [sum(map(len, pieces)) for pieces in self.held]
        gathered = [sum(len(piece) for _, piece in pieces) for pieces in self.gathered]
        arrived = self._send(
            [of_piece(piece) for pieces in self.held for piece in pieces], held, gathered, like
        )
        whole = like.new_empty(len(self.own), math.prod(self.shape))
        at = 0
        for i, piece in (pair for pieces in self.gathered for pair in pieces):
            whole[i, piece.start : piece.stop] = arrived[at : at + len(piece)]
            at += len(piece)
        return whole.view(len(self.own), *self.shape)

    def scatter(self, whole: Tensor) -> Iterator[tuple[Piece, Tensor]]:
        """What this rank holds of the whole matrices, wherever these are."""
        held = [sum(map(len, pieces)) for pieces in self.held]
        gathered = [sum(len(piece) for _, piece in pieces) for pieces in self.gathered]
        rows = whole.reshape(len(self.own), math.prod(self.shape))
        parts = [rows[i, p.start : p.stop] for pieces in self.gathered for i, p in pieces]
        arrived = self._send(parts, gathered, held, whole)
        at = 0
        for piece in (p for pieces in self.held for p in pieces):
            yield piece, arrived[at : at + len(piece)]
            at += len(piece)


class Muon(torch.optim.Optimizer):
    """Momentum orthogonalised by Newton-Schulz (Jordan et al. 2024, kellerjordan.github.io/posts/muon).

    Unlike `torch.optim.Muon` it takes all matrices of one shape in one product, needs three iterations instead of five,
    and works where DeepSpeed has cut the matrices up: see `place`. Products are in bfloat16 on CUDA, and elsewhere in the
    dtype of the weights, since bfloat16 is slow on many CPUs.
    """

    def __init__(
        self, params: Iterable[nn.Parameter], lr: float, momentum: float = 0.95, weight_decay: float = 0.0
    ):
        super().__init__(list(params), {"lr": lr, "momentum": momentum, "weight_decay": weight_decay})
        self.exchanges: dict[Tensor, list[_Exchange]] = {}
        self.device = torch.device("cpu")
        self.found_inf: Tensor | None = None

    def place(self, masters: Masters) -> None:
        """Learn which pieces of which matrices the tensors hold that are to be moved; whole matrices without ZeRO."""
        if masters.stage == 0:
            return
        self.device = masters.engine.device
        busy = [0] * masters.ranks
        for master in masters.all:
            by_shape: dict[tuple[int, ...], list[Placed]] = {}
            for placed in master.weights:
                by_shape.setdefault(placed.shape, []).append(placed)
            self.exchanges[master.tensor] = [
                _Exchange(matrices, masters.rank, busy) for matrices in by_shape.values()
            ]

    @torch.no_grad()
    def step(self, closure: Any = None) -> None:  # type: ignore[override]
        """One update of every matrix that has a gradient."""
        for group in self.param_groups:
            by_shape: dict[torch.Size, list[nn.Parameter]] = {}
            for parameter in group["params"]:
                if parameter.grad is None:
                    continue
                self._take_in(parameter, group)
                self._decay(parameter, group)
                if parameter in self.exchanges:
                    self._move_pieces(parameter, group)
                else:
                    by_shape.setdefault(parameter.shape, []).append(parameter)
            # One shape after another: what is needed meanwhile is several times their size.
            for shape, parameters in by_shape.items():
                stacked = torch.stack([_as_computed(self._ahead(each, group)) for each in parameters])
                for parameter, direction in zip(parameters, orthogonalize(stacked), strict=True):
                    self._move(parameter, direction, group, _scale(shape))

    def _take_in(self, parameter: Tensor, group: dict[str, Any]) -> None:
        """Take the gradient into the momentum."""
        state = self.state[parameter]
        if not state:
            state["momentum_buffer"] = torch.zeros_like(parameter)
        buffer = state["momentum_buffer"]
        assert parameter.grad is not None
        if self.found_inf is None:
            buffer.lerp_(parameter.grad, 1 - group["momentum"])
        else:
            buffer.lerp_(parameter.grad, (1 - group["momentum"]) * (1 - self.found_inf))

    def _ahead(self, parameter: Tensor, group: dict[str, Any], at: slice = slice(None)) -> Tensor:
        """Nesterov's look ahead, of some of it: what is to be orthogonalised."""
        assert parameter.grad is not None
        return torch.lerp(parameter.grad[at], self.state[parameter]["momentum_buffer"][at], group["momentum"])

    def _decay(self, parameter: Tensor, group: dict[str, Any]) -> None:
        decay = group["lr"] * group["weight_decay"]
        parameter.mul_(1 - decay if self.found_inf is None else 1 - decay * (1 - self.found_inf))

    def _move_pieces(self, parameter: Tensor, group: dict[str, Any]) -> None:
        """Move what this rank holds of the matrices, one shape after another, as whole ones are."""

        def ahead(piece: Piece) -> Tensor:
            # Where the model computes, also if this lies on the host: NCCL sends nothing from there.
            return _as_computed(self._ahead(parameter, group, _place(piece)).to(self.device))

        like = _as_computed(parameter.new_empty(0, device=self.device))
        for exchange in self.exchanges[parameter]:
            whole = exchange.gather(ahead, like)
            if len(whole):
                whole = orthogonalize(whole).mul_(_scale(exchange.shape))
            for piece, direction in exchange.scatter(whole):
                self._move(parameter[_place(piece)], direction.to(parameter.device), group, 1.0)

    def _move(self, parameter: Tensor, direction: Tensor, group: dict[str, Any], scale: float) -> None:
        if self.found_inf is not None:
            direction = direction * (1 - self.found_inf)
        parameter.add_(direction, alpha=-group["lr"] * scale)


def _place(piece: Piece) -> slice:
    return slice(piece.offset, piece.offset + len(piece))


def _as_computed(update: Tensor) -> Tensor:
    return update.bfloat16() if update.is_cuda else update


def _scale(shape: Sequence[int]) -> float:
    return math.sqrt(max(1.0, shape[0] / shape[1]))


class Together(torch.optim.Optimizer):
    """Several optimizers that step as one; their parameter groups and their state are shared, not copied.

    Attributes:
        judge: says 1.0 of a step that is to move nothing, else 0.0, on the device; None if none is asked.
    """

    def __init__(self, optimizers: list[torch.optim.Optimizer]) -> None:
        self.optimizers = optimizers
        self.judge: Callable[[], Tensor] | None = None
        super().__init__([group for optimizer in optimizers for group in optimizer.param_groups], {})
        self.param_groups = [group for optimizer in optimizers for group in optimizer.param_groups]
        for optimizer in optimizers:
            optimizer.state = self.state

    @torch.no_grad()
    def step(self, closure: Any = None) -> None:  # type: ignore[override]
        """One update by each of its groups among `param_groups`, of which ZeRO may leave one at a time."""
        if self.judge:
            self._leave_out(self.judge())
        now = {id(group) for group in self.param_groups}
        for optimizer in self.optimizers:
            groups = optimizer.param_groups
            optimizer.param_groups = [group for group in groups if id(group) in now]
            optimizer.step()
            optimizer.param_groups = groups

    def _leave_out(self, judged: Tensor) -> None:
        """Tell each, on the device, whether to leave everything as it is, under the name that torch's own know."""
        for group in self.param_groups:
            for parameter in group["params"]:
                if parameter.grad is not None:
                    # Nothing times what is no number is no number.
                    parameter.grad.nan_to_num_(0.0, 0.0, 0.0)
                    # On the host, if that is where weights are moved.
                    judged = judged.to(parameter.device)
        for optimizer in self.optimizers:
            optimizer.found_inf = judged  # type: ignore[attr-defined]

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Not how state comes back: it is read piece by piece, see `model.checkpoint`."""
        raise NotImplementedError("the state of an optimizer is read by model.checkpoint.Checkpoints.load")

    def place(self, masters: Masters) -> None:
        """Tell those that work on whole matrices where these are."""
        for optimizer in self.optimizers:
            if isinstance(optimizer, Muon):
                optimizer.place(masters)


def n_dimensions(parameter: Tensor) -> int:
    """Of a weight that may exist in shares only (ZeRO stage 3), whose own shape then says nothing."""
    return len(getattr(parameter, "ds_shape", parameter.shape))


def build_optimizer(config: TrainConfig, model: nn.Module) -> Together:
    """The optimizer that `config` names, over the parameters of `model`.

    Weight decay is for matrices only. Muon gets the matrices of the blocks; embedding,
    head and gains get AdamW.
    """
    named = [(name, parameter) for name, parameter in model.named_parameters() if parameter.requires_grad]
    muon = (
        [p for name, p in named if name.startswith("blocks.") and n_dimensions(p) == 2]
        if config.optimizer == "muon"
        else []
    )
    taken = {id(p) for p in muon}
    rest = [p for _, p in named if id(p) not in taken]
    adamw = torch.optim.AdamW(
        [
            {"params": [p for p in rest if n_dimensions(p) >= 2], "weight_decay": config.weight_decay},
            {"params": [p for p in rest if n_dimensions(p) < 2], "weight_decay": 0.0},
        ],
        lr=config.learning_rate,
        betas=(config.beta1, config.beta2),
        eps=config.adam_epsilon,
        fused=True,
    )
    if not muon:
        return Together([adamw])
    moved = Muon(muon, lr=config.muon_learning_rate, weight_decay=config.weight_decay)
    return Together([moved, adamw])


def rate_at(config: TrainConfig, step: int) -> float:
    """Learning rate of `step` (from 0) as a share of the peak: warm-up, plateau, decay."""
    n_steps = config.n_steps
    warmup, decay = config.warmup_fraction * n_steps, config.decay_fraction * n_steps
    rising = min(1.0, (step + 1) / warmup) if warmup >= 1 else 1.0
    remaining = min(1.0, (n_steps - step) / decay) if decay >= 1 else 1.0
    if config.decay == "cosine":
        remaining = 0.5 * (1 - math.cos(math.pi * remaining))
    return rising * (config.final_rate + (1 - config.final_rate) * remaining)


def muon_momentum_at(config: TrainConfig, step: int) -> float:
    """Muon's momentum at `step`: from 0.85 to 0.95 over the first tenth (modded-nanogpt's warm-up)."""
    return 0.85 + 0.10 * min(1.0, step / max(1.0, 0.1 * config.n_steps))


def set_rates(config: TrainConfig, optimizer: torch.optim.Optimizer, step: int) -> float:
    """Set rates and momentum of `step` in every group; returns the share of the peak.

    A pure function of the step, so a resumed run needs no scheduler state.
    """
    share = rate_at(config, step)
    for group in optimizer.param_groups:
        if "momentum" in group:
            group["lr"] = config.muon_learning_rate * share
            group["momentum"] = muon_momentum_at(config, step)
        else:
            group["lr"] = config.learning_rate * share
    return share
