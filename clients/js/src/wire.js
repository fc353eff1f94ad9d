/** Connections with limits, and server-sent events read from them. */

import { Aborted } from "./errors.js";

export const FRAME_CHARACTERS_MAX = 2 * 256 * 1024;
const TEXT_BYTES_MAX = 64 * 1024 * 1024;

/** The connection is of no more use, and what it carried has not ended. */
export class Interrupted extends Error {}

/** What came is not what a Holdfast server sends. */
export class Garbled extends Interrupted {}

/** Nobody listens there: to send it again at once is in vain. */
export class Refused extends Interrupted {}

/** A time limit that took effect. */
export class Late extends Interrupted {}

/** Ends one connection: when its caller leaves, or when its time is over. */
export class Watch {
  #controller = new AbortController();
  #timer;
  #late = "";
  #leave = () => this.#controller.abort();
  #outer;

  /** @param outer the caller's AbortSignal, if any */
  constructor(outer) {
    this.#outer = outer;
    if (outer?.aborted) this.#controller.abort();
    else outer?.addEventListener("abort", this.#leave, { once: true });
  }

  get signal() {
    return this.#controller.signal;
  }

  /** From now on there are so many seconds. */
  arm(limitS, words) {
    clearTimeout(this.#timer);
    this.#timer = setTimeout(() => {
      this.#late = words;
      this.#controller.abort();
    }, Math.min(limitS * 1000, 2 ** 31 - 1));
  }

  /** What a rejected fetch or read means. */
  meaning(error) {
    if (this.#late) return new Late(this.#late, { cause: error });
    if (this.#outer?.aborted) return new Aborted();
    const cause = error?.cause;
    const words = [String(error?.message ?? error), cause?.code ?? cause?.message].filter(Boolean).join(": ");
    if (typeof cause?.code === "string") {
      if (cause.code.startsWith("HPE_") && cause.code !== "HPE_INVALID_EOF_STATE") return new Garbled(words, { cause: error });
      if (cause.code === "ECONNREFUSED" || cause.code === "ENOTFOUND") return new Refused(words, { cause: error });
    }
    return new Interrupted(words, { cause: error });
  }

  /** The connection is not needed any more; what is left of it is dropped. */
  end() {
    clearTimeout(this.#timer);
    this.#outer?.removeEventListener("abort", this.#leave);
    this.#controller.abort();
  }
}

/** `fetch`, whose failures are ours; the watch must be armed. */
export async function open(fetch, url, init, watch) {
  try {
    return await fetch(url, { cache: "no-store", redirect: "manual", ...init, signal: watch.signal });
  } catch (error) {
    throw watch.meaning(error);
  }
}

/** The body as text, within the watch's time. */
export async function readText(response, watch, charactersMax = TEXT_BYTES_MAX) {
  let text = "";
  for await (const piece of pieces(response, watch)) {
    text += piece;
    if (text.length > charactersMax) break;
  }
  return text;
}

async function* pieces(response, watch) {
  if (response.body === null) return;
  const reader = response.body.getReader();
  const decoder = new TextDecoder();
  for (;;) {
    let found;
    try {
      found = await reader.read();
    } catch (error) {
      throw watch.meaning(error);
    }
    if (found.done) return;
    yield decoder.decode(found.value, { stream: true });
  }
}

/** Yields `{id, event, data}` of each frame; every byte, keepalives too, gives the watch `silenceS` more. */
export async function* frames(response, watch, silenceS, heard = () => {}) {
  const parser = new FrameParser();
  watch.arm(silenceS, silence(silenceS));
  for await (const text of pieces(response, watch)) {
    watch.arm(silenceS, silence(silenceS));
    heard();
    yield* parser.push(text);
  }
}

export function silence(silenceS) {
  return `Timeout: no byte for ${silenceS} s`;
}

/** Server-sent events, as the standard reads them; a frame that the stream's end cuts is dropped. */
export class FrameParser {
  #rest = "";
  #scanned = 0;
  #first = true;
  #id = "";
  #event = "";
  #data = [];
  #size = 0;

  /** The frames that `text` completes. */
  push(text) {
    const found = [];
    this.#rest += text;
    if (this.#first && this.#rest !== "") {
      this.#first = false;
      if (this.#rest.startsWith("\ufeff")) this.#rest = this.#rest.slice(1);
    }
    let start = 0;
    for (;;) {
      const end = lineEnd(this.#rest, Math.max(start, this.#scanned));
      if (end < 0) break;
      if (this.#rest[end] === "\r" && end + 1 === this.#rest.length) break; // a \n may follow
      const line = this.#rest.slice(start, end);
      start = end + (this.#rest.startsWith("\r\n", end) ? 2 : 1);
      this.#scanned = start;
      const frame = this.#line(line);
      if (frame !== null) found.push(frame);
    }
    this.#rest = this.#rest.slice(start);
    this.#scanned = this.#rest.endsWith("\r") ? this.#rest.length - 1 : this.#rest.length;
    if (this.#rest.length + this.#size > FRAME_CHARACTERS_MAX) {
      throw new Garbled(`a frame of more than ${FRAME_CHARACTERS_MAX} characters`);
    }
    return found;
  }

  #line(line) {
    if (line === "") return this.#dispatch();
    const colon = line.indexOf(":");
    const name = colon < 0 ? line : line.slice(0, colon);
    let value = colon < 0 ? "" : line.slice(colon + 1);
    if (value.startsWith(" ")) value = value.slice(1);
    if (name === "data") {
      this.#data.push(value);
      this.#size += value.length + 1;
    } else if (name === "event") this.#event = value;
    else if (name === "id" && !value.includes("\0")) this.#id = value;
    return null;
  }

  #dispatch() {
    const frame = this.#data.length ? { id: this.#id, event: this.#event, data: this.#data.join("\n") } : null;
    this.#event = "";
    this.#data = [];
    this.#size = 0;
    return frame;
  }
}

function lineEnd(text, from) {
  const feed = text.indexOf("\n", from);
  const carriage = text.indexOf("\r", from);
  if (feed < 0 || carriage < 0) return Math.max(feed, carriage);
  return Math.min(feed, carriage);
}

/** Waits, or returns at once when `signal` is aborted. */
export function sleep(seconds, signal) {
  return new Promise((resolve) => {
    if (signal?.aborted) return resolve();
    const done = () => {
      clearTimeout(timer);
      signal?.removeEventListener("abort", done);
      resolve();
    };
    const timer = setTimeout(done, seconds * 1000);
    signal?.addEventListener("abort", done);
  });
}
