"""A language model of equilibria for transformers: loaded, saved, trained and sampled from by its tools.

`config.json` holds the `[model]` table of its recipe; a file of two lines beside it lets `trust_remote_code=True` find
these classes without an import. The model wraps one of ours, whose constructors draw the weights. Shared parameters are
tied by name, so that loading on the meta device and saving in shards keep them shared.
"""

from __future__ import annotations

import os
import warnings
from dataclasses import dataclass, replace
from itertools import chain
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from transformers import GenerationMixin, PreTrainedConfig, PreTrainedModel
from transformers.cache_utils import Cache as TransformersCache
from transformers.cache_utils import DynamicCache
from transformers.modeling_outputs import BaseModelOutputWithPast, CausalLMOutputWithPast
from transformers.modeling_utils import slice_logits_to_keep
from transformers.utils.generic import can_return_tuple

from equilibria.configuration import Recipe, RunRecipe, recipe_from, table_of
from equilibria.configuration.building import build_model
from equilibria.data.batches import NO_TARGET
from equilibria.depths import Depth, Equilibrium, UnrolledDepth
from equilibria.deq.failures import warn
from equilibria.gradients import Phantom, PullbackGradient, Unrolled
from equilibria.interop.hugging_face.cache import cache_layers, check_cache, head_sizes, read_on
from equilibria.interop.hugging_face.padding import Padding, check_positions
from equilibria.models import LanguageModel, ModelRecipe
from equilibria.models.causal import CausalModel
from equilibria.nn import TiedEmbedding, TokenEmbedding, UntiedEmbedding
from equilibria.solvers import Solution, Status

_BRIDGE = "modeling_equilibria"
_BRIDGE_TEXT = """\
# transformers reads this with trust_remote_code=True; the classes are those of the installed package equilibria.
from equilibria.interop.hugging_face import EquilibriaConfig, EquilibriaForCausalLM, EquilibriaModel  # noqa: F401
"""
_AUTO = {
    "AutoConfig": "EquilibriaConfig",
    "AutoModel": "EquilibriaModel",
    "AutoModelForCausalLM": "EquilibriaForCausalLM",
}


class EquilibriaConfig(PreTrainedConfig):
    """A language model of equilibria, as transformers describes one.

    Args:
        recipe: the `[model]` table of a recipe as plain JSON, the solver of evaluation in it
            (`recipe["depth"]["eval_solver"]`); other keys have a recipe's defaults.
        vocab_size: tokens.
        max_position_embeddings: tokens that a generated token sees at most, including itself: the window of
            `equilibria generate`. Positions are relative, so a given text may be longer. None for all tokens.
        use_cache: whether the model, if it can, returns the keys and values of what it has read.
        tie_word_embeddings: whether the output layer of a recipe with a tied embedding has the embedding's weight.
        hidden_size, num_hidden_layers: features of a token, and layers of a cache; set by the model.
        num_attention_heads, num_key_value_heads, head_dim: heads of the cell, heads that a cache keeps, and their
            features; set by the model, 1 head where a cell has none.
    """

    model_type = "equilibria"
    keys_to_ignore_at_inference = ["past_key_values"]  # noqa: RUF012

    recipe: dict[str, Any] | None = None
    vocab_size: int = 256
    max_position_embeddings: int | None = None
    use_cache: bool = True
    tie_word_embeddings: bool = True
    hidden_size: int | None = None
    num_hidden_layers: int | None = None
    num_attention_heads: int | None = None
    num_key_value_heads: int | None = None
    head_dim: int | None = None

    def __post_init__(self, **kwargs: Any) -> None:
        kwargs.setdefault("auto_map", {auto: f"{_BRIDGE}.{name}" for auto, name in _AUTO.items()})
        super().__post_init__(**kwargs)

    @classmethod
    def of(cls, model: ModelRecipe, vocabulary_size: int, window: int | None = None) -> EquilibriaConfig:
        """The configuration of a recipe's model; `window` is `max_position_embeddings`."""
        return cls(recipe=table_of(model), vocab_size=vocabulary_size, max_position_embeddings=window)

    def whole_recipe(self) -> Recipe:
        """A recipe of this model; raises a UserError that names a wrong key or value of the table."""
        run = table_of(RunRecipe(name=self.model_type))
        return recipe_from({"run": run, **({"model": self.recipe} if self.recipe else {})}, "config.json (recipe)")

    def save_pretrained(self, save_directory: str | os.PathLike[str], push_to_hub: bool = False, **kwargs: Any) -> None:
        super().save_pretrained(save_directory, push_to_hub, **kwargs)
        Path(save_directory, f"{_BRIDGE}.py").write_text(_BRIDGE_TEXT, encoding="utf-8")


