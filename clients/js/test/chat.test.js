import assert from "node:assert/strict";
import { test } from "node:test";

import { HoldfastChatTransport } from "../src/chat.js";
import { ApiError } from "../src/index.js";
import { SSE, json, problem, serve } from "./fake.mjs";

const QUICK = { firstS: 0.001, maxS: 0.002, attempts: 5 };
const MESSAGES = [
  { id: "m0", role: "user", parts: [{ type: "text", text: "earlier" }] },
  { id: "m1", role: "user", parts: [{ type: "text", text: "hello" }] },
];
const START = { type: "start", messageId: "msg_r_1" };
const delta = (n) => ({ type: "text-delta", id: "0", delta: `t${n} ` });
const ANSWER = [START, { type: "text-start", id: "0" }, delta(1), delta(2), delta(3), { type: "text-end", id: "0" }, { type: "finish" }];
const data = (chunk) => `data: ${JSON.stringify(chunk)}\n\n`;
const until = async (holds) => { while (!holds()) await new Promise((resolve) => setTimeout(resolve, 5)); };

/** A run's chunks: so many of them, and then the end, a cut, or nothing. */
function chunks(list, { then = "done", run = "r_1" } = {}) {
  return (request, response) => {
    response.writeHead(200, { ...SSE, "x-run-id": run, "x-vercel-ai-ui-message-stream": "v1" });
    for (const chunk of list) response.write(data(chunk));
    if (then === "done") response.end("data: [DONE]\n\n");
    else if (then === "end") response.end();
    else if (then === "cut") setImmediate(() => (response.write('data: {"type": "text-de'), response.destroy()));
  };
}

async function using(handlers, work, options = {}) {
  const server = await serve(...handlers);
  const failed = [];
  const transport = new HoldfastChatTransport({
    api: `${server.url}/api/chat`, apiKey: "key-1", backoff: QUICK, silenceS: 5, onStopFailed: (error) => failed.push(error), ...options,
  });
  try {
    return await work(transport, server.asked, failed);
  } finally {
    await server.close();
  }
}

const send = (transport, more = {}) =>
  transport.sendMessages({ trigger: "submit-message", chatId: "c1", messageId: undefined, messages: MESSAGES, abortSignal: undefined, ...more });

async function read(stream) {
  const found = [];
  for await (const chunk of stream) found.push(chunk);
  return found;
}

const paths = (asked) => asked.map((each) => `${each.method} ${each.url}`);

test("a message is sent with the key, the body's options and itself only; its chunks come as they are", async () => {
  await using([chunks(ANSWER)], async (transport, asked) => {
    assert.deepEqual(await read(await send(transport, { body: { agent: "diver" }, headers: { "x-mine": "1" } })), ANSWER);
    assert.deepEqual(paths(asked), ["POST /api/chat"]);
    assert.deepEqual(JSON.parse(asked[0].body), {
      on_busy: "enqueue", agent: "diver", id: "c1", messages: MESSAGES.slice(-1), trigger: "submit-message",
    });
    assert.equal(asked[0].headers.authorization, "Bearer key-1");
    assert.equal(asked[0].headers["x-mine"], "1");
    assert.match(asked[0].headers["idempotency-key"], /^k_/);
  }, { body: () => ({ on_busy: "enqueue" }) });
});

test("a stream that is cut anywhere is resumed: each chunk once", async () => {
  for (let at = 1; at < ANSWER.length; at += 1) { // at 0 the headers may not be out, and the prompt is sent again
    for (const then of ["cut", "end"]) {
      const script = [chunks(ANSWER.slice(0, at), { then }), chunks(ANSWER.slice(0, 1), { then }), chunks(ANSWER)];
      await using(script, async (transport, asked) => {
        assert.deepEqual(await read(await send(transport)), ANSWER, `${then} after ${at}`);
        assert.deepEqual(paths(asked).slice(1), Array(2).fill("GET /api/chat/c1/stream?run=r_1"));
      });
    }
  }
});

