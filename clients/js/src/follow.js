/**
 * Reads one run's log to its terminal event, over as many connections as it takes: no gap, no duplicate.
 * The rules are those of docs/protocol.md, "Reading a log".
 */

import { Aborted, ApiError, ServerUnreachable, apiError, isObject, parse, unexpected } from "./errors.js";
import { Garbled, Interrupted, Watch, frames, open, readText, silence, sleep } from "./wire.js";

export const TERMINAL = new Set(["run.completed", "run.failed", "run.cancelled"]);
export const RETRY_AFTER_S_MAX = 60;
const GARBLED_MAX = 3;
const REFUSAL_CHARACTERS_MAX = 256 * 1024;
const PLACE = /^([0-9]{1,15})(?:-([0-9]{1,15}))?$/;

/** How an interrupted reader comes back: `attempts` counts those in a row that brought nothing new. */
export class Backoff {
  constructor({ firstS = 1, maxS = 30, attempts = 12 } = {}) {
    this.firstS = firstS;
    this.maxS = maxS;
    this.attempts = attempts;
  }

  /** Between half of the step and all of it. */
  waitS(failures) {
    return Math.min(this.maxS, this.firstS * 2 ** Math.min(failures - 1, 16)) * (0.5 + Math.random() / 2);
  }
}

/** Counts failures in a row, and says how long to wait or that it is enough. For streams of any kind. */
export class Comebacks {
  #url;
  #backoff;
  #garbled = 0;
  failures = 0;

  constructor(url, backoff) {
    this.#url = url;
    this.#backoff = backoff;
  }

  /** Something new came. */
  reset() {
    this.failures = 0;
    this.#garbled = 0;
  }

