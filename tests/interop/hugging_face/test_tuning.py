"""Tools that tune a model of transformers tune ours: adapters and prompts of PEFT, and the trainer of TRL."""

from pathlib import Path
from typing import Any

import pytest
import torch
from transformers import AutoTokenizer

from equilibria.cli.app import main
from wrapped_kinds import loaded

LINES = ["abcd\n", "hgfedcba\n", "aabb\n", "ccdd\n"]


@pytest.fixture
def model(alphabet: Path, tmp_path: Path) -> Any:
    assert main(["export", str(alphabet), str(tmp_path / "model"), "--to", "hf"]) == 0
    torch.manual_seed(0)
    return loaded(tmp_path / "model")


@pytest.fixture
def tokenizer(model: Any, tmp_path: Path) -> Any:
    return AutoTokenizer.from_pretrained(tmp_path / "model")


def tuned(model: Any, tokenizer: Any, steps: int = 30) -> tuple[float, float]:
    """The loss of a batch, without dropout, before and after some steps on it."""
    batch = tokenizer(LINES, return_tensors="pt", padding=True)
    labels = batch["input_ids"].masked_fill(batch["attention_mask"] == 0, -100)
    optimizer = torch.optim.Adam([p for p in model.parameters() if p.requires_grad], lr=3e-2)
    before = model.eval()(**batch, labels=labels).loss.item()
    for _ in range(steps):
        optimizer.zero_grad()
        model.train()(**batch, labels=labels).loss.backward()
        optimizer.step()
    return before, model.eval()(**batch, labels=labels).loss.item()


@pytest.mark.filterwarnings("ignore")
def test_adapters_and_prompts(model: Any, tokenizer: Any, tmp_path: Path) -> None:
    peft: Any = pytest.importorskip("peft", reason="peft is not installed")
    before = {name: parameter.clone() for name, parameter in model.named_parameters()}
    configs = {
        "adapter": peft.LoraConfig(task_type="CAUSAL_LM", r=4, target_modules="all-linear"),
        "prompt": peft.PromptTuningConfig(task_type="CAUSAL_LM", num_virtual_tokens=3),
    }
    prompt = tokenizer(["ab", "abcdefgh\nab"], return_tensors="pt", padding=True)
    for kind, config in configs.items():
        one = peft.get_peft_model(loaded(tmp_path / "model"), config)
        loss, tuned_loss = tuned(one, tokenizer)
        assert tuned_loss < (0.9 if kind == "adapter" else 0.97) * loss
        trained = {name: parameter for name, parameter in one.named_parameters() if parameter.requires_grad}
        assert all(parameter.grad is not None and parameter.grad.abs().sum() > 0 for parameter in trained.values())
        written = one.eval().generate(**prompt, max_new_tokens=6, do_sample=False)
        one.save_pretrained(tmp_path / kind)
        again = peft.PeftModel.from_pretrained(loaded(tmp_path / "model"), tmp_path / kind).eval()
        assert torch.equal(again.generate(**prompt, max_new_tokens=6, do_sample=False), written)
        if kind == "prompt":
            assert all(torch.equal(before[name], parameter) for name, parameter in one.base_model.named_parameters())
        else:
            merged = one.merge_and_unload()
            torch.testing.assert_close(merged(prompt["input_ids"][1:]).logits, again(prompt["input_ids"][1:]).logits)


@pytest.mark.filterwarnings("ignore")
def test_supervised_tuning(model: Any, tokenizer: Any, tmp_path: Path) -> None:
    trl: Any = pytest.importorskip("trl", reason="trl is not installed")
    datasets: Any = pytest.importorskip("datasets", reason="datasets is not installed")
    arguments = trl.SFTConfig(
        str(tmp_path / "sft"),
        max_steps=20,
        per_device_train_batch_size=4,
        learning_rate=1e-2,
        logging_steps=5,
        gradient_checkpointing=False,
        use_cpu=True,
        bf16=False,
        report_to="none",
        disable_tqdm=True,
    )
    trainer = trl.SFTTrainer(
        model, arguments, train_dataset=datasets.Dataset.from_dict({"text": LINES}), processing_class=tokenizer
    )
    trainer.train()
    losses = [line["loss"] for line in trainer.state.log_history if "loss" in line]
    assert losses[-1] < 0.7 * losses[0]
    trainer.save_model(str(tmp_path / "tuned"))
    again = loaded(tmp_path / "tuned")
    assert all(map(torch.equal, again.state_dict().values(), trainer.model.state_dict().values()))
