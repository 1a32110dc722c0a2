// What the clients for Node have in common: a sign-in, a mint, three turns, and a report of them.

import { readFileSync } from "node:fs";
import { text } from "node:stream/consumers";

export const speech = readFileSync(new URL("speech.pcm", import.meta.url));

/** Sign in with what stands on stdin, and return the answer of POST /realtime/token. */
export async function mint() {
  const { service, username, password } = JSON.parse(await text(process.stdin));
  const form = new URLSearchParams({ grant_type: "password", username, password });
  const granted = await ask(`${service}/auth/token`, { body: form });
  const headers = { Authorization: `Bearer ${granted.access_token}` };
  return ask(`${service}/realtime/token`, { headers });
}

async function ask(url, options) {
  const answer = await fetch(url, { method: "POST", ...options });
  if (!answer.ok) throw new Error(`${url}: ${answer.status} ${await answer.text()}`);
  return answer.json();
}

/** What the server has sent so far. */
export class Received {
  #events = [];
  #read = 0;
  #wake = () => {};

  add(event) {
    this.#events.push(event);
    this.#wake();
  }

  /** Wait for one event of each kind, and return everything since the last time. */
  async until(...kinds) {
    for (;;) {
      const events = this.#events.slice(this.#read);
      const failed = events.find(({ type }) => type === "error");
      if (failed) throw new Error(JSON.stringify(failed));
      if (kinds.every((kind) => events.some(({ type }) => type === kind))) {
        this.#read += events.length;
        return events;
      }
      await new Promise((resolve) => (this.#wake = resolve));
    }
  }

  /** The session as the server has shown it last. */
  get session() {
    return this.#events.findLast(({ session }) => session).session;
  }
}

/** Take a written turn, a spoken one and one with a function call, and print what came of them. */
export async function converse(received, { write, speak, answerCall = () => {} }) {
  write("good morning");
  const written = await received.until("response.done");

  for (let start = 0; start < speech.length; start += 4800) {
    speak(speech.subarray(start, start + 4800)); // 100 ms
  }
  const transcribed = "conversation.item.input_audio_transcription.completed";
  const spoken = await received.until(transcribed, "response.done");

  write("please use get_weather");
  const calling = await received.until("response.done");
  const [call] = calling.at(-1).response.output;
  answerCall(call);
  const concluded = await received.until("response.done");

  const report = {
    session: received.session,
    written: said(written),
    heard: spoken.find(({ type }) => type === transcribed).transcript,
    spoken: said(spoken),
    sound: soundOf(spoken),
    called: { name: call.name, arguments: JSON.parse(call.arguments) },
    concluded: said(concluded),
  };
  console.log(JSON.stringify(report));
}

function said(events) {
  return events.find(({ type }) => type === "response.output_audio_transcript.done").transcript;
}

function soundOf(events) {
  const deltas = events.filter(({ type }) => type === "response.output_audio.delta");
  return deltas.reduce((bytes, { delta }) => bytes + Buffer.from(delta, "base64").length, 0);
}
