// The official openai package for Node through `cocoon proxy`, as anybody would write it.
//
// usage: node openai_node.mjs BASE_URL MODEL, with the package beside it in node_modules; ends with 0 and one line
// per claim, or with an assertion that names it.

import assert from "node:assert/strict";
import OpenAI from "openai";

const [baseURL, model] = process.argv.slice(2);
const client = new OpenAI({ baseURL, apiKey: "none", maxRetries: 0, timeout: 120_000 });
const messages = [{ role: "user", content: "What is Cocoon?" }];

function claim(what, holds) {
  assert.ok(holds, what);
  console.log("ok:", what);
}

const models = [];
for await (const entry of client.models.list()) models.push(entry.id);
claim("models are listed", models.includes(model));

const whole = await client.chat.completions.create({ model, messages, max_tokens: 32, temperature: 0 });
const answer = whole.choices[0].message.content;
claim("an answer has text", answer.length > 0);
claim("tokens are counted", whole.usage.total_tokens === whole.usage.prompt_tokens + whole.usage.completion_tokens);

let streamed = "";
let chunks = 0;
const stream = await client.chat.completions.create({ model, messages, max_tokens: 32, temperature: 0, stream: true });
for await (const chunk of stream) {
  streamed += chunk.choices[0].delta.content ?? "";
  chunks += 1;
}
claim("a stream has the same text", streamed === answer);
claim("a stream comes in pieces", chunks > 3);

// The package's own helper follows every event and puts the answer together.
const helper = client.chat.completions.stream({ model, messages, max_tokens: 8 });
const final = await helper.finalChatCompletion();
claim("the stream helper ends with an answer", typeof final.choices[0].message.content === "string");

async function refused(error, change) {
  try {
    await client.chat.completions.create({ model, messages, ...change });
  } catch (refusal) {
    return refusal instanceof error && refusal.message.length > 0;
  }
  return false;
}
claim("another model is NotFoundError", await refused(OpenAI.NotFoundError, { model: "gpt-9" }));
claim("a bad top_p is BadRequestError", await refused(OpenAI.BadRequestError, { top_p: 7 }));

// Giving up in mid-stream ends the request and leaves the proxy working.
const given_up = await client.chat.completions.create({ model, messages, max_tokens: 32, stream: true });
for await (const chunk of given_up) {
  if (chunk.choices[0].delta.content) break;
}
const after = await client.chat.completions.create({ model, messages, max_tokens: 4 });
claim("after one that was given up the next is answered", after.choices.length === 1);
