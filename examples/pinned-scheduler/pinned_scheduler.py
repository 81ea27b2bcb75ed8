"""The three things a scheduler can say: this credential, that built-in strategy, or no."""

from pluginapi import Plugin, PluginError, SchedulerPickRequest, SchedulerPickResponse, serve

STRATEGIES = ("fill-first", "round-robin")


class PinnedScheduler(Plugin):
    async def scheduler_pick(self, request: SchedulerPickRequest) -> SchedulerPickResponse | None:
        if self.config.get("deny"):
            # A veto is the request's answer: no credential is tried, and none is blamed for it.
            raise PluginError(
                "scheduler pick denied by plugin configuration",
                code="scheduler_denied",
                http_status=403,
                retryable=False,
            )
        if delegate := str(self.config.get("delegate", "")).strip():
            return SchedulerPickResponse(delegate=delegate) if delegate in STRATEGIES else None
        wanted = str(self.config.get("auth_id", "")).strip()
        shown = [candidate.id for candidate in request.candidates]
        # Of very many only a part is shown, but whoever is healthy may be named.
        if wanted in shown or (wanted and len(shown) < request.candidates_total):
            return SchedulerPickResponse(auth_id=wanted, reason="pinned by the configuration")
        # Not there, or resting after a failure: the built-in strategy decides.
        return None


if __name__ == "__main__":
    serve(PinnedScheduler)
