"""Files as somebody with bad intentions, or a bad disk, makes them of good ones: seeds, and how they are changed."""

import io
import json
import struct
import tarfile
import zipfile
from collections.abc import Callable, Mapping
from copy import deepcopy
from pathlib import Path

import torch
from hypothesis import strategies as st
from safetensors.torch import save
from torch import Tensor

INTERESTING = (
    b"\0",
    b"\xff",
    b"-",
    b"9" * 25,
    b"[" * 2000,
    b'{"a":' * 2000,
    b'"\\ud800"',
    b"null",
    b"\n",
    b"../",
    b"NaN",
)
VALUES = (
    None,
    True,
    -1,
    0,
    1,
    0.5,
    1 << 40,
    10**30,
    float("nan"),
    float("inf"),
    "",
    "x",
    "../x",
    [],
    {},
    [1],
    {"a": 1},
)

Change = Callable[[bytes], bytes]


@st.composite
def edited(draw: st.DrawFn) -> Change:
    """Bytes changed, left out, put in or cut off, here and there."""
    edits = draw(
        st.lists(
            st.tuples(
                st.sampled_from(("flip", "flip", "drop", "insert", "cut")),
                st.floats(0, 1, exclude_max=True),
                st.integers(0, 255),
                st.sampled_from(INTERESTING),
            ),
            min_size=1,
            max_size=6,
        )
    )

    def change(content: bytes) -> bytes:
        for kind, place, byte, piece in edits:
            at = int(place * len(content))
            match kind:
                case "flip":
                    content = content[:at] + bytes([byte]) + content[at + 1 :]
                case "drop":
                    content = content[:at] + content[at + byte :]
                case "insert":
                    content = content[:at] + piece + content[at:]
                case "cut":
                    content = content[:at] if byte > 200 else content
        return content

    return change


@st.composite
def with_other_values(draw: st.DrawFn) -> Change:
    """JSON in which values are others, or gone."""
    choices = draw(
        st.lists(st.tuples(st.integers(0, 1 << 20), st.sampled_from((*VALUES, ...))), min_size=1, max_size=2)
    )

    def change(content: bytes) -> bytes:
        value = json.loads(content)
        for number, new in choices:
            places = list(_places(value))
            if places:
                holder, key = places[number % len(places)]
                if new is ...:
                    del holder[key]
                else:
                    holder[key] = deepcopy(new)  # one that is put into itself would have no end
        return json.dumps(value).encode()

    return change


def _places(value):
    """Every value inside another: what holds it, and under which key or number."""
    if isinstance(value, dict | list):
        for key, inner in list(value.items() if isinstance(value, dict) else enumerate(value)):
            yield value, key
            yield from _places(inner)


def zipped(files: Mapping[str, bytes]) -> bytes:
    """A zip archive."""
    buffer = io.BytesIO()
    with zipfile.ZipFile(buffer, "w", zipfile.ZIP_DEFLATED) as archive:
        for name, content in files.items():
            archive.writestr(name, content)
    return buffer.getvalue()


def tarred(files: Mapping[str, bytes], mode: str = "w:gz", *others: tarfile.TarInfo) -> bytes:
    """A tar archive, with entries besides that have no content."""
    buffer = io.BytesIO()
    with tarfile.open(fileobj=buffer, mode=mode) as archive:  # pyright: ignore[reportCallIssue, reportArgumentType]
        for name, content in files.items():
            entry = tarfile.TarInfo(name)
            entry.size = len(content)
            archive.addfile(entry, io.BytesIO(content))
        for entry in others:
            archive.addfile(entry)
    return buffer.getvalue()


def link(name: str, target: str, kind: bytes = tarfile.SYMTYPE) -> tarfile.TarInfo:
    """A link, or with another kind a device, for a tar archive."""
    entry = tarfile.TarInfo(name)
    entry.type, entry.linkname = kind, target
    return entry


def saved(content: object) -> bytes:
    """What `torch.save` writes."""
    buffer = io.BytesIO()
    torch.save(content, buffer)
    return buffer.getvalue()


def safetensors_of(header: object, body: bytes = b"") -> bytes:
    """A safetensors file with any header."""
    text = header if isinstance(header, bytes) else json.dumps(header).encode()
    return struct.pack("<Q", len(text)) + text + body


def as_safetensors(tensors: Mapping[str, Tensor]) -> bytes:
    """A safetensors file."""
    return save({name: tensor.contiguous().clone() for name, tensor in tensors.items()})


def repacked(
    content: bytes, change: Callable[[str, bytes], bytes | None], compression: int = zipfile.ZIP_STORED
) -> bytes:
    """A zip archive whose files are changed, or left out."""
    buffer = io.BytesIO()
    with zipfile.ZipFile(io.BytesIO(content)) as before, zipfile.ZipFile(buffer, "w", compression) as after:
        for name in before.namelist():
            inner = change(name, before.read(name))
            if inner is not None:
                after.writestr(name, inner)
    return buffer.getvalue()


def written(folder: Path, name: str, content: bytes) -> Path:
    """A file in a folder."""
    (folder / name).write_bytes(content)
    return folder / name
