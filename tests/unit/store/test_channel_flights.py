"""Calls that share requests: none is left behind when all requests under way end at once."""

from __future__ import annotations

import asyncio

import msgspec

from agentlightning.store import wire
from agentlightning.store.channel import Channel, ChannelSettings


class HeldChannel(Channel):
    """A channel whose server answers when the test says so."""

    def __init__(self) -> None:
        super().__init__(
            ChannelSettings(
                address="http://held",
                token=None,
                retry_delays=(),
                health_retry_delays=(),
                request_timeout=1.0,
                connection_timeout=1.0,
            )
        )
        self.answers = asyncio.Event()
        self.requests = 0

    async def post(self, path: str, body: bytes, *, extra_s: float = 0.0) -> bytes:
        self.requests += 1
        await self.answers.wait()
        calls = msgspec.msgpack.decode(body)
        return msgspec.msgpack.encode([wire.Outcome(value=call) for call in calls])


async def test_a_call_made_the_moment_all_requests_end_gets_its_own() -> None:
    channel = HeldChannel()

    async def twice(number: int) -> list[int]:
        payload = msgspec.msgpack.encode(number)
        return [await channel.call(payload), await channel.call(payload)]

    callers: list[asyncio.Task[list[int]]] = []
    for number in range(4):  # one after the other, so that each flies alone
        callers.append(asyncio.create_task(twice(number)))
        while channel.requests <= number:  # noqa: ASYNC110 - counts turns of the loop
            await asyncio.sleep(0)
    channel.answers.set()
    async with asyncio.timeout(100):
        assert await asyncio.gather(*callers) == [[n, n] for n in range(4)]
        assert await channel.call(msgspec.msgpack.encode(7)) == 7
    await channel.close()


async def test_calls_of_one_turn_share_a_request() -> None:
    channel = HeldChannel()
    channel.answers.set()
    payloads = [msgspec.msgpack.encode(number) for number in range(10)]
    assert await asyncio.gather(*(channel.call(payload) for payload in payloads)) == list(range(10))
    assert channel.requests == 1
    await channel.close()
