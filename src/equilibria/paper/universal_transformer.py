"""The Universal Transformer as an encoder and a decoder (Dehghani et al. 2018, arXiv:1807.03819).

    encoder   a = LN(h + SelfAttention(h)),                                      f(h) = LN(a + FeedForward(a))
    decoder   a = LN(h + CausalSelfAttention(h)),  c = LN(a + Attention(a; source)),  f(h) = LN(c + FeedForward(c))

Each is applied at a `Halting` depth of its own, which adds position and step before every application. The whole
source is read; a target sees those before it. Its decoder alone, as a language model, is a cell at a `Halting` depth.
Shapes: B batch, S length of the source, L of the target, D features.
"""

from dataclasses import dataclass
from functools import partial

import torch
from torch import Tensor, nn

from equilibria.cells import Cache, Memory
from equilibria.depths import Depth, Reached
from equilibria.models.base import Output, TokenModel
from equilibria.models.recipe import blamed_on
from equilibria.models.regularisation import Regularisation
from equilibria.nn import FeedForward, TokenEmbedding, dropout_mask, masked
from equilibria.nn.feed_forward import BoundFeedForward
from equilibria.paper.baselines import Baseline
from equilibria.paper.halting import Halting
from equilibria.ranges import probability, whole


@dataclass(frozen=True)
class _Seen:
    """What a block needs besides its state: the encoded source, the causal mask, weights and dropout masks."""

    source_BSD: Tensor | None
    hidden_LL: Tensor | None
    feed_forward: BoundFeedForward
    dropout: tuple[Tensor | None, ...]


class UniversalBlock(nn.Module):
    """The map of the encoder, or with `reads_source` that of the decoder.

    Args:
        d_model: features, a multiple of `heads`.
        inner: features inside the feed-forward network.
        reads_source: whether it attends to an encoded source.
    """

    def __init__(self, d_model: int, heads: int, inner: int, reads_source: bool = False) -> None:
        super().__init__()
        whole(1, heads=heads, inner=inner)
        if d_model % heads:
            raise ValueError(f"d_model must be a multiple of heads, found {d_model} and {heads} heads")
        self.self_attention = nn.MultiheadAttention(d_model, heads, batch_first=True)
        self.source_attention = nn.MultiheadAttention(d_model, heads, batch_first=True) if reads_source else None
        self.feed_forward = FeedForward(d_model, inner)
        self.norms = nn.ModuleList(nn.LayerNorm(d_model) for _ in range(3 if reads_source else 2))

    def forward(self, h_BLD: Tensor, seen: _Seen) -> Tensor:
        """One application, `(B, L, D) → (B, L, D)`."""
        norms, masks = iter(self.norms), iter(seen.dropout)
        mixed, _ = self.self_attention(h_BLD, h_BLD, h_BLD, attn_mask=seen.hidden_LL, need_weights=False)
        h_BLD = next(norms)(h_BLD + masked(mixed, next(masks)))
        if self.source_attention is not None:
            mixed, _ = self.source_attention(h_BLD, seen.source_BSD, seen.source_BSD, need_weights=False)
            h_BLD = next(norms)(h_BLD + masked(mixed, next(masks)))
        return next(norms)(h_BLD + masked(seen.feed_forward(h_BLD), next(masks)))


