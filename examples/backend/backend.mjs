// A backend that asks for tokens on behalf of its users, with Express.
//
//   TOKEN_SERVICE=http://127.0.0.1:8000 SERVICE_KEY=rtk_… PORT=3000 node backend.mjs
//
// Needs the package express.

import express from "express";

const { TOKEN_SERVICE, SERVICE_KEY, PORT } = process.env;
const sessions = new Map([["a-cookie-nobody-can-guess", "their-user-17"]]); // in place of your own

const app = express();
app.post("/session", async (request, response) => {
  const cookie = /(?:^|; )session=([^;]*)/.exec(request.get("Cookie") ?? "")?.[1];
  if (!sessions.has(cookie)) return response.sendStatus(401);
  const answer = await fetch(`${TOKEN_SERVICE}/realtime/token`, {
    method: "POST",
    headers: { Authorization: `Bearer ${SERVICE_KEY}`, "Content-Type": "application/json" },
    body: JSON.stringify({ user: sessions.get(cookie) }),
    signal: AbortSignal.timeout(12_000), // the service answers within ten seconds
  });
  // Then it is the key that is refused, and not the user.
  if ([401, 403].includes(answer.status)) return response.sendStatus(502);
  for (const name of ["Content-Type", "Cache-Control", "Retry-After"]) {
    if (answer.headers.has(name)) response.set(name, answer.headers.get(name));
  }
  response.status(answer.status).send(Buffer.from(await answer.arrayBuffer()));
});
app.listen(Number(PORT), "127.0.0.1");
