/**
 * A transport for useChat (AI SDK 7) at the paths /api/chat of a Holdfast server.
 *
 * What it adds to the default transport: stop() stops the run, a stream that breaks off is resumed without a gap or a
 * repeat, silence counts as a break, and a prompt whose answer was lost is sent again under the same key.
 *
 * A run's chunks are always the same (each follows from the log), so a stream is resumed by reading it from its start
 * and dropping as many chunks as were handed out.
 */

import { ask, newIdempotencyKey, part } from "./ask.js";
import { Aborted, ApiError, HoldfastError, ServerUnreachable, isObject, parse } from "./errors.js";
import { Backoff, Comebacks, openStream, words } from "./follow.js";
import { Garbled, Interrupted, Watch, frames, sleep } from "./wire.js";

const ENDS = new Set(["finish", "abort", "error"]);

export class HoldfastChatTransport {
  /** A resumed stream is the whole message from its start. */
  resumeStreamIsReplay = true;

  #options;
  #backoff;
  #stops = new Map();
  #resumes = new Map();

  constructor({
    api = "/api/chat",
    apiKey,
    headers,
    body,
    credentials,
    fetch,
    answerS = 30,
    silenceS = 30,
    backoff = {},
    onState,
    onStopFailed = (error) => console.error("holdfast: the run could not be stopped:", error),
  } = {}) {
    this.#options = { api: api.replace(/\/+$/, ""), apiKey, headers, body, credentials, answerS, silenceS, onState, onStopFailed };
    this.#options.fetch = fetch ?? ((...given) => globalThis.fetch(...given));
    this.#backoff = new Backoff(backoff);
  }

