// Steers a run that waits, approves what it asks for, follows it to its end and prints its output as JSON.
import { Client } from "../../clients/js/src/index.js";

const [url, run] = process.argv.slice(2);
const client = new Client({ url });
for await (const event of client.follow(run)) {
  if (event.type === "run.waiting") {
    await client.steer(run, "on");
    await client.decide(run, event.requests.map(({ call }) => ({ call, approve: true })));
  }
  if (event.type === "run.completed") process.stdout.write(JSON.stringify(event.output));
}
