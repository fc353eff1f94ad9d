// Follows one run and prints what it heard, a JSON object a line: {"state": connection} or {"event": event}.
import { Client } from "../../clients/js/src/index.js";

const job = JSON.parse(process.argv[2]);
const tell = (line) => process.stdout.write(JSON.stringify(line) + "\n");
const client = new Client({ url: job.url, silenceS: job.silenceS, backoff: job.backoff });
const events = client.follow(job.run, { onState: (connection) => tell({ state: connection }) });
for await (const event of events) tell({ event });