test("silence is a break", async () => {
  const states = [];
  await using([chunks(ANSWER.slice(0, 3), { then: "stay" }), chunks(ANSWER)], async (transport) => {
    assert.deepEqual(await read(await send(transport)), ANSWER);
  }, { silenceS: 0.2, onState: ({ state }) => states.push(state) });
  assert.deepEqual(states, ["connecting", "live", "reconnecting", "connecting", "live", "ended"]);
});

test("a prompt whose answer was lost is sent again under its key; a refusal is not", async () => {
  const drop = (request, response) => response.destroy();
  await using([drop, drop, chunks(ANSWER)], async (transport, asked) => {
    assert.deepEqual(await read(await send(transport)), ANSWER);
    assert.equal(new Set(asked.map((each) => each.headers["idempotency-key"])).size, 1);
  });
  await using([problem(409, "session_busy", { retryable: false })], async (transport, asked) => {
    await assert.rejects(send(transport), (error) => error instanceof ApiError && error.code === "session_busy");
    assert.equal(asked.length, 1);
  });
});

test("answers to a waiting run are repeated as they were, because their stream begins within the run", async () => {
  const messages = [...MESSAGES, { id: "msg_r_1", role: "assistant", parts: [] }];
  const rest = [START, delta(2), { type: "finish" }];
  await using([chunks(rest.slice(0, 2), { then: "cut" }), chunks(rest)], async (transport, asked) => {
    assert.deepEqual(await read(await send(transport, { messages })), rest);
    assert.equal(asked[0].body, asked[1].body);
    assert.equal(asked[0].headers["idempotency-key"], asked[1].headers["idempotency-key"]);
  });
});

test("stop stops the run by our route, and the next prompt waits for that", async () => {
  const order = [];
  const stopped = (request, response) => {
    order.push("stop asked");
    setTimeout(() => (order.push("stop answered"), json({ session: "c1", run: null }, 202)(request, response)), 100);
  };
  const second = (request, response) => (order.push("second"), chunks(ANSWER)(request, response));
  await using([chunks(ANSWER.slice(0, 3), { then: "stay" }), stopped, second], async (transport, asked) => {
    const abort = new AbortController();
    const reader = (await send(transport, { abortSignal: abort.signal })).getReader();
    for (let i = 0; i < 3; i += 1) assert.deepEqual((await reader.read()).value, ANSWER[i]);
    abort.abort();
    await reader.cancel();
    assert.deepEqual(await read(await send(transport)), ANSWER);
    assert.deepEqual(order, ["stop asked", "stop answered", "second"]);
    assert.equal(paths(asked)[1], "POST /api/chat/c1/stop");
    assert.equal(asked[1].headers.authorization, "Bearer key-1");
  });
});

test("whoever reads on after a stop sees the run's own end", async () => {
  let open;
  const live = (request, response) => (open = response, chunks(ANSWER.slice(0, 3), { then: "stay" })(request, response));
  const stopped = (request, response) => {
    open.end(data({ type: "abort", reason: "stopped" }) + "data: [DONE]\n\n");
    json({ session: "c1", run: {} }, 202)(request, response);
  };
  await using([live, stopped], async (transport) => {
    const abort = new AbortController();
    const stream = await send(transport, { abortSignal: abort.signal });
    abort.abort();
    assert.deepEqual((await read(stream)).at(-1), { type: "abort", reason: "stopped" });
  });
});

test("a stop before the prompt is answered stops the run once it is known, and waits for no second attempt", async () => {
  const late = (request, response) => setTimeout(() => chunks(ANSWER.slice(0, 1), { then: "stay" })(request, response), 100);
  await using([late, json({ session: "c1", run: {} }, 202)], async (transport, asked) => {
    const abort = new AbortController();
    const sending = send(transport, { abortSignal: abort.signal });
    setTimeout(() => abort.abort(), 20);
    await assert.rejects(sending, { name: "AbortError" });
    await until(() => asked.length === 2);
    assert.equal(paths(asked)[1], "POST /api/chat/c1/stop");
  });
  await using([(request, response) => setTimeout(() => response.destroy(), 100)], async (transport, asked, failed) => {
    const abort = new AbortController();
    const sending = send(transport, { abortSignal: abort.signal });
    setTimeout(() => abort.abort(), 20);
    await assert.rejects(sending, { name: "AbortError" });
    await new Promise((resolve) => setTimeout(resolve, 200));
    assert.deepEqual([asked.length, failed.length], [1, 0]);
  });
});

