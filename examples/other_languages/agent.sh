#!/bin/sh
# A text-to-SQL agent of curl and jq: reads a task as JSON on stdin, prints the query as JSON.
#   echo '{"question": "How many?", "schema": "orders(id, total)"}' | OPENAI_BASE_URL=... sh agent.sh
set -eu

request=$(jq --arg model "${OPENAI_MODEL:-default}" '{
  model: $model,
  messages: [
    {role: "system", content: ("You answer questions about a SQLite database. Call the sql tool with one SELECT query; if it fails, correct it. When its rows answer the question, say so briefly.\nTables:\n" + .schema)},
    {role: "user", content: .question}
  ],
  tools: [{type: "function", function: {
    name: "sql", description: "Hand in one SQL query.",
    parameters: {type: "object", properties: {query: {type: "string"}}, required: ["query"]}
  }}]
}')
answer=$(printf '%s' "$request" | curl --silent --show-error --fail-with-body --max-time 120 --data-binary @- \
  --header "Authorization: Bearer ${OPENAI_API_KEY:-unused}" --header "Content-Type: application/json" \
  "$OPENAI_BASE_URL/chat/completions")
printf '%s' "$answer" |
  jq --compact-output '{sql: (.choices[0].message.tool_calls // [] | map(.function.arguments | fromjson? | .query) | last)}'
