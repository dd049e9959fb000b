"""The Trainer of transformers: its loss falls, and a run that it goes on with ends where an uninterrupted one does."""

from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

import pytest
import torch
from transformers import (
    DataCollatorForLanguageModeling,
    PreTrainedTokenizerFast,
    Trainer,
    TrainingArguments,
    set_seed,
)

from equilibria.cells import ContractiveCell
from equilibria.data import byte_tokenizer
from equilibria.interop.hugging_face import EquilibriaConfig, EquilibriaForCausalLM
from equilibria.interop.hugging_face.exporting import stock_tokenizer
from wrapped_kinds import KINDS, loaded

STEPS = 12


def trainer(folder: Path, tokenizer: PreTrainedTokenizerFast, **options: Any) -> Trainer:
    """Of texts that differ in length, so that there is padding, in two batches a step, with dropout."""
    ids = tokenizer("a fixed point is where a map returns what it was given\n" * 30)["input_ids"]
    data = [{"input_ids": ids[i : i + 12 + i % 5]} for i in range(0, len(ids) - 20, 13)]
    set_seed(0)
    arguments = TrainingArguments(
        str(folder),
        max_steps=STEPS,
        per_device_train_batch_size=4,
        gradient_accumulation_steps=2,
        learning_rate=1e-2,
        save_steps=STEPS // 2,
        logging_steps=STEPS // 3,
        eval_strategy="steps",
        eval_steps=STEPS,
        use_cpu=True,
        report_to="none",
        disable_tqdm=True,
        dataloader_pin_memory=False,
        **options,
    )
    return Trainer(
        EquilibriaForCausalLM(EquilibriaConfig.of(KINDS["contractive"], 256)),
        arguments,
        train_dataset=data,  # pyright: ignore[reportArgumentType]
        eval_dataset=data[:4],  # pyright: ignore[reportArgumentType]
        data_collator=DataCollatorForLanguageModeling(tokenizer, mlm=False),
        processing_class=tokenizer,
    )


def test_a_resumed_run_ends_where_another_does(tmp_path: Path) -> None:
    tokenizer = stock_tokenizer(byte_tokenizer())
    whole = trainer(tmp_path / "whole", tokenizer)
    whole.train()
    losses = [line["loss"] for line in whole.state.log_history if "loss" in line]
    assert losses[-1] < 0.8 * losses[0]
    (evaluated,) = (line["eval_loss"] for line in whole.state.log_history if "eval_loss" in line)
    assert evaluated < losses[0]
    resumed = trainer(tmp_path / "resumed", tokenizer, activation_checkpointing=True)
    resumed.train(resume_from_checkpoint=str(tmp_path / "whole" / f"checkpoint-{STEPS // 2}"))
    assert isinstance(whole.model, EquilibriaForCausalLM)
    assert isinstance(resumed.model, EquilibriaForCausalLM)
    torch.testing.assert_close(resumed.model.state_dict(), whole.model.state_dict())
    saved = loaded(tmp_path / "whole" / f"checkpoint-{STEPS}")
    assert all(map(torch.equal, saved.parameters(), whole.model.parameters()))


def test_the_loss_of_left_padded_rows_is_the_mean_over_their_labels(tmp_path: Path) -> None:
    """In training, where a count of labels is given, and in evaluation, where none is."""
    tokenizer = stock_tokenizer(byte_tokenizer())
    texts = ["a", "fixed point is", "where a map returns what it was given"]
    rows = [tokenizer(text)["input_ids"] for text in texts]
    torch.manual_seed(0)
    recipe = replace(KINDS["tied-stack"], cell=partial(ContractiveCell, d_model=16, heads=2, inner=32))
    model: Any = EquilibriaForCausalLM(EquilibriaConfig.of(recipe, 256))
    with torch.no_grad():
        alone = [model.eval()(torch.tensor([row]), labels=torch.tensor([row])).loss for row in rows if len(row) > 1]
    labels = [len(row) - 1 for row in rows if len(row) > 1]
    expected = sum(float(loss) * count for loss, count in zip(alone, labels, strict=True)) / sum(labels)
    arguments = TrainingArguments(
        str(tmp_path),
        max_steps=1,
        per_device_train_batch_size=3,
        learning_rate=0.0,
        logging_steps=1,
        use_cpu=True,
        report_to="none",
        disable_tqdm=True,
        dataloader_pin_memory=False,
        save_strategy="no",
    )
    trainer = Trainer(
        model,
        arguments,
        train_dataset=[{"input_ids": row} for row in rows],  # pyright: ignore[reportArgumentType]
        eval_dataset=[{"input_ids": row} for row in rows],  # pyright: ignore[reportArgumentType]
        data_collator=DataCollatorForLanguageModeling(tokenizer, mlm=False),
    )
    trainer.train()
    assert trainer.state.log_history[0]["loss"] == pytest.approx(expected, rel=1e-4)
    assert trainer.evaluate()["eval_loss"] == pytest.approx(expected, rel=1e-4)