  /** The seconds to wait; throws what ends it. */
  after(error) {
    let leastS = 0;
    if (error instanceof ApiError) {
      if (!error.retryable) throw error;
      leastS = Math.min(error.retryAfterS ?? 0, RETRY_AFTER_S_MAX);
    } else if (!(error instanceof Interrupted)) throw error;
    this.failures += 1;
    if (error instanceof Garbled) this.#garbled += 1;
    const cause = words(error);
    if (this.#garbled >= GARBLED_MAX) {
      const what = `what answers there is no Holdfast server, ${this.#garbled} times in a row: ${cause}`;
      throw new ServerUnreachable(this.#url, what, { cause: error });
    }
    if (this.failures > this.#backoff.attempts) {
      const what = `${this.failures} connections in a row brought no new event, the last: ${cause}`;
      throw new ServerUnreachable(this.#url, what, { cause: error });
    }
    return Math.max(leastS, this.#backoff.waitS(this.failures));
  }
}

export function words(error) {
  return error.detail ?? error.message;
}

/** Opens a stream of server-sent events; null where the answer is 204. Throws refusals. */
export async function openStream(fetch, url, init, watch, silenceS) {
  watch.arm(silenceS, silence(silenceS));
  const response = await open(fetch, url, init, watch);
  const asked = `${init.method ?? "GET"} ${url}`;
  if (response.status === 204) return null;
  if (!response.ok) {
    throw apiError(asked, response.status, response.headers, await readText(response, watch, REFUSAL_CHARACTERS_MAX));
  }
  const type = (response.headers.get("content-type") ?? "").split(";")[0].trim().toLowerCase();
  if (type !== "text/event-stream") throw unexpected(asked, response.status, response.headers);
  return response;
}

const LISTED = new Set(["runs", "run", "forgotten"]);

/**
 * An async iterator over a run's events, or over a list of runs. Leaving `for await` closes it; so do `close()` and the
 * caller's signal.
 */
export class Follow {
  #options;
  #leaving = new AbortController();
  #events;
  #seq;
  #epoch;
  #over = false;
  connection = { state: "connecting", waitS: 0, cause: "", failures: 0 };

  constructor(options) {
    const match = PLACE.exec(String(options.after ?? 0));
    if (match === null) throw new TypeError(`after is a seq (7) or an event id (7-2), not ${JSON.stringify(options.after)}`);
    this.#seq = Number(match[1]);
    this.#epoch = match[2] ?? null;
    this.#options = options;
    if (options.signal?.aborted) this.close();
    else options.signal?.addEventListener("abort", this.#leave, { once: true });
    this.#events = this.#read();
  }

  #leave = () => this.close();

  /** The last event that was handed out, as `after` takes it. */
  get place() {
    return this.#epoch === null ? String(this.#seq) : `${this.#seq}-${this.#epoch}`;
  }

  [Symbol.asyncIterator]() {
    return this;
  }

  next() {
    return this.#events.next();
  }

  return(value) {
    this.close();
    return this.#events.return(value);
  }

  /** Close the connection; the run goes on. */
  close() {
    this.#leaving.abort();
    this.#options.signal?.removeEventListener("abort", this.#leave);
    if (!["ended", "failed", "closed"].includes(this.connection.state)) this.#tell(this.#over ? "ended" : "closed");
  }

  #tell(state, { waitS = 0, cause = "", failures = 0 } = {}) {
    this.connection = { state, waitS, cause, failures };
    this.#options.onState?.(this.connection);
  }

  async *#read() {
    const { base, backoff, silenceS } = this.#options;
    const comebacks = new Comebacks(base, backoff);
    while (!this.#leaving.signal.aborted) {
      const openedAt = Date.now();
      const live = { news: false, heardAt: openedAt };
      this.#tell("connecting", { failures: comebacks.failures });
      const watch = new Watch(this.#leaving.signal);
      let waitS;
      try {
        yield* this.#connection(watch, live);
        if (this.#over) return this.close();
        throw new Interrupted(this.#options.list ? "the server closed the list" : "the stream closed before the terminal event");
      } catch (error) {
        if (error instanceof Aborted || this.#leaving.signal.aborted) return;
        if (live.news || live.heardAt - openedAt >= silenceS * 1000) comebacks.reset();
        try {
          waitS = comebacks.after(error);
        } catch (final) {
          this.#tell("failed", { cause: words(final), failures: comebacks.failures });
          throw final;
        }
        this.#tell("reconnecting", { waitS, cause: words(error), failures: comebacks.failures });
      } finally {
        watch.end();
      }
      await sleep(waitS, this.#leaving.signal);
    }
  }

  async *#connection(watch, live) {
    const { fetch, url, headers, silenceS, credentials } = this.#options;
    const asked = this.#seq || this.#epoch !== null ? `${url}?after=${this.place}` : url;
    const init = { headers: { ...headers, Accept: "text/event-stream" }, credentials };
    const response = await openStream(fetch, asked, init, watch, silenceS);
    if (response === null) {
      this.#over = true;
      return;
    }
    this.#tell("live");
    const heard = () => (live.heardAt = Date.now());
    for await (const frame of frames(response, watch, silenceS, heard)) {
      const event = this.#options.list ? this.#takeListed(frame) : this.#take(frame);
      if (event === null) continue;
      live.news = true;
      yield event;
      if (this.#over) return;
    }
  }

  /** The frame with its name as `type`, or null for what says nothing to us. */
  #takeListed(frame) {
    const data = parse(frame.data);
    if (!isObject(data)) throw new Garbled("a frame that is no object");
    if (frame.event === "unavailable" || frame.event === "unauthorized") {
      throw new Interrupted(String(data.detail ?? frame.event)); // the server says why when we come back
    }
    return LISTED.has(frame.event) ? { type: frame.event, ...data } : null;
  }

  /** The event to hand out, or null for what was seen before. */
  #take(frame) {
    const data = parse(frame.data);
    if (!isObject(data)) throw new Garbled("a frame that is no event");
    if (frame.event === "resync") {
      this.#seq = 0;
      this.#epoch = null;
      return { type: "resync", ...data };
    }
    if (frame.event === "gone") {
      const detail = data.detail ?? `the log of run ${data.run ?? "?"} was deleted`;
      throw new ApiError(410, data.code ?? "gone", detail, data.remedy ?? "start a new run", { fields: data });
    }
    if (frame.event === "unavailable") throw new Interrupted(String(data.detail ?? "the store does not answer"));
    const { seq, type } = data;
    if (!Number.isSafeInteger(seq) || typeof type !== "string") {
      throw new Garbled(`a frame that is no event: seq ${JSON.stringify(seq)}, type ${JSON.stringify(type)}`);
    }
    if (seq <= this.#seq) return null;
    if (seq > this.#seq + 1) throw new Interrupted(`a gap: have seq ${this.#seq}, got ${seq}`);
    const id = PLACE.exec(frame.id);
    this.#seq = seq;
    this.#epoch = id !== null && Number(id[1]) === seq ? id[2] ?? null : null;
    this.#over = TERMINAL.has(type);
    return data;
  }
}
