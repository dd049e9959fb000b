"""Checkpoints and configurations that are hostile: no hang, no traceback, no memory that the file does not hold."""

import json
import pickle
import resource
import zipfile
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import pytest
import torch

from equilibria.cli.app import main
from equilibria.configuration import recipe_from
from equilibria.configuration.building import build_model
from equilibria.errors import UserError
from equilibria.inference.loading import load_exported
from equilibria.interop.gpt2 import import_gpt2
from equilibria.interop.published import PublishedOptions, import_torchdeq_lm
from equilibria.interop.state_dict import StateDict, read_state_dict
from equilibria.runs.weights import distinct_state
from hostile import as_safetensors, repacked, safetensors_of, saved, written
from plain_gpt2 import CONFIG, random_weights, save
from plain_published import Published
from plain_published import random_weights as published_weights

WEIGHTS = published_weights(Published("torchdeq-lm"))
QKV = "func.dec_attn.0.qkv_net.weight_v"
EMBEDDING = "word_emb.emb_layers.0.weight"
GOOD = saved(WEIGHTS)


def import_file(path: Path) -> object:
    return import_torchdeq_lm(read_state_dict(path), PublishedOptions())


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ({}, "holds a dict"),
        ({1: torch.zeros(1)}, "a name that is a int"),
        ({("a", 1): torch.zeros(1), "a": torch.zeros(1)}, "a name that is a tuple"),
        ({"module.": torch.zeros(1)}, "has no func"),
        (dict.fromkeys((f"func.dec_attn.{number}.x" for number in range(20_000)), torch.zeros(1)), "has no func"),
        ({QKV: torch.zeros(36, 12).to_sparse()}, "torch.sparse_coo; expected floating-point numbers, 16 bits or more"),
        ({QKV: torch.zeros(36, 12, device="meta")}, "on meta"),
        ({QKV: torch.zeros(36, 12).to(torch.float8_e4m3fn)}, "is torch.float8_e4m3fn"),
        ({QKV: torch.zeros(36, 12, dtype=torch.complex64)}, "is torch.complex64"),
        ({QKV: torch.zeros(36, 12, dtype=torch.bool)}, "is torch.bool"),
        (dict.fromkeys(WEIGHTS, torch.zeros(())), "is a single number; expected rows and columns"),
        (dict.fromkeys(WEIGHTS, torch.zeros(4)), "is 4; expected rows and columns"),
        (WEIGHTS | {QKV: torch.zeros(0, 0)}, "is 0 × 0; expected rows and columns"),
        (WEIGHTS | {QKV: torch.zeros(36, 12, 2)}, "is 36 × 12 × 2; expected rows and columns"),
        (WEIGHTS | {"func.dec_attn.0.r_w_bias": torch.zeros(0, 4)}, "not a multiple of 10 heads"),
        (WEIGHTS | {"func.pos_ff.0.ff1_net.weight_v": torch.zeros(())}, "expected rows and columns"),
        (WEIGHTS | {EMBEDDING: torch.zeros(3)}, "is 3; expected rows and columns"),
        (WEIGHTS | {"crit.cluster_weight": torch.zeros(())}, "expected rows and columns"),
        (WEIGHTS | {QKV: torch.zeros(1).expand(1 << 20, 1 << 20)}, r"tensors of 4,\d+,\d+,\d+,\d+ bytes in"),
        ({QKV: torch.zeros(1).expand(36, 12)}, "is 36 × 12; the file holds fewer numbers"),
    ],
)
def test_hostile_tensors(content: object, message: str, tmp_path: Path) -> None:
    with pytest.raises(UserError, match=message):
        import_file(written(tmp_path, "weights.pth", saved(content)))


class Evil:
    """Writes a file when it is unpickled."""

    def __init__(self, path: Path) -> None:
        self.path = path

    def __reduce__(self) -> tuple[Callable[[str], object], tuple[str]]:
        return Path.touch, (self.path,)  # pyright: ignore[reportReturnType]


PICKLES = {
    "nothing": b"\x80\x02.",
    "no list": b"\x80\x02a.",
    "no mark": b"\x80\x02t.",
    "no arguments": b"\x80\x02ctorch._utils\n_rebuild_tensor_v2\n(K\x01K\x02tR.",
    "no such name": b"\x80\x02ctorch\nnothing\n.",
    "deep": b"\x80\x02" + b"]" * 100_000 + b"a" * 99_999 + b".",
    "deep tuple": b"\x80\x02)" + b"\x85" * 100_000 + b".",
    "long number": b"\x80\x02\x8b\xff\xff\xff\xff.",
    "long text": b"\x80\x02X\xf0\xff\xff\xffa.",
}


