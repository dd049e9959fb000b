"""Self-attention whose keys and values of past segments are given, not recomputed.

Whatever does not depend on the states is bound once per solve: weights, positions, the mask, keys and values of the
past. Those are projected from a memory's states, or kept in a buffer with room for the segment's own, which every
evaluation writes. Shapes: B batch, L length of the segment, M of the past, S = M + L, H heads, K heads of keys and
values, E head size.
"""

from __future__ import annotations

from dataclasses import dataclass, field, replace
from functools import cached_property
from typing import Literal

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from equilibria.nn.normalisation import Normalisation, normalised, over_root_mean_square, used_weight
from equilibria.nn.positions import Rotation, linear_biases
from equilibria.ranges import above, one_of, whole

TextPositions = Literal["rotary", "linear", "none"]
Positions = Literal[TextPositions, "grid"]


@dataclass(frozen=True)
class KeysValues:
    """Keys and values of a memory, both `(B, K, M, E)`."""

    keys: Tensor
    values: Tensor

    def before(self, keys: Tensor, values: Tensor) -> tuple[Tensor, Tensor]:
        """Keys and values of memory and segment, `(B, K, S, E)`."""
        return torch.cat([self.keys, keys], dim=2), torch.cat([self.values, values], dim=2)


@dataclass(frozen=True)
class KeysValuesRoom(KeysValues):
    """Keys and values of past and segment in one buffer, `(B, K, S, E)`: the segment's are written to its end.

    After an evaluation the buffer holds those of its states; nothing of the past is copied.
    """

    past: int

    @cached_property
    def own(self) -> tuple[Tensor, Tensor]:
        """Where those of the segment are."""
        return self.keys[:, :, self.past :], self.values[:, :, self.past :]

    def at(self, row: int, slots_T: Tensor) -> KeysValuesSlots:
        """The same buffer for some tokens of a row."""
        return KeysValuesSlots(self.keys[row : row + 1], self.values[row : row + 1], slots_T)

    def before(self, keys: Tensor, values: Tensor) -> tuple[Tensor, Tensor]:
        """The buffer, with the segment's keys and values written to it; beside it where they have a graph."""
        if torch.is_grad_enabled() and (keys.requires_grad or values.requires_grad):
            past = KeysValues(self.keys[:, :, : self.past], self.values[:, :, : self.past])
            return past.before(keys, values)
        own_keys, own_values = self.own
        own_keys.copy_(keys)
        own_values.copy_(values)
        return self.keys, self.values


@dataclass(frozen=True)
class KeysValuesSlots(KeysValues):
    """The whole buffer of one row, `(1, K, S, E)`, whose slots `slots_T` are those of the tokens that are evaluated."""

    slots_T: Tensor

    def before(self, keys: Tensor, values: Tensor) -> tuple[Tensor, Tensor]:
        """The buffer, with the keys and values of the tokens renewed."""
        # Autocast may have lowered them, and `index_copy_` takes only the buffer's precision.
        self.keys.index_copy_(2, self.slots_T, keys.to(self.keys.dtype))
        self.values.index_copy_(2, self.slots_T, values.to(self.values.dtype))
        return self.keys, self.values


