"""A queue on the server that every node fills, and from which any node, or a program of the operator, takes."""

from collections.abc import Awaitable, Callable, Sequence
from typing import Any, Final

from redis.asyncio import Redis

_SEEN_MS: Final = 60_000
"""How long a batch is known: one whose answer was lost is sent again, and must not count twice."""
_DROP_OLD: Final = """
local function drop_old(list, oldest)
  while true do
    local first = redis.call('LINDEX', list, 0)
    if not first then return end
    local is_json, record = pcall(cjson.decode, first)
    local at = is_json and type(record) == 'table' and (record.queued_at or record.timestamp)
    if type(at) == 'string' and at >= oldest then return end
    redis.call('LPOP', list)
  end
end
"""
_PUSH: Final = (
    _DROP_OLD
    + """
if not redis.call('SET', KEYS[2], '1', 'NX', 'PX', ARGV[4]) then return 0 end
for index = 5, #ARGV do
  if redis.call('PUBLISH', KEYS[1], ARGV[index]) == 0 then redis.call('RPUSH', KEYS[1], ARGV[index]) end
end
drop_old(KEYS[1], ARGV[1])
redis.call('LTRIM', KEYS[1], -tonumber(ARGV[2]), -1)
redis.call('PEXPIRE', KEYS[1], ARGV[3])
return 1
"""
)
_TAKE: Final = (
    _DROP_OLD
    + """
drop_old(KEYS[1], ARGV[1])
local taken = redis.call('LRANGE', KEYS[1], 0, tonumber(ARGV[2]) - 1)
if #taken > 0 then redis.call('LTRIM', KEYS[1], #taken, -1) end
return taken
"""
)


class RedisQueue:
    """A `SharedQueue`: a list, and a channel of the same name; while somebody listens there, items go nowhere else."""

    def __init__(self, client: "Redis", prefix: str, guard: Callable[[Awaitable[Any]], Awaitable[Any]]) -> None:
        self._client: Final = client
        self._name: Final = f"{prefix}:usage"
        self._errors: Final = f"{prefix}:errors"
        self._guard: Final = guard
        self._push: Final = client.register_script(_PUSH)
        self._take: Final = client.register_script(_TAKE)

    async def push(self, items: Sequence[bytes], *, batch: str, oldest: str, keep: int, ttl_s: float) -> None:
        arguments: list[bytes | str | int] = [oldest, keep, round(ttl_s * 1000), _SEEN_MS, *items]
        await self._guard(self._push(keys=[self._name, f"{self._name}:batch:{batch}"], args=arguments))

    async def announce(self, events: Sequence[bytes]) -> None:
        """On the channel of errors."""
        pipeline = self._client.pipeline(transaction=False)
        for event in events:
            pipeline.publish(self._errors, event)
        await self._guard(pipeline.execute())

    async def take(self, count: int, *, oldest: str) -> list[bytes]:
        taken: list[bytes] = await self._guard(self._take(keys=[self._name], args=[oldest, count]))
        return taken
