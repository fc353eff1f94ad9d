// The AI SDK's own chat and transport against a live server. Reads one JSON job from the arguments, prints one answer.
import { Chat } from "@ai-sdk/react";
import { DefaultChatTransport, lastAssistantMessageIsCompleteWithApprovalResponses } from "ai";

const job = JSON.parse(process.argv[2]);
const limit = setTimeout(() => { console.error("no end within the limit"); process.exit(3); }, job.limit_ms ?? 30000);
const sleep = (ms) => new Promise((resolve) => setTimeout(resolve, ms));

// A fetch whose response body breaks off after so many bytes, as a network does.
function cutting(bytes) {
  return async (url, init) => {
    const response = await fetch(url, init);
    if (bytes == null || response.body == null) return response;
    let left = bytes;
    const reader = response.body.getReader();
    const body = new ReadableStream({
      async pull(controller) {
        const { done, value } = await reader.read();
        if (done) return controller.close();
        const piece = value.subarray(0, left);
        left -= piece.length;
        if (piece.length) controller.enqueue(piece);
        if (left <= 0) {
          await reader.cancel();
          controller.error(new TypeError("terminated"));
        }
      },
    });
    return new Response(body, { status: response.status, headers: response.headers });
  };
}

function make(id, { cut = null, automatic = false } = {}) {
  const seen = { ends: [], finished: null };
  const inner = new DefaultChatTransport({ api: `${job.url}/api/chat`, fetch: cutting(cut), body: job.body ?? {} });
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
    onFinish: (finish) => { seen.finished = { abort: finish.isAbort, disconnect: finish.isDisconnect, error: finish.isError, reason: finish.finishReason }; },
    ...(automatic ? { sendAutomaticallyWhen: lastAssistantMessageIsCompleteWithApprovalResponses } : {}),
  });
  return { chat, seen, transport: inner };
}

const text = (message) => (message?.parts ?? []).filter((p) => p.type === "text").map((p) => p.text).join("");
const last = (chat) => chat.messages.at(-1);
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
  // Cut after so many bytes each time, resumed by the same chat until it has the end.
  async cut() {
    const out = [];
    for (const { chat: id, text: prompt, cuts } of job.chats) {
      let bytes = cuts.shift();
      const made = make(id, {});
      made.chat.transport.sendMessages = ((first) => first)(made.chat.transport.sendMessages);
      const inner = new DefaultChatTransport({
        api: `${job.url}/api/chat`,
        fetch: (url, init) => { const now = bytes; bytes = cuts.shift() ?? null; return cutting(now)(url, init); },
      });
      made.chat.transport.sendMessages = (options) => inner.sendMessages(options);
      made.chat.transport.reconnectToStream = (options) => inner.reconnectToStream(options);
      await made.chat.sendMessage({ text: prompt });
      let resumed = 0;
      while (made.seen.finished?.disconnect || made.seen.finished?.error) {
        if (++resumed > 20) throw new Error(`never whole: ${JSON.stringify(report(made))}`);
        made.seen.finished = null;
        await made.chat.resumeStream();
        if (made.seen.finished == null) break; // 204: it had ended meanwhile
      }
      out.push({ ...report(made), resumed });
    }
    return out;
  },
  // 204 where nothing is active: the transport answers null.
  async idle() {
    const { transport } = make(job.chat);
    return { stream: await transport.reconnectToStream({ chatId: job.chat }) };
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
    const made = make(job.chat, { automatic: true });
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
};

console.log(JSON.stringify(await jobs[job.do]()));
clearTimeout(limit);
process.exit(0);
