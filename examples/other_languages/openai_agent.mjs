// A text-to-SQL agent on the official openai package: streams, calls a tool, goes on until it has an answer.
//   npm install && echo '{"question": "How many?", "schema": "orders(id, total)"}' | node openai_agent.mjs
import OpenAI from "openai";
import { finish, MAX_TURNS, MODEL, readTask } from "./task.mjs";

const tool = {
  type: "function",
  function: {
    name: "sql",
    description: "Hand in one SQL query.",
    parameters: { type: "object", properties: { query: { type: "string" } }, required: ["query"] },
  },
};

const { instructions, question } = await readTask();
const client = new OpenAI(); // reads OPENAI_BASE_URL and OPENAI_API_KEY
const messages = [
  { role: "system", content: instructions },
  { role: "user", content: question },
];
let sql;
let words;
for (let turn = 0; turn < MAX_TURNS; turn += 1) {
  const stream = client.chat.completions.stream({ model: MODEL, messages, tools: [tool] });
  const { message } = (await stream.finalChatCompletion()).choices[0];
  words = message.content;
  if (!message.tool_calls?.length) break;
  messages.push({ role: "assistant", content: message.content, tool_calls: message.tool_calls });
  for (const call of message.tool_calls) {
    ({ query: sql } = JSON.parse(call.function.arguments));
    messages.push({ role: "tool", tool_call_id: call.id, content: "1 row: 1" });
  }
}
finish(sql, words);
