// Not run: tsc reads it, where the package `ai` is installed beside it.
import type { ChatTransport, UIMessage } from "ai";

import { HoldfastChatTransport } from "../src/chat.js";

type Mine = UIMessage<{ run: string }>;
const transport: ChatTransport<Mine> = new HoldfastChatTransport<Mine>({
  headers: async () => ({ "x-mine": "1" }),
  body: { agent: "diver" },
  onState: ({ chatId, state }) => console.log(chatId, state),
});
await new HoldfastChatTransport().stop("c1");
// @ts-expect-error no such option
new HoldfastChatTransport({ apikey: "k" });
export { transport };
