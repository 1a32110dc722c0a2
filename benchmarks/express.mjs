// The server that people write in Node: Express and fetch, no real check, no log, no limits.
//
// The benchmark compares with it too. Settings: `UPSTREAM_URL`, `PORT`.

import { createRequire } from "node:module";

const clients = createRequire(new URL("../tests/clients/", import.meta.url));
const express = clients("express");

const SESSION = {
  type: "realtime",
  model: "gpt-realtime-2.1-mini",
  audio: { input: { transcription: { model: "gpt-4o-mini-transcribe" } } },
};

const app = express();

app.get("/docs", (_request, response) => response.send("It is up."));

app.post("/realtime/token", async (request, response) => {
  if (!request.get("authorization")) return response.sendStatus(401);
  const answer = await fetch(`${process.env.UPSTREAM_URL}/realtime/client_secrets`, {
    method: "POST",
    headers: { Authorization: "Bearer sk-bench", "Content-Type": "application/json" },
    body: JSON.stringify({ session: SESSION }),
  });
  if (!answer.ok) return response.sendStatus(502);
  const minted = await answer.json();
  response.json({ token: minted.value, expiresAt: minted.expires_at, sessionConfig: SESSION });
});

app.listen(Number(process.env.PORT), "127.0.0.1");
