"""A language model of equilibria for transformers: loaded, saved, trained and sampled from by its tools.

`config.json` holds the `[model]` table of its recipe; a file of two lines beside it lets `trust_remote_code=True` find
these classes without an import. The model wraps one of ours, whose constructors draw the weights. Shared parameters are
tied by name, so that loading on the meta device and saving in shards keep them shared.
"""

from __future__ import annotations

import os
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from transformers import GenerationMixin, PreTrainedConfig, PreTrainedModel
from transformers.cache_utils import Cache as TransformersCache
from transformers.cache_utils import DynamicCache
from transformers.modeling_outputs import CausalLMOutputWithPast
from transformers.modeling_utils import slice_logits_to_keep
from transformers.utils.generic import can_return_tuple

from equilibria.configuration import Recipe, RunRecipe, recipe_from, table_of
from equilibria.configuration.building import build_model
from equilibria.data.batches import NO_TARGET
from equilibria.depths import Depth, Equilibrium, UnrolledDepth
from equilibria.deq.failures import warn
from equilibria.gradients import Phantom, Unrolled
from equilibria.interop.hugging_face.cache import cache_layers, read_on
from equilibria.interop.hugging_face.padding import LeftPadding
from equilibria.models import LanguageModel, ModelRecipe
from equilibria.models.causal import CausalModel
from equilibria.nn import TiedEmbedding
from equilibria.solvers import Solution, Status

_BRIDGE = "modeling_equilibria"
_BRIDGE_TEXT = """\
# transformers reads this with trust_remote_code=True; the classes are those of the installed package equilibria.
from equilibria.interop.hugging_face import EquilibriaConfig, EquilibriaForCausalLM  # noqa: F401
"""


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

    def __post_init__(self, **kwargs: Any) -> None:
        classes = {"AutoConfig": "EquilibriaConfig", "AutoModelForCausalLM": "EquilibriaForCausalLM"}
        kwargs.setdefault("auto_map", {auto: f"{_BRIDGE}.{name}" for auto, name in classes.items()})
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


