// A text-to-SQL agent without any package: Node's own fetch, one call. Its exit code says whether there is a query.
//   echo '{"question": "How many?", "schema": "orders(id, total)"}' | OPENAI_BASE_URL=... node fetch_agent.mjs
import { finish, MODEL, readTask } from "./task.mjs";

const { instructions, question } = await readTask();
const parameters = { type: "object", properties: { query: { type: "string" } }, required: ["query"] };
const response = await fetch(`${process.env.OPENAI_BASE_URL}/chat/completions`, {
  method: "POST",
  headers: { "Content-Type": "application/json", Authorization: `Bearer ${process.env.OPENAI_API_KEY}` },
  body: JSON.stringify({
    model: MODEL,
    messages: [
      { role: "system", content: instructions },
      { role: "user", content: question },
    ],
    tools: [{ type: "function", function: { name: "sql", description: "Hand in one SQL query.", parameters } }],
  }),
});
if (!response.ok) throw new Error(`${response.status}: ${await response.text()}`);
const { message } = (await response.json()).choices[0];
const calls = message.tool_calls ?? [];
finish(calls.length ? JSON.parse(calls.at(-1).function.arguments).query : undefined, message.content);
