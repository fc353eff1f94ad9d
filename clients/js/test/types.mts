// Not run: tsc reads it, and complains where the declarations do not say what the client does.
import { Client, ApiError, ServerUnreachable, type RunEvent, type Connection } from "../src/index.js";
const client = new Client({ url: "http://127.0.0.1:8484", apiKey: "k", backoff: { firstS: 2 } });
const record = await client.start("hello", { session: "s", onBusy: "supersede", deadlineS: 5 });
const state: (c: Connection) => void = (c) => console.log(c.state, c.waitS);
for await (const event of client.follow(record.id, { onState: state, after: "7-2" })) {
  if (event.type === "text.delta") console.log(event.text.length);
  if (event.type === "resync") console.log(event.head);
  if (event.type === "run.failed") console.log(event.error.remedy);
}
for await (const change of client.followRuns({ session: "s", onState: state })) {
  if (change.type === "runs") console.log(change.runs.map((each) => each.state));
  if (change.type === "run") console.log(change.state);
  if (change.type === "forgotten") console.log(change.session.length);
}
try { await client.stop(record.id, { waitS: 3 }); } catch (e) { if (e instanceof ApiError) console.log(e.retryAfterS); }
// @ts-expect-error a wrong policy
await client.start("x", { onBusy: "sometimes" });
// @ts-expect-error no such field
client.follow(record.id, { from: 3 });
