"""Readers of JSON and TOML: whatever a file holds, it is its content or an error in a line that names it."""

import ast
import json
import os
from collections.abc import Callable
from pathlib import Path

import pytest

from equilibria.errors import UserError
from equilibria.files.formats import DEEPEST, is_file_name, parse_json, read_json, read_toml

SOURCES = Path(__file__).parents[2] / "src" / "equilibria"
HERE = "formats.py"
OTHERS = {
    "interop/hugging_face/exporting.py": {"json.loads"},  # a tokenizer in memory, which has no other form to change
    "serving/fields.py": {"json.loads"},  # a request's body, whose errors are answers
}
"""What besides that module reads JSON, and why."""


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (b"", "is damaged"),
        (b"{", "is damaged"),
        (b'{"a": "\xe9"}', "is damaged .*utf-8"),
        ('{"a": 1}'.encode("utf-16"), "is damaged"),
        (b"[]", "it is a list, expected an object"),
        (b"null", "it is null, expected an object"),
        (b'"\\ud800"', "it is a string, expected an object"),
        (b"[" * 100_000, f"nested deeper than {DEEPEST} levels"),
        (b"[" * 100_000 + b"]" * 100_000, f"nested deeper than {DEEPEST} levels"),
        (b'{"a":' * 10_000 + b"1" + b"}" * 10_000, f"nested deeper than {DEEPEST} levels"),
        (b'{"a":' * 101 + b"1" + b"}" * 101, f"nested deeper than {DEEPEST} levels"),
        (b'{"a": ' + b"9" * 10_000 + b"}", "is damaged .*digits"),
    ],
)
def test_what_is_no_object_is_an_error_that_names_the_file(tmp_path: Path, content: bytes, message: str) -> None:
    (tmp_path / "some.json").write_bytes(content)
    with pytest.raises(
        UserError, match=rf"some\.json {message}" if "damaged" in message else rf"some\.json .*{message}"
    ):
        read_json(tmp_path / "some.json", dict)


@pytest.mark.parametrize(
    "content",
    [
        b"a",
        b"a = \xe9",
        b"a = " + b"[" * 10_000 + b"]" * 10_000,
        b"a = " + b"{a=" * 10_000 + b"1" + b"}" * 10_000,
        b".".join([b"a"] * 10_000) + b" = 1",
        b"[" + b".".join([b"a"] * 10_000) + b"]",
        b"a = " + b"9" * 10_000,
        b"a = 1\n" + b"#" * (1 << 20),
    ],
)
def test_what_is_no_toml_is_an_error_that_names_the_file(tmp_path: Path, content: bytes) -> None:
    (tmp_path / "some.toml").write_bytes(content)
    with pytest.raises(UserError, match=r"some\.toml: cannot be read as TOML: "):
        read_toml(tmp_path / "some.toml")


def pipe(path: Path) -> None:
    os.mkfifo(path)


def endless(path: Path) -> None:
    path.symlink_to("/dev/zero")


def large(path: Path) -> None:
    path.touch()
    os.truncate(path, 1 << 40)  # which takes no room


@pytest.mark.parametrize(
    ("make", "message"),
    [(Path.mkdir, "Is a directory"), (pipe, "no file"), (endless, "no file"), (large, "more than 67,108,864 bytes")],
)
def test_what_is_no_file_or_too_large_is_not_read(tmp_path: Path, make: Callable[[Path], None], message: str) -> None:
    make(tmp_path / "some.json")
    with pytest.raises(UserError, match=rf"some\.json cannot be read \(.*{message}.*\); restore it"):
        read_json(tmp_path / "some.json", dict)


@pytest.mark.parametrize("name", ["none", "x" * 5000, "a\0b"])
def test_what_is_not_there_is_an_error(tmp_path: Path, name: str) -> None:
    with pytest.raises(UserError, match=r"is missing; look|cannot be read .*; look"):
        read_json(tmp_path / name, dict, "look")
    with pytest.raises(UserError, match=r"no such file|cannot be read"):
        read_toml(tmp_path / name)


def test_what_is_read_is_what_was_written(tmp_path: Path) -> None:
    content = {"a": [1, 2.5, None, True, "caf\u00e9"], "deep": json.loads("[" * 98 + "]" * 98)}
    for encoding in ("utf-8", "utf-8-sig"):
        (tmp_path / "some.json").write_text(json.dumps(content, ensure_ascii=False), encoding=encoding)
        assert read_json(tmp_path / "some.json", dict) == content
        (tmp_path / "some.toml").write_text("[a]\nb = 'caf\u00e9'\n", encoding=encoding)
        assert read_toml(tmp_path / "some.toml") == {"a": {"b": "caf\u00e9"}}
    assert parse_json(b"[1]", list) == [1]


def test_a_recipe_may_come_through_a_pipe() -> None:
    reading, writing = os.pipe()
    os.write(writing, b"a = 1\n")
    os.close(writing)
    assert read_toml(Path(f"/dev/fd/{reading}")) == {"a": 1}
    os.close(reading)


@pytest.mark.parametrize("name", ["", ".", "..", "a/b", "/a", "../a", "a\\b", "a\0b", None, 3, ["a"]])
def test_what_leads_elsewhere_is_no_name_of_a_file(name: object) -> None:
    assert not is_file_name(name)
    assert is_file_name("model-00001-of-00002.safetensors")


def test_nothing_else_reads_json_or_toml() -> None:
    found = {}
    for module in SOURCES.rglob("*.py"):
        calls = {
            ast.unparse(node)
            for node in ast.walk(ast.parse(module.read_text(encoding="utf-8")))
            if isinstance(node, ast.Attribute) and node.attr in ("load", "loads", "JSONDecoder")
        }
        calls = {call for call in calls if call.split(".")[0] in ("json", "json_format", "tomllib")}
        if calls and module.name != HERE:
            found[module.relative_to(SOURCES).as_posix()] = calls
    assert found == OTHERS
