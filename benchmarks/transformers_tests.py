"""transformers' own tests of causal language models, run on ours: what passes, what fails, and what does not apply.

They are not part of this project. Give the folder that holds their package `tests`, a checkout of transformers of the
version that is installed:

    git clone --depth 1 --branch vX.Y.Z https://github.com/huggingface/transformers
    pip install parameterized
    equilibria bench transformers_tests transformers [--kinds NAMES] [--only PATTERN] [--json] [--out FILE]
"""

from __future__ import annotations

import os
import re
import sys
import unittest
from argparse import Namespace
from collections import Counter
from importlib import import_module
from pathlib import Path
from types import ModuleType
from typing import Any

# Before the libraries are imported, which read them then.
os.environ |= {"HF_HUB_OFFLINE": "1", "HF_DATASETS_OFFLINE": "1", "TOKENIZERS_PARALLELISM": "false"}

import transformers
from rich.console import Console
from rich.table import Table
from transformers.models.auto import modeling_auto

from benchmarks._harness import options_of, prepare, publish
from equilibria.errors import UserError
from equilibria.interop.hugging_face import EquilibriaConfig, EquilibriaForCausalLM, EquilibriaModel

# The kinds of models belong to the tests.
sys.path.append(str(Path(__file__).parents[1] / "tests"))
from wrapped_kinds import KINDS, LAYERS

VOCABULARY = 99
DEFAULT_KINDS = ("contractive", "unrolled", "trellis", "weight-norm", "lstm")

_CHECKPOINTS = r"test_gradient_checkpointing_enable_disable|test_training_gradient_checkpointing.*"
_CACHED = (
    r"test_(greedy|sample|beam_search|beam_sample)_generate|test_.*_use_cache|test_.*assisted.*|test_past_key_values_format|"
    r"test_generate_from_.*inputs_embeds.*|test_generate_(methods_with_logits_to_keep|with_and_without_position_ids)"
)
NOT_FOR_US = (
    (".*", "test_model_get_set_embeddings", "an embedding scores tokens too, and is replaced by one of its kind alone"),
    (
        ".*",
        "test_can_init_all_missing_weights",
        "weights are drawn by our constructors, not theirs",
    ),
    (".*", _CHECKPOINTS, "steps of a gradient are recomputed, not layers, and not by reentrant checkpoints"),
    ("lstm", ".*gradient_checkpointing.*", "a recurrent baseline has no steps to recompute"),
    ("lstm", _CACHED, "a recurrent baseline has no keys and values to keep; use_cache=True is refused"),
    (
        "trellis",
        r"test_.*(format|_outputs_use_cache|assisted.*)",
        "a trellis cell keeps states and inputs, of two sizes",
    ),
    ("unrolled", "test_num_layers_is_small", "each application of a cell is a layer of the cache"),
    ("weight-norm", "test_resize_tokens_embeddings", "an adaptive embedding has several tables, and is not resized"),
)
"""Tests, by patterns, that ask of some kinds what they do not have, and why."""


def upstream(folder: Path) -> tuple[ModuleType, ...]:
    """The modules of the tests; a UserError where they are not there or do not load."""
    if not (folder / "tests" / "test_modeling_common.py").is_file():
        raise UserError(f"{folder} has no tests/test_modeling_common.py; give a checkout of transformers")
    sys.path.insert(0, str(folder))
    # By these names their tests know that labels go with a model.
    modeling_auto.MODEL_MAPPING_NAMES[EquilibriaConfig.model_type] = EquilibriaModel.__name__
    modeling_auto.MODEL_FOR_CAUSAL_LM_MAPPING_NAMES[EquilibriaConfig.model_type] = EquilibriaForCausalLM.__name__
    names = ("test_modeling_common", "generation.test_utils", "test_configuration_common")
    try:
        return tuple(import_module(f"tests.{name}") for name in names)
    except ImportError as problem:
        raise UserError(
            f"the tests in {folder} do not load ({problem}); give those of transformers {transformers.__version__}"
        ) from problem


