"""What verbs share of the command line: numbers that are finite, and which options their user gave."""

from __future__ import annotations

import math
from typing import Any

import click
from click.core import ParameterSource


class FiniteRange(click.FloatRange):
    """Of numbers. click's own range lets not-a-number through, which is neither below nor above anything."""

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> float:
        """The number. Fails, as click does, for one that is not finite or out of range."""
        number = float(super().convert(value, param, ctx))
        if not math.isfinite(number):
            self.fail(f"{number} is no finite number.", param, ctx)
        return number


def given() -> set[str]:
    """The parameters of the running verb that its user wrote, by the names they have in Python."""
    context = click.get_current_context()
    source = context.get_parameter_source
    return {name for name in context.params if source(name) is ParameterSource.COMMANDLINE}
