// Bind, push, queue, and see who is online: dotnet run <client_id>

using System.Text.Json;
using StackExchange.Redis;

var client = args[0];
var port = Environment.GetEnvironmentVariable("REDIS_PORT") ?? "7279";
using var connection = await ConnectionMultiplexer.ConnectAsync($"127.0.0.1:{port}");
var redis = connection.GetDatabase();

// Bind with certainty: by a queued task, and wait for its answer. After a bindUid that is only published, on mg:cmd,
// the next PUBLISH, on another channel, may come first, and finds nobody.
var bind = new
{
    op = "batch",
    commands = new object[]
    {
        new { op = "bindUid", client_id = client, uid = 42 },
        new { op = "joinGroup", client_id = client, group = "room-1" },
        new { op = "setSession", client_id = client, session = new { name = "Ann" } },
    },
};
var replyTo = $"mg:reply:{Guid.NewGuid()}";
await redis.StreamAddAsync("mg:tasks", [new("command", JsonSerializer.Serialize(bind)), new("reply_to", replyTo)]);
// One connection serves all, and nothing may block it: there is no BLPOP, so this asks again and again.
var reply = RedisValue.Null;
for (var tries = 0; reply.IsNull && tries < 200; tries++)
{
    await Task.Delay(50);
    reply = await redis.ListLeftPopAsync(replyTo);
}
if (reply.IsNull) throw new TimeoutException("no node has answered; the task stays in the queue");
using var answer = JsonDocument.Parse(reply.ToString());
if (!answer.RootElement.GetProperty("results").EnumerateArray().All(done => done.TryGetProperty("result", out _)))
    throw new InvalidOperationException($"not bound: {reply}");
Console.WriteLine("bound");

// To the uid: on how many nodes it is. 0 is nobody: store the message, or send a mail.
var mail = JsonSerializer.Serialize(new { type = "mail", unread = 3 });
Console.WriteLine($"nodes {await redis.PublishAsync(RedisChannel.Literal("mg:uid:42"), mail)}");

// To the group, but not to the uid that is typing. To all of it is a plain PUBLISH on mg:group:room-1.
var message = new { type = "typing", uid = 42 };
var typing = new { op = "sendToGroup", group = "room-1", message, exclude_uid = new[] { 42 } };
await redis.PublishAsync(RedisChannel.Literal("mg:cmd"), JsonSerializer.Serialize(typing));

// In two seconds, whatever has become of this program by then.
var later = JsonSerializer.Serialize(new { op = "sendToUid", uid = 42, message = "later" });
await redis.StreamAddAsync("mg:tasks", [new("command", later), new("delay", 2000)]);

// Who is online: plain sets and hashes, to read and never to write.
Console.WriteLine($"online {string.Join(' ', await redis.SetMembersAsync("mg:uid:42:clients"))}");
Console.WriteLine($"room-1 {string.Join(' ', await redis.SetMembersAsync("mg:group:room-1:clients"))}");
Console.WriteLine($"session {await redis.HashGetAsync($"mg:client:{client}", "session")}");
