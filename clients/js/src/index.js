/** A client of a Holdfast server: start, follow, stop, steer and decide runs. Browsers and Node 20; no dependencies. */

import { ask, newIdempotencyKey, part } from "./ask.js";
import { Backoff, Follow } from "./follow.js";

export { newIdempotencyKey } from "./ask.js";
export { ApiError, HoldfastError, ServerUnreachable } from "./errors.js";
export { Backoff, Follow } from "./follow.js";

export const DEFAULT_URL = "http://127.0.0.1:8484";

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

  /** The list of runs, then what changes of it, until it is closed; interruptions begin it anew. */
  followRuns({ session, onState, signal } = {}) {
    const query = session === undefined ? "" : `?${new URLSearchParams({ session })}`;
    const url = `${this.#base}/api/events${query}`;
    return new Follow({ ...this.#options, base: this.#base, url, list: true, onState, signal });
  }

  /** Who works, and what is served. */
  async workers() {
    return this.#ask("GET", "/api/workers");
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

function keyed(idempotencyKey) {
  return { "Idempotency-Key": idempotencyKey ?? newIdempotencyKey() };
}

function runPath(run, rest = "") {
  return `/api/runs/${part(run)}${rest}`;
}

function sessionPath(session, rest = "") {
  return `/api/sessions/${part(session)}${rest}`;
}
