"""The conformance kit: does a plugin, in whatever language, keep the contract?

    python -m pluginapi.conformance path/to/plugin-folder
    python -m pluginapi.conformance -- ./my-plugin --flag

or from Python: `await run(target_of_folder(Path("my-plugin")))`, which returns a `Report`. Nothing of a host is needed.
"""

from pluginapi.conformance.bench import Options
from pluginapi.conformance.outcome import Measurements, Outcome, Report
from pluginapi.conformance.runner import run
from pluginapi.conformance.subject import CannotStart
from pluginapi.conformance.target import Target, TargetError, target_of_command, target_of_folder

__all__ = [
    "CannotStart",
    "Measurements",
    "Options",
    "Outcome",
    "Report",
    "Target",
    "TargetError",
    "run",
    "target_of_command",
    "target_of_folder",
]
