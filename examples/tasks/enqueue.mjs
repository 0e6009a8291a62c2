// Queues one of each kind: node enqueue.mjs <client_id>
import { randomUUID } from "node:crypto";
import { createClient } from "redis";

const client = process.argv[2];
const redis = await createClient({ url: process.env.REDIS_URL ?? "redis://127.0.0.1:7279" }).connect();

// Queues a command; the fields beside it are those of the table in docs/tasks.md. Values are strings.
const add = (command, more = {}) => redis.xAdd("mg:tasks", "*", { command: JSON.stringify(command), ...more });

// Queues a command and waits for what HTTP would answer.
async function ask(command) {
  const replyTo = `mg:reply:${randomUUID()}`;
  await add(command, { reply_to: replyTo });
  const answer = await redis.blPop(replyTo, 10);
  if (!answer) throw new Error("no node has answered; the task stays in the queue");
  return JSON.parse(answer.element);
}

const send = message => ({ op: "sendToUid", uid: 42, message });

// Bind, then push: two commands in one batch, in this order. When it is answered, both are done.
const bind = { op: "bindUid", client_id: client, uid: 42 };
console.log(JSON.stringify(await ask({ op: "batch", commands: [bind, send("bound")] })));

// Now, in two seconds, and at a time (unix ms).
await add(send("now"));
await add(send("later"), { delay: "2000" });
const [seconds, micros] = await redis.sendCommand(["TIME"]);
await add(send("on time"), { at: String(seconds * 1000 + Math.floor(micros / 1000) + 1000) });

// Twice with one id: once.
for (let i = 0; i < 2; i++) await add(send("once"), { id: `order-17-paid-${client}` });

// Every second, until it is cancelled: in four seconds, by a task.
await add(send("tick"), { id: "tick", cron: "* * * * * *", tz: "Europe/Berlin" });
await add({ op: "cancelTask", id: "tick" }, { delay: "4000" });

// A task that waits is cancelled by its id.
await add(send("never"), { id: `never-${client}`, delay: "1500" });
await ask({ op: "cancelTask", id: `never-${client}` });

// Work for the application itself: POSTed to WEBHOOK_URL as event `task`, at most three times.
await redis.xAdd("mg:tasks", "*", { webhook: JSON.stringify({ mail: "welcome", to: 42 }), max_attempts: "3" });
await redis.close();
