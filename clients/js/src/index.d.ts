/** A client of a Holdfast server. Events and records are described in docs/protocol.md and /openapi.json. */

export type RunState = "queued" | "running" | "waiting" | "completed" | "failed" | "cancelled";

export interface RunError {
  code: string;
  message: string;
  cause: string | null;
  retryable: boolean;
  remedy: string;
}

export interface Receipt {
  requested_at: string;
  ended_at: string;
  elapsed_ms: number;
  upstream_closed_ms: number | null;
  tools: { call: string; name: string; ended: "cancelled" | "killed" | "abandoned" | "finished" | "unknown" }[];
  abandoned: boolean;
  by: "worker" | "heartbeat" | "reaper";
}

/** A run record; /openapi.json describes the fields that are not named here. */
export interface RunRecord {
  id: string;
  session: string;
  agent: string;
  state: RunState;
  reason: string | null;
  stopping: string | null;
  seq: number;
  epoch: number;
  error: RunError | null;
  receipt: Receipt | null;
  rehearsal: boolean;
  [field: string]: unknown;
}

interface Base<Type extends string> {
  seq: number;
  run: string;
  type: Type;
  ts: string;
}

export interface ToolRequest {
  call: string;
  name: string;
  kind?: string;
  args?: unknown;
  [field: string]: unknown;
}

export interface RunCreated extends Base<"run.created"> { session: string; agent: string; policy: string; input: string }
export interface Delta extends Base<"text.delta" | "text.done" | "reasoning.delta" | "reasoning.done"> { part: number; text: string }
export interface ToolArgs extends Base<"tool.args"> { call: string; name: string; delta: string }
export interface ToolCalled extends Base<"tool.called"> { call: string; name: string; args: unknown }
export interface ToolProgress extends Base<"tool.progress"> { call: string; text: string }
export interface ToolFinished extends Base<"tool.finished"> {
  call: string;
  name: string;
  outcome: "success" | "failed" | "timeout" | "interrupted" | "denied" | "unknown";
  result: unknown;
  duration_ms: number;
}
/** What readers must drop. */
export interface AttemptDiscarded extends Base<"attempt.discarded"> { step: number; reason: string; parts: number[]; calls: string[] }
export interface RunStalled extends Base<"run.stalled"> { waiting_on: string; since_ms: number; fires: string | null; fires_in_ms: number | null }
export interface RunWaiting extends Base<"run.waiting"> { requests: ToolRequest[] }
export interface Steered extends Base<"steered"> { input: string }
export interface RunCompleted extends Base<"run.completed"> { output: unknown; usage: unknown; timings: unknown }
export interface RunFailed extends Base<"run.failed"> { reason: string; error: RunError; partial: unknown; usage: unknown; receipt: Receipt | null }
export interface RunCancelled extends Base<"run.cancelled"> { reason: string; by: string; partial: unknown; usage: unknown; receipt: Receipt | null }
export interface OtherEvent
  extends Base<
    | "run.edited"
    | "run.started"
    | "model.requested"
    | "model.responded"
    | "tool.responded"
    | "model.retried"
    | "degraded"
    | "run.decided"
    | "run.resumed"
    | "run.stopping"
  > {
  [field: string]: unknown;
}
/** Not of the log: it never had the reader's place. Forget what was shown; the log follows from its start. */
export interface Resync {
  type: "resync";
  run: string;
  asked: string;
  head: number;
  epoch: number;
}

export type RunEvent =
  | RunCreated
  | Delta
  | ToolArgs
  | ToolCalled
  | ToolProgress
  | ToolFinished
  | AttemptDiscarded
  | RunStalled
  | RunWaiting
  | Steered
  | RunCompleted
  | RunFailed
  | RunCancelled
  | OtherEvent;

export type ConnectionState = "connecting" | "live" | "reconnecting" | "ended" | "failed" | "closed";

/** How a follow stands: reconnecting in `waitS` because of `cause`, after so many `failures` in a row. */
export interface Connection {
  readonly state: ConnectionState;
  readonly waitS: number;
  readonly cause: string;
  readonly failures: number;
}

export interface BackoffOptions {
  /** The first wait; each further one is twice as long. 1 by default. */
  firstS?: number;
  /** The longest wait. 30 by default. */
  maxS?: number;
  /** How many connections in a row may bring nothing new. 12 by default. */
  attempts?: number;
}

export interface ClientOptions {
  /** Where the server is; in a page, relative to its origin. */
  url?: string;
  apiKey?: string;
  /** How long an answer may take. */
  answerS?: number;
  /** How long in all a call may wait and be repeated where the server is busy (429, 503); 0 raises at once. */
  busyS?: number;
  /** How long a stream may be silent, keepalives included. */
  silenceS?: number;
  backoff?: BackoffOptions;
  credentials?: RequestCredentials;
  fetch?: typeof globalThis.fetch;
}

