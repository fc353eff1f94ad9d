// The AI SDK's own chat and transport against a live server. Reads one JSON job from the arguments, prints one answer.
import { Chat } from "@ai-sdk/react";
import {
  DefaultChatTransport,
  lastAssistantMessageIsCompleteWithApprovalResponses,
  lastAssistantMessageIsCompleteWithToolCalls,
} from "ai";

import { HoldfastChatTransport } from "../../clients/js/src/chat.js";
import { cutting } from "./cutting.mjs";

const job = JSON.parse(process.argv[2]);
const limit = setTimeout(() => { console.error("no end within the limit"); process.exit(3); }, job.limit_ms ?? 30000);
const sleep = (ms) => new Promise((resolve) => setTimeout(resolve, ms));

function make(id, { automatic = false, transport: given = null } = {}) {
  const seen = { ends: [], finished: null };
  const inner = given ?? new DefaultChatTransport({ api: `${job.url}/api/chat`, body: job.body ?? {} });
  const tap = (stream) => stream && stream.pipeThrough(new TransformStream({
    transform(chunk, controller) {
      if (["finish", "error", "abort"].includes(chunk.type)) seen.ends.push(chunk.type);
      controller.enqueue(chunk);
    },
  }));
  const transport = {
    resumeStreamIsReplay: inner.resumeStreamIsReplay,
    sendMessages: async (options) => tap(await inner.sendMessages(options)),
    reconnectToStream: async (options) => tap(await inner.reconnectToStream(options)),
  };
  const chat = new Chat({
    id, transport,
    onError: (error) => { seen.error = String(error.message ?? error); },
    onFinish: (finish) => {
      seen.finished = { disconnect: finish.isDisconnect, error: finish.isError, reason: finish.finishReason };
    },
    ...(automatic ? { sendAutomaticallyWhen: automatic } : {}),
  });
  return { chat, seen, transport: inner };
}

const text = (message) => (message?.parts ?? []).filter((p) => p.type === "text").map((p) => p.text).join("");
const last = (chat) => chat.messages.findLast((message) => message.role === "assistant");
const report = ({ chat, seen }) => ({
  status: chat.status, messages: chat.messages.length, id: last(chat)?.id, text: text(last(chat)),
  reasoning: (last(chat)?.parts ?? []).filter((p) => p.type === "reasoning").map((p) => p.text).join(""),
  parts: last(chat)?.parts ?? [], metadata: last(chat)?.metadata, ...seen,
});

async function until(holds, what) {
  const end = Date.now() + 20000;
  while (!holds()) {
    if (Date.now() > end) throw new Error(`not within 20 s: ${what}`);
    await sleep(5);
  }
}

const jobs = {
  // One message, whole.
  async say() {
    const made = make(job.chat);
    await made.chat.sendMessage({ text: job.text });
    return report(made);
  },
  // Cut after so many bytes each time, resumed by the same chat until it has the end; chats run at the same time.
  async cut() {
    return Promise.all(job.chats.map(async ({ chat: id, text: prompt, cuts }) => {
      let named = ""; // the run, once its chat is told that nothing is active any more
      const run = { id: "" };
      const breaking = cutting(cuts);
      const broken = async (url, init) => {
        const response = await breaking(url, init);
        run.id = response.headers.get("x-run-id") ?? run.id;
        return response;
      };
      const transport = new DefaultChatTransport({
        api: `${job.url}/api/chat`,
        fetch: broken,
        prepareReconnectToStreamRequest: ({ api, id }) => ({ api: `${api}/${id}/stream${named}` }),
      });
      const made = make(id, { transport });
      await made.chat.sendMessage({ text: prompt });
      let resumed = 0;
      while (made.seen.finished == null || made.seen.finished.disconnect || made.seen.finished.error) {
        if (++resumed > 50) throw new Error(`never whole: ${JSON.stringify(report(made))}`);
        made.seen.finished = null;
        await made.chat.resumeStream();
        if (made.seen.finished == null) named = `?run=${run.id}`;
      }
      return { ...report(made), resumed, left: cuts.length };
    }));
  },
  // Our own transport: it comes back by itself, wherever the connection breaks; and its stop() stops the run.
  async ours() {
    const said = await Promise.all(job.chats.map(async ({ chat: id, text: prompt, cuts }) => {
      const transport = new HoldfastChatTransport({
        api: `${job.url}/api/chat`,
        fetch: cutting(cuts),
        backoff: { firstS: 0.01, maxS: 0.1 },
      });
      const made = make(id, { transport });
      await made.chat.sendMessage({ text: prompt });
      return { ...report(made), left: cuts.length };
    }));
    const made = make(job.stopped, { transport: new HoldfastChatTransport({ api: `${job.url}/api/chat` }) });
    const saying = made.chat.sendMessage({ text: "!tokens n=5000 rate=50" });
    await until(() => text(last(made.chat)).length > 10, "some text");
    await made.chat.stop();
    await saying;
    return { said, stopped: report(made) };
  },
  // 204 where nothing is active: the transport answers null.
  async idle() {
    const { transport } = make(job.chat);
    return { stream: await transport.reconnectToStream({ chatId: job.chat }) };
  },
  // A page that is opened on a chat that somebody else began.
  async resume() {
    const made = make(job.chat);
    await made.chat.resumeStream();
    return report(made);
  },
  // Another page opens the same chat while it runs, and sees it whole.
  async watch() {
    const first = make(job.chat), second = make(job.chat);
    const saying = first.chat.sendMessage({ text: job.text });
    await until(() => text(last(first.chat)).length > 20, "some text");
    await second.chat.resumeStream();
    await saying;
    return [report(first), report(second)];
  },
  // Stopped by the stop route, while it speaks.
  async stop() {
    const made = make(job.chat);
    const saying = made.chat.sendMessage({ text: job.text });
    await until(() => text(last(made.chat)).length > 10, "some text");
    const response = await fetch(`${job.url}/api/chat/${job.chat}/stop`, { method: "POST" });
    await saying;
    return { ...report(made), stop: response.status };
  },
  // Asked, answered, and on in the same message.
  async approve() {
    const made = make(job.chat, { automatic: lastAssistantMessageIsCompleteWithApprovalResponses });
    await made.chat.sendMessage({ text: job.text });
    const before = report(made);
    before.parts = structuredClone(before.parts);
    before.ends = [...before.ends];
    const asked = last(made.chat).parts.filter((p) => p.state === "approval-requested");
    for (const part of asked) {
      await made.chat.addToolApprovalResponse({ id: part.approval.id, approved: job.approved, reason: job.reason });
    }
    await until(() => made.seen.ends.length > 1 && made.chat.status !== "streaming", "the end after the answer");
    return { before, after: report(made) };
  },
  // A call that runs elsewhere: its result is given here.
  async outside() {
    const made = make(job.chat, { automatic: lastAssistantMessageIsCompleteWithToolCalls });
    await made.chat.sendMessage({ text: job.text });
    const [call] = last(made.chat).parts.filter((part) => part.state === "input-available");
    await made.chat.addToolOutput({ tool: "outside", toolCallId: call.toolCallId, output: job.output });
    await until(() => made.seen.ends.length > 1 && made.chat.status !== "streaming", "the end after the result");
    return report(made);
  },
};

const said = JSON.stringify(await jobs[job.do]());
clearTimeout(limit);
process.stdout.write(`${said}\n`, () => process.exit(0)); // once it is written: a pipe takes 64 KiB at a time
