"""A power cut: what a disk holds at a moment, without anything that the system still has in memory.

The run is written to a file system inside a file. A copy of that file, taken while the process is stopped, is what the
next start of the machine would find.
"""

from __future__ import annotations

import gc
import os
import random
import shutil
import signal
import subprocess
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path

import pytest
import torch

from equilibria import load
from equilibria.configuration import read_recipe, write_recipe
from equilibria.data.tokenizers import load_tokenizer
from equilibria.runs.checkpoints import sound_checkpoint
from equilibria.runs.folder import RunFolder
from equilibria.runs.metrics import read_metrics
from processes import training_process
from tiny import TRAINING, tiny_recipe, tiny_trainer, weights

CUTS = 18
STEPS = 120
MAKERS = {"ext4": ("mkfs.ext4", "-q"), "xfs": ("mkfs.xfs", "-q")}
# Nothing is written back by the clock while a test runs.
OPTIONS = {"ext4": "loop,commit=300", "xfs": "loop"}
SIZES = {"ext4": 48, "xfs": 320}


def done(*command: str | Path) -> bool:
    return subprocess.run(command, capture_output=True, check=False).returncode == 0


@contextmanager
def mounted(image: Path, place: Path, kind: str) -> Iterator[None]:
    if not done("mount", "-o", OPTIONS[kind], image, place):
        pytest.skip(f"{kind} cannot be mounted from a file here")
    try:
        yield
    finally:
        gc.collect()  # what maps its files into memory keeps a file system busy
        assert done("umount", place)


@pytest.fixture(params=MAKERS)
def disk(request: pytest.FixtureRequest, tmp_path: Path) -> tuple[str, Path, Path]:
    """The kind of a file system, the file that it is in, and where to mount it."""
    kind, image, place = request.param, tmp_path / "disk", tmp_path / "mounted"
    place.mkdir()
    image.write_bytes(b"")
    with image.open("r+b") as file:
        file.truncate(SIZES[kind] << 20)
    if shutil.which(MAKERS[kind][0]) is None or not done(*MAKERS[kind], image):
        pytest.skip(f"{kind} cannot be made here")
    return kind, image, place


def check(folder: RunFolder) -> bool:
    """Whether a run has begun; all that is there of it is whole."""
    if not folder.config.is_file():
        return False
    recipe = read_recipe(folder.config, [])
    assert recipe.training.steps == STEPS
    assert load_tokenizer(folder.tokenizer).vocabulary_size > 0
    index = folder.index()
    if index is None:
        return True
    path, said = sound_checkpoint(folder)
    # The power may have gone between the name of a checkpoint and the index that says so.
    assert path.name == index.last or said == [f"{path} is later than index.json says, and whole; resuming from it"]
    load(folder.path)
    steps = [line["step"] for line in read_metrics(folder.metrics) if line["kind"] == "train"]
    saved = int(path.name.removeprefix("step-"))
    assert steps[:saved] == list(range(1, saved + 1))
    return True


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore:.*by what is there")  # the power may go before the first index
def test_a_power_cut_at_any_moment_leaves_a_run_that_goes_on(tmp_path: Path, disk: tuple[str, Path, Path]) -> None:
    kind, image, place = disk
    draw = random.Random(1)
    training = replace(TRAINING, steps=STEPS, checkpoint_every=3, evaluate_every=25, log_every=1)
    recipe = tiny_recipe(place, training)
    folder = RunFolder(recipe.run.folder)
    cuts: list[Path] = []

    def cut() -> None:
        cuts.append(tmp_path / f"cut-{len(cuts)}")
        shutil.copyfile(image, cuts[-1])

    with mounted(image, place, kind):
        tiny_recipe(place, training)  # its text
        write_recipe(recipe, place / "recipe.toml")
        os.sync()  # what is there before the run
        process = training_process(place / "recipe.toml")
        while not folder.path.exists():
            assert process.poll() is None, process.communicate()[0]
            time.sleep(0.001)
        while process.poll() is None and len(cuts) < CUTS:
            process.send_signal(signal.SIGSTOP)
            cut()
            process.send_signal(signal.SIGCONT)
            time.sleep(draw.uniform(0.0, 0.3))
        process.communicate()
        assert process.returncode == 0
        cut()  # of the finished run

    begun, ends = [], []
    for number, image in enumerate(cuts):
        with mounted(image, place, kind):
            begun.append(check(folder))
            if number in (len(cuts) // 2, len(cuts) - 2):
                process = training_process(place / "recipe.toml", "--resume")
                printed, _ = process.communicate()
                assert process.returncode == 0, printed
                ends.append({name: tensor.clone() for name, tensor in weights(recipe).items()})
    assert sum(begun) > CUTS // 2
    assert begun[-1]

    whole = tiny_recipe(tmp_path, training, "whole")
    tiny_trainer(whole).run()
    for found in ends:
        assert all(torch.equal(found[name], tensor) for name, tensor in weights(whole).items())
