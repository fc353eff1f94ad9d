// A server for tests, one handler for each request in their order; the last one stays.
import { createServer } from "node:http";

export const SSE = { "content-type": "text/event-stream" };

export async function serve(...handlers) {
  const asked = [];
  const server = createServer((request, response) => {
    let body = "";
    request.on("data", (piece) => (body += piece));
    request.on("end", () => {
      asked.push({ method: request.method, url: request.url, headers: request.headers, body });
      (handlers.length > 1 ? handlers.shift() : handlers[0])(request, response, asked.at(-1));
    });
  });
  await new Promise((resolve) => server.listen(0, "127.0.0.1", resolve));
  return {
    asked,
    url: `http://127.0.0.1:${server.address().port}`,
    close() {
      server.closeAllConnections();
      return new Promise((resolve) => server.close(resolve));
    },
  };
}

export function event(seq, length = 3) {
  return { seq, run: "r_1", type: seq === length ? "run.completed" : "text.delta", ts: "", part: 0, text: `t${seq} ` };
}

export function frame(seq, length = 3, epoch = 1) {
  const data = event(seq, length);
  return `id: ${seq}-${epoch}\nevent: ${data.type}\ndata: ${JSON.stringify(data)}\n\n`;
}

/** Writes the frames of these numbers, and ends there, cuts, or leaves the connection open. */
export function stream(seqs, { length = 3, epoch = 1, then = "end", before = "" } = {}) {
  return (request, response) => {
    response.writeHead(200, SSE);
    response.write(": keepalive\n\n" + before);
    for (const seq of seqs) response.write(frame(seq, length, epoch));
    if (then === "end") response.end();
    else if (then === "cut") setImmediate(() => response.destroy());
  };
}

export function problem(status, code, { retryable = false, headers = {} } = {}) {
  return (request, response) => {
    response.writeHead(status, { "content-type": "application/problem+json", ...headers });
    response.end(JSON.stringify({ status, code, detail: "d", remedy: "r", retryable }));
  };
}

export function json(body, status = 200) {
  return (request, response) => {
    response.writeHead(status, { "content-type": "application/json" });
    response.end(JSON.stringify(body));
  };
}
