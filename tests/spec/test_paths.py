"""Local paths become absolute; everything else stays unchanged."""

from __future__ import annotations

from dbray.spec.paths import anchor


def test_local_paths_become_absolute_and_uris_stay_unchanged(tmp_path):
    assert anchor("x/y", tmp_path) == str(tmp_path / "x" / "y")
    assert anchor("gs://b/x", tmp_path) == "gs://b/x"
