"""Words are counted exactly, whatever does not fit into memory."""

import os
from collections import Counter
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from equilibria.data.tokenizer_training import WordCounts

WORDS = st.lists(st.sampled_from(["a", "b", "Ab", "é", "中", "<unk>", "\u0085x", "zz"]) | st.text("xyz", min_size=1))


@given(st.lists(WORDS), st.integers(1, 5))
def test_counts_do_not_depend_on_how_many_fit_into_memory(batches: list[list[str]], most_words: int) -> None:
    with WordCounts(most_words=most_words) as counts:
        for batch in batches:
            counts.update(batch)
        items = list(counts.items())
    assert len(items) == len(dict(items))
    assert dict(items) == Counter(word for batch in batches for word in batch)


def test_tables_on_disk_are_in_the_given_folder_and_go_with_the_counts(tmp_path: Path) -> None:
    def on_disk() -> int:
        links = (os.readlink(link) for link in Path("/proc/self/fd").iterdir() if link.is_symlink())
        return sum(str(tmp_path) in link for link in links)

    if not Path("/proc/self/fd").is_dir():
        pytest.skip("this system does not list open files")
    with WordCounts(tmp_path, most_words=10) as counts:
        counts.update(map(str, range(15)))
        counts.update(map(str, range(10, 30)))
        assert on_disk() == 2
        assert len(dict(counts.items())) == 30
    assert on_disk() == 0
    assert list(tmp_path.iterdir()) == []
