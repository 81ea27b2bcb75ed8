"""Limits what clients may use: requests and tokens per minute, requests at once, and budgets.

A request is counted when it comes in and settled when it is over. Several hosts that share their state share the
limits (see `counters`). A request that a plugin makes on behalf of a client's counts its tokens, and nothing else.
"""

import asyncio
import math
import time
from collections.abc import Callable, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass, field

from pluginapi import (
    Context,
    ErrorBody,
    Guard,
    PluginError,
    RegisterRequest,
    RegisterResponse,
    RequestCompleteRequest,
    RequestInterceptRequest,
    RequestInterceptResponse,
    ShutdownRequest,
    Usage,
    serve,
)
from plugins.limits.counters import Counters, Taken
from plugins.limits.epoch import Epoch
from plugins.limits.rules import MICRO, Rule, Settings, minute_end_s, named, period_end_s, settings_of
from plugins.limits.slots import Slot, Slots

BYTES_PER_TOKEN = 4
"""What a request's input is taken for until its usage is known."""


MAX_SUBJECT = 400
"""Characters of a subject in a key of the store, which are not many more."""


@dataclass(slots=True)
class Admission:
    """What one request took, to be settled or given back."""

    caller: str
    model: str
    rules: Sequence[tuple[str, Rule]]
    """By the name of their counts."""
    reserved: int = 0
    minute_ends_s: float = 0.0
    taken: list[tuple[str, int, float]] = field(default_factory=list)
    """Key, amount and end of each count it took from."""
    slots: list[Slot] = field(default_factory=list)