export interface StartOptions {
  session?: string;
  agent?: string;
  onBusy?: "supersede" | "enqueue" | "reject" | "steer";
  onDisconnect?: "continue" | "cancel";
  deadlineS?: number;
  metadata?: Record<string, unknown>;
  /** Repeats with the same key and body answer the same run; a fresh one by default. */
  idempotencyKey?: string;
}

export interface FollowOptions {
  /** The last event that the caller has: a seq (7) or an event id ("7-2"). */
  after?: number | string;
  onState?: (connection: Connection) => void;
  signal?: AbortSignal;
}

/** Yields a run's events, each once and in order. Leaving `for await` closes it. */
export class Follow implements AsyncIterableIterator<RunEvent | Resync> {
  private constructor();
  readonly connection: Connection;
  readonly place: string;
  [Symbol.asyncIterator](): this;
  next(): Promise<IteratorResult<RunEvent | Resync, undefined>>;
  return(value?: undefined): Promise<IteratorResult<RunEvent | Resync, undefined>>;
  close(): void;
}

/** The list of runs: forget the one before. */
export interface RunsListed {
  type: "runs";
  runs: RunRecord[];
}
/** A run that is new or different. */
export interface RunListed extends RunRecord {
  type: "run";
}
/** A run whose log was deleted: take it off the list. */
export interface RunForgotten {
  type: "forgotten";
  id: string;
  session: string;
}
export type ListChange = RunsListed | RunListed | RunForgotten;

/** Yields the list of runs and its changes. Leaving `for await` closes it. */
export interface FollowRuns extends AsyncIterableIterator<ListChange> {
  readonly connection: Connection;
  [Symbol.asyncIterator](): this;
  close(): void;
}

export interface Decision {
  call: string;
  approve?: boolean;
  args?: unknown;
  message?: string;
  result?: unknown;
}

export interface SessionItem {
  id: string;
  [field: string]: unknown;
}

export interface SessionPage {
  id: string;
  created_at: string;
  updated_at: string;
  messages: Record<string, unknown>[];
  active: RunRecord | null;
  queue: RunRecord[];
}

/** Every method rejects with ApiError or ServerUnreachable; a wrong id is a TypeError. */
export class Client {
  constructor(options?: ClientOptions);
  readonly url: string;
  start(input: string, options?: StartOptions): Promise<RunRecord>;
  record(run: string): Promise<RunRecord>;
  runs(options?: { session?: string; state?: RunState; limit?: number; after?: string }): Promise<{ runs: RunRecord[]; next: string | null }>;
  page(run: string, options?: { after?: number | string; limit?: number }): Promise<{ events: RunEvent[]; head: number; state: RunState }>;
  follow(run: string, options?: FollowOptions): Follow;
  followRuns(options?: { session?: string; onState?: (connection: Connection) => void; signal?: AbortSignal }): FollowRuns;
  workers(): Promise<{ workers: Record<string, unknown>[]; agents: Record<string, unknown>[] }>;
  edit(run: string, input: string): Promise<RunRecord>;
  stop(run: string, options?: { waitS?: number }): Promise<RunRecord>;
  steer(run: string, input: string, options?: { idempotencyKey?: string }): Promise<RunRecord>;
  decide(run: string, decisions: Decision[]): Promise<RunRecord>;
  inspect(run: string): Promise<Record<string, unknown>>;
  sessions(options?: { limit?: number; after?: string }): Promise<{ sessions: SessionItem[]; next: string | null }>;
  session(session: string): Promise<SessionPage>;
  history(session: string): Promise<Record<string, unknown>[]>;
  stopSession(session: string, options?: { waitS?: number }): Promise<{ session: string; run: RunRecord | null }>;
  forgetSession(session: string): Promise<void>;
}

/** A call that has no answer. */
export class HoldfastError extends Error {
  readonly code: string;
  readonly detail: string;
  readonly remedy: string;
  readonly retryable: boolean;
}

/** The server refused: `code` of the catalogue, or `unexpected_answer` where it is no Holdfast server. */
export class ApiError extends HoldfastError {
  readonly status: number;
  readonly retryAfterS: number | null;
  readonly fields: Record<string, unknown>;
}

/** Nobody answered, or the answer broke off and could not be resumed. */
export class ServerUnreachable extends HoldfastError {
  readonly url: string;
}

export class Backoff {
  constructor(options?: BackoffOptions);
  waitS(failures: number): number;
}

export const DEFAULT_URL: string;
export function newIdempotencyKey(): string;
