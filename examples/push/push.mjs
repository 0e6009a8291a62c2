// Bind, push, queue, and see who is online: node push.mjs <client_id>
import { randomUUID } from "node:crypto";
import { createClient } from "redis";

const client = process.argv[2];
const redis = await createClient({ url: process.env.REDIS_URL ?? "redis://127.0.0.1:7279" }).connect();

// Bind with certainty: by a queued task, and wait for its answer. After a bindUid that is only published, on mg:cmd,
// the next PUBLISH, on another channel, may come first, and finds nobody.
const bind = { op: "batch", commands: [
  { op: "bindUid", client_id: client, uid: 42 },
  { op: "joinGroup", client_id: client, group: "room-1" },
  { op: "setSession", client_id: client, session: { name: "Ann" } },
] };
const replyTo = `mg:reply:${randomUUID()}`;
await redis.xAdd("mg:tasks", "*", { command: JSON.stringify(bind), reply_to: replyTo });
const reply = await redis.blPop(replyTo, 10);
if (!reply) throw new Error("no node has answered; the task stays in the queue");
if (!JSON.parse(reply.element).results?.every(({ result }) => result)) throw new Error(`not bound: ${reply.element}`);
console.log("bound");

// To the uid: on how many nodes it is. 0 is nobody: store the message, or send a mail.
console.log("nodes", await redis.publish("mg:uid:42", JSON.stringify({ type: "mail", unread: 3 })));

// To the group, but not to the uid that is typing. To all of it is a plain PUBLISH on mg:group:room-1.
const typing = { op: "sendToGroup", group: "room-1", message: { type: "typing", uid: 42 }, exclude_uid: [42] };
await redis.publish("mg:cmd", JSON.stringify(typing));

// In two seconds, whatever has become of this program by then.
const later = { op: "sendToUid", uid: 42, message: "later" };
await redis.xAdd("mg:tasks", "*", { command: JSON.stringify(later), delay: "2000" });

// Who is online: plain sets and hashes, to read and never to write.
console.log("online", ...(await redis.sMembers("mg:uid:42:clients")));
console.log("room-1", ...(await redis.sMembers("mg:group:room-1:clients")));
console.log("session", await redis.hGet(`mg:client:${client}`, "session"));
await redis.close();
