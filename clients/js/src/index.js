/** A client of a Holdfast server: start, follow, stop, steer and decide runs. Browsers and Node 20; no dependencies. */

import { BUSY_STATUS, HoldfastError, ServerUnreachable, apiError, isObject, parse, unexpected } from "./errors.js";
import { Backoff, Follow, words } from "./follow.js";
import { Interrupted, Late, Refused, Watch, open, readText, sleep } from "./wire.js";

export { ApiError, HoldfastError, ServerUnreachable } from "./errors.js";
export { Backoff, Follow } from "./follow.js";

export const DEFAULT_URL = "http://127.0.0.1:8484";
const REPEATS = 2;

export class Client {
  #base;
  #options;

  constructor({
    url = DEFAULT_URL,
    apiKey,
    answerS = 30,
    busyS = 30,
    silenceS = 30,
    backoff = {},
    credentials,
    fetch,
  } = {}) {
    let parsed;
    try {
      parsed = new URL(url, globalThis.location?.origin);
    } catch {
      parsed = null;
    }
    if (parsed === null || !["http:", "https:"].includes(parsed.protocol)) {
      throw new TypeError(`${JSON.stringify(url)} is no address such as ${DEFAULT_URL}`);
    }
    this.#base = (parsed.origin + parsed.pathname).replace(/\/+$/, "");
    this.#options = {
      answerS,
      busyS,
      silenceS,
      credentials,
      backoff: new Backoff(backoff),
      fetch: fetch ?? ((...given) => globalThis.fetch(...given)),
      headers: apiKey ? { Authorization: `Bearer ${apiKey}` } : {},
    };
  }

  /** Where the server is. */
  get url() {
    return this.#base;
  }

  /** Start a run; its record. */
  async start(input, { session, agent, onBusy, onDisconnect, deadlineS, metadata, idempotencyKey } = {}) {
    const body = { input, session, agent, on_busy: onBusy, on_disconnect: onDisconnect, deadline_s: deadlineS, metadata };
    return this.#ask("POST", "/api/runs", { body, headers: keyed(idempotencyKey) });
  }

  /** A run's record as it is now. */
  async record(run) {
    return this.#ask("GET", runPath(run));
  }

  /** A page of runs, newest first. */
  async runs({ session, state, limit, after } = {}) {
    return this.#ask("GET", "/api/runs", { query: { session, state, limit, after } });
  }

  /** What a run's log has after `after` now. */
  async page(run, { after = 0, limit } = {}) {
    return this.#ask("GET", runPath(run, "/events"), { query: { after, limit } });
  }

  /** A run's events, live, to its terminal event; interruptions are resumed. */
  follow(run, { after = 0, onState, signal } = {}) {
    const url = this.#base + runPath(run, "/events");
    return new Follow({ ...this.#options, base: this.#base, url, after, onState, signal });
  }

  /** Replace the input of a run that is queued. */
  async edit(run, input) {
    return this.#ask("PATCH", runPath(run), { body: { input } });
  }

  /** Ask a run to stop; its record, with `waitS` once it has ended or that time is over. */
  async stop(run, { waitS } = {}) {
    return this.#ask("POST", runPath(run, "/stop"), { query: { wait_s: waitS }, longerS: waitS });
  }

  /** Hand an input to an active run. */
  async steer(run, input, { idempotencyKey } = {}) {
    return this.#ask("POST", runPath(run, "/steer"), { body: { input }, headers: keyed(idempotencyKey) });
  }

  /** Decide about every call that a waiting run asks about. */
  async decide(run, decisions) {
    return this.#ask("POST", runPath(run, "/decisions"), { body: { decisions } });
  }

  /** Why a run is not finished. */
  async inspect(run) {
    return this.#ask("GET", runPath(run, "/inspect"));
  }

  /** A page of sessions, most recently used first. */
  async sessions({ limit, after } = {}) {
    return this.#ask("GET", "/api/sessions", { query: { limit, after } });
  }

  /** A session: its messages, its active run, its queue. */
  async session(session) {
    return this.#ask("GET", sessionPath(session));
  }

  /** What was said in a session. */
  async history(session) {
    return (await this.session(session)).messages;
  }

  /** Stop what is active in a session. */
  async stopSession(session, { waitS } = {}) {
    return this.#ask("POST", sessionPath(session, "/stop"), { query: { wait_s: waitS }, longerS: waitS });
  }

  /** Stop a session's runs and delete it with its logs. */
  async forgetSession(session) {
    await this.#ask("DELETE", sessionPath(session));
  }

  #ask(method, path, { query = {}, body, headers = {}, longerS = 0 } = {}) {
    const asked = Object.entries(query).filter(([, value]) => value !== undefined && value !== null);
    const search = asked.length ? `?${new URLSearchParams(asked.map(([name, value]) => [name, String(value)]))}` : "";
    return ask({
      ...this.#options,
      base: this.#base,
      url: this.#base + path + search,
      answerS: this.#options.answerS + longerS,
      init: {
        method,
        credentials: this.#options.credentials,
        headers: { ...this.#options.headers, Accept: "application/json", ...headers },
        body: body === undefined ? undefined : JSON.stringify(body),
      },
    });
  }
}

/** Send a call, and again where its answer was lost or the server is busy; the object that was answered. */
export async function ask({ fetch, base, url, init, answerS, busyS, backoff, signal }) {
  let lost = 0;
  let busy = 0;
  let leftS = busyS;
  for (;;) {
    const watch = new Watch(signal);
    watch.arm(answerS, `no answer to ${init.method} ${new URL(url).pathname} in time`);
    try {
      const response = await open(fetch, url, init, watch);
      const text = await readText(response, watch);
      if (response.ok) {
        const answer = response.status === 204 ? {} : parse(text);
        if (!isObject(answer)) throw unexpected(`${init.method} ${url}`, response.status, response.headers);
        return answer;
      }
      const error = apiError(`${init.method} ${url}`, response.status, response.headers, text);
      const waitS = Math.max(error.retryAfterS ?? 0, backoff.waitS(++busy));
      if (!BUSY_STATUS.has(error.status) || !error.retryable || waitS > leftS || busy > backoff.attempts) throw error;
      leftS -= waitS;
      await sleep(waitS, signal);
    } catch (error) {
      if (error instanceof HoldfastError || !(error instanceof Interrupted)) throw error;
      if (error instanceof Late || error instanceof Refused || lost >= REPEATS) {
        throw new ServerUnreachable(base, words(error), { cause: error });
      }
      lost += 1;
    } finally {
      watch.end();
    }
  }
}

/** A fresh key for one start and its repeats; crypto.randomUUID is missing on pages that are not served securely. */
export function newIdempotencyKey() {
  const bytes = crypto.getRandomValues(new Uint8Array(16));
  return "k_" + Array.from(bytes, (byte) => byte.toString(16).padStart(2, "0")).join("");
}

function keyed(idempotencyKey) {
  return { "Idempotency-Key": idempotencyKey ?? newIdempotencyKey() };
}

function runPath(run, rest = "") {
  return `/api/runs/${part(run)}${rest}`;
}

function sessionPath(session, rest = "") {
  return `/api/sessions/${part(session)}${rest}`;
}

/** An id as one part of a path; "." and ".." would leave it even when encoded. */
export function part(id) {
  if (!/^[A-Za-z0-9._:-]{1,128}$/.test(id) || id === "." || id === "..") {
    throw new TypeError(`${JSON.stringify(id)} is no id: 1 to 128 of A-Z a-z 0-9 . _ : -`);
  }
  return encodeURIComponent(id);
}
