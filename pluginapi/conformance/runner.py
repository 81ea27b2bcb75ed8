"""Runs the checks, one after the other, and turns what happens into a report."""

import tempfile
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Final, TypeAlias

from pluginapi.conformance.bench import Bench, Options
from pluginapi.conformance.call_checks import measure
from pluginapi.conformance.case_checks import case_checks
from pluginapi.conformance.checks import HELLO_CHECKS, OBSERVED, SESSION_CHECKS, SESSION_NEEDS, Check
from pluginapi.conformance.outcome import NotApplicable, Outcome, Report, Unmet, Verdict
from pluginapi.conformance.target import Target

Progress: TypeAlias = Callable[[Check], None]
"""Told about each check before it runs."""

STDERR_LINES_SHOWN: Final = 8
NO_SESSION: Final = "there was no session"


async def run(target: Target, options: Options | None = None, *, progress: Progress | None = None) -> Report:
    """Test a plugin. Raises CannotStart when its command cannot be executed; everything else is in the report.

    Starts several processes of the plugin, one after the other; none is left when it returns or is cancelled.
    """
    options = options or Options()
    started_s = time.monotonic()
    with tempfile.TemporaryDirectory(prefix="jf-conformance-") as name:
        bench = Bench(target, options, target.work_dir or Path(name))
        outcomes = await _Run(bench, progress).all()
    frame = bench.frame
    return Report(
        plugin=(frame.plugin if frame is not None else None) or target.plugin_id or "(unknown)",
        version=(frame.version if frame is not None else None) or "",
        level=bench.level,
        carrier=target.carrier,
        command=target.command,
        outcomes=outcomes,
        measured=bench.measured,
        duration_s=round(time.monotonic() - started_s, 3),
    )


class _Run:
    def __init__(self, bench: Bench, progress: Progress | None) -> None:
        self._bench = bench
        self._progress = progress
        self._outcomes: list[Outcome] = []

    async def all(self) -> Sequence[Outcome]:
        bench = self._bench
        broken: Unmet | None = None
        try:
            try:
                await bench.begin()
            except Unmet as error:
                broken = error
            for check in HELLO_CHECKS:
                await self._one(check)
            if broken is not None:
                self._fail_socket(broken)
            elif not any(o.verdict == "fail" and o.id in SESSION_NEEDS for o in self._outcomes):
                await self._session()
                return self._outcomes
            for check in (*SESSION_CHECKS, *OBSERVED):
                if check.id not in {outcome.id for outcome in self._outcomes}:
                    self._observed(check) if bench.violations.get(check.id) else self._skip(check, NO_SESSION)
        finally:
            await bench.close()
        return self._outcomes

    async def _session(self) -> None:
        for check in SESSION_CHECKS:
            if check.id == "goaway.finishes" and self._bench.options.measures:
                await self._measure()
            await self._one(check)
        for check in OBSERVED:
            self._observed(check)
        for check in case_checks(self._bench.target.cases):
            await self._one(check)

    async def _measure(self) -> None:
        """Before the session is ended; a plugin that fails here failed its checks already."""
        try:
            await measure(self._bench)
        except (Unmet, NotApplicable):
            await self._bench.discard()

    async def _one(self, check: Check) -> None:
        bench = self._bench
        frame = bench.frame
        if check.level == "full" and bench.level == "minimal":
            return
        if check.feature and (frame is None or check.feature not in frame.features):
            self._skip(check, f"the feature {check.feature} is not offered")
            return
        if self._progress is not None:
            self._progress(check)
        assert check.run is not None
        started_s = time.monotonic()
        try:
            note = await check.run(bench) or ""
        except NotApplicable as reason:
            self._skip(check, str(reason))
        except Unmet as unmet:
            self._add(check, "fail", started_s, expected=unmet.expected, got=unmet.got, stderr=await self._last_words())
            # A plugin in an unknown state must not fail the next checks as well.
            await bench.discard()
        else:
            if bench.violations.get(check.id):
                self._observed(check)
            else:
                self._add(check, "pass", started_s, note=note)

    async def _last_words(self) -> Sequence[str]:
        last = self._bench.last
        return last.subject.stderr.lines()[-STDERR_LINES_SHOWN:] if last is not None else ()

    def _observed(self, check: Check) -> None:
        violations = self._bench.violations.get(check.id)
        if not violations:
            self._add(check, "pass", time.monotonic())
            return
        first = violations[0]
        got = first.got if len(violations) == 1 else f"{first.got} (and {len(violations) - 1} more)"
        self._add(
            check,
            "fail",
            time.monotonic(),
            expected=first.expected,
            got=got,
            stderr=first.stderr[-STDERR_LINES_SHOWN:],
        )

    def _fail_socket(self, broken: Unmet) -> None:
        check = next(check for check in SESSION_CHECKS if check.id == "socket.opened")
        self._add(check, "fail", time.monotonic(), expected=broken.expected, got=broken.got)

    def _skip(self, check: Check, reason: str) -> None:
        if check.level == "minimal" or self._bench.level == "full":
            self._add(check, "skip", time.monotonic(), reason=reason)

    def _add(
        self,
        check: Check,
        verdict: Verdict,
        started_s: float,
        *,
        note: str = "",
        reason: str = "",
        expected: str = "",
        got: str = "",
        stderr: Sequence[str] = (),
    ) -> None:
        outcome = Outcome(
            id=check.id,
            group=check.group,
            sentence=check.sentence,
            verdict=verdict,
            note=note,
            reason=reason,
            expected=expected,
            got=got,
            stderr=stderr,
            duration_ms=round((time.monotonic() - started_s) * 1000, 1),
        )
        self._outcomes.append(outcome)
