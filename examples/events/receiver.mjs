// Hears what clients do, by webhook: node receiver.mjs
import { createHmac, timingSafeEqual } from "node:crypto";
import { createServer } from "node:http";

const secret = process.env.MOONGATE_WEBHOOK_SECRET ?? "secret";

function isSigned(body, header) {
  const [, at, signature] = /^t=(\d+),v1=([0-9a-f]{64})$/.exec(header) ?? [];
  if (!at || Math.abs(Date.now() / 1000 - at) > 300) return false;
  const expected = createHmac("sha256", secret).update(`${at}.`).update(body).digest();
  return timingSafeEqual(expected, Buffer.from(signature, "hex"));
}

function answer({ event, client_id, uid, query, data, payload }) {
  const say = message => ({ op: "sendToClient", client_id, message });
  if (event === "connect") {
    if (!query.name) return [403, []]; // a real application looks at a cookie or a token here
    return [200, [{ op: "bindUid", client_id, uid: query.name }, say(`welcome, ${query.name}`)]];
  }
  if (event === "message" && data !== undefined) return [200, [say(`you said: ${data}`)]];
  console.log(event, JSON.stringify(payload ?? uid));
  return [200, []];
}

createServer(async (request, response) => {
  const body = Buffer.concat(await request.toArray());
  const signed = isSigned(body, request.headers["moongate-signature"]);
  const [status, commands] = signed ? answer(JSON.parse(body)) : [400, []];
  response.writeHead(status).end(JSON.stringify({ commands }));
}).listen(process.env.PORT ?? 8000, "127.0.0.1");
