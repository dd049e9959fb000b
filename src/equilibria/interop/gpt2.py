"""A decoder of Hugging Face's GPT-2 family as a cell to start training from: its blocks tied into one.

The contractive cell's first evaluation from zero is the decoder with that one block: the injection undoes the scale of
the embedding and the share `1 − a` of the gate. What the cell has no place for is dropped and named.
"""

import json
import math
import re
from collections.abc import Mapping
from functools import partial
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from equilibria.cells import ContractiveCell
from equilibria.data.tokenizers import Tokenizer, byte_pair_tokenizer, id_tokenizer, stock_from
from equilibria.errors import UserError
from equilibria.files.formats import read_json
from equilibria.interop.imported import Imported
from equilibria.interop.state_dict import StateDict, read_tensor_file
from equilibria.models import LanguageModelRecipe
from equilibria.nn import TiedEmbedding, UntiedEmbedding
from equilibria.nn.attention import TextPositions
from equilibria.nn.feed_forward import Activation
from equilibria.runs.weights import shards, united

_CARRY = 0.3  # the share of the carried state
_EPSILON = 1e-5  # of the cell's layer norms
_SEGMENT_LENGTH = 128
_APPROXIMATE = ("gelu_new", "gelu_pytorch_tanh")
_ACTIVATIONS: Mapping[str, Activation] = {"gelu": "gelu", **dict.fromkeys(_APPROXIMATE, "gelu"), "relu": "relu"}
_MASK = re.compile(r"h\.\d+\.attn\.(?:bias|masked_bias)")
_NORMS = {"attention_norm": "ln_1", "feed_forward_norm": "ln_2"}
_LAYERS = {
    "attention.queries_keys_values": "attn.c_attn",
    "attention.output": "attn.c_proj",
    "feed_forward.expand": "mlp.c_fc",
    "feed_forward.contract": "mlp.c_proj",
}


def import_gpt2(
    folder: Path, block: int | None = None, positions: TextPositions = "rotary", memory_length: int = 0
) -> Imported:
    """The model of a folder that `save_pretrained` wrote.

    Args:
        folder: `config.json` with `model.safetensors`, its shards, or `pytorch_model.bin`.
        block: which block the cell is, counted from 0; None for the mean of all.
        positions: of the cell, which has no place for the decoder's learned ones.
        memory_length: tokens of earlier segments that are attended to.

    Raises:
        UserError: a file is missing or damaged; another kind of decoder; a tensor is unknown, missing or of another
            size; there is no such block.
    """
    config = _config(folder)
    d_model, layers = config["n_embd"], config["n_layer"]
    inner, vocabulary_size = config["n_inner"], config["vocab_size"]
    if block is not None and not 0 <= block < layers:
        raise UserError(f"{folder} has blocks 0 to {layers - 1}; found --block {block}")
    state, masks = _weights(folder)
    blocks = [_block(state, number, d_model, inner) for number in range(layers)]
    taken = blocks if block is None else [blocks[block]]
    tied = {name: torch.stack([each[name] for each in taken]).mean(0) for name in taken[0]}
    embedding, embedded = _embedding(state, vocabulary_size, d_model)
    state.take("wpe.weight", config["n_positions"], d_model)
    cell = {f"cell.blocks.0.{name}": tensor for name, tensor in tied.items() if not name.endswith("c_bias")}
    cell |= {f"cell.norm.{part}": state.take(f"ln_f.{part}", d_model) for part in ("weight", "bias")}
    cell |= {
        "cell.carry_logit": torch.full((d_model,), math.log(_CARRY / (1 - _CARRY))),
        "cell.inject.weight": torch.eye(d_model) / (math.sqrt(d_model) * (1 - _CARRY)),
        "cell.inject.bias": torch.zeros(d_model),
    }
    state.finish("gpt2")
    recipe = LanguageModelRecipe(
        embedding=partial(embedding),
        cell=partial(
            ContractiveCell,
            d_model=d_model,
            heads=config["n_head"],
            inner=inner,
            positions=positions,
            activation=_ACTIVATIONS[config["activation_function"]],
            query_key_norm=False,
            injection_norm=False,
            carry=_CARRY,
        ),
        memory_length=memory_length,
    )
    left_out = [*_left_out(config, tied, positions), *masks]
    if block is not None:
        left_out.append(f"all blocks but {block}")
    return Imported(folder, recipe, vocabulary_size, cell | embedded, _SEGMENT_LENGTH, tuple(left_out))


def import_tokenizer(folder: Path, vocabulary_size: int) -> tuple[Tokenizer, str | None]:
    """The tokenizer in the folder's `tokenizer.json`; if none fits the model's vocabulary, one of ids, and why.

    Ours ends a passage with the last id, which no text encodes to, as GPT-2's `<|endoftext|>` is.
    """
    ids = id_tokenizer(vocabulary_size)
    file = folder / "tokenizer.json"
    if not file.is_file():
        return ids, "there is no tokenizer.json: tokens are numbers"
    try:
        content = read_json(file, dict)
        vocabulary, end = content["model"]["vocab"], vocabulary_size - 1
        added = [token for token in content["added_tokens"] if token["id"] != end]
        if content["model"]["type"] != "BPE" or content["decoder"]["type"] != "ByteLevel":
            raise ValueError("it has no byte pairs")
        if not _ends_text(folder, content, end):
            raise ValueError(f"its last token, {end}, is not the end of text")
        content["model"]["vocab"] = {word: number for word, number in vocabulary.items() if number != end}
        stock = stock_from({**content, "added_tokens": added})
        if stock.get_vocab_size() != end:
            found = stock.get_vocab_size()
            raise ValueError(f"it has {found} tokens besides the last of the model's {vocabulary_size}")
        return byte_pair_tokenizer(stock), None
    except Exception as problem:  # the tokenizers package raises bare Exception
        return ids, f"tokenizer.json does not fit here ({problem}): tokens are numbers"