def case(modules: tuple[ModuleType, ...], kind: str) -> type[unittest.TestCase]:
    """Their tests for one kind of model."""
    common, generation, configuration = modules

    class Tester:
        """What their tests ask of a model: its sizes, a configuration and inputs."""

        batch_size, seq_length = 3, 7
        hidden_size = 16
        expected_num_hidden_layers = 2  # embedded tokens and final states
        num_hidden_layers = LAYERS.get(kind, 1)
        num_attention_heads = 2
        vocab_size = VOCABULARY
        is_training = True

        def get_config(self) -> EquilibriaConfig:
            config = EquilibriaConfig.of(KINDS[kind], self.vocab_size)
            config.bos_token_id, config.eos_token_id, config.pad_token_id = 1, 2, self.vocab_size - 1
            return config

        def prepare_config_and_inputs_for_common(self) -> tuple[EquilibriaConfig, dict[str, Any]]:
            shape = [self.batch_size, self.seq_length]
            mask = common.torch.ones(shape, dtype=common.torch.long)
            tokens = common.ids_tensor(shape, self.vocab_size - 1)  # text never has the padding token
            return self.get_config(), {"input_ids": tokens, "attention_mask": mask}

    class Causal(common.ModelTesterMixin, generation.GenerationTesterMixin, unittest.TestCase):
        all_model_classes = (EquilibriaModel, EquilibriaForCausalLM)
        test_can_init_all_missing_weights_before_2023 = True

        @property
        def has_attentions(self) -> bool:
            """They hand out none; padding they have."""
            return "padding" in self._testMethodName

        def setUp(self) -> None:
            self.model_tester = Tester()

        def test_config(self) -> None:
            configuration.ConfigTester(self, config_class=EquilibriaConfig).run_common_tests()

    for name in dir(generation.GenerationTesterMixin):
        if name.startswith("test_") and (test := getattr(Causal, name)) is not None:
            setattr(Causal, name, common.torch.no_grad()(test))  # a cache is filled without gradients
    return Causal


def outcomes(cases: type[unittest.TestCase], kind: str, only: str) -> dict[str, tuple[str, str]]:
    """The outcome of each test by name, in a word, and the last line of its error or the reason of a skip."""
    found: dict[str, tuple[str, str]] = {}
    for name in unittest.defaultTestLoader.getTestCaseNames(cases):
        if not re.search(only, name):
            continue
        reasons = (why for of, test, why in NOT_FOR_US if re.fullmatch(of, kind) and re.fullmatch(test, name))
        if (reason := next(reasons, None)) is not None:
            found[name] = "does not apply", reason
        else:
            transformers.set_seed(0)
            result = unittest.TestResult()
            cases(name).run(result)
            problems = [*result.errors, *result.failures]
            if problems:
                found[name] = "failed", problems[0][1].rstrip()
            elif result.skipped:
                found[name] = "skipped", result.skipped[0][1]
            else:
                found[name] = "passed", ""
    return found


def show(result: dict[str, Any], console: Console) -> None:
    """The table a person reads, and what failed."""
    table = Table("model", *result["counts"][0]["counts"], title=f"tests of transformers {result['transformers']}")
    for line in result["counts"]:
        table.add_row(line["kind"], *map(str, line["counts"].values()))
    console.print(table)
    for line in result["counts"]:
        for name, problem in line["failed"].items():
            console.print(f"{line['kind']}: {name}: {problem.splitlines()[-1]}", markup=False, highlight=False)


def parse(arguments: list[str]) -> Namespace:
    """The options."""
    parser = options_of("transformers_tests", __doc__)
    parser.add_argument("folder", type=Path, help="a checkout of transformers, of the version that is installed")
    parser.add_argument("--kinds", default=",".join(DEFAULT_KINDS), help=f"models, of {', '.join(KINDS)}")
    parser.add_argument("--only", default="", help="run tests whose names match this pattern")
    return parser.parse_args(arguments)


def main(arguments: list[str]) -> int:
    """Run the benchmark; 0 when nothing fails."""
    options = parse(arguments)
    prepare(options)
    kinds = options.kinds.split(",")
    if unknown := [kind for kind in kinds if kind not in KINDS]:
        raise UserError(f"--kinds {unknown[0]}: no such model; take some of {', '.join(KINDS)}")
    modules, counts = upstream(options.folder.resolve()), []
    for kind in kinds:
        found = outcomes(case(modules, kind), kind, options.only)
        number = Counter(outcome for outcome, _ in found.values())
        failed = {name: problem for name, (outcome, problem) in found.items() if outcome == "failed"}
        words = ("passed", "failed", "skipped", "does not apply")
        counts.append({"kind": kind, "counts": {word: number[word] for word in words}, "failed": failed})
    result = {"transformers": transformers.__version__, "counts": counts}
    publish("transformers_tests", arguments, options, result, show)
    return int(any(line["failed"] for line in counts))
