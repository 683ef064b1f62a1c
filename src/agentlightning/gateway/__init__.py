"""The gateway room: agents' model calls, answered by any upstream and recorded. Knows nothing of torch."""

from agentlightning.gateway.account import Caps
from agentlightning.gateway.breaker import BreakerPolicy
from agentlightning.gateway.budgets import BudgetPolicy, Budgets
from agentlightning.gateway.cache import ResponseCache
from agentlightning.gateway.cache_stores import MemoryCache, RedisCache
from agentlightning.gateway.call import CallScope
from agentlightning.gateway.dispatch import CallLimits
from agentlightning.gateway.errors import CallError
from agentlightning.gateway.gateway import Gateway
from agentlightning.gateway.keys import KeyRing
from agentlightning.gateway.masking import LogMask, Masker, MaskingPolicy
from agentlightning.gateway.meter import GatewayStats
from agentlightning.gateway.prices import Price, PriceTable
from agentlightning.gateway.routesfile import Routes, load_routes
from agentlightning.gateway.routing import Route, RoutingTable
from agentlightning.gateway.sampling import SamplingPolicy, SamplingRule
from agentlightning.gateway.spool import Spool, spool_folder
from agentlightning.gateway.target import Target, TargetSettings
from agentlightning.gateway.upstream.anthropic import AnthropicUpstream
from agentlightning.gateway.upstream.base import Keyed, Upstream
from agentlightning.gateway.upstream.engine import Engine, EngineUpstream
from agentlightning.gateway.upstream.litellm import LiteLLMUpstream
from agentlightning.gateway.upstream.openai import OpenAIUpstream
from agentlightning.gateway.upstream.retry import RetryPolicy

__all__ = [
    "AnthropicUpstream",
    "BreakerPolicy",
    "BudgetPolicy",
    "Budgets",
    "CallError",
    "CallLimits",
    "CallScope",
    "Caps",
    "Engine",
    "EngineUpstream",
    "Gateway",
    "GatewayStats",
    "KeyRing",
    "Keyed",
    "LiteLLMUpstream",
    "LogMask",
    "Masker",
    "MaskingPolicy",
    "MemoryCache",
    "OpenAIUpstream",
    "Price",
    "PriceTable",
    "RedisCache",
    "ResponseCache",
    "RetryPolicy",
    "Route",
    "Routes",
    "RoutingTable",
    "SamplingPolicy",
    "SamplingRule",
    "Spool",
    "Target",
    "TargetSettings",
    "Upstream",
    "load_routes",
    "spool_folder",
]