def _ends_text(folder: Path, tokenizer: Mapping[str, Any], token: int) -> bool:
    """Whether a token ends a text, by its name or by the decoder's configuration."""
    names = {name for name, number in tokenizer["model"]["vocab"].items() if number == token}
    names |= {added["content"] for added in tokenizer["added_tokens"] if added["id"] == token}
    return "<|endoftext|>" in names or _config(folder).get("eos_token_id") == token


def _config(folder: Path) -> dict[str, Any]:
    path = folder / "config.json"
    config = read_json(path, dict, "give a folder that save_pretrained wrote")
    config = {"n_positions": 1024, "activation_function": "gelu_new", "layer_norm_epsilon": _EPSILON} | config

    def check(key: str, fits: bool, expected: str) -> None:
        if not fits:
            found = json.dumps(config.get(key))
            raise UserError(f"{path}: {key} is {found if len(found) <= 80 else f'{found[:80]}…'}; {expected}")

    check("model_type", config.get("model_type") == "gpt2", 'this importer knows "gpt2"')
    for key in ("n_embd", "n_layer", "n_head", "n_positions", "vocab_size", "n_inner"):
        if key == "n_inner" and config.get(key) is None:
            config[key] = 4 * config["n_embd"]
        value = config.get(key)
        check(key, type(value) is int and value >= 1, "expected a whole number of at least 1")
    epsilon, activation = config["layer_norm_epsilon"], config["activation_function"]
    check("layer_norm_epsilon", isinstance(epsilon, float) and 0 < epsilon < 1, "expected a number between 0 and 1")
    known = isinstance(activation, str) and activation in _ACTIVATIONS
    check("activation_function", known, f"the cell has {', '.join(_ACTIVATIONS)}")
    for key, usual in (("scale_attn_weights", True), ("scale_attn_by_inverse_layer_idx", False)):
        check(key, config.get(key, usual) is usual, "the cell's attention has only the usual scale")
    return config


def _weights(folder: Path) -> tuple[StateDict, list[str]]:
    """The tensors by their names in the bare decoder, and what to say of the masks among them."""
    index = folder / "model.safetensors.index.json"
    names = ["model.safetensors" if (folder / "model.safetensors").exists() else "pytorch_model.bin"]
    files = [folder / name for name in (shards(index) if index.exists() else names)]
    tensors = united(
        (file, {name.removeprefix("transformer."): value})
        for file in files
        for name, value in read_tensor_file(file).items()
    )
    kept = {key: value for key, value in tensors.items() if not _MASK.fullmatch(key)}
    masks = ["causal masks, which are computed"] if len(kept) < len(tensors) else []
    return StateDict(kept, folder), masks


def _block(state: StateDict, number: int, d_model: int, inner: int) -> dict[str, Tensor]:
    """A block under our names; attention's biases, for which the cell has no place, end in `c_bias`."""
    tensors = {
        f"{ours}.{part}": state.take(f"h.{number}.{theirs}.{part}", d_model)
        for ours, theirs in _NORMS.items()
        for part in ("weight", "bias")
    }
    shapes = ((d_model, 3 * d_model), (d_model, d_model), (d_model, inner), (inner, d_model))
    for (ours, theirs), (inputs, outputs) in zip(_LAYERS.items(), shapes, strict=True):
        bias = "c_bias" if ours.startswith("attention") else "bias"
        tensors[f"{ours}.weight"] = state.take(f"h.{number}.{theirs}.weight", inputs, outputs).mT
        tensors[f"{ours}.{bias}"] = state.take(f"h.{number}.{theirs}.bias", outputs)
    return tensors


def _embedding(state: StateDict, vocabulary_size: int, d_model: int) -> tuple[Any, dict[str, Tensor]]:
    """The class of the embedding, and its weights: tied unless the output layer differs."""
    rows = state.take("wte.weight", vocabulary_size, d_model)
    head = state.take("lm_head.weight", vocabulary_size, d_model) if "lm_head.weight" in state else rows
    if torch.equal(rows, head):
        return TiedEmbedding, {"embedding.weight": rows}
    weights = {"rows.weight": rows, "output.weight": head, "output.bias": torch.zeros(vocabulary_size)}
    return UntiedEmbedding, {f"embedding.{name}": tensor for name, tensor in weights.items()}


def _left_out(config: Mapping[str, Any], block: Mapping[str, Tensor], positions: TextPositions) -> list[str]:
    lines = [f"wpe, the learned positions: the cell's are {positions}"]
    if any(bool(tensor.any()) for name, tensor in block.items() if name.endswith("c_bias")):
        lines.append("attn.c_attn.bias and attn.c_proj.bias: the cell's attention has none")
    if config["activation_function"] in _APPROXIMATE:
        lines.append(f"{config['activation_function']}, an approximation: the cell's gelu is exact")
    if config["layer_norm_epsilon"] != _EPSILON:
        lines.append(f"layer_norm_epsilon {config['layer_norm_epsilon']}: the cell's is {_EPSILON}")
    return lines
