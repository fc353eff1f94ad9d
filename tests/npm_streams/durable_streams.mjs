// @durable-streams/client on a run's log, in each mode at the same time; prints what each saw.
import { stream } from "@durable-streams/client";

const job = JSON.parse(process.argv[2]);
const limit = setTimeout(() => { console.error("no end within the limit"); process.exit(3); }, job.limit_ms ?? 30000);

async function read(mode) {
  const response = await stream({
    url: `${job.url}/streams/runs/${job.run}`, offset: "-1", live: mode === "none" ? false : mode,
  });
  const items = [];
  for await (const item of response.jsonStream()) items.push(item);
  return { items, closed: response.streamClosed, offset: response.offset };
}

const seen = await Promise.all(job.modes.map(read));
const said = JSON.stringify(Object.fromEntries(job.modes.map((mode, n) => [mode, seen[n]])));
clearTimeout(limit);
process.stdout.write(`${said}\n`, () => process.exit(0)); // once it is written: a pipe takes 64 KiB at a time
