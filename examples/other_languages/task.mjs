// What the JavaScript agents share: the task from stdin, the instructions, and how the result is printed.
import { text } from "node:stream/consumers";

export const MODEL = process.env.OPENAI_MODEL ?? "default";
export const MAX_TURNS = 3;

const INSTRUCTIONS =
  "You answer questions about a SQLite database. Call the sql tool with one SELECT query; " +
  "if it fails, correct it. When its rows answer the question, say so briefly.\nTables:\n";

/** The task: `question`, and the database's `schema`. */
export async function readTask() {
  const task = JSON.parse(await text(process.stdin));
  return { ...task, instructions: INSTRUCTIONS + task.schema };
}

/** One line of JSON: the last query, and the agent's last words. Without a query the program has failed. */
export function finish(sql, words) {
  console.log(JSON.stringify({ sql: sql ?? null, text: words ?? "" }));
  process.exitCode = sql ? 0 : 1;
}
