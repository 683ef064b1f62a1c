"""The gateway: model calls of agents in, recorded answers out. Wires routes, upstreams, sampling and
recording.

Calls on URLs that name no rollout are answered but not recorded: they belong to nobody whom a record could
help. They are counted as `unattributed` in `stats()` and `/health`.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from types import TracebackType
from typing import TYPE_CHECKING, Any

from agentlightning.gateway.budgets import Budgets
from agentlightning.gateway.cache import CallCache, NoCache
from agentlightning.gateway.calls import CallService, CallStore
from agentlightning.gateway.dispatch import CallLimits
from agentlightning.gateway.keys import KeyRing, check_exposure
from agentlightning.gateway.masking import Masker, MaskingPolicy, mask_logs
from agentlightning.gateway.meter import GatewayStats
from agentlightning.gateway.recorder import Recorder, WhenFull
from agentlightning.gateway.routing import RoutingTable
from agentlightning.gateway.sampling import SamplingPolicy
from agentlightning.gateway.spans import SpanMaker
from agentlightning.gateway.spool import Spool
from agentlightning.gateway.upstream.base import Upstream
from agentlightning.kit.collector import relax_collector, restore_collector
from agentlightning.kit.errors import ConfigError
from agentlightning.kit.http import HttpServer
from agentlightning.schemas.resource import ProxyLLM

if TYPE_CHECKING:
    from starlette.routing import BaseRoute


class Gateway:
    """An OpenAI- and Anthropic-compatible server that records every call of a rollout before answering it.

    Args:
        store: Where calls are recorded: any `LightningStore`.
        upstreams: Who answers: a routing table, upstreams by model name, or upstreams that answer for the names they
            know themselves; see `RoutingTable`.
        host: Address to listen on.
        port: Port; 0 takes a free one.
        accept_any_model: Let the only upstream answer for every model name.
        extra_routes: Starlette routes to serve on the same port, e.g. those of the store.
        is_durable: Answer only after the record is committed; `False`: after it is queued.
        spool: Folder (or `Spool`) where records are kept while the store is away, so that calls go on; committed then
            means on that disk. `None`: calls whose record the store does not take fail.
        when_unrecordable: What happens to a call whose record neither store nor spool takes: `refuse` withholds the
            answer, `answer` gives it and counts it as lost.
        cache: Answers repeated calls without asking the upstream again; see `ResponseCache`.
        masking: What is taken out of records and logs; see `MaskingPolicy`.
        limits: Time limits and numbers of calls.
        keys: API keys of this gateway, see `KeyRing`; `None` takes the variable `AGL_GATEWAY_KEYS`, if set. Without any
            everybody may call.
        is_open: Listen on other addresses than the loopback one without keys.
        budgets: Caps on calls, tokens and money; closed with the gateway.
        max_body_bytes: Largest request.
        shutdown_grace_s: How long `stop` lets calls in flight finish.

    Attributes:
        sampling: How rollouts are sampled; the trainer's handle.
        routes: Which upstream answers for which model; may be changed while calls are under way.
        api_key: A key for the agents of this gateway's own runs, new with every start; `None` where none is needed.

    Raises:
        ConfigError: The routes or keys are unusable, or the gateway would be open to other machines.
    """

    def __init__(
        self,
        store: CallStore,
        upstreams: RoutingTable | Mapping[str, Upstream] | Sequence[Upstream],
        *,
        host: str = "127.0.0.1",
        port: int = 0,
        accept_any_model: bool = False,
        extra_routes: Sequence[BaseRoute] = (),
        is_durable: bool = True,
        spool: Spool | Path | str | None = None,
        when_unrecordable: WhenFull = "refuse",
        cache: CallCache | None = None,
        masking: MaskingPolicy | None = None,
        limits: CallLimits | None = None,
        keys: KeyRing | Mapping[str, str] | Sequence[str] | str | None = None,
        is_open: bool = False,
        budgets: Budgets | None = None,
        max_body_bytes: int = 64 << 20,
        shutdown_grace_s: float = 10.0,
    ) -> None:
        from agentlightning.gateway.app import ShortWay, build_app

        self.sampling = SamplingPolicy()
        if not isinstance(upstreams, RoutingTable):
            upstreams = RoutingTable(upstreams, accept_any_model=accept_any_model)
        self.routes = upstreams
        ring = KeyRing.of(keys)
        check_exposure(host, ring, is_open=is_open)
        self._budgets = budgets
        self.api_key = ring.make() if ring is not None else None
        self._is_up = False
        self._cache = cache or NoCache()
        self._masker = Masker(masking) if masking is not None else None
        if self._masker is not None and self._cache.keeps_text_unmasked:
            raise ConfigError(
                "The response cache would keep unmasked text outside this process, and the gateway shall mask.",
                hint="Use the cache in memory, or say RedisCache(url, unmasked=True) if that Redis may hold it.",
            )
        self._unmask_logs: Callable[[], None] | None = None
        self._recorder = Recorder(
            store,
            is_durable=is_durable,
            spool=Spool(spool) if isinstance(spool, Path | str) else spool,
            when_full=when_unrecordable,
        )
        self._service = CallService(
            store=store,
            routes=self.routes,
            recorder=self._recorder,
            sampling=self.sampling,
            limits=limits or CallLimits(),
            budgets=budgets,
            cache=self._cache,
            spans=SpanMaker(self._masker),
        )
        self.app = build_app(
            self._service, self.routes, extra_routes=extra_routes, max_body_bytes=max_body_bytes, keys=ring
        )
        self._server = HttpServer(ShortWay(self.app), host=host, port=port, shutdown_grace_s=shutdown_grace_s)

    async def start(self, *, listen: bool = True) -> None:
        """Serve; returns when connections are accepted.

        Args:
            listen: `False` leaves the port closed: `app` is served by somebody else, who asks for keys if there have
                to be any.

        Raises:
            PortInUseError: Another program listens on the port.
            ConfigError: Host or port cannot be used.
            StorageError: The spool's folder cannot be used.
        """
        self._recorder.start()
        try:
            if listen:
                await self._server.start()
        except BaseException:
            await self._recorder.stop()
            raise
        if not self._is_up:
            self._is_up = True
            relax_collector()
            if self._masker is not None and "logs" in self._masker.policy.places:
                self._unmask_logs = mask_logs(self._masker)

    async def stop(self) -> None:
        """Let calls in flight finish within the grace, write what is queued, free connections."""
        self.resume()
        if self._is_up:
            self._is_up = False
            restore_collector()
        await self._server.stop()
        await self._recorder.stop()
        if self._budgets is not None:
            await self._budgets.aclose()
        for upstream in self.routes.upstreams:
            await upstream.aclose()
        await self._cache.aclose()
        if self._unmask_logs is not None:
            self._unmask_logs()
            self._unmask_logs = None

    async def __aenter__(self) -> Gateway:
        await self.start()
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        await self.stop()

    @property
    def url(self) -> str:
        """Base URL without `/v1`, e.g. `http://127.0.0.1:41231`."""
        return self._server.url

    def llm(self, model: str = "default", **sampling_parameters: Any) -> ProxyLLM:
        """The resource that sends an agent's calls here, each to its rollout."""
        return ProxyLLM(
            endpoint=f"{self.url}/v1",
            model=model,
            api_key=self.api_key or "unused",
            sampling_parameters=sampling_parameters,
        )

    def set_sampling(
        self,
        mode: str,
        overrides: Mapping[str, Any] | None = None,
        *,
        defaults: Mapping[str, Any] | None = None,
        seed_base: int | None = None,
    ) -> None:
        """Say how rollouts of a mode are sampled; `sampling.register` is the same for chosen rollouts."""
        self.sampling.register_mode(mode, overrides, defaults=defaults, seed_base=seed_base)

    def pause(self) -> None:
        """Hold calls that arrive from now on; those in flight go on."""
        self._service.gate.pause()

    def resume(self) -> None:
        """Let held calls go on."""
        self._service.gate.resume()

    async def drain(self, timeout_s: float = 600.0) -> None:
        """Wait until no call is in flight; with `pause` before it, none comes after.

        Raises:
            TimeoutError: Calls were still in flight after `timeout_s`.
        """
        async with asyncio.timeout(timeout_s):
            await self._service.drain()

    async def delivered(self, timeout_s: float = 60.0) -> None:
        """Wait until nothing waits in the spool: the store has the record of every call that was answered.

        Raises:
            TimeoutError: The store was still away after `timeout_s`.
        """
        async with asyncio.timeout(timeout_s):
            await self._recorder.delivered()

    def stats(self) -> GatewayStats:
        """Live counters."""
        return self._service.stats()
