"""0.3's `agentlightning.semconv`: names of spans as constants, names of attributes as enumerations."""

from enum import Enum

from agentlightning.agent.emit.attributes import LinkMatch
from agentlightning.schemas import semconv
from agentlightning.schemas.semconv import (
    AGL_ANNOTATION,
    AGL_EXCEPTION,
    AGL_MESSAGE,
    AGL_OBJECT,
    AGL_OPERATION,
    AGL_REWARD,
    AGL_VIRTUAL,
)

LinkPydanticModel = LinkMatch


class LightningResourceAttributes(Enum):
    """Names of resource attributes."""

    ROLLOUT_ID = semconv.ROLLOUT_ID
    ATTEMPT_ID = semconv.ATTEMPT_ID
    SPAN_SEQUENCE_ID = semconv.SPAN_SEQUENCE_ID


class LightningSpanAttributes(Enum):
    """Names, or first parts of names, of span attributes."""

    REWARD = semconv.REWARD_PREFIX
    LINK = semconv.LINK
    TAG = semconv.TAG
    MESSAGE_BODY = semconv.MESSAGE_BODY
    OBJECT_TYPE = semconv.OBJECT_TYPE
    OBJECT_LITERAL = semconv.OBJECT_LITERAL
    OBJECT_JSON = semconv.OBJECT_JSON
    OPERATION_NAME = semconv.OPERATION_NAME
    OPERATION_INPUT = semconv.OPERATION_INPUT
    OPERATION_OUTPUT = semconv.OPERATION_OUTPUT


class RewardAttributes(Enum):
    """Last parts of the names of a reward's attributes: `agentlightning.reward.0.value`."""

    REWARD_NAME = "name"
    REWARD_VALUE = "value"


class LinkAttributes(Enum):
    """Last parts of the names of a link's attributes."""

    KEY_MATCH = "key_match"
    VALUE_MATCH = "value_match"


__all__ = [
    "AGL_ANNOTATION",
    "AGL_EXCEPTION",
    "AGL_MESSAGE",
    "AGL_OBJECT",
    "AGL_OPERATION",
    "AGL_REWARD",
    "AGL_VIRTUAL",
    "LightningResourceAttributes",
    "LightningSpanAttributes",
    "LinkAttributes",
    "LinkPydanticModel",
    "RewardAttributes",
]