@dataclass
class EquilibriaOutput(BaseModelOutputWithPast):
    """The final states, `last_hidden_state`, and with `output_hidden_states` the embedded tokens before them.

    Attributes:
        targets: the targets that were given, without those that no text precedes.
        penalty: what the recipe adds to the loss in training; None for nothing.
    """

    targets: Tensor | None = None
    penalty: Tensor | None = None


class EquilibriaPreTrainedModel(PreTrainedModel):
    """What both classes share: the weights of a fresh model, ties by name, and the recomputing of steps."""

    config: EquilibriaConfig
    config_class = EquilibriaConfig
    base_model_prefix = "backbone"
    supports_gradient_checkpointing = True

    @property
    def core(self) -> EquilibriaModel:
        """The backbone: the part from tokens to states, which may be all there is."""
        raise NotImplementedError

    def _own(self, tied: dict[str, str]) -> None:
        """Takes what our constructors have made: the names of parameters that they share, and `tied` ones besides, are
        tied, and transformers is told to leave alone what they have drawn."""
        firsts: dict[int, str] = {}
        names = [(name, id(parameter)) for name, parameter in self.named_parameters(remove_duplicate=False)]
        self._tied_weights_keys = {n: firsts[key] for n, key in names if firsts.setdefault(key, n) != n} | tied
        for tensor in chain(self.parameters(), self.buffers()):
            tensor._is_hf_initialized = tensor.device.type != "meta"  # pyright: ignore[reportAttributeAccessIssue]

    def get_expanded_tied_weights_keys(self, all_submodels: bool = False) -> dict[str, str]:
        """Maps each further name of a shared parameter to its first."""
        return dict(self._tied_weights_keys)

    def mark_tied_weights_as_initialized(self, loading_info: object) -> None:
        """Nothing is: a shared parameter has one mark for all its names, and would not be missed."""

    @torch.no_grad()
    def initialize_weights(self) -> None:
        """Gives weights that the checkpoint lacked those of a fresh model."""
        missing = {
            name: tensor
            for name, tensor in chain(self.named_parameters(), self.named_buffers())
            if not getattr(tensor, "_is_hf_initialized", False) and name not in self.all_tied_weights_keys
        }
        if not missing or next(iter(missing.values())).device.type == "meta":
            return
        fresh = type(self)(self.config).state_dict()
        for name, tensor in missing.items():
            tensor.copy_(fresh[name])

    def resize_token_embeddings(  # pyright: ignore[reportIncompatibleMethodOverride]
        self, new_num_tokens: int | None = None, pad_to_multiple_of: int | None = None, mean_resizing: bool = True
    ) -> nn.Module:
        """Changes the size of the vocabulary, as of other models.

        Raises:
            ValueError: tokens or their scores are made of more than one table; nothing has changed then.
        """
        table, embedding = self.get_input_embeddings(), self.core.model.embedding
        if pad_to_multiple_of is None and new_num_tokens in (None, embedding.vocabulary_size):
            return table
        linear = isinstance(table, nn.Embedding) and self.get_output_embeddings() is not None
        if not isinstance(table, TiedEmbedding) and not linear:
            kind = type(embedding).__name__
            raise ValueError(f"the {kind} of this model has more than one table of tokens, and cannot be resized")
        table = super().resize_token_embeddings(new_num_tokens, pad_to_multiple_of, mean_resizing)
        embedding.vocabulary_size = self.config.vocab_size
        self._own({})
        return table

    def activation_checkpointing_enable(
        self,
        activation_checkpointing_kwargs: dict[str, Any] | None = None,
        every_n_layers: int = 1,
        offload: bool = False,
    ) -> None:
        """Recomputes each differentiated evaluation in the backward pass, as for `gradient_checkpointing`.

        Raises:
            ValueError: there are no such steps, or an argument is not supported.
        """
        options = {**(activation_checkpointing_kwargs or {})}
        if options.pop("use_reentrant", False) or options or every_n_layers != 1 or offload:
            raise ValueError(
                f"this model recomputes every differentiated evaluation, and not by reentrant checkpoints; found "
                f"{activation_checkpointing_kwargs}, every_n_layers {every_n_layers}, offload {offload}"
            )
        self.core.checkpoint(True)

    def activation_checkpointing_disable(self) -> None:
        self.core.checkpoint(False)


