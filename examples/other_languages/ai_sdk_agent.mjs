// A text-to-SQL agent on the Vercel AI SDK, which asks OpenAI's Responses API and streams.
//   npm install && echo '{"question": "How many?", "schema": "orders(id, total)"}' | node ai_sdk_agent.mjs
import { openai } from "@ai-sdk/openai"; // reads OPENAI_BASE_URL and OPENAI_API_KEY
import { stepCountIs, streamText, tool } from "ai";
import { z } from "zod";
import { finish, MAX_TURNS, MODEL, readTask } from "./task.mjs";

const { instructions, question } = await readTask();
let sql;
const result = streamText({
  model: openai(MODEL),
  system: instructions,
  prompt: question,
  stopWhen: stepCountIs(MAX_TURNS),
  tools: {
    sql: tool({
      description: "Hand in one SQL query.",
      inputSchema: z.object({ query: z.string() }),
      execute: async ({ query }) => {
        sql = query;
        return "1 row: 1";
      },
    }),
  },
  onError: ({ error }) => {
    throw error;
  },
});
const words = await result.text; // first, for the tool runs meanwhile
finish(sql, words);
