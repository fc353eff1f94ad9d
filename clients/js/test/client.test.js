import assert from "node:assert/strict";
import { createServer } from "node:net";
import { test } from "node:test";

import { ApiError, Client, ServerUnreachable } from "../src/index.js";
import { FrameParser } from "../src/wire.js";
import { SSE, frame, json, problem, serve, stream } from "./fake.mjs";

const QUICK = { firstS: 0.001, maxS: 0.002, attempts: 5 };

async function using(handlers, work, options = {}) {
  const server = await serve(...handlers);
  try {
    return await work(new Client({ url: server.url, apiKey: "key-1", backoff: QUICK, silenceS: 5, ...options }), server);
  } finally {
    await server.close();
  }
}

async function all(follow) {
  const found = [];
  for await (const event of follow) found.push(event);
  return found;
}

const seqs = (events) => events.map((event) => event.seq);

test("calls say only what was given, with the key and a fresh Idempotency-Key", async () => {
  await using([json({ id: "r_1" }, 201)], async (client, { asked }) => {
    assert.deepEqual(await client.start("hello", { session: "s", onBusy: "reject" }), { id: "r_1" });
    await client.start("hello");
    assert.deepEqual(JSON.parse(asked[0].body), { input: "hello", session: "s", on_busy: "reject" });
    assert.equal(asked[0].headers.authorization, "Bearer key-1");
    assert.notEqual(asked[0].headers["idempotency-key"], asked[1].headers["idempotency-key"]);
    await client.stop("r_1", { waitS: 2 });
    await client.steer("r_1", "more");
    await client.decide("r_1", [{ call: "c", approve: true }]);
    await client.runs({ state: "running", limit: 2 });
    assert.deepEqual(asked.slice(2).map((each) => `${each.method} ${each.url}`), [
      "POST /api/runs/r_1/stop?wait_s=2",
      "POST /api/runs/r_1/steer",
      "POST /api/runs/r_1/decisions",
      "GET /api/runs?state=running&limit=2",
    ]);
  });
});

test("an answer that was lost is asked for again under the same key", async () => {
  const drop = (request, response) => response.destroy();
  await using([drop, drop, json({ id: "r_1" }, 201)], async (client, { asked }) => {
    await client.start("hello");
    assert.equal(new Set(asked.map((each) => each.headers["idempotency-key"])).size, 1);
  });
  await using([drop], async (client, { asked }) => {
    await assert.rejects(client.record("r_1"), ServerUnreachable);
    assert.equal(asked.length, 3);
  });
});

test("refusals carry status, code, remedy and whether to repeat; a busy server is waited for as long as it says", async () => {
  const busy = problem(429, "rate_limited", { retryable: true, headers: { "retry-after": "0.2" } });
  await using([problem(404, "unknown_run")], async (client) => {
    await assert.rejects(client.record("r_1"), (error) => {
      assert.ok(error instanceof ApiError);
      assert.deepEqual([error.status, error.code, error.remedy, error.retryable], [404, "unknown_run", "r", false]);
      return true;
    });
  });
  await using([busy, json({ id: "r_1" })], async (client) => {
    const began = Date.now();
    assert.deepEqual(await client.record("r_1"), { id: "r_1" });
    assert.ok(Date.now() - began >= 190);
  });
  await using([busy], async (client, { asked }) => {
    await assert.rejects(client.record("r_1"), (error) => error.status === 429 && error.retryAfterS === 0.2);
    assert.equal(asked.length, 1);
  }, { busyS: 0.1 });
});

test("every call has a limit, also when the answer drips", async () => {
  const drip = (request, response) => {
    response.writeHead(200, { "content-type": "application/json" });
    const timer = setInterval(() => response.write(" "), 20);
    response.on("close", () => clearInterval(timer));
  };
  for (const handler of [() => {}, drip]) {
    await using([handler], (client) => assert.rejects(client.record("r_1"), /in time/), { answerS: 0.2 });
  }
});

test("a wrong address, a wrong id and a wrong offset are said at once", async () => {
  for (const url of ["localhost:8484", "ftp://x", "http://"]) assert.throws(() => new Client({ url }), TypeError);
  const client = new Client();
  for (const id of ["", "..", "a/b", "é"]) await assert.rejects(client.record(id), TypeError);
  assert.throws(() => client.follow("r_1", { after: "x" }), TypeError);
});

