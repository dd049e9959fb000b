"""The benchmark of the bank on a few maps: nothing false, and every outcome counted."""

from __future__ import annotations

import json

from equilibria.cli.bench import bench


def test_it_counts_every_outcome_and_finds_nothing_false(capsys):
    assert bench("bank", "--json", "--maps", "3") == 0
    result = json.loads(capsys.readouterr().out)
    assert result["maps"] == 3
    for line in result["counts"]:
        outcomes = sum(count for name, count in line["counts"].items() if name.startswith("solve"))
        assert outcomes == (2 if line["maps"] == "rows apart" else 1)
        assert "solve: error" not in line["counts"]
