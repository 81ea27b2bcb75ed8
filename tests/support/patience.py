"""Deadlines of hooks that a crowded machine does not miss: a plugin that is given no processor is not a slow one."""

import pytest

from host.runtime.policy import EffectivePolicy
from pluginabi.methods import PLUGIN_METHODS

LEAST_S = 30.0


@pytest.fixture(autouse=True)
def patient_hooks(monkeypatch: pytest.MonkeyPatch) -> None:
    """Inside of this process, a hook has half a minute at least, unless manifest or operator say what it has.

    A deadline of half a second is kept by every plugin of a test on a quiet machine, and on no other.
    """
    usual = EffectivePolicy.method_timeout_s

    def patient(policy: EffectivePolicy, method: str) -> float | None:
        timeout_s = usual(policy, method)
        is_default = method not in policy.timeouts_s and PLUGIN_METHODS[method].timeout_ms is not None
        return max(timeout_s, LEAST_S) if is_default and timeout_s is not None else timeout_s

    monkeypatch.setattr(EffectivePolicy, "method_timeout_s", patient)