@pytest.mark.parametrize("name", PICKLES)
@pytest.mark.parametrize("inside", [True, False], ids=["in an archive", "alone"])
def test_hostile_pickles(name: str, inside: bool, tmp_path: Path) -> None:
    content = PICKLES[name]
    if inside:
        content = repacked(GOOD, lambda file, old: PICKLES[name] if file.endswith("data.pkl") else old)
    with pytest.raises(UserError, match=r"weights\.pth (cannot be read|holds )"):
        import_file(written(tmp_path, "weights.pth", content))


def test_no_code_is_run(tmp_path: Path) -> None:
    evil = pickle.dumps({"a": Evil(tmp_path / "ran")})
    for content in (evil, repacked(GOOD, lambda file, old: evil if file.endswith("data.pkl") else old)):
        with pytest.raises(UserError, match="holds more than tensors"):
            import_file(written(tmp_path, "weights.pth", content))
    assert not (tmp_path / "ran").exists()


def test_an_archive_that_unpacks_to_more_than_it_is(tmp_path: Path) -> None:
    packed = repacked(saved({QKV: torch.zeros(1 << 22)}), lambda file, old: old, zipfile.ZIP_DEFLATED)
    with pytest.raises(UserError, match=r"it unpacks to 16,\d+,\d+ bytes and has \d{2},\d+\)"):
        import_file(written(tmp_path, "weights.pth", packed))


HEADER = {"dtype": "F32", "shape": [36, 12], "data_offsets": [0, 1728]}


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (safetensors_of({}), "holds no tensors"),
        (safetensors_of({"__metadata__": {"a": "b"}}), "holds no tensors"),
        (safetensors_of(b"[" * 10_000), "damaged or truncated"),
        (safetensors_of({QKV: HEADER | {"shape": [1 << 40, 1 << 40]}}, bytes(1728)), "damaged or truncated"),
        (safetensors_of({QKV: HEADER | {"shape": [1 << 62, 4]}}, bytes(1728)), "damaged or truncated"),
        (safetensors_of({QKV: HEADER | {"data_offsets": [0, 1 << 50]}}, bytes(1728)), "damaged or truncated"),
        (safetensors_of({QKV: HEADER | {"dtype": "I32"}}, bytes(1728)), "is torch.int32"),
        (
            safetensors_of({QKV: HEADER | {"dtype": "F4", "data_offsets": [0, 216]}}, bytes(216)),
            "16 bits or more|damaged",
        ),
        (safetensors_of({QKV: HEADER | {"shape": [1 << 40, 0], "data_offsets": [0, 0]}}), "expected rows and columns"),
        (b"\xff" * 8 + b"{}", "damaged or truncated"),
        (as_safetensors(WEIGHTS)[:-1], "damaged or truncated"),
    ],
)
def test_hostile_safetensors(content: bytes, message: str, tmp_path: Path) -> None:
    with pytest.raises(UserError, match=message):
        import_file(written(tmp_path, "weights.safetensors", content))


def test_an_empty_state_dictionary_ends() -> None:
    with pytest.raises(UserError, match="file holds no tensors"):
        StateDict({}, Path("file"))


@pytest.mark.parametrize("key", sorted(CONFIG.keys() - {"model_type", "activation_function"}))
@pytest.mark.parametrize("value", [True, -1, 0, 10**30, float("nan"), float("inf"), "12", [], {}, [12], "\x1b[31m"])
def test_hostile_values_of_a_decoder(key: str, value: object, tmp_path: Path) -> None:
    folder = save(tmp_path / "decoder", random_weights(), **{key: value})
    with pytest.raises(UserError, match=rf"{key} is|ask for|has no h\.3\.|multiple of"):
        import_gpt2(folder).recipe(tmp_path / "run", None)


@pytest.mark.parametrize("value", [None, [], {}, 3, "\ud800", "x" * 1000])
def test_hostile_names_of_a_decoder(value: object, tmp_path: Path) -> None:
    for key in ("model_type", "activation_function"):
        with pytest.raises(UserError, match=f"{key} is .{{1,90}};"):
            import_gpt2(save(tmp_path / "decoder", random_weights(), **{key: value}))


def with_index(folder: Path, mapped: object) -> Path:
    written(folder, "model.safetensors.index.json", json.dumps({"weight_map": mapped}).encode())
    return folder


MAPS: Mapping[str, Any] = {
    "empty": {},
    "list": [],
    "nothing": None,
    "elsewhere": {"a": "../other/model.safetensors"},
    "absolute": {"a": "/etc/passwd"},
    "number": {"a": 1},
    "null": {"a": None},
    "lists": {"a": ["x"]},
    "itself": {"a": "."},
    "no name": {"a": ""},
    "zero": {"a": "a\0b"},
}