test("readers get each event once, whatever breaks or is sent twice", async () => {
  const states = [];
  const script = [stream([1], { then: "cut" }), stream([1, 2]), stream([2, 3])];
  await using(script, async (client, { asked }) => {
    const follow = client.follow("r_1", { onState: ({ state }) => states.push(state) });
    assert.deepEqual(seqs(await all(follow)), [1, 2, 3]);
    assert.deepEqual(asked.map((each) => each.url.split("?")[1]), [undefined, "after=1-1", "after=2-1"]);
    assert.equal(follow.place, "3-1");
    assert.deepEqual(await follow.next(), { value: undefined, done: true });
  });
  const again = ["reconnecting", "connecting", "live"];
  assert.deepEqual(states, ["connecting", "live", ...again, ...again, "ended"]);
});

test("a gap is read again; resync is handed out and read from the start; unavailable is an interruption", async () => {
  await using([stream([1, 3]), stream([2, 3])], async (client) => {
    assert.deepEqual(seqs(await all(client.follow("r_1"))), [1, 2, 3]);
  });
  const notice = (kind, fields) => `event: ${kind}\ndata: ${JSON.stringify({ run: "r_1", ...fields })}\n\n`;
  const replaced = stream([1], { epoch: 2, before: notice("resync", { asked: "7-1", head: 3, epoch: 2 }) });
  await using([replaced, stream([2, 3], { epoch: 2 })], async (client, { asked }) => {
    const [first, ...rest] = await all(client.follow("r_1", { after: "7-1" }));
    assert.deepEqual(first, { type: "resync", run: "r_1", asked: "7-1", head: 3, epoch: 2 });
    assert.deepEqual(seqs(rest), [1, 2, 3]);
    assert.equal(asked[1].url.split("?")[1], "after=1-2");
  });
  await using([stream([1], { before: notice("unavailable", {}) }), stream([1, 2, 3])], async (client) => {
    assert.deepEqual(seqs(await all(client.follow("r_1"))), [1, 2, 3]);
  });
  await using([stream([], { before: notice("gone", { code: "gone", detail: "deleted" }) })], async (client, { asked }) => {
    await assert.rejects(all(client.follow("r_1")), (error) => error.code === "gone" && error.status === 410);
    assert.equal(asked.length, 1);
  });
});

test("204 ends it; refusals end it; overload does not", async () => {
  const nothing = (request, response) => response.writeHead(204).end();
  await using([nothing], async (client) => assert.deepEqual(await all(client.follow("r_1", { after: 3 })), []));
  for (const status of [401, 403, 404]) {
    await using([problem(status, "no")], async (client, { asked }) => {
      const follow = client.follow("r_1");
      await assert.rejects(all(follow), (error) => error.status === status);
      assert.equal(follow.connection.state, "failed");
      assert.equal(asked.length, 1);
    });
  }
  const busy = problem(503, "overloaded", { retryable: true, headers: { "retry-after": "0.1" } });
  await using([busy, stream([1, 2, 3])], async (client) => assert.deepEqual(seqs(await all(client.follow("r_1"))), [1, 2, 3]));
});

test("silence is an interruption, keepalives are not, and a server that stays silent is given up", async () => {
  const states = [];
  await using([stream([1], { then: "stay" }), stream([2, 3])], async (client) => {
    const follow = client.follow("r_1", { onState: (connection) => states.push(connection) });
    assert.deepEqual(seqs(await all(follow)), [1, 2, 3]);
  }, { silenceS: 0.2 });
  assert.match(states.find((each) => each.state === "reconnecting").cause, /^Timeout/);
  const alive = (request, response) => {
    response.writeHead(200, SSE);
    const timer = setInterval(() => response.write(": keepalive\n\n"), 50);
    setTimeout(() => (clearInterval(timer), response.end(frame(1) + frame(2) + frame(3))), 600);
  };
  await using([alive], async (client, { asked }) => {
    assert.deepEqual(seqs(await all(client.follow("r_1"))), [1, 2, 3]);
    assert.equal(asked.length, 1);
  }, { silenceS: 0.3 });
  await using([() => {}], async (client, { asked }) => {
    await assert.rejects(all(client.follow("r_1")), /3 connections in a row/);
    assert.equal(asked.length, 3);
  }, { silenceS: 0.05, backoff: { ...QUICK, attempts: 2 } });
});