  /** Send the last message: it starts a run, or answers what one waits for. The server has the rest of the chat. */
  async sendMessages({ trigger, chatId, messageId, messages, abortSignal, headers, body }) {
    const id = part(chatId);
    if (abortSignal?.aborted) throw new Aborted();
    await unlessAborted(this.#stops.get(chatId), abortSignal); // else that stop could meet the run that we start now
    const sent = { ...(await given(this.#options.body)), ...body, id: chatId, messages: messages.slice(-1), trigger, messageId };
    const post = {
      url: this.#options.api,
      init: {
        method: "POST",
        body: JSON.stringify(sent),
        headers: await this.#headers({ "Content-Type": "application/json", "Idempotency-Key": newIdempotencyKey() }, headers),
      },
    };
    const get = { url: `${this.#options.api}/${id}/stream`, init: { method: "GET", headers: await this.#headers({}, headers) } };
    const decides = messages.at(-1)?.role === "assistant"; // then the stream begins within a run: only a repeat says the same
    const stream = new Chunks({
      ...this.#wire(chatId),
      first: post,
      again: (run) => (decides || !run ? post : { ...get, url: `${get.url}?run=${encodeURIComponent(run)}` }),
    });
    const opening = stream.open();
    try {
      await unlessAborted(opening, abortSignal);
    } catch (error) {
      // The run may be there, or come to be: once it is known, it is stopped. If the prompt never arrives, it is not.
      if (error instanceof Aborted) {
        stream.tryNoMore();
        this.#stopAfter(chatId, opening.finally(() => stream.leave()), headers);
      }
      throw error;
    }
    abortSignal?.addEventListener("abort", () => this.#stopAfter(chatId, undefined, headers), { once: true });
    if (abortSignal?.aborted) this.#stopAfter(chatId, undefined, headers);
    return stream.readable();
  }

  /** The stream of what is active in the chat, from its start; null where nothing is. */
  async reconnectToStream({ chatId, abortSignal, headers }) {
    const turn = (this.#resumes.get(chatId) ?? 0) + 1;
    this.#resumes.set(chatId, turn);
    const get = { url: `${this.#options.api}/${part(chatId)}/stream`, init: { method: "GET", headers: await this.#headers({}, headers) } };
    const again = (run) => (run ? { ...get, url: `${get.url}?run=${encodeURIComponent(run)}` } : get);
    const stream = new Chunks({ ...this.#wire(chatId), first: get, again });
    // A resume that takes the place of this one aborts it, too. It begins in the same turn, and then nobody wanted a stop.
    const stop = () => setTimeout(() => this.#resumes.get(chatId) === turn && this.#stopAfter(chatId, undefined, headers));
    abortSignal?.addEventListener("abort", stop, { once: true });
    const opening = stream.open();
    try {
      if (await unlessAborted(opening, abortSignal)) return stream.readable();
      abortSignal?.removeEventListener("abort", stop);
      return null;
    } catch (error) {
      if (!(error instanceof Aborted)) abortSignal?.removeEventListener("abort", stop);
      opening.catch(() => {});
      stream.leave();
      throw error;
    }
  }

  /** Stop what is active in a chat; the run's end arrives in its stream. */
  async stop(chatId, { headers } = {}) {
    const { api, fetch, answerS, credentials } = this.#options;
    const url = new URL(`${api}/${part(chatId)}/stop`, globalThis.location?.href).href;
    const init = { method: "POST", credentials, headers: await this.#headers({ Accept: "application/json" }, headers) };
    return ask({ fetch, base: new URL(url).origin, url, init, answerS, busyS: answerS, backoff: this.#backoff });
  }

  #stopAfter(chatId, before, headers) {
    const stopping = (async () => {
      try {
        if (before !== undefined) {
          try {
            await before;
          } catch {
            return; // the prompt did not arrive: there is nothing to stop
          }
        }
        await this.stop(chatId, { headers });
      } catch (error) {
        if (!(error instanceof ApiError && error.status === 404)) this.#options.onStopFailed(error);
      }
    })();
    const all = Promise.all([this.#stops.get(chatId), stopping]).then(() => {
      if (this.#stops.get(chatId) === all) this.#stops.delete(chatId);
    });
    this.#stops.set(chatId, all);
  }

  async #headers(own, more) {
    const found = new Headers(own);
    if (this.#options.apiKey) found.set("Authorization", `Bearer ${this.#options.apiKey}`);
    for (const each of [await given(this.#options.headers), more]) {
      for (const [name, value] of new Headers(each ?? {})) found.set(name, value);
    }
    return Object.fromEntries(found);
  }

  #wire(chatId) {
    const { fetch, credentials, silenceS, onState } = this.#options;
    const tell = (state, more) => onState?.({ chatId, state, waitS: 0, cause: "", failures: 0, ...more });
    return { fetch, credentials, silenceS, tell, backoff: this.#backoff };
  }
}

/** The chunks of one run over as many connections as it takes. */
class Chunks {
  #options;
  #leaving = new AbortController();
  #comebacks;
  #watch;
  #response = null;
  #run = null;
  #delivered = 0;
  #last = false;
  #openedAt = 0;
  #heardAt = 0;

  constructor(options) {
    this.#options = options;
    this.#comebacks = new Comebacks(options.first.url, options.backoff);
  }

  /** Nobody reads on. */
  leave() {
    this.#leaving.abort();
  }

  /** This connection is the last. */
  tryNoMore() {
    this.#last = true;
  }

  /** Connect; false where there is nothing to read. */
  async open() {
    for (;;) {
      const { url, init } = this.#run ? this.#options.again(this.#run) : this.#options.first;
      this.#options.tell("connecting", { failures: this.#comebacks.failures });
      try {
        this.#watch = new Watch(this.#leaving.signal);
        this.#openedAt = this.#heardAt = Date.now();
        const { fetch, credentials, silenceS } = this.#options;
        const asked = { ...init, credentials, headers: { ...init.headers, Accept: "text/event-stream" } };
        this.#response = await openStream(fetch, url, asked, this.#watch, silenceS);
        if (this.#response === null) {
          this.#watch.end();
          return false;
        }
        this.#options.tell("live");
        return true;
      } catch (error) {
        await this.#interrupted(error);
      }
    }
  }

  readable() {
    const chunks = this.#read();
    return new ReadableStream(
      {
        pull: async (controller) => {
          const { done, value } = await chunks.next();
          if (done) controller.close();
          else controller.enqueue(value);
        },
        cancel: async () => {
          this.leave();
          await chunks.return();
        },
      },
      { highWaterMark: 0 },
    );
  }

  async *#read() {
    try {
      for (;;) {
        try {
          if (yield* this.#connection()) {
            this.#options.tell("ended");
            return;
          }
          throw new Interrupted("the stream closed before its end");
        } catch (error) {
          if (this.#leaving.signal.aborted) return;
          await this.#interrupted(error);
        }
        if (!(await this.open())) {
          const remedy = "reload the chat: GET /api/sessions has what was said";
          throw new HoldfastError("stream_lost", "the run ended and the rest of its stream is gone", remedy, false);
        }
      }
    } catch (error) {
      if (error instanceof Aborted) return;
      // By a TypeError that speaks of the network, useChat knows that it may resume once the page is seen again.
      throw error instanceof ServerUnreachable ? new TypeError(`network: ${error.message}`, { cause: error }) : error;
    } finally {
      this.#watch.end();
      this.leave();
    }
  }

  /** One connection; whether the message is read to its end. */
  async *#connection() {
    const run = this.#response.headers.get("x-run-id");
    if (this.#run !== null && run !== null && run !== this.#run) {
      yield { type: "abort", reason: `run ${run} took the place of this one` };
      return true;
    }
    this.#run ??= run;
    let seen = 0;
    let ended = false;
    const heard = () => (this.#heardAt = Date.now());
    for await (const { data } of frames(this.#response, this.#watch, this.#options.silenceS, heard)) {
      if (data === "[DONE]") return true;
      const chunk = parse(data);
      if (!isObject(chunk) || typeof chunk.type !== "string") throw new Garbled("a frame that is no chunk");
      seen += 1;
      ended = ENDS.has(chunk.type);
      if (seen <= this.#delivered) continue;
      this.#delivered = seen;
      this.#comebacks.reset();
      yield chunk;
    }
    return ended;
  }

  /** Wait before the next connection; throws where there is to be none. */
  async #interrupted(error) {
    this.#watch.end();
    if (this.#last) throw new Aborted();
    if (this.#heardAt - this.#openedAt >= this.#options.silenceS * 1000) this.#comebacks.reset();
    let waitS;
    try {
      waitS = this.#comebacks.after(error);
    } catch (final) {
      if (!(final instanceof Aborted)) this.#options.tell("failed", { cause: words(final), failures: this.#comebacks.failures });
      throw final;
    }
    this.#options.tell("reconnecting", { waitS, cause: words(error), failures: this.#comebacks.failures });
    await sleep(waitS, this.#leaving.signal);
    if (this.#leaving.signal.aborted) throw new Aborted();
  }
}

/** What `promise` brings, or Aborted as soon as the signal says so; the promise goes on. */
function unlessAborted(promise, signal) {
  if (signal === undefined) return promise;
  return new Promise((resolve, reject) => {
    const abort = () => reject(new Aborted());
    if (signal.aborted) return abort();
    signal.addEventListener("abort", abort, { once: true });
    const done = () => signal.removeEventListener("abort", abort);
    Promise.resolve(promise).then((value) => (done(), resolve(value)), (error) => (done(), reject(error)));
  });
}

/** An option that may be a function. */
async function given(option) {
  return typeof option === "function" ? option() : option;
}
