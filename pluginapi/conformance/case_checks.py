"""The author's own cases, over the wire: one check for each entry of the plugin's `cases.json`."""

from collections.abc import Iterator
from typing import Final

import msgspec

from pluginabi.body import StreamItem
from pluginabi.codec import decode_result, encode_params
from pluginabi.errors import PluginTransportError
from pluginapi.cases import Case, CaseFile, told
from pluginapi.conformance.bench import Bench
from pluginapi.conformance.checks import Check
from pluginapi.conformance.conversation import Conversation
from pluginapi.conformance.ledger import Probe
from pluginapi.conformance.outcome import NotApplicable, Unmet

GROUP: Final = "cases"


def case_checks(file: CaseFile) -> Iterator[Check]:
    """A check per case, all on one process that is registered with the file's configuration."""
    process = _CaseProcess(file)
    for number, case in enumerate(file.cases, 1):
        yield Check(f"{GROUP}.{number}", case.name, process.check(case))


class _CaseProcess:
    def __init__(self, file: CaseFile) -> None:
        self._file = file
        self._talk: Conversation | None = None

    def check(self, case: Case) -> "_CaseCheck":
        return _CaseCheck(self, case)

    async def talk(self, bench: Bench) -> Conversation:
        """A process of its own, so that what the kit did before leaves no traces. Raises Unmet."""
        if self._talk is None or self._talk.ended:
            self._talk = await bench.fresh()
            await bench.register(self._talk, self._file.config)
        bench.last = self._talk
        return self._talk


class _CaseCheck:
    def __init__(self, process: _CaseProcess, case: Case) -> None:
        self._process = process
        self._case = case

    async def __call__(self, bench: Bench) -> str | None:
        case = self._case
        if case.method not in bench.capabilities:
            raise NotApplicable(f"its hello does not list {case.method}")
        talk = await self._process.talk(bench)
        probe = await talk.closed(talk.call(case.method, encode_params(case.request()), stream=case.streams))
        seen = _told(probe, case)
        if seen != case.expected:
            raise Unmet(_text(case.expected), _text(seen))
        return None


def _told(probe: Probe, case: Case) -> dict[str, object]:
    if probe.error is not None:
        return told(error=probe.error)
    try:
        assert probe.result is not None
        answer = decode_result(case.method, probe.result.result, plugin_id="")
    except PluginTransportError as error:
        raise Unmet(f"an answer that fits {case.method}", error.cause) from error
    items = [StreamItem(event=item.event, body=item.body, raw=item.raw) for item in probe.kept]
    return told(answer, items=items if case.streams else None)


def _text(seen: dict[str, object]) -> str:
    return msgspec.json.encode(seen).decode()
