"""Effects of words alone on a base's predictions."""

from __future__ import annotations

import pytest
from kit.families import FAMILIES

from dbray import bases
from dbray.bases.effects import effects_of


@pytest.mark.parametrize("name", ["tiny", "sdxl", "flux", "z_image"])
def test_an_effect_repeats_and_depends_on_no_other_word(name, tiny_base, tmp_path):
    folder = tiny_base if name == "tiny" else FAMILIES[name].build(tmp_path / "base")
    backbone = bases.load(bases.resolve(str(folder)), bases.Compute(resolution=32))
    found = effects_of(backbone, ["dog", "zb", ""])
    assert found[""] == 0
    assert found["dog"] > 0
    assert found["dog"] != found["zb"]
    assert effects_of(backbone, ["zb"]) == {"zb": found["zb"]}
