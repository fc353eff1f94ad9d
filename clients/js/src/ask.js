/** One call with all its repeats, and what goes into its path. */

import { BUSY_STATUS, HoldfastError, ServerUnreachable, apiError, isObject, parse, unexpected } from "./errors.js";
import { words } from "./follow.js";
import { Interrupted, Late, Refused, Watch, open, readText, sleep } from "./wire.js";

const REPEATS = 2;

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

/** An id as one part of a path; "." and ".." would leave it even when encoded. */
export function part(id) {
  if (!/^[A-Za-z0-9._:-]{1,128}$/.test(id) || id === "." || id === "..") {
    throw new TypeError(`${JSON.stringify(id)} is no id: 1 to 128 of A-Z a-z 0-9 . _ : -`);
  }
  return encodeURIComponent(id);
}