@dataclass(frozen=True)
class KeysValuesApart(KeysValues):
    """The past of a single token, `(1, K, M, E)`, all of which it sees. What is its own stays beside it: an evaluation
    writes nowhere, so that the map can be compiled.

    Attributes:
        own: the token's keys and values of the latest evaluation, appended; None where they are not wanted.
    """

    own: list[Tensor] | None = None

    def attend(self, q: Tensor, k: Tensor, v: Tensor) -> Tensor:
        """What queries, keys and values of the token, `(1, H or K, 1, E)`, make of its past and of itself:
        `(1, 1, H · E)`.

        Sums where other attention has matrix products: a compiler makes loops of them, which copy nothing.
        """
        if self.own is not None:
            self.own.extend((k, v))
        q = q.unflatten(1, (-1, q.shape[1] // k.shape[1])).mul(q.shape[-1] ** -0.5)
        past_KGM, own_KG1 = (self.keys.unsqueeze(2) * q).sum(-1), (k.unsqueeze(2) * q).sum(-1)
        most_KG1 = torch.maximum(past_KGM.amax(-1, keepdim=True), own_KG1)
        past_KGM, own_KG1 = (past_KGM - most_KG1).exp(), (own_KG1 - most_KG1).exp()
        mixed_KGE = (self.values.unsqueeze(2) * past_KGM.unsqueeze(-1)).sum(-2) + v * own_KG1
        return (mixed_KGE / (past_KGM.sum(-1, keepdim=True) + own_KG1)).flatten(1).unsqueeze(1)


@dataclass(frozen=True)
class Place:
    """Where a segment of L tokens stands.

    Attributes:
        past: tokens before it that it may see, M.
        first: position of the first of these; only differences of positions matter.
        present_BS: False at padding, which sees itself at most; None without padding.
        shift_B: added to the positions of each row, integers; None for zeros.
        rotations: those made so far; see `rotation`.
    """

    past: int = 0
    first: int = 0
    present_BS: Tensor | None = None
    shift_B: Tensor | None = None
    rotations: dict[tuple[int, torch.dtype], Rotation] = field(default_factory=dict, compare=False)

    def rotation(self, like_BLD: Tensor, head_size: int) -> Rotation:
        """Of the positions of a segment's own tokens; made once for all cells that are given this place."""
        kind = head_size, like_BLD.dtype
        if kind not in self.rotations:
            positions = self.positions(self.past, like_BLD.shape[1], like_BLD.device)
            self.rotations[kind] = Rotation.of(positions, *kind)
        return self.rotations[kind]

    def positions(self, start: int, length: int, device: torch.device) -> Tensor:
        """Positions of `length` tokens from `start` after the first that is seen: `(length,)` or `(B, length)`."""
        positions = torch.arange(self.first + start, self.first + start + length, device=device)
        return positions if self.shift_B is None else positions + self.shift_B.unsqueeze(-1)

    def mask(self, length: int, device: torch.device, window: int | None = None, strict: bool = False) -> Tensor | None:
        """What a query may see, `(L, S)` or `(B, 1, L, S)`, at most `window` keys including its own, without its own
        where `strict`; None for all."""
        seen = self.past + length
        if length == 1 and self.present_BS is None and (window is None or window >= seen) and not strict:
            return None
        mask_LS = causal_mask(length, self.past, device, window, strict)
        if self.present_BS is None:
            return mask_LS
        if strict:
            return (mask_LS & self.present_BS.unsqueeze(1)).unsqueeze(1)
        # Padding sees itself, so that no softmax is empty.
        itself_LS = torch.eye(seen, dtype=torch.bool, device=device)[self.past :]
        return (mask_LS & self.present_BS.unsqueeze(1) | itself_LS).unsqueeze(1)


@dataclass(frozen=True)
class AttentionPattern:
    """Where past and segment stand and what a query may see: the same for all blocks of a cell.

    Attributes:
        place: where the segment stands.
        rotation: of the segment's positions, None unless positions are rotary.
        mask: `(…, L, S)`, True where attention is allowed, or biases; None for none.
        causal: whether a query sees only its own and earlier keys, where no mask says so.
    """

    place: Place
    rotation: Rotation | None
    mask: Tensor | None
    causal: bool


class SelfAttention(nn.Module):
    """Multi-head self-attention through `scaled_dot_product_attention`: causal, or of all tokens with each other.

    Args:
        d_model: features in and out.
        heads: heads; each has `d_model / heads` features, an even number for rotary positions, a multiple of 4 for
            those of a grid.
        key_value_heads: heads of keys and values, a divisor of `heads`, shared by equally many heads of queries
            (Ainslie et al. 2023, arXiv:2305.13245); `heads` when None.
        positions: `"rotary"` angles, `"linear"` biases against distance, `"grid"`, rotary angles by row and by column
            of a grid whose cells, row by row, are the tokens, or `"none"`, with which tokens that all see each other
            are a set.
        query_key_norm: divide each query and key by its root mean square before positions are applied, with a learned
            gain per feature (Henry et al. 2020, arXiv:2010.04245; Dehghani et al. 2023, arXiv:2302.05442).
        query_key_gain: factor on queries and keys at the start, as the rows of their weight or, where they are normed,
            as the learned gain: scores grow with its square, so that a head can tell tokens apart from the first step.
        normalisation: of both weights.
        strict: whether a query sees only the keys before its own (strict future masking: Yang, Chiang and Angluin 2023,
            arXiv:2310.13897). The first sees none, and gets zeros: what PyTorch makes of a softmax over nothing.
        slope_factor: on the slopes of linear biases; at 64, four heads have 16, 4, 1 and 1/4.
        causal: whether a token sees itself and those before it, and not all tokens of its segment.
        columns: of the grid; None for no grid.
    """

    def __init__(
        self,
        d_model: int,
        heads: int,
        key_value_heads: int | None = None,
        positions: Positions = "rotary",
        query_key_norm: bool = False,
        normalisation: Normalisation = "none",
        query_key_gain: float = 1.0,
        strict: bool = False,
        slope_factor: float = 1.0,
        causal: bool = True,
        columns: int | None = None,
    ) -> None:
        super().__init__()
        whole(1, d_model=d_model, heads=heads, key_value_heads=key_value_heads, columns=columns)
        above(0, query_key_gain=query_key_gain, slope_factor=slope_factor)
        one_of(Positions, positions=positions)
        if slope_factor != 1.0 and positions != "linear":
            raise ValueError(f'slope_factor applies only to positions = "linear"; found "{positions}"')
        if strict and not causal:
            raise ValueError("strict needs causal = true")
        if (positions == "grid") != (columns is not None):
            found = f'positions = "{positions}", columns = {columns}'
            raise ValueError(f'positions = "grid" and columns, the length of its rows, go together; found {found}')
        if positions == "grid" and causal:
            raise ValueError('positions = "grid" needs causal = false')
        multiple = {"rotary": 2, "grid": 4}.get(positions, 1)
        if d_model % (multiple * heads):
            wanted = "heads" if multiple == 1 else f"{multiple} · heads for {positions} positions"
            raise ValueError(f"d_model must be a multiple of {wanted}, found d_model {d_model}, heads {heads}")
        key_value_heads = heads if key_value_heads is None else key_value_heads
        if heads % key_value_heads:
            raise ValueError(f"key_value_heads must divide heads, found {key_value_heads} of {heads} heads")
        self.heads, self.key_value_heads, self.head_size = heads, key_value_heads, d_model // heads
        self.positions: Positions = positions
        self.strict, self.slope_factor = strict, slope_factor
        self.causal, self.columns = causal, columns
        features = (heads + 2 * key_value_heads) * self.head_size
        queries_keys_values = nn.Linear(d_model, features, bias=False)
        if not query_key_norm:
            with torch.no_grad():
                queries_keys_values.weight[: (heads + key_value_heads) * self.head_size] *= query_key_gain
        self.queries_keys_values = normalised(queries_keys_values, normalisation)
        self.output = normalised(nn.Linear(d_model, d_model, bias=False), normalisation)
        gains = (nn.Parameter(torch.full((self.head_size,), query_key_gain)) for _ in range(2))
        self.query_gain, self.key_gain = gains if query_key_norm else (None, None)

    def pattern(self, like_BLD: Tensor, place: Place) -> AttentionPattern:
        """Positions and mask of a segment `(B, L, ·)`; a ValueError where tokens that see all others have a past or
        padding, or do not fill the rows of their grid."""
        past, length, device = place.past, like_BLD.shape[1], like_BLD.device
        if not self.causal:
            return self._whole(like_BLD, place)
        rotation = place.rotation(like_BLD, self.head_size) if self.positions == "rotary" else None
        # Without a past, plain causality needs no mask, and fused kernels are faster without one.
        plain = not past and place.present_BS is None and self.positions != "linear" and not self.strict
        mask = None if plain else place.mask(length, device, strict=self.strict)
        if self.positions == "linear":
            biases_HLS = linear_biases(self.heads, length, past, like_BLD, self.slope_factor)
            mask = biases_HLS if mask is None else torch.where(mask, biases_HLS, -torch.inf)
        return AttentionPattern(place, rotation, mask, causal=plain)

    def _whole(self, like_BLD: Tensor, place: Place) -> AttentionPattern:
        """The pattern of a segment whose tokens all see each other."""
        length = like_BLD.shape[1]
        if place.past or place.present_BS is not None:
            raise ValueError("tokens that all see each other (causal = false) are read at once: no memory, no padding")
        if self.columns is not None and length % self.columns:
            raise ValueError(f"a grid of {self.columns} columns has whole rows; found {length} tokens")
        rotation = self._rotation(place.positions(0, length, like_BLD.device), like_BLD)
        linear = self.positions == "linear"
        mask = linear_biases(self.heads, length, 0, like_BLD, self.slope_factor) if linear else None
        return AttentionPattern(place, rotation, mask, causal=False)

    def bind(self, pattern: AttentionPattern, past: Tensor | KeysValues | None = None) -> BoundAttention:
        """Attention for one solve. The past is keys and values before the segment, or `(B, M, d_model)`, the states to
        project them from, in the form that the bound attention is given states."""
        weight, gain_HE = used_weight(self.queries_keys_values), None
        if self.query_gain is not None and self.key_gain is not None:
            gains = self.query_gain.expand(self.heads, -1), self.key_gain.expand(self.key_value_heads, -1)
            gain_HE = torch.cat(gains)
        if isinstance(past, Tensor):
            past = self._projected(past, pattern.place, weight)
        return BoundAttention(self, weight, used_weight(self.output), gain_HE, pattern, past)

    def _projected(self, x_BMD: Tensor, place: Place, weight: Tensor) -> KeysValues:
        """Keys and values of the states of a segment's past."""
        rotation = self._rotation(place.positions(0, place.past, x_BMD.device), x_BMD)
        keys_values = F.linear(x_BMD, weight[self.heads * self.head_size :])
        keys, values = keys_values.unflatten(-1, (2, self.key_value_heads, -1)).unbind(-3)
        keys = _placed(keys, self.key_gain, rotation)
        return KeysValues(keys.transpose(1, 2), values.transpose(1, 2))

    def _rotation(self, positions: Tensor, like: Tensor) -> Rotation | None:
        if self.columns is not None:
            return Rotation.of_grid(positions, self.columns, self.head_size, like.dtype)
        return Rotation.of(positions, self.head_size, like.dtype) if self.positions == "rotary" else None


@dataclass(frozen=True)
class BoundAttention:
    """Attention with all that it needs besides the states."""

    attention: SelfAttention
    queries_keys_values: Tensor
    output: Tensor
    gain_HE: Tensor | None
    pattern: AttentionPattern
    past: KeysValues | None

    def __call__(self, x_BLD: Tensor) -> Tensor:
        """`(B, L, d_model) → (B, L, d_model)`."""
        H, K, pattern = self.attention.heads, self.attention.key_value_heads, self.pattern
        B, L, _ = x_BLD.shape
        # `split_with_sizes` and `view` where `split` and `unflatten` do more in Python than a token's products take.
        projected = F.linear(x_BLD, self.queries_keys_values).view(B, L, H + 2 * K, -1)
        q_k, v = projected.split_with_sizes((H + K, K), 2)
        q, k = _placed(q_k, self.gain_HE, pattern.rotation).transpose(1, 2).split_with_sizes((H, K), 1)
        v = v.transpose(1, 2)
        mask = pattern.mask
        if isinstance(self.past, KeysValuesApart):
            return F.linear(self.past.attend(q, k, v), self.output)
        if self.past is not None:
            k, v = self.past.before(k, v)
        if mask is not None and mask.dim() == 3:
            mask = mask.unsqueeze(0)  # fused kernels take masks of two or four dimensions; others are a third as fast
        mixed = F.scaled_dot_product_attention(q, k, v, attn_mask=mask, is_causal=pattern.causal, enable_gqa=K != H)
        return F.linear(mixed.transpose(1, 2).flatten(-2), self.output)

    def at(self, row: int, tokens_T: Tensor) -> BoundAttention:
        """For some tokens of a row, in order, over a cache: they see what they see in the segment."""
        pattern, past = self.pattern, self.past
        if not isinstance(past, KeysValuesRoom):
            raise ValueError("tokens are evaluated apart only over a cache")
        slots_T = pattern.place.past + tokens_T
        if pattern.mask is None:
            mask = torch.arange(past.keys.shape[2], device=slots_T.device) <= slots_T.unsqueeze(1)
        else:
            mask = pattern.mask[row if pattern.mask.dim() == 4 else ...][..., tokens_T, :]
        rotation = None if pattern.rotation is None else pattern.rotation.at(row, tokens_T)
        chosen = AttentionPattern(pattern.place, rotation, mask, causal=False)
        return replace(self, pattern=chosen, past=past.at(row, slots_T))


def _placed(x_BLHE: Tensor, gain: Tensor | None, rotation: Rotation | None) -> Tensor:
    """Queries or keys, normed where there is a gain and turned where there is a rotation."""
    if gain is not None:
        x_BLHE = over_root_mean_square(x_BLHE) * gain
    return x_BLHE if rotation is None else rotation.apply(x_BLHE)


def causal_mask(
    length: int, past: int, device: torch.device, window: int | None = None, strict: bool = False
) -> Tensor:
    """`(L, S)` booleans, True where a query of the segment may see a key: at most `window`, its own among them, or
    without its own where `strict`."""
    allowed = torch.ones(length, past + length, dtype=torch.bool, device=device).tril(diagonal=past - strict)
    return allowed if window is None else allowed.triu(diagonal=past - window + 1)
