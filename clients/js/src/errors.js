/** What a call can end with, besides its answer. Each has `code`, `detail`, `remedy`, `retryable`. */

export const BUSY_STATUS = new Set([429, 502, 503, 504]);
export const UNEXPECTED = "unexpected_answer";

export class HoldfastError extends Error {
  constructor(code, detail, remedy, retryable, options) {
    super(`${detail}; ${remedy}`, options);
    this.name = new.target.name;
    this.code = code;
    this.detail = detail;
    this.remedy = remedy;
    this.retryable = retryable;
  }
}

/** Nobody answered, or the answer broke off and could not be resumed; whether the server acted is unknown. */
export class ServerUnreachable extends HoldfastError {
  constructor(url, what, options) {
    super("unreachable", `cannot reach ${url}: ${what}`, "check the address and that a Holdfast server runs there", true, options);
    this.url = url;
  }
}

/** The server refused, with a code of the catalogue, or `unexpected_answer` where the answer was not Holdfast's. */
export class ApiError extends HoldfastError {
  constructor(status, code, detail, remedy, { retryable = false, retryAfterS = null, fields = {} } = {}) {
    super(code, `${code}: ${detail}`, remedy, retryable);
    this.status = status;
    this.retryAfterS = retryAfterS;
    this.fields = fields;
  }
}

/** The caller aborted. Its name is AbortError, as that of fetch. */
export class Aborted extends HoldfastError {
  constructor() {
    super("aborted", "the caller aborted the call", "call again", true);
    this.name = "AbortError";
  }
}

export function apiError(asked, status, headers, text) {
  const retryAfterS = seconds(headers.get("retry-after"));
  const problem = parse(text);
  if (!isObject(problem) || typeof problem.code !== "string") {
    return unexpected(asked, status, headers, { retryable: BUSY_STATUS.has(status), retryAfterS });
  }
  return new ApiError(status, problem.code, String(problem.detail ?? ""), String(problem.remedy ?? "see the server's log"), {
    retryable: problem.retryable === true,
    retryAfterS,
    fields: problem,
  });
}

export function unexpected(asked, status, headers, options) {
  const detail = `${asked} answered ${status} (${headers.get("content-type") ?? "no content type"})`;
  return new ApiError(status, UNEXPECTED, detail, "check that the address is a Holdfast server: GET /version answers there", options);
}

export function parse(text) {
  try {
    return JSON.parse(text);
  } catch {
    return undefined;
  }
}

export function isObject(value) {
  return typeof value === "object" && value !== null && !Array.isArray(value);
}

/** Seconds, as our servers send them, or a date, as proxies may. */
function seconds(retryAfter) {
  if (retryAfter === null || retryAfter.trim() === "") return null;
  const number = Number(retryAfter);
  if (Number.isFinite(number)) return Math.max(0, number);
  const date = Date.parse(retryAfter);
  return Number.isNaN(date) ? null : Math.max(0, (date - Date.now()) / 1000);
}
