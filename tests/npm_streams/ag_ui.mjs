// HttpAgent of @ag-ui/client against a live server. Reads one JSON job from the arguments, prints one answer.
import { HttpAgent, buildResumeArray } from "@ag-ui/client";

import { cutting } from "./cutting.mjs";

const job = JSON.parse(process.argv[2]);
const limit = setTimeout(() => { console.error("no end within the limit"); process.exit(3); }, job.limit_ms ?? 30000);

// A broken stream reaches a second subscriber inside @ag-ui/client that nobody catches, beside the rejected promise.
process.on("uncaughtException", (error) => {
  if (error?.message !== "terminated") { console.error(error); process.exit(1); }
});

function make(thread, cuts = []) {
  const agent = new HttpAgent({ url: `${job.url}/ag-ui/${job.agent ?? "asker"}`, threadId: thread, fetch: cutting(cuts) });
  const seen = { types: [], ends: [], run: null, error: null };
  agent.subscribe({
    onEvent: ({ event }) => {
      seen.types.push(event.type);
      if (event.type === "RUN_STARTED") seen.run = event.metadata?.holdfast?.run;
      if (event.type === "RUN_FINISHED" || event.type === "RUN_ERROR") seen.ends.push(event);
    },
  });
  return { agent, seen };
}

async function go({ agent, seen }, parameters) {
  try {
    await agent.runAgent(parameters);
  } catch (error) {
    seen.error = String(error?.message ?? error);
  }
}

const text = (agent) => agent.messages.filter((m) => m.role === "assistant").map((m) => m.content ?? "").join("");
const report = ({ agent, seen }) => ({ text: text(agent), messages: agent.messages, ...seen });
const say = (made, prompt) => made.agent.addMessage({ id: `u-${made.agent.messages.length}`, role: "user", content: prompt });

const jobs = {
  async say() {
    const made = make(job.thread);
    for (const prompt of job.prompts) {
      say(made, prompt);
      await go(made);
    }
    return report(made);
  },
  // Cut after so many bytes each time, and run again with the same run id until it has the end.
  async cut() {
    return Promise.all(job.threads.map(async ({ thread, text: prompt, cuts }) => {
      const made = make(thread, cuts);
      const runId = `run-${thread}`;
      say(made, prompt);
      let rounds = 0;
      while (!made.seen.ends.length) {
        if (++rounds > 50) throw new Error(`never whole: ${JSON.stringify(report(made))}`);
        made.seen.error = null;
        // What the client has said of the answer so far stays on its screen; the input is as it was.
        const shown = made.agent.messages;
        made.agent.messages = shown.slice(0, 1);
        await go(made, { runId });
      }
      return { ...report(made), rounds, left: cuts.length };
    }));
  },
  // Another page of the same thread, with nothing of it, comes to what is active.
  async attach() {
    const first = make(job.thread), second = make(job.thread);
    say(first, job.text);
    const going = go(first);
    while (text(first.agent).length < 20) await new Promise((resolve) => setTimeout(resolve, 5));
    await go(second);
    await going;
    return [report(first), report(second)];
  },
  // A tool of the page's own: it answers each call that has no result, and runs again.
  async tools() {
    const made = make(job.thread);
    say(made, job.text);
    await go(made, { tools: job.tools, runId: `${job.thread}-1` });
    const results = new Set(made.agent.messages.map((m) => m.toolCallId));
    const open = made.agent.messages.flatMap((m) => m.toolCalls ?? []).filter((call) => !results.has(call.id));
    for (const call of open) made.agent.addMessage({ id: `r-${call.id}`, role: "tool", toolCallId: call.id, ...job.result });
    const sent = [...made.agent.messages];
    await go(made, { tools: job.tools, runId: `${job.thread}-2` });
    const again = make(job.thread);
    again.agent.messages = sent;
    await go(again, { tools: job.tools, runId: `${job.thread}-2` });
    return { ...report(made), open, again: report(again) };
  },
  // A page of a thread that somebody else began.
  async join() {
    const made = make(job.thread);
    await go(made);
    return report(made);
  },
  async stop() {
    const made = make(job.thread);
    say(made, job.text);
    const going = go(made);
    while (text(made.agent).length < 10) await new Promise((resolve) => setTimeout(resolve, 5));
    const response = await fetch(`${job.url}/api/runs/${made.seen.run}/stop`, { method: "POST" });
    await going;
    return { ...report(made), stop: response.status };
  },
  async approve() {
    const made = make(job.thread);
    say(made, job.text);
    await go(made);
    const { interrupts } = made.seen.ends[0].outcome;
    const responses = Object.fromEntries(interrupts.map((i) => [i.id, { status: job.status ?? "resolved", payload: job.payload }]));
    await go(made, { resume: buildResumeArray(interrupts, responses) });
    return { ...report(made), interrupts };
  },
};

const said = JSON.stringify(await jobs[job.do]());
clearTimeout(limit);
process.stdout.write(`${said}\n`, () => process.exit(0)); // once it is written: a pipe takes 64 KiB at a time