class UniversalTransformer(TokenModel):
    """Write a target sequence, given a source. Source and target share one vocabulary and one embedding.

    Args:
        embedding: of the tokens, and their softmax.
        inner: features inside the feed-forward networks.
        encoder, decoder: their depths.
        dropout: probability of dropping a feature of a sublayer's output; one mask for all steps.
        start: the token id that precedes a target.
    """

    def __init__(
        self,
        embedding: TokenEmbedding,
        heads: int,
        inner: int,
        encoder: Halting,
        decoder: Halting,
        dropout: float = 0.0,
        start: int = 0,
    ) -> None:
        super().__init__()
        if not 0 <= start < embedding.vocabulary_size:
            raise ValueError(f"start must be one of {embedding.vocabulary_size} token ids, found {start}")
        probability(dropout=dropout)
        self.embedding, self.memory_length = embedding, 0
        self.encoder, self.decoder = encoder, decoder
        self.read = UniversalBlock(embedding.d_model, heads, inner)
        self.write = UniversalBlock(embedding.d_model, heads, inner, reads_source=True)
        self.dropout, self.start = dropout, start

    def forward(
        self,
        tokens_BL: Tensor,
        targets: Tensor | None = None,
        memory: Memory | Cache | None = None,
        *,
        depth: Depth | None = None,
        memory_length: int | None = None,
    ) -> Output:
        """Predict each target `(B, L)`, -100 after its end, from the source `(B, S)` and the targets before it.

        Raises:
            ValueError: there is no target, there is a memory or a depth, or a token id is outside the vocabulary.
        """
        self._check_depthless(depth)
        if targets is None or memory is not None:
            raise ValueError("an encoder-decoder needs a target and takes no memory; `generate` writes a target")
        hidden_BLD, penalty = self._pass(tokens_BL, targets[:, :-1].clamp(min=0))
        loss = self.loss(hidden_BLD, targets)
        return Output(hidden_BLD, self.embedding, loss, memory=None, solution=None, penalty=penalty)

    def next_hidden(
        self, prompt_BP: Tensor, written_BL: Tensor, window: int, *, depth: Depth | None = None
    ) -> tuple[Tensor, None]:
        """The state `(B, D)` that predicts the next token of the target; source and target are seen whole."""
        self._check_depthless(depth)
        return self._pass(prompt_BP, written_BL)[0][:, -1], None

    def _pass(self, source_BS: Tensor, before_BL: Tensor) -> tuple[Tensor, Tensor | None]:
        """The states that predict the targets `(B, 1 + L, D)`, given those before the last; and the ponder costs."""
        start_B1 = before_BL.new_full((before_BL.shape[0], 1), self.start)
        source = self._reach(self.read, self.encoder, source_BS, None)
        target = self._reach(self.write, self.decoder, torch.cat([start_B1, before_BL], dim=1), source.state)
        penalties = [reached.penalty for reached in (source, target) if reached.penalty is not None]
        return target.state, torch.stack(penalties).sum() if penalties else None

    def _reach(self, block: UniversalBlock, depth: Halting, tokens_BL: Tensor, source_BSD: Tensor | None) -> Reached:
        """One side at its depth; causal where there is a source to read."""
        self.check(tokens_BL)
        inputs_BLD = self.embedding(tokens_BL) * self.embedding.d_model**0.5
        every_LL = torch.ones(2 * inputs_BLD.shape[1:2], dtype=torch.bool, device=inputs_BLD.device)
        hidden_LL = None if source_BSD is None else every_LL.triu(diagonal=1)
        dropout = tuple(dropout_mask(inputs_BLD, self.dropout, self.training) for _ in block.norms)
        seen = _Seen(source_BSD, hidden_LL, block.feed_forward.bind(), dropout)
        return depth.reach(lambda h: block(h, seen), inputs_BLD, self.training)


@dataclass(frozen=True, kw_only=True)
class UniversalTransformerModel(Baseline):
    """A `UniversalTransformer` as a recipe holds it; it has no memory and no regularisation around its layers.

    Args:
        heads: attention heads.
        inner: width of the feed-forward layers.
        dropout: probability of dropping a feature of a sublayer's output.
        max_steps: applications at most, of the encoder and of the decoder.
        threshold: sum of halting probabilities at which a token halts.
        ponder_weight: weight, in the training loss, of the steps that are taken.
    """

    heads: int
    inner: int
    dropout: float = 0.0
    max_steps: int = 8
    threshold: float = 0.99
    ponder_weight: float = 1e-3

    reads_source = True

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.memory_length or self.regularisation != Regularisation():
            raise ValueError("an encoder-decoder takes neither memory_length nor regularisation; omit them")

    def build(self, vocabulary_size: int) -> UniversalTransformer:
        embedding = self.build_embedding(vocabulary_size, self.d_model, self.d_model)
        halting = partial(Halting, self.d_model, self.max_steps, self.threshold, self.ponder_weight)
        with blamed_on("model"):
            return UniversalTransformer(embedding, self.heads, self.inner, halting(), halting(), self.dropout)