@pytest.mark.parametrize("name", MAPS)
def test_hostile_maps_of_weights(name: str, tmp_path: Path) -> None:
    for folder, load in (
        (save(tmp_path / "decoder", random_weights()), import_gpt2),
        (exported(tmp_path), load_exported),
    ):
        with pytest.raises(UserError, match=r"index\.json is damaged: .*weight_map"):
            load(with_index(folder, MAPS[name]))


def test_a_part_that_is_no_file_or_has_a_tensor_again(tmp_path: Path) -> None:
    folder = save(tmp_path / "decoder", random_weights())
    for name in ("x" * 5000, "none.bin"):
        with pytest.raises(UserError, match="does not exist or is not a file"):
            import_gpt2(with_index(folder, {"a": name}))
    written(folder, "again.safetensors", as_safetensors({"wte.weight": torch.zeros(30, 12)}))
    with pytest.raises(UserError, match=r"has wte\.weight a second time"):
        import_gpt2(with_index(folder, {"a": "model.safetensors", "b": "again.safetensors"}))


def test_masks_alone_are_no_decoder(tmp_path: Path) -> None:
    folder = save(tmp_path / "decoder", {"h.0.attn.bias": torch.zeros(1)})
    with pytest.raises(UserError, match="holds no tensors"):
        import_gpt2(folder)


RECIPE = {"cell": {"d_model": 16, "heads": 2, "inner": 16, "blocks": 1}, "memory_length": 4, "prelude_layers": 1}


def exported(base: Path, size: object = 30, **changed: object) -> Path:
    """A folder in Hugging Face's layout whose configuration says something else than its weights."""
    folder = base / "exported"
    folder.mkdir(exist_ok=True)
    model = build_model(recipe_from({"run": {"name": "x"}, "model": RECIPE}, "here"), 30)
    tensors = {f"model.{name}": tensor.detach() for name, tensor in distinct_state(model).items()}
    written(folder, "model.safetensors", as_safetensors(tensors))
    config = {"model_type": "equilibria", "vocab_size": size, "recipe": {**RECIPE, **changed}}
    written(folder, "config.json", json.dumps(config).encode())
    return folder


@pytest.mark.parametrize(
    ("size", "changed", "message"),
    [
        (True, {}, "needs a number vocab_size"),
        (-1, {}, "needs a number vocab_size"),
        (10**9, {}, "is of another shape"),
        (10**30, {}, r"model\.\w+: \w+Error: .*\(.*\.py, line"),
        (30, {"cell": {"d_model": 10**6, "heads": 2}}, "is of another shape"),
        (30, {"cell": {"d_model": 10**20, "heads": 2}}, r"model\.cell: \w+Error: [^\n]*$"),
        (30, {"cell": RECIPE["cell"] | {"inner": 10**9}}, "is of another shape"),
        (30, {"cell": RECIPE["cell"] | {"blocks": 10**9}}, "blocks must be from 1 to 1000, found 1000000000"),
        (30, {"prelude_layers": 10**30}, "prelude_layers must be from 0 to 1000, found 10+"),
        (30, {"depth": {"kind": "stack", "layers": 10**9}}, "layers must be from 1 to 1000, found 1000000000"),
        (30, {"depth": {"kind": "stack", "layers": 10**9, "tied": True}}, "layers must be from 1 to 1000"),
        (30, {"cell": [[[]]]}, "recipe"),
        (30, {"cell": json.loads("[" * 90 + "]" * 90)}, "recipe"),
    ],
)
def test_sizes_beyond_the_weights_take_no_memory(size: object, changed: dict, message: str, tmp_path: Path) -> None:
    folder = exported(tmp_path, size, **changed)
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    with pytest.raises(UserError, match=message):
        load_exported(folder)
    assert resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before < 200_000  # kilobytes


def test_an_error_is_one_line_of_plain_text(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    path = written(tmp_path, "weights.pth", saved({"x" * 100_000 + "\x1b[31m\nerror: none": torch.zeros(1)}))
    assert main(["import", "torchdeq-lm", str(path)]) == 2
    said = capsys.readouterr().err
    assert len(said) < 2100
    assert said.count("\n") == 1
    path = written(tmp_path, "weights.pth", saved({"\x1b[31m\nerror: none": torch.zeros(1)}))
    assert main(["import", "torchdeq-lm", str(path)]) == 2
    assert "it has \\x1b[31m\\nerror: none" in capsys.readouterr().err
