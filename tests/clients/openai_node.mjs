// The package `openai`, opened as the README says, used as its own documentation says.

import { converse, mint, Received } from "./conversation.mjs";
import { openSession } from "./recipe.mjs";

const received = new Received();
const session = await openSession(await mint());
session.on("event", (event) => received.add(event));

function write(text) {
  const content = [{ type: "input_text", text }];
  session.send({ type: "conversation.item.create", item: { type: "message", role: "user", content } });
  session.send({ type: "response.create" });
}

function speak(sound) {
  session.send({ type: "input_audio_buffer.append", audio: sound.toString("base64") });
}

function answerCall({ call_id }) {
  const item = { type: "function_call_output", call_id, output: "rain" };
  session.send({ type: "conversation.item.create", item });
  session.send({ type: "response.create" });
}

await received.until("session.created");
await converse(received, { write, speak, answerCall });
session.close();