class EquilibriaForCausalLM(PreTrainedModel, GenerationMixin):
    """Predict each next token, by a model of equilibria.

    Attributes:
        model: that model, as `equilibria.load` gives it.
        depth: at which it is called, in place of its own; None for that.
        lm_head: the output layer, with the embedding's weight; None where the embedding has one of its own kind.

    Raises:
        UserError: the recipe is wrong, or is of a model that reads a source besides the text it writes.
    """

    config: EquilibriaConfig
    config_class = EquilibriaConfig
    base_model_prefix = "model"
    accepts_loss_kwargs = True
    # Of most models; each has its own, since layers can be tied as well.
    _tied_weights_keys = {"lm_head.weight": "model.embedding.weight"}  # noqa: RUF012

    def __init__(self, config: EquilibriaConfig) -> None:
        super().__init__(config)
        model = build_model(config.whole_recipe(), config.vocab_size)
        if not isinstance(model, CausalModel):
            raise ValueError(f"a {type(model).__name__} does not continue a text; it is not a causal language model")
        model.check_continues()
        self.model = model
        self.depth: Depth | None = None
        self.lm_head = self._head(model.embedding)
        self._tied_weights_keys = self._shared_names()
        for parameter in self.parameters():
            # transformers leaves these alone.
            parameter._is_hf_initialized = parameter.device.type != "meta"  # pyright: ignore[reportAttributeAccessIssue]
        layers = cache_layers(model)
        config.hidden_size, config.num_hidden_layers = model.embedding.d_model, layers or 1
        self.generation_config.use_cache = layers is not None and config.use_cache
        self.post_init()

    def _head(self, embedding: object) -> nn.Linear | None:
        if not isinstance(embedding, TiedEmbedding):
            return None
        head = nn.Linear(embedding.d_model, embedding.vocabulary_size, bias=False, device="meta")
        tied = self.config.tie_word_embeddings
        head.weight = embedding.weight if tied else nn.Parameter(embedding.weight.detach().clone())
        return head

    @can_return_tuple
    def forward(
        self,
        input_ids: Tensor,
        attention_mask: Tensor | None = None,
        past_key_values: TransformersCache | None = None,
        labels: Tensor | None = None,
        use_cache: bool | None = None,
        logits_to_keep: int | Tensor = 0,
        num_items_in_batch: Tensor | int | None = None,
        output_hidden_states: bool | None = None,
    ) -> CausalLMOutputWithPast:
        """A whole text, or the next tokens of one. In training the loss includes the model's penalties; in evaluation a
        solve that does not converge is a `ConvergenceWarning`.

        Args:
            input_ids: token ids, `(B, L)`.
            attention_mask: 0 at padding, at the ends of rows only; with a cache, for the tokens in it too.
            past_key_values: what has been read; the new tokens are added to it, without gradients.
            labels: token ids `(B, L)`, shifted here; -100 where there is nothing to predict.
            use_cache: return the cache; None for the configuration's choice, in evaluation without gradients.
            logits_to_keep: see transformers; 0 for all positions, as always with labels.
            num_items_in_batch: labels of all batches whose losses are summed; the loss is then a sum over it.
            output_hidden_states: return the final states, alone: an equilibrium has no others.

        Raises:
            ValueError: the model has no cache or is in training mode with one, or a mask, token or cache is invalid.
        """
        past = past_key_values
        if self._caches(past, use_cache) and past is None:
            past = DynamicCache(config=self.config)
        batch, length = input_ids.shape
        padding = LeftPadding.of(attention_mask, batch, length + (past.get_seq_length() if past is not None else 0))
        if labels is not None and padding is not None:
            labels = padding.targets(labels)
        if past is not None:
            hidden_BLD, penalty = self._read_on(input_ids, past, padding), None
        else:
            hidden_BLD, penalty = self._read(input_ids, padding, labels)
        logits = self._logits(slice_logits_to_keep(hidden_BLD, 0 if labels is not None else logits_to_keep))
        loss = None if labels is None else self._loss(logits, labels, penalty, num_items_in_batch)
        wanted = self.config.output_hidden_states if output_hidden_states is None else output_hidden_states
        return CausalLMOutputWithPast(
            loss=loss, logits=logits, past_key_values=past, hidden_states=(hidden_BLD,) if wanted else None
        )

    def _caches(self, past: TransformersCache | None, use_cache: bool | None) -> bool:
        able = cache_layers(self.model) is not None
        if not able and (past is not None or use_cache):
            raise ValueError(
                f"a {type(self.model).__name__} of this kind has no keys and values of tokens to keep; "
                f"give use_cache=False and no past_key_values"
            )
        if past is not None:
            return True
        if use_cache is None:
            return able and self.config.use_cache and not self.training and not torch.is_grad_enabled()
        return use_cache

    def _read_on(self, tokens_BL: Tensor, past: TransformersCache, padding: LeftPadding | None) -> Tensor:
        window = self.config.max_position_embeddings
        assert isinstance(self.model, LanguageModel)
        limit = None if window is None else window - 1
        padding_B = None if padding is None else padding.padding_B
        step = read_on(self.model, tokens_BL, past, padding_B, limit, self.depth)
        self._tell_of_failure(step.solution)
        return step.hidden_BLD

    def _read(
        self, tokens_BL: Tensor, padding: LeftPadding | None, labels: Tensor | None
    ) -> tuple[Tensor, Tensor | None]:
        """The final states without a cache, and the penalty of training."""
        targets = None
        if labels is not None and self.training and self.model.auxiliary_weight:
            targets = nn.functional.pad(labels[:, 1:], (0, 1), value=NO_TARGET)
        if padding is not None:
            tokens_BL, targets = padding.last(tokens_BL), None if targets is None else padding.last(targets)
        output = self.model(tokens_BL, targets, depth=self.depth)
        self._tell_of_failure(output.solution)
        return output.hidden if padding is None else padding.first(output.hidden), output.penalty

    def _tell_of_failure(self, solution: Solution | None) -> None:
        """Nothing that transformers returns has a place for it. The message is always the same, so that Python shows it
        once."""
        if not self.training and solution is not None and solution.status is not Status.CONVERGED:
            warn("a solve did not converge within the model's budget: what follows is not that of its equilibrium")

    def _logits(self, hidden: Tensor) -> Tensor:
        return self.model.embedding.logits(hidden) if self.lm_head is None else self.lm_head(hidden)

    def _loss(self, logits: Tensor, labels: Tensor, penalty: Tensor | None, items: Tensor | int | None) -> Tensor:
        """The mean over the labels, or their sum over `items`; a penalty weighs as the labels it goes with."""
        loss = self.loss_function(
            logits=logits, labels=labels, vocab_size=self.config.vocab_size, num_items_in_batch=items
        )
        if penalty is None:
            return loss
        return loss + (penalty if items is None else penalty * ((labels[:, 1:] != NO_TARGET).sum() / items))

    def get_input_embeddings(self) -> nn.Module:
        return self.model.embedding

    def get_output_embeddings(self) -> nn.Module | None:
        return self.lm_head

    def set_input_embeddings(self, value: nn.Module) -> None:
        raise ValueError("this model's recipe fixes its vocabulary; it cannot be resized")

    def get_expanded_tied_weights_keys(self, all_submodels: bool = False) -> dict[str, str]:
        """Maps each further name of a shared parameter to its first."""
        return dict(self._tied_weights_keys)

    def _shared_names(self) -> dict[str, str]:
        firsts: dict[int, str] = {}
        names = [(name, id(parameter)) for name, parameter in self.named_parameters(remove_duplicate=False)]
        return {name: firsts[key] for name, key in names if firsts.setdefault(key, name) != name}

    @torch.no_grad()
    def initialize_weights(self) -> None:
        """Gives weights that the checkpoint lacked those of a fresh model."""
        missing = {
            name: parameter
            for name, parameter in self.model.named_parameters()
            if not getattr(parameter, "_is_hf_initialized", False)
        }
        if not missing or next(iter(missing.values())).device.type == "meta":
            return
        fresh = build_model(self.config.whole_recipe(), self.config.vocab_size)
        for name, parameter in missing.items():
            parameter.copy_(fresh.get_parameter(name))

    def activation_checkpointing_enable(
        self,
        activation_checkpointing_kwargs: dict[str, Any] | None = None,
        every_n_layers: int = 1,
        offload: bool = False,
    ) -> None:
        """Recomputes each differentiated step in the backward pass, as for `gradient_checkpointing`.

        Raises:
            ValueError: there are no such steps, or an argument is not supported.
        """
        options = {**(activation_checkpointing_kwargs or {})}
        if options.pop("use_reentrant", False) or options or every_n_layers != 1 or offload:
            raise ValueError(
                f"this model recomputes every step, by non-reentrant checkpoints of PyTorch; found "
                f"{activation_checkpointing_kwargs}, every_n_layers {every_n_layers}, offload {offload}"
            )
        self._checkpoint(True)

    def activation_checkpointing_disable(self) -> None:
        self._checkpoint(False)

    def _checkpoint(self, on: bool) -> None:
        match self.model:
            case LanguageModel(depth=Equilibrium(gradient=Phantom() | Unrolled() as gradient) as depth):
                self.depth = replace(depth, gradient=replace(gradient, checkpoint=on))
            case LanguageModel(depth=UnrolledDepth() as depth):
                self.depth = replace(depth, checkpoint=on)
            case _:
                raise ValueError(
                    "this model's gradient has no steps to recompute; an implicit one stores a single evaluation at "
                    "any depth. Turn activation checkpointing off"
                )
        self.gradient_checkpointing = on
