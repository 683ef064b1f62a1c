"""What an agent tells about itself: rewards, messages, objects, exceptions, annotations, operations."""

from agentlightning.agent.emit.annotations import emit_annotation
from agentlightning.agent.emit.attributes import (
    extract_links_from_attributes,
    extract_tags_from_attributes,
    make_link_attributes,
    make_tag_attributes,
    query_linked_spans,
)
from agentlightning.agent.emit.exceptions import emit_exception
from agentlightning.agent.emit.messages import emit_message, get_message_value
from agentlightning.agent.emit.objects import emit_object, get_object_value
from agentlightning.agent.emit.operations import OperationContext, operation
from agentlightning.agent.emit.rewards import (
    RewardDimension,
    emit_reward,
    find_final_reward,
    find_reward_spans,
    get_reward_value,
    get_rewards_from_span,
    is_reward_span,
    reward,
)

__all__ = [
    "OperationContext",
    "RewardDimension",
    "emit_annotation",
    "emit_exception",
    "emit_message",
    "emit_object",
    "emit_reward",
    "extract_links_from_attributes",
    "extract_tags_from_attributes",
    "find_final_reward",
    "find_reward_spans",
    "get_message_value",
    "get_object_value",
    "get_reward_value",
    "get_rewards_from_span",
    "is_reward_span",
    "make_link_attributes",
    "make_tag_attributes",
    "operation",
    "query_linked_spans",
    "reward",
]