class EquilibriaModel(EquilibriaPreTrainedModel):
    """From tokens to final states, by a model of equilibria: the backbone of `EquilibriaForCausalLM`.

    Attributes:
        model: that model, as `equilibria.load` gives it.
        depth: at which it is called, in place of its own; None for that.

    Raises:
        UserError: the recipe is wrong, or is of a model that reads a source besides the text it writes.
    """

    def __init__(self, config: EquilibriaConfig) -> None:
        super().__init__(config)
        model = build_model(config.whole_recipe(), config.vocab_size)
        if not isinstance(model, CausalModel):
            raise ValueError(f"a {type(model).__name__} does not continue a text; it is not a causal language model")
        model.check_continues()
        self.model = model
        self.depth: Depth | None = None
        config.hidden_size, config.num_hidden_layers = model.embedding.d_model, cache_layers(model) or 1
        config.num_attention_heads, config.num_key_value_heads, config.head_dim = head_sizes(model)
        self._own({})
        self.post_init()

    @property
    def core(self) -> EquilibriaModel:
        return self

    @can_return_tuple
    def forward(
        self,
        input_ids: Tensor | None = None,
        attention_mask: Tensor | None = None,
        position_ids: Tensor | None = None,
        past_key_values: TransformersCache | None = None,
        inputs_embeds: Tensor | None = None,
        use_cache: bool | None = None,
        output_hidden_states: bool | None = None,
        targets: Tensor | None = None,
        **others: object,
    ) -> EquilibriaOutput:
        """A whole text, or the next tokens of one. In evaluation a solve that does not converge is a
        `ConvergenceWarning`.

        Args:
            input_ids: token ids, `(B, L)`.
            attention_mask: 0 at padding, anywhere in a row; with a cache, for the tokens in it too.
            position_ids: the numbers of the tokens, which must be consecutive: only distances matter to these models.
            past_key_values: what has been read; the new tokens are added to it, without gradients.
            inputs_embeds: what tokens are embedded as, `(B, L, hidden_size)`, in place of their ids.
            use_cache: return the cache; None for the configuration's choice, in evaluation without gradients.
            output_hidden_states: return the embedded tokens and the final states: an equilibrium has no others.
            targets: the token after each, `(B, L)`, -100 for none; in training some penalties are of them.
            others: what transformers may ask of any model; an error unless it is None or False.

        Raises:
            ValueError: the model has no cache or is in training mode with one; a mask, position, token or cache is
                invalid; or something is asked for that these models do not have.
        """
        self._check_others(others)
        past = past_key_values
        if past is not None:
            check_cache(past, self.model)  # before the mask, which transformers makes another for other caches
        if (input_ids is None) is (inputs_embeds is None):
            raise ValueError("give either input_ids or inputs_embeds")
        tokens = input_ids if inputs_embeds is None else inputs_embeds
        assert tokens is not None
        states: tuple[Tensor, ...] | None = None
        if output_hidden_states or (output_hidden_states is None and self.config.output_hidden_states):
            tokens = self.model.embedding(input_ids) if inputs_embeds is None else inputs_embeds
            states = (tokens,)
        if self._caches(past, use_cache) and past is None:
            past = DynamicCache(config=self.config)
        batch, length = tokens.shape[:2]
        if position_ids is not None:
            check_positions(position_ids, attention_mask, length)
        padding = Padding.of(attention_mask, batch, 0 if past is None else past.get_seq_length(), length)
        if padding is not None and targets is not None:
            targets = padding.targets(targets)
        if past is not None:
            hidden_BLD, penalty = self._read_on(tokens, past, padding), None
        else:
            hidden_BLD, penalty = self._read(tokens, padding, targets)
        return EquilibriaOutput(
            last_hidden_state=hidden_BLD,
            past_key_values=past,
            hidden_states=None if states is None else (*states, hidden_BLD),
            targets=targets,
            penalty=penalty,
        )

    def _check_others(self, others: dict[str, object]) -> None:
        asked = [name for name, value in others.items() if value is not None and value is not False]
        if asked or self.config.output_attentions:
            raise ValueError(
                f"{(*asked, 'output_attentions')[0]}: models of equilibria have no such thing; leave it out"
            )

    def _caches(self, past: TransformersCache | None, use_cache: bool | None) -> bool:
        able = cache_layers(self.model) is not None
        if not able and use_cache:
            raise ValueError(
                f"a {type(self.model).__name__} of this kind has no keys and values of tokens to keep; "
                f"give use_cache=False"
            )
        if past is not None:
            return True
        if use_cache is None:
            return able and self.config.use_cache and not self.training and not torch.is_grad_enabled()
        return use_cache

    def _read_on(self, tokens: Tensor, past: TransformersCache, padding: Padding | None) -> Tensor:
        window = self.config.max_position_embeddings
        assert isinstance(self.model, LanguageModel)
        limit = None if window is None else window - 1
        if padding is not None:
            tokens = padding.text_last(tokens)
        step = read_on(self.model, tokens, past, None if padding is None else padding.padding_B, limit, self.depth)
        self._tell_of_failure(step.solution)
        return step.hidden_BLD if padding is None else padding.from_last(step.hidden_BLD)

    def _read(self, tokens: Tensor, padding: Padding | None, targets: Tensor | None) -> tuple[Tensor, Tensor | None]:
        """The final states without a cache, and the penalty of training."""
        if padding is not None:
            tokens, targets = padding.text_first(tokens), None if targets is None else padding.text_first(targets)
        # Without an auxiliary loss the targets have no part in the penalty, and their loss would be taken twice.
        given = targets if self.training and self.model.auxiliary_weight else None
        output = self.model(tokens, given, depth=self.depth)
        self._tell_of_failure(output.solution)
        if targets is None and output.penalty is not None and output.penalty.requires_grad:
            warnings.warn(
                "the recipe's penalties are in no loss that is taken outside of the model: give it labels, or train "
                "without them, and watch whether solves still converge",
                stacklevel=2,
            )
        return output.hidden if padding is None else padding.from_first(output.hidden), output.penalty

    def _tell_of_failure(self, solution: Solution | None) -> None:
        """Nothing that transformers returns has a place for it. The message is always the same, so that Python shows it
        once."""
        if not self.training and solution is not None and solution.status is not Status.CONVERGED:
            warn("a solve did not converge within the model's budget: what follows is not that of its equilibrium")

    def get_input_embeddings(self) -> nn.Module:
        """The table of embedded tokens, or where these are made of more than one, the module that embeds."""
        embedding = self.model.embedding
        if isinstance(embedding, UntiedEmbedding) and isinstance(embedding.project, nn.Identity):
            return embedding.rows
        return embedding

    def set_input_embeddings(self, value: nn.Module) -> None:
        """Replaces it by one of its kind, which scores tokens where the other did.

        Raises:
            ValueError: it is of another kind.
        """
        found = self.get_input_embeddings()
        if type(value) is not type(found):
            raise ValueError(f"the embedding of this model is a {type(found).__name__}, found a {type(value).__name__}")
        if isinstance(value, TokenEmbedding):
            self.model.embedding = value
        else:
            self.model.embedding.rows = value

    def get_output_embeddings(self) -> nn.Module | None:
        """The linear layer of the scores, where the embedding has one of its own."""
        output = getattr(self.model.embedding, "output", None)
        return output if isinstance(output, nn.Linear) else None

    def set_output_embeddings(self, new_embeddings: nn.Module) -> None:
        self.model.embedding.output = new_embeddings

    def checkpoint(self, on: bool) -> None:
        """Turns the recomputing of steps on or off; a ValueError where there are none."""
        match self.model:
            case LanguageModel(depth=Equilibrium(gradient=PullbackGradient() | Phantom() | Unrolled() as way) as depth):
                self.depth = replace(depth, gradient=replace(way, checkpoint=on))
            case LanguageModel(depth=UnrolledDepth() as depth):
                self.depth = replace(depth, checkpoint=on)
            case _:
                raise ValueError(
                    "this model's steps are not recomputed: it has none, or a gradient that recomputes by itself; "
                    "turn activation checkpointing off"
                )
        self.gradient_checkpointing = on


