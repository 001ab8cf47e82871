"""Checks of the user's numbers and words."""

from __future__ import annotations

import math

import pytest

from lit_gfs.errors import UserError, require_above, require_one_of, require_unused


@pytest.mark.parametrize("value", [0, -1.0, math.inf, math.nan])
def test_numbers_that_are_not_above_the_limit_are_refused(value: float) -> None:
    with pytest.raises(UserError, match=f"x is {value}; expected a number above 0$"):
        require_above(0, x=value)
    require_above(0, x=1e-9, y=None)


def test_the_message_names_the_limit() -> None:
    with pytest.raises(UserError, match=r"x is 1; expected a number above 1$"):
        require_above(1, x=1)


def test_a_word_that_is_no_choice_is_refused_with_the_nearest() -> None:
    with pytest.raises(UserError, match=r"x is 'rsm'; expected one of 'rms', 'max'; did you mean 'rms'\?$"):
        require_one_of(("rms", "max"), x="rsm")


def test_choices_may_be_an_iterator() -> None:
    require_one_of(iter(("a", "b")), x="b", y="a")


def test_an_option_that_would_have_no_effect_is_refused() -> None:
    with pytest.raises(UserError, match=r"^x is 3, but y is off$"):
        require_unused("y is off", w=None, v=0.0, x=3)
