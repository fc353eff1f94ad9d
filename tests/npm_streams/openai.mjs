// openai-node against a live server. Reads one JSON job from the arguments, prints one answer.
import OpenAI, { APIConnectionError } from "openai";

const job = JSON.parse(process.argv[2]);
const limit = setTimeout(() => { console.error("no end within the limit"); process.exit(3); }, job.limit_ms ?? 30000);
const client = new OpenAI({ baseURL: `${job.url}/v1`, apiKey: "none", maxRetries: 0 });
const broken = (error) => error instanceof APIConnectionError || error?.message === "terminated" ||
  error?.cause?.code === "ECONNRESET" || /premature|other side closed|socket hang up/i.test(String(error?.message));

// A response in the background, read until its end over connections that break: every event once, in order.
async function whole({ text, key }) {
  const events = [];
  let id = "", breaks = 0;
  const ended = () => /^response\.(completed|failed|incomplete)$/.test(events.at(-1)?.type ?? "");
  while (!ended()) {
    if (breaks > 300) throw new Error(`never whole: ${events.length} events`);
    try {
      const stream = id
        ? await client.responses.retrieve(id, { stream: true, starting_after: events.at(-1).sequence_number })
        : await client.responses.create(
          { model: "asker", input: text, background: true, stream: true },
          { headers: { "Idempotency-Key": key } },
        );
      for await (const event of stream) {
        id ||= event.response?.id ?? "";
        events.push(event);
        if (event.type === "response.output_text.delta" && job.cancel && !job.cancelled) {
          job.cancelled = (await client.responses.cancel(id)).status;
        }
      }
      if (!ended()) breaks++;
    } catch (error) {
      if (!broken(error)) throw error;
      breaks++;
    }
  }
  return { id, events, breaks, cancelled: job.cancelled, now: await retrieved(id) };
}

async function retrieved(id) {
  for (let left = 50; ; left--) {
    try {
      const response = await client.responses.retrieve(id);
      return { status: response.status, text: response.output_text };
    } catch (error) {
      if (!broken(error) || !left) throw error;
    }
  }
}

const said = JSON.stringify(await Promise.all(job.responses.map(whole)));
clearTimeout(limit);
process.stdout.write(`${said}\n`, () => process.exit(0)); // once it is written: a pipe takes 64 KiB at a time