class EquilibriaForCausalLM(EquilibriaPreTrainedModel, GenerationMixin):
    """Predict each next token, by a model of equilibria.

    Attributes:
        backbone: from tokens to states.
        lm_head: the output layer, with the embedding's weight; None where the embedding has one of its own kind.

    Raises:
        UserError: the recipe is wrong, or is of a model that reads a source besides the text it writes.
    """

    accepts_loss_kwargs = True
    _tied_weights_keys = {"lm_head.weight": "backbone.model.embedding.weight"}  # noqa: RUF012

    def __init__(self, config: EquilibriaConfig) -> None:
        super().__init__(config)
        self.backbone = EquilibriaModel(config)
        self.lm_head = self._head(self.model.embedding)
        tied = self.lm_head is not None and config.tie_word_embeddings
        self._own(type(self)._tied_weights_keys if tied else {})
        self.generation_config.use_cache = cache_layers(self.model) is not None and config.use_cache
        self.post_init()

    def _head(self, embedding: TokenEmbedding) -> nn.Linear | None:
        if not isinstance(embedding, TiedEmbedding):
            return None
        head = nn.Linear(embedding.d_model, embedding.vocabulary_size, bias=False, device="meta")
        if not self.config.tie_word_embeddings:
            head.weight = nn.Parameter(embedding.weight.detach().clone())
        return head  # transformers ties it

    @property
    def core(self) -> EquilibriaModel:
        return self.backbone

    @property
    def model(self) -> CausalModel:
        """The backbone's model, as `equilibria.load` gives it."""
        return self.backbone.model

    @property
    def depth(self) -> Depth | None:
        """The backbone's."""
        return self.backbone.depth

    @depth.setter
    def depth(self, depth: Depth | None) -> None:
        self.backbone.depth = depth

    @can_return_tuple
    def forward(
        self,
        input_ids: Tensor | None = None,
        attention_mask: Tensor | None = None,
        position_ids: Tensor | None = None,
        past_key_values: TransformersCache | None = None,
        inputs_embeds: Tensor | None = None,
        labels: Tensor | None = None,
        use_cache: bool | None = None,
        output_hidden_states: bool | None = None,
        logits_to_keep: int | Tensor = 0,
        num_items_in_batch: Tensor | int | None = None,
        **others: Any,
    ) -> CausalLMOutputWithPast:
        """A whole text, or the next tokens of one; see `EquilibriaModel.forward`. In training the loss includes the
        model's penalties.

        Args:
            labels: token ids `(B, L)`, shifted here; -100 where there is nothing to predict.
            logits_to_keep: see transformers; 0 for all positions, as always with labels.
            num_items_in_batch: labels of all batches whose losses are summed; the loss is then the batch's share of
                their mean.
            others: as for the backbone, and `shift_labels`: the token after each, in place of labels.
        """
        targets = others.pop("shift_labels", None)  # as an argument it would be a label that every batch must have
        for own in ("tokenizer", "assistant_tokenizer"):  # of `generate`, which hands them on all the same
            others.pop(own, None)
        if targets is None and labels is not None:
            targets = nn.functional.pad(labels[:, 1:], (0, 1), value=NO_TARGET)
        output = self.backbone(
            input_ids,
            attention_mask,
            position_ids,
            past_key_values,
            inputs_embeds,
            use_cache,
            output_hidden_states,
            targets,
            return_dict=True,
            **others,
        )
        kept = slice_logits_to_keep(output.last_hidden_state, 0 if targets is not None else logits_to_keep)
        logits = self.model.embedding.logits(kept) if self.lm_head is None else self.lm_head(kept)
        loss = None
        if targets is not None:
            loss = self._loss(logits, output.targets, output.penalty)
            if num_items_in_batch is not None:
                # A batch weighs as the labels that were counted in it, though padding leaves the first without a state.
                loss = loss * ((targets != NO_TARGET).sum() / num_items_in_batch)
        return CausalLMOutputWithPast(
            loss=loss, logits=logits, past_key_values=output.past_key_values, hidden_states=output.hidden_states
        )

    def _loss(self, logits: Tensor, targets: Tensor, penalty: Tensor | None) -> Tensor:
        """The mean over the targets, and the penalty; zero for no targets."""
        count = (targets != NO_TARGET).sum().clamp(min=1)
        loss = self.loss_function(
            logits=logits,
            labels=None,
            shift_labels=targets,
            vocab_size=self.config.vocab_size,
            num_items_in_batch=count,
        )
        return loss if penalty is None else loss + penalty

    def get_input_embeddings(self) -> nn.Module:
        return self.backbone.get_input_embeddings()

    def set_input_embeddings(self, value: nn.Module) -> None:
        self.backbone.set_input_embeddings(value)

    def get_output_embeddings(self) -> nn.Module | None:
        """The linear layer of the scores; None where they are not made by one."""
        return self.backbone.get_output_embeddings() if self.lm_head is None else self.lm_head

    def set_output_embeddings(self, new_embeddings: nn.Module) -> None:
        if self.lm_head is None:
            self.backbone.set_output_embeddings(new_embeddings)
        else:
            self.lm_head = new_embeddings