class ClientLimits(Guard):
    """`plugins.configs.limits.rules`: every rule that matches a request must grant it."""

    id = "limits"
    version = "0.1.0"

    def __init__(self, clock: Callable[[], float] = time.time) -> None:
        self._clock = clock
        self._settings = Settings()
        self._rules = named(())
        epoch = Epoch()
        self._counters = Counters(epoch, clock)
        self._slots = Slots(epoch)
        self._open: dict[str, Admission] = {}
        self._keeper: asyncio.Task[None] | None = None
        """Renews the slots of requests that run, until the plugin ends."""

    async def plugin_register(self, request: RegisterRequest, ctx: Context) -> RegisterResponse | None:
        self._configure()
        keeping = self._slots.keep(ctx.detached(), lambda: self._settings.concurrency_lease)
        self._keeper = asyncio.create_task(keeping, name=f"{self.id}:slots")
        return None

    async def plugin_reconfigure(self, request: RegisterRequest) -> RegisterResponse | None:
        # Counts go on: a changed limit applies to what was used already.
        self._configure()
        return None

    async def plugin_shutdown(self, request: ShutdownRequest) -> None:
        keeper, self._keeper = self._keeper, None
        if keeper is not None:
            keeper.cancel()
            await asyncio.wait((keeper,))

    def _configure(self) -> None:
        self._settings = settings_of(self.config)
        self._rules = named(self._settings.rules)
        self._slots.lease_changed()

    async def request_intercept_before(
        self, request: RequestInterceptRequest, ctx: Context
    ) -> RequestInterceptResponse | None:
        caller = str(request.metadata.get("caller") or "anonymous")
        model = request.requested_model
        matching = tuple((name, rule) for name, rule in self._rules if rule.matches(caller, model))
        if not matching:
            return None
        # Names of keys need not be unique; the scope is.
        owner = str(request.metadata.get("caller_scope") or caller)
        admission = Admission(owner, model, matching, minute_ends_s=minute_end_s(self._clock()))
        admission.reserved = max(1, request.body_size // BYTES_PER_TOKEN)
        nested = request.parent_request_id is not None
        headers: dict[str, tuple[str, ...]] = {}
        try:
            for name, rule in matching:
                await self._admit(ctx, admission, name, rule, nested=nested, headers=headers)
        except BaseException:
            await self._give_back(ctx, admission)
            raise
        self._open[request.request_id] = admission
        return RequestInterceptResponse(response_headers=headers)

    async def request_complete(self, request: RequestCompleteRequest, ctx: Context) -> None:
        admission = self._open.pop(request.request_id, None)
        if admission is None:
            return
        for slot in admission.slots:
            self._slots.forget(slot)
        usage = request.usage
        if usage is None and request.outcome == "canceled" and request.attempt is not None:
            # Nobody knows what the upstream made of it until the client left; the input it had at least.
            usage = Usage(input_tokens=admission.reserved)
        failures = [*await self._free(ctx, admission), *await self._settle(ctx, admission, usage or Usage())]
        if failures:
            raise failures[0]

    async def _free(self, ctx: Context, admission: Admission) -> list[PluginError]:
        """Free all of its slots; what went wrong with some."""
        failures = []
        for slot in admission.slots:
            try:
                await self._slots.release(ctx, slot)
            except PluginError as error:
                failures.append(error)
        return failures

    async def _settle(self, ctx: Context, admission: Admission, usage: Usage) -> list[PluginError]:
        """Count for every rule what was used; what went wrong with some."""
        used = usage.total_tokens or (usage.input_tokens or 0) + (usage.output_tokens or 0)
        price = self._settings.price_of(admission.model)
        now_s = self._clock()
        failures = []
        for name, rule in admission.rules:
            subject = rule.subject(admission.caller, admission.model)
            try:
                if rule.tokens_per_minute is not None:
                    more = used - admission.reserved
                    # What a long answer used counts in the minute in which it is known.
                    ends_s = minute_end_s(now_s) if more > 0 else admission.minute_ends_s
                    await self._counters.add(ctx, _key("tokens", name, subject, ends_s), more, ends_s=ends_s)
                if rule.budget is not None and price is not None:
                    ends_s = period_end_s(rule.period, now_s)
                    cost = price.micros(usage)
                    await self._counters.add(ctx, _key("budget", name, subject, ends_s), cost, ends_s=ends_s)
            except PluginError as error:
                failures.append(error)
        return failures

    async def _admit(
        self,
        ctx: Context,
        admission: Admission,
        name: str,
        rule: Rule,
        *,
        nested: bool,
        headers: dict[str, tuple[str, ...]],
    ) -> None:
        """Take from everything one rule limits. Raises PluginError 429, or 403 for a model without a price."""
        subject = rule.subject(admission.caller, admission.model)
        if rule.budget is not None:
            await self._check_budget(ctx, admission, name, rule, subject)
        ends_s = admission.minute_ends_s
        if rule.tokens_per_minute is not None:
            key, limit = _key("tokens", name, subject, ends_s), rule.tokens_per_minute
            amount = admission.reserved
            taken = await self._counters.take(ctx, key, amount, limit=limit, ends_s=ends_s, overshoot=True)
            self._note(admission, taken, key, amount, ends_s)
            self._show(headers, "tokens", limit, taken, ends_s)
            if not taken.granted:
                raise self._refused(f"the limit of {limit} tokens per minute is used up", ends_s, headers)
        if nested:
            return
        if rule.requests_per_minute is not None:
            key, limit = _key("requests", name, subject, ends_s), rule.requests_per_minute
            taken = await self._counters.take(ctx, key, 1, limit=limit, ends_s=ends_s, overshoot=False)
            self._note(admission, taken, key, 1, ends_s)
            self._show(headers, "requests", limit, taken, ends_s)
            if not taken.granted:
                raise self._refused(f"the limit of {limit} requests per minute is used up", ends_s, headers)
        if rule.concurrency is not None:
            lease_s = self._settings.concurrency_lease
            slot = await self._slots.take(
                ctx, f"{name}:{subject[:MAX_SUBJECT]}", limit=rule.concurrency, lease_s=lease_s
            )
            if slot is None:
                raise self._refused(f"{rule.concurrency} requests at once is the limit", 0.0, headers)
            admission.slots.append(slot)

    async def _check_budget(self, ctx: Context, admission: Admission, name: str, rule: Rule, subject: str) -> None:
        if self._settings.price_of(admission.model) is None:
            message = f"model {admission.model} has no price, and a budget applies: add it to `prices` of limits"
            raise PluginError(ErrorBody(message=message, code="no_price", http_status=403))
        ends_s = period_end_s(rule.period, self._clock())
        key, limit = _key("budget", name, subject, ends_s), round((rule.budget or 0.0) * MICRO)
        taken = await self._counters.take(ctx, key, 0, limit=limit, ends_s=ends_s, overshoot=True)
        if not taken.granted:
            message = f"the budget of {rule.budget:g} per {rule.period} is used up"
            raise self._refused(message, ends_s, {}, code="budget_exceeded")

    def _note(self, admission: Admission, taken: Taken, key: str, amount: int, ends_s: float) -> None:
        if taken.granted:
            admission.taken.append((key, amount, ends_s))

    async def _give_back(self, ctx: Context, admission: Admission) -> None:
        """As far as it goes: the call may be over, and why it is, is what its caller has to hear."""
        for slot in admission.slots:
            self._slots.forget(slot)
        await self._free(ctx, admission)
        for key, amount, ends_s in admission.taken:
            with suppress(PluginError):
                await self._counters.add(ctx, key, -amount, ends_s=ends_s)

    def _show(self, headers: dict[str, tuple[str, ...]], kind: str, limit: int, taken: Taken, ends_s: float) -> None:
        """The headers of the tightest rule, which is the one that refuses."""
        shown = headers.get(f"x-ratelimit-remaining-{kind}")
        if shown is not None and taken.granted and int(shown[0]) <= taken.remaining:
            return
        headers[f"x-ratelimit-limit-{kind}"] = (str(limit),)
        headers[f"x-ratelimit-remaining-{kind}"] = (str(taken.remaining),)
        headers[f"x-ratelimit-reset-{kind}"] = (f"{self._seconds_until(ends_s)}s",)

    def _refused(
        self,
        message: str,
        ends_s: float,
        headers: Mapping[str, tuple[str, ...]],
        *,
        code: str = "rate_limit_exceeded",
    ) -> PluginError:
        return PluginError(
            ErrorBody(
                message=message,
                code=code,
                http_status=429,
                retryable=True,
                retry_after_ms=self._seconds_until(ends_s) * 1000,
                headers=headers,
            )
        )

    def _seconds_until(self, ends_s: float) -> int:
        """At least one: a place is free when some request ends, which nobody can tell."""
        return max(1, math.ceil(ends_s - self._clock()))


def _key(kind: str, name: str, subject: str, ends_s: float) -> str:
    return f"{kind}:{name}:{subject[:MAX_SUBJECT]}:{int(ends_s)}"


if __name__ == "__main__":
    serve(ClientLimits)
