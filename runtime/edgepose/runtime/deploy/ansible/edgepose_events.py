"""What Ansible does, as JSON lines on stdout: a plugin that Ansible loads, and fleet.py reads."""

from __future__ import annotations

import json
from typing import Any

from ansible.plugins.callback import CallbackBase

DOCUMENTATION = """
    name: edgepose_events
    type: stdout
    short_description: JSON lines for edgepose deploy
    description: One line when a board begins a task, and one when it has done it, or could not.
"""

_TOLD = ("cmd", "rc", "stdout", "stderr", "module_stderr", "msg")


class CallbackModule(CallbackBase):
    """Ansible's interface for plugins of the type stdout."""

    CALLBACK_VERSION = 2.0
    CALLBACK_TYPE = "stdout"
    CALLBACK_NAME = "edgepose_events"

    def v2_playbook_on_play_start(self, play: Any) -> None:
        """Comes for each wave; the boards are those of all waves."""
        known = play.get_variable_manager().get_vars(play=play)
        print(json.dumps({"event": "boards", "boards": known["ansible_play_hosts_all"]}), flush=True)

    def v2_runner_on_start(self, host: Any, task: Any) -> None:
        self._tell("begins", host.get_name(), task.get_name(), {})

    def v2_runner_on_ok(self, result: Any) -> None:
        self._tell_of("done", result)

    def v2_runner_on_failed(self, result: Any, ignore_errors: bool = False) -> None:
        self._tell_of("failed", result)

    def v2_runner_on_unreachable(self, result: Any) -> None:
        self._tell_of("unreachable", result)

    def _tell_of(self, event: str, result: Any) -> None:
        known = {key: result._result[key] for key in _TOLD if key in result._result}
        self._tell(event, result._host.get_name(), result._task.get_name(), known)

    def _tell(self, event: str, board: str, task: str, known: dict[str, Any]) -> None:
        print(json.dumps({"event": event, "board": board, "task": task} | known), flush=True)
