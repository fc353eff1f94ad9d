import type { ChatTransport, UIMessage, UIMessageChunk } from "ai";

import type { BackoffOptions, ConnectionState } from "./index.js";

type Given<Value> = Value | (() => Value | Promise<Value>);

/** How the stream of one chat stands. */
export interface ChatConnection {
  readonly chatId: string;
  readonly state: ConnectionState;
  readonly waitS: number;
  readonly cause: string;
  readonly failures: number;
}

export interface HoldfastChatTransportOptions {
  /** `/api/chat` by default: of the page's own server. */
  api?: string;
  apiKey?: string;
  headers?: Given<Record<string, string> | Headers>;
  /** Sent with each message: `agent`, `on_busy`, `on_disconnect`, `deadline_s`, `metadata`. */
  body?: Given<Record<string, unknown>>;
  credentials?: RequestCredentials;
  fetch?: typeof globalThis.fetch;
  answerS?: number;
  silenceS?: number;
  backoff?: BackoffOptions;
  onState?: (connection: ChatConnection) => void;
  /** A stop that did not arrive: the run may go on. Written to the console by default. */
  onStopFailed?: (error: unknown) => void;
}

/** For `useChat({ transport })`: its stop() stops the run, and streams that break off are resumed. */
export class HoldfastChatTransport<Message extends UIMessage = UIMessage> implements ChatTransport<Message> {
  constructor(options?: HoldfastChatTransportOptions);
  readonly resumeStreamIsReplay: boolean;
  sendMessages(options: Parameters<ChatTransport<Message>["sendMessages"]>[0]): Promise<ReadableStream<UIMessageChunk>>;
  reconnectToStream(
    options: Parameters<ChatTransport<Message>["reconnectToStream"]>[0],
  ): Promise<ReadableStream<UIMessageChunk> | null>;
  /** Stop what is active in a chat, from wherever. */
  stop(
    chatId: string,
    options?: { headers?: Record<string, string> | Headers },
  ): Promise<{ session: string; run: Record<string, unknown> | null }>;
}
