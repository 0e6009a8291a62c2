// What applications write has to be taken, and what is wrong refused.
import { Moongate, type Close } from "moongate-client";

const gate = new Moongate("wss://push.example.com/", {
  token: async () => (await fetch("/token")).text(),
  minDelay: 500,
  maxDelay: 60_000,
  timeout: 5_000,
  queue: 0,
  heartbeat: { ping: "ping", pong: "pong", timeout: 90_000 },
  retry: (close: Close) => {
    if (close.code === 4403) return null;
  },
});
gate.on("open", () => gate.send("hello"));
gate.on("init", ({ client_id }) => fetch("/bind", { method: "POST", body: client_id }));
gate.on("message", data => (typeof data === "string" ? data.length : data.byteLength));
gate.on("json", message => console.log(message.unread));
gate.on("close", ({ code, delay }) => (delay === null ? code : delay + 1));
const taken: boolean = gate.send({ a: 1 }) && gate.send([1]) && gate.send(new Uint8Array(3));
const id: string | null = taken && gate.state === "open" ? gate.clientId : null;
new Moongate(["ws://127.0.0.1/", gate.url], { token: () => null, retry: close => (close.attempts > 9 ? null : 100) }).close(3000, id ?? "");

// @ts-expect-error: there is no such event.
gate.on("mesage", () => {});
// @ts-expect-error: that is not for others to say.
gate.state = "open";
// @ts-expect-error: a number is neither text nor bytes.
gate.send(42);
// @ts-expect-error: there is no such option.
new Moongate("ws://127.0.0.1/", { tokn: "" });
