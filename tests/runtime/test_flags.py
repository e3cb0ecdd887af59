"""What every verb may expect of the numbers it is given: that they are some."""

from __future__ import annotations

import importlib

import click
import pytest

from edgepose.runtime.cli import VERBS, guarded

NUMBERS = (click.types.FloatParamType, click.types.IntParamType)


def command_of(verb: str) -> click.Command:
    module, _, name = VERBS[verb].target.partition(":")
    command: click.Command = getattr(importlib.import_module(module), name)
    return command


@pytest.mark.parametrize("verb", VERBS)
def test_a_number_that_is_none_or_far_off_is_refused_before_anything_is_done(
    verb: str, capsys: pytest.CaptureFixture[str]
) -> None:
    command = command_of(verb)
    for option in command.params:
        if not isinstance(option.type, NUMBERS) or option.name == "count":  # which has a sentence of its own
            continue
        flag = option.opts[0]
        for value in ("nan", "inf", "-1"):
            assert guarded(lambda words=(flag, value): command.main([*words], standalone_mode=False)) == 2
            assert f"Invalid value for '{flag}'" in capsys.readouterr().err, value
