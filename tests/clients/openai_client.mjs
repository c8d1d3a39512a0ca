// Drives the gateway's HTTP API with the official OpenAI client for Node, unmodified.
//
// Usage: node openai_client.mjs BASE_URL KEY    (run the copy which setup.sh made:
// an ES module finds its packages only beside itself)
//
// The model `echo` answers with exactly the last user message, so every answer is
// known beforehand and is compared as a whole. The first failure ends the run.

import assert from "node:assert/strict";
import { randomUUID } from "node:crypto";
import OpenAI from "openai";

const [baseURL, apiKey, ...rest] = process.argv.slice(2);
if (!apiKey || rest.length) {
  console.error("usage: openai_client.mjs BASE_URL KEY");
  process.exit(2);
}
// No retries: a request which works only the second time is a failure.
const settings = { baseURL, maxRetries: 0, timeout: 30_000 };
const client = new OpenAI({ apiKey, ...settings });

// What breaks careless streaming: double spaces, newlines, quotes, letters of two to
// four bytes, U+2028 (some take it for a line end), and the stream's own end mark.
const TRICKY =
  'Grüße  aus\nKöln: "a\\b"\t🦀 日本語 x\u2028y data: [DONE]\n\n# Ende &amp; <b>';
const LONG = Array.from({ length: 300 }, (_, n) => `word${n}`).join(" ");
const SESSION = "X-Hermes-Session-Id";

const { equal, deepEqual, ok } = assert;
const user = (content) => ({ role: "user", content });
const ask = (text, more) => ({ model: "echo", messages: [user(text)], ...more });
const chat = (text, more, options) => client.chat.completions.create(ask(text, more), options);

async function collect(stream) {
  const all = [];
  for await (const one of stream) all.push(one);
  return all;
}

// The call must fail with this very class, and with OpenAI's error body.
async function raises(kind, status, call, code) {
  const error = await call().then(
    () => assert.fail(`no error, want ${kind.name}`),
    (error) => error,
  );
  if (!(error instanceof OpenAI.APIError)) throw error;
  equal(error.constructor.name, kind.name, "error class");
  equal(error.status, status, "status");
  for (const field of ["message", "type"]) {
    ok(error.error?.[field] && typeof error.error[field] === "string", `error.${field} is missing`);
  }
  if (code) equal(error.code, code, "error.code");
}

function checkChatUsage(usage) {
  ok(usage, "no usage");
  for (const field of ["prompt_tokens", "completion_tokens", "total_tokens"]) {
    ok(Number.isInteger(usage[field]), `usage.${field}`);
  }
  equal(usage.total_tokens, usage.prompt_tokens + usage.completion_tokens, "total_tokens");
}

function checkCompletion(answer, text) {
  equal(answer.object, "chat.completion");
  ok(answer.id && answer.model && Number.isInteger(answer.created), "id, model and created");
  equal(answer.choices.length, 1, "choices");
  const [{ index, finish_reason, message }] = answer.choices;
  deepEqual([index, finish_reason], [0, "stop"], "index and finish_reason");
  deepEqual([message.role, message.content], ["assistant", text], "message");
  checkChatUsage(answer.usage);
}

function checkChunks(chunks, text, withUsage = false) {
  for (const { object, id, created, model } of chunks) {
    equal(object, "chat.completion.chunk");
    const first = chunks[0];
    deepEqual([id, created, model], [first.id, first.created, first.model], "same in each chunk");
  }
  if (withUsage) {
    // OpenAI sends it in a chunk of its own, after the last one with a choice.
    const last = chunks.at(-1);
    chunks = chunks.slice(0, -1);
    deepEqual(last.choices, [], "choices of the usage chunk");
    checkChatUsage(last.usage);
  }
  for (const chunk of chunks) {
    equal(chunk.usage ?? null, null, "usage in a chunk with text");
    equal(chunk.choices.length, 1, "a chunk without its choice");
  }
  const choices = chunks.map((chunk) => chunk.choices[0]);
  equal(choices[0].delta.role, "assistant", "role in the first chunk");
  const parts = choices.map((choice) => choice.delta.content).filter(Boolean);
  equal(parts.join(""), text, "text of all chunks");
  ok(parts.length > 1, "the text came in one piece");
  const reasons = choices.map((choice) => choice.finish_reason ?? null);
  deepEqual(reasons, [...Array(reasons.length - 1).fill(null), "stop"], "finish_reasons");
}