test("a stop that does not arrive is said", async () => {
  await using([chunks(ANSWER.slice(0, 2), { then: "stay" }), problem(500, "internal")], async (transport, asked, failed) => {
    const abort = new AbortController();
    const stream = await send(transport, { abortSignal: abort.signal });
    abort.abort();
    await until(() => failed.length === 1);
    assert.equal(failed[0].code, "internal");
    await stream.cancel();
  });
});

test("reconnecting reads what is active from its start, resumes it, and is null where nothing is", async () => {
  await using([(request, response) => response.writeHead(204).end()], async (transport) => {
    assert.equal(await transport.reconnectToStream({ chatId: "c1" }), null);
  });
  await using([chunks(ANSWER.slice(0, 4), { then: "cut" }), chunks(ANSWER)], async (transport, asked) => {
    assert.deepEqual(await read(await transport.reconnectToStream({ chatId: "c1" })), ANSWER);
    assert.deepEqual(paths(asked), ["GET /api/chat/c1/stream", "GET /api/chat/c1/stream?run=r_1"]);
  });
});

test("a resume that replaces another stops nothing; a stop of a resumed stream stops the run", async () => {
  await using([chunks(ANSWER.slice(0, 2), { then: "stay" })], async (transport, asked) => {
    const first = new AbortController();
    const replaced = await transport.reconnectToStream({ chatId: "c1", abortSignal: first.signal });
    first.abort(); // as Chat does it: the old request is aborted, and the new one begins in the same turn
    const second = new AbortController();
    const stream = await transport.reconnectToStream({ chatId: "c1", abortSignal: second.signal });
    await replaced.cancel();
    await new Promise((resolve) => setTimeout(resolve, 50));
    assert.deepEqual(paths(asked), Array(2).fill("GET /api/chat/c1/stream"));
    second.abort();
    await stream.cancel();
    await until(() => asked.length === 3);
    assert.equal(paths(asked)[2], "POST /api/chat/c1/stop");
  });
});

test("a stop while a resume still connects stops the run, too", async () => {
  const late = (request, response) => setTimeout(() => chunks(ANSWER.slice(0, 1), { then: "stay" })(request, response), 200);
  await using([late, json({ session: "c1", run: {} }, 202)], async (transport, asked) => {
    const abort = new AbortController();
    const resuming = transport.reconnectToStream({ chatId: "c1", abortSignal: abort.signal });
    await until(() => asked.length === 1);
    abort.abort();
    await assert.rejects(resuming, { name: "AbortError" });
    await until(() => asked.length === 2);
    assert.equal(paths(asked)[1], "POST /api/chat/c1/stop");
  });
});

test("another run in the place of ours ends the message instead of mixing the two", async () => {
  await using([chunks(ANSWER.slice(0, 3), { then: "cut" }), chunks(ANSWER, { run: "r_2" })], async (transport) => {
    const found = await read(await send(transport));
    assert.deepEqual(found.slice(0, 3), ANSWER.slice(0, 3));
    assert.equal(found.at(-1).type, "abort");
    assert.equal(found.length, 4);
  });
});

test("what cannot be resumed is an error that useChat knows as a disconnect, or one that says why", async () => {
  const drop = (request, response) => response.destroy();
  await using([chunks(ANSWER.slice(0, 3), { then: "cut" }), drop], async (transport) => {
    await assert.rejects(read(await send(transport)), (error) => error instanceof TypeError && /network/.test(error.message));
  });
  const nothing = (request, response) => response.writeHead(204).end();
  await using([chunks(ANSWER.slice(0, 3), { then: "cut" }), nothing], async (transport) => {
    await assert.rejects(read(await send(transport)), { code: "stream_lost" });
  });
  await using([chunks(["no", "chunks"])], async (transport) => {
    await assert.rejects(read(await send(transport)), /no Holdfast server/);
  });
  await using([chunks(ANSWER)], async (transport) => {
    await assert.rejects(send(transport, { chatId: ".." }), TypeError);
  });
});
