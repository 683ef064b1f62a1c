"""Names of spans and attributes. The `agentlightning.*` and `gen_ai.*` strings are a wire contract."""

from __future__ import annotations

# Span names (0.3-compatible)
AGL_ANNOTATION = "agentlightning.annotation"
AGL_MESSAGE = "agentlightning.message"
AGL_OBJECT = "agentlightning.object"
AGL_EXCEPTION = "agentlightning.exception"
AGL_OPERATION = "agentlightning.operation"
AGL_REWARD = "agentlightning.reward"
AGL_VIRTUAL = "agentlightning.virtual"
MODEL_CALL = "openai.chat.completion"
"""Name of the span the gateway writes for one model call."""

# Resource attributes
ROLLOUT_ID = "agentlightning.rollout_id"
ATTEMPT_ID = "agentlightning.attempt_id"
SPAN_SEQUENCE_ID = "agentlightning.span_sequence_id"

# Span attributes
REWARD_PREFIX = "agentlightning.reward"
"""`agentlightning.reward.0.name`, `agentlightning.reward.0.value`, …; entry 0 is the primary reward."""
TAG = "agentlightning.tag"
LINK = "agentlightning.link"
MESSAGE_BODY = "agentlightning.message.body"
OBJECT_TYPE = "agentlightning.object.type"
OBJECT_LITERAL = "agentlightning.object.literal"
OBJECT_JSON = "agentlightning.object.json"
OPERATION_NAME = "agentlightning.operation.name"
OPERATION_INPUT = "agentlightning.operation.input"
OPERATION_OUTPUT = "agentlightning.operation.output"

# A captured model call. Token ids and logprobs are exactly those the engine used.
PROMPT_TOKEN_IDS = "prompt_token_ids"
RESPONSE_TOKEN_IDS = "response_token_ids"
RESPONSE_LOGPROBS = "agentlightning.call.response_logprobs"
CALL_CHOICE = "agentlightning.call.choice"
MODEL_VERSION = "agentlightning.call.model_version"
CALL_HISTORY = "agentlightning.call.history"
"""`start`, `continues`, or how the call's prompt breaks with the tokens before: `history_changed`, `retokenized`,
`prompt_shorter`. On the first choice of a call."""
NOT_TRAINABLE_BECAUSE = "agentlightning.call.not_trainable_because"
CALL_TEMPERATURE = "gen_ai.request.temperature"
CALL_INPUT_MESSAGES = "gen_ai.input.messages"
CALL_OUTPUT_MESSAGES = "gen_ai.output.messages"
CALL_TOOLS = "gen_ai.tool.definitions"
REQUEST_MODEL = "gen_ai.request.model"
RESPONSE_MODEL = "gen_ai.response.model"
RESPONSE_ID = "gen_ai.response.id"
FINISH_REASONS = "gen_ai.response.finish_reasons"
INPUT_TOKENS = "gen_ai.usage.input_tokens"
OUTPUT_TOKENS = "gen_ai.usage.output_tokens"

EXCEPTION_TYPE = "exception.type"
EXCEPTION_MESSAGE = "exception.message"
EXCEPTION_STACKTRACE = "exception.stacktrace"