function checkResponse(answer, text) {
  equal(answer.object, "response");
  equal(answer.status, "completed", "status");
  // Not in the JSON: the client puts it together from `output`.
  equal(answer.output_text, text, "output_text");
  const { input_tokens, output_tokens, total_tokens } = answer.usage;
  equal(total_tokens, input_tokens + output_tokens, "total_tokens");
}

const cases = {
  async models_list() {
    const models = await collect(client.models.list());
    for (const model of models) {
      equal(model.object, "model");
      ok(Number.isInteger(model.created) && model.owned_by, "created and owned_by");
    }
    const ids = models.map((model) => model.id);
    ok(ids.includes("echo") && ids.includes("hermes-agent"), `models: ${ids}`);
  },

  async models_retrieve() {
    equal((await client.models.retrieve("hermes-agent")).id, "hermes-agent");
    const { NotFoundError } = OpenAI;
    await raises(NotFoundError, 404, () => client.models.retrieve("no-such"), "model_not_found");
  },

  async chat_plain() {
    const answer = await chat(TRICKY);
    checkCompletion(answer, TRICKY);
    equal(answer.model, "echo");
  },

  async chat_default_model() {
    checkCompletion(await chat("hello", { model: "hermes-agent" }), "hello");
  },

  async chat_stream() {
    checkChunks(await collect(await chat(TRICKY, { stream: true })), TRICKY);
  },

  async chat_stream_with_usage() {
    const stream = await chat(LONG, { stream: true, stream_options: { include_usage: true } });
    checkChunks(await collect(stream), LONG, true);
  },

  async chat_stream_helper() {
    const stream = client.chat.completions.stream(
      ask(TRICKY, { stream_options: { include_usage: true } }),
    );
    let seen = "";
    stream.on("content", (delta) => (seen += delta));
    equal(await stream.finalContent(), TRICKY, "finalContent");
    equal(seen, TRICKY, "text of the content events");
    checkChatUsage(await stream.totalUsage());
    checkCompletion(await stream.finalChatCompletion(), TRICKY);
  },

  async chat_left_stream() {
    // A client which goes away in the middle must not harm the next request.
    for await (const _ of await chat(LONG, { stream: true })) break;
    checkCompletion(await chat("still there"), "still there");
  },

  async chat_16_streams() {
    const texts = Array.from({ length: 16 }, (_, n) => `stream ${n}: ${`${n}-x `.repeat(50)}end`);
    await Promise.all(
      texts.map(async (text) => checkChunks(await collect(await chat(text, { stream: true })), text)),
    );
  },

  async session_of_several_turns() {
    const headers = { [SESSION]: `js-${randomUUID()}` };
    for (const turn of ["turn one", "turn two"]) {
      // Only the new message is sent: the server keeps the history.
      const { data, response } = await chat(turn, {}, { headers }).withResponse();
      equal(response.headers.get(SESSION), headers[SESSION], "session header");
      checkCompletion(data, turn);
    }
    const text = "turn three, streamed";
    const { data, response } = await chat(text, { stream: true }, { headers }).withResponse();
    equal(response.headers.get(SESSION), headers[SESSION], "session header of the stream");
    checkChunks(await collect(data), text);
  },

  async idempotency() {
    const headers = { "Idempotency-Key": `js-${randomUUID()}` };
    const first = await chat("only once", {}, { headers });
    checkCompletion(first, "only once");
    deepEqual(await chat("only once", {}, { headers }), first, "repeated answer");
    const { UnprocessableEntityError } = OpenAI;
    await raises(UnprocessableEntityError, 422, () => chat("other body", {}, { headers }));
  },

  async responses_plain() {
    const answer = await client.responses.create({ model: "echo", input: TRICKY });
    checkResponse(answer, TRICKY);
    const stored = await client.responses.retrieve(answer.id);
    deepEqual(stored, answer, "stored response");
  },

  async responses_chain() {
    const first = await client.responses.create({
      model: "echo",
      instructions: "Be brief.",
      input: [user([{ type: "input_text", text: "link one" }])],
    });
    checkResponse(first, "link one");
    const previous_response_id = first.id;
    const next = await client.responses.create({
      model: "echo",
      input: "link two",
      previous_response_id,
    });
    checkResponse(next, "link two");
    equal(next.previous_response_id, first.id, "previous_response_id");
  },

  async responses_stream() {
    const body = { model: "echo", input: TRICKY, stream: true };
    const events = await collect(await client.responses.create(body));
    const numbers = events.map((event) => event.sequence_number);
    deepEqual(numbers, [...events.keys()], "sequence numbers");
    const deltas = events.filter((event) => event.type === "response.output_text.delta");
    ok(deltas.length > 1, "the text came in one piece");
    deepEqual(
      events.map((event) => event.type),
      [
        "response.created",
        "response.in_progress",
        "response.output_item.added",
        "response.content_part.added",
        ...deltas.map((event) => event.type),
        "response.output_text.done",
        "response.content_part.done",
        "response.output_item.done",
        "response.completed",
      ],
      "order of the events",
    );
    equal(deltas.map((event) => event.delta).join(""), TRICKY, "text of all deltas");
    const { response } = events.at(-1);
    equal(response.status, "completed", "status");
    equal(response.output[0].content[0].text, TRICKY, "text of the finished response");
  },

  async responses_stream_resumed() {
    const whole = await collect(await client.responses.create({ model: "echo", input: TRICKY, stream: true }));
    const { id } = whole[0].response;
    for (const { sequence_number } of whole) {
      const rest = await collect(
        await client.responses.retrieve(id, { stream: true, starting_after: sequence_number }),
      );
      deepEqual(rest, whole.slice(sequence_number + 1), `after ${sequence_number}`);
    }
    // The helper has the whole stream sent again, and passes over what came before by its number.
    const { sequence_number: starting_after } = whole[6];
    const stream = client.responses.stream({ response_id: id, starting_after });
    const deltas = [];
    stream.on("response.output_text.delta", ({ delta }) => deltas.push(delta));
    equal((await stream.finalResponse()).output_text, TRICKY, "final text");
    const expected = whole.slice(7).filter(({ type }) => type === "response.output_text.delta");
    deepEqual(deltas, expected.map(({ delta }) => delta), "deltas of the rest");
  },

  async responses_stream_helper() {
    const stream = client.responses.stream({ model: "echo", input: LONG });
    let seen = "";
    stream.on("response.output_text.delta", ({ delta, snapshot }) => {
      seen += delta;
      equal(snapshot, seen, "snapshot");
    });
    checkResponse(await stream.finalResponse(), LONG);
    equal(seen, LONG, "text of all deltas");
  },

  async wrong_key() {
    const stranger = new OpenAI({ apiKey: `wrong-${apiKey}`, ...settings });
    const { AuthenticationError } = OpenAI;
    await raises(AuthenticationError, 401, () => stranger.models.list());
    for (const stream of [false, true]) {
      const body = ask("hello", { stream });
      await raises(AuthenticationError, 401, () => stranger.chat.completions.create(body));
    }
  },

  async unknown_model() {
    for (const stream of [false, true]) {
      const call = () => chat("hello", { model: "no-such", stream });
      await raises(OpenAI.NotFoundError, 404, call, "model_not_found");
    }
  },

  async malformed_messages() {
    for (const messages of [[], "hello", null, [{ role: "wizard", content: "x" }]]) {
      await raises(OpenAI.BadRequestError, 400, () => chat("", { messages }));
    }
  },
};

let passed = 0;
for (const [name, run] of Object.entries(cases)) {
  try {
    await run();
  } catch (error) {
    // The whole error (with a diff) goes to stderr, its gist into one line of stdout.
    console.error(error);
    const values =
      error instanceof assert.AssertionError && "expected" in error
        ? `: got ${JSON.stringify(error.actual)}, want ${JSON.stringify(error.expected)}`
        : "";
    const [message] = String(error?.message ?? error).split("\n");
    console.log(`FAILED ${name}: ${message}${values}`);
    console.log(`${passed} passed, 1 failed`);
    process.exit(1);
  }
  passed += 1;
  console.log(`ok ${name}`);
}
console.log(`${passed} passed, 0 failed`);
