"""An equation beside its code: what a notebook gets, what the terminal gets, and what cannot be shown."""

import pytest

from condinst_edu.errors import UserError
from condinst_edu.papers import ITEMS, item
from condinst_edu.teach import show_equation


def test_a_notebook_gets_latex_and_the_librarys_source() -> None:
    bundle = show_equation("condinst eq-2")._repr_mimebundle_()
    text = bundle["text/markdown"]
    assert f"$$\n{item('condinst:eq-2').formula}\n$$" in text
    assert "```python\ndef mask_loss(" in text  # a method, moved to the left edge
    assert "\n    index, positive = sample_locations(" in text
    assert "`condinst_edu.condinst.CondInst.mask_loss  condinst_edu/condinst.py:" in text
    assert "def dice_loss" not in text
    assert bundle["text/plain"] == str(show_equation("condinst:eq-2"))


def test_the_terminal_gets_plain_text() -> None:
    text = str(show_equation("dr1mask:eq-4"))
    assert text.startswith("dr1mask:eq-4: ")
    assert item("dr1mask:eq-4").formula in text
    assert "def dr1conv(" in text
    assert "$$" not in text
    assert "```" not in text


def test_parts_are_chosen_by_name() -> None:
    shown = show_equation("condinst:eq-2", "eq_2", "dice_loss")
    assert shown.symbols == ("condinst_edu.papers.naive_condinst.eq_2", "condinst_edu.layers.losses.dice_loss")
    assert [code.split("(")[0] for _, code in shown.sources()] == ["def eq_2", "def dice_loss"]
    with pytest.raises(
        ValueError, match="condinst:eq-2 has no 'dice_los': choose from eq_2, mask_head, dice, mask_loss"
    ):
        show_equation("condinst:eq-2", "dice_los")
    with pytest.raises(UserError, match="did you mean condinst:eq-2"):
        show_equation("condinst:eq-22")


@pytest.mark.parametrize("name", [name for name, entry in ITEMS.items() if entry.symbols])
def test_every_id_can_be_shown(name: str) -> None:
    assert name in str(show_equation(name))