test("what is no Holdfast server is named after three connections", async () => {
  const say = (text, headers = SSE) => (request, response) => response.writeHead(200, headers).end(text);
  await using([say("<html>", { "content-type": "text/html" })], async (client, { asked }) => {
    await assert.rejects(all(client.follow("r_1")), /check that the address is a Holdfast server/);
    await assert.rejects(client.record("r_1"), (error) => error.code === "unexpected_answer");
    assert.equal(asked.length, 2);
  });
  for (const garbage of ["data: <html>\n\n", 'data: {"hello": "there"}\n\n', `data: ${"x".repeat(700000)}`, `data: ${"[".repeat(1e5)}\n\n`]) {
    await using([say(garbage)], async (client, { asked }) => {
      await assert.rejects(all(client.follow("r_1")), /no Holdfast server/);
      assert.equal(asked.length, 3);
    });
  }
  const server = createServer((socket) => socket.on("error", () => {}).end("220 mail.test ESMTP\r\n\r\n"));
  await new Promise((resolve) => server.listen(0, "127.0.0.1", resolve));
  const client = new Client({ url: `http://127.0.0.1:${server.address().port}`, backoff: QUICK });
  await assert.rejects(all(client.follow("r_1")), /no Holdfast server/);
  server.close();
});

test("whoever leaves closes the connection, in the loop, by close() or by a signal, also while it waits", async () => {
  const closed = [];
  const stay = (request, response) => {
    response.on("close", () => closed.push(true));
    stream([1], { then: "stay" })(request, response);
  };
  await using([stay], async (client) => {
    const follow = client.follow("r_1");
    for await (const event of follow) if (event.seq === 1) break;
    assert.equal(follow.connection.state, "closed");
    const leaving = new AbortController();
    const second = client.follow("r_1", { signal: leaving.signal });
    await second.next();
    const next = second.next();
    leaving.abort();
    assert.equal((await next).done, true);
    assert.equal(second.connection.state, "closed");
    while (closed.length < 2) await new Promise((resolve) => setTimeout(resolve, 5));
  });
  await using([stream([])], async (client) => {
    const follow = client.follow("r_1", { onState: ({ state }) => state === "reconnecting" && follow.close() });
    const began = Date.now();
    assert.deepEqual(await all(follow), []);
    assert.ok(Date.now() - began < 5000);
  }, { backoff: { firstS: 60 } });
});

test("an error of the caller's own listener reaches the caller", async () => {
  const broken = () => { throw new RangeError("mine"); };
  await using([stream([1, 2, 3])], (client) => assert.rejects(all(client.follow("r_1", { onState: broken })), RangeError));
});

test("frames are the same, wherever the pieces end and however lines do", () => {
  for (const newline of ["\n", "\r\n", "\r"]) {
    const text = `\ufeffid: 1-1\nevent: a\ndata: {"x":\ndata: "é\u2028"}\n\n: c\nretry: 5\n\ndata\n\nid: 2-1\ndata: y\n\ndata: torn`.replaceAll("\n", newline);
    const whole = new FrameParser().push(text);
    assert.deepEqual(whole.map((each) => each.data), ['{"x":\n"é\u2028"}', "", "y"]);
    assert.deepEqual(whole.map((each) => each.event), ["a", "", ""]);
    for (let size = 1; size < 9; size += 1) {
      const parser = new FrameParser();
      const found = [];
      for (let at = 0; at < text.length; at += size) found.push(...parser.push(text.slice(at, at + size)));
      assert.deepEqual(found, whole, `${JSON.stringify(newline)} in pieces of ${size}`);
    }
  }
});

const listed = (...frames) => (request, response) => {
  response.writeHead(200, SSE);
  response.write(": keepalive\n\n");
  for (const [name, data] of frames) response.write(`event: ${name}\ndata: ${JSON.stringify(data)}\n\n`);
  response.end();
};

test("a list of runs begins anew with each connection, and is left by leaving the loop", async () => {
  const first = listed(["runs", { runs: [] }], ["news of later versions", {}], ["run", { id: "r_1", state: "queued" }]);
  const second = listed(["unavailable", { detail: "no disk" }]);
  const third = listed(["runs", { runs: [{ id: "r_1" }] }], ["forgotten", { id: "r_1", session: "s" }]);
  const states = [];
  await using([first, second, third], async (client, { asked }) => {
    const found = [];
    for await (const change of client.followRuns({ session: "s t", onState: ({ state, cause }) => states.push(cause || state) })) {
      found.push(change.type);
      if (change.type === "forgotten") break;
    }
    assert.deepEqual(found, ["runs", "run", "runs", "forgotten"]);
    assert.deepEqual(asked.map((each) => each.url), Array(3).fill("/api/events?session=s+t"));
    assert.ok(states.includes("no disk") && states.includes("the server closed the list"));
    assert.equal(states.at(-1), "closed");
  });
});

test("a list that nobody may read any more says so", async () => {
  await using([listed(["unauthorized", { detail: "the key was withdrawn" }]), problem(401, "unauthorized")], async (client) => {
    await assert.rejects(all(client.followRuns()), (error) => error.status === 401);
  });
});
