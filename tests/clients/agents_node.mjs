// The package `@openai/agents-realtime`, opened as the README says, with a tool of its own.

import { tool } from "@openai/agents-realtime";
import { z } from "zod";

import { converse, mint, Received } from "./conversation.mjs";
import { openSession } from "./recipe.mjs";

const getWeather = tool({
  name: "get_weather",
  description: "Tells the weather of a city.",
  parameters: z.object({ city: z.enum(["Berlin", "Paris"]) }),
  execute: () => "rain",
});

const received = new Received();
const session = await openSession(await mint(), [getWeather]);
session.on("transport_event", (event) => received.add(event));

const write = (text) => session.sendMessage(text);
const speak = (sound) => session.sendAudio(new Uint8Array(sound).buffer);

await converse(received, { write, speak });
session.close();
