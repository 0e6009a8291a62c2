// Bind, push, queue, and see who is online: java -cp 'jars/*' Push.java <client_id>

import com.google.gson.Gson; // comes with Jedis
import com.google.gson.JsonObject;
import java.util.List;
import java.util.Map;
import java.util.UUID;
import redis.clients.jedis.Jedis;
import redis.clients.jedis.StreamEntryID;

public class Push {
    public static void main(String[] args) {
        String client = args[0];
        Gson json = new Gson();
        // One connection; a server has a pool of them, JedisPooled or RedisClient, with the same methods.
        try (Jedis redis = new Jedis(System.getenv().getOrDefault("REDIS_URL", "redis://127.0.0.1:7279"))) {
            // Bind with certainty: by a queued task, and wait for its answer. After a bindUid that is only published,
            // on mg:cmd, the next PUBLISH, on another channel, may come first, and finds nobody.
            var bind = Map.of("op", "batch", "commands", List.of(
                Map.of("op", "bindUid", "client_id", client, "uid", 42),
                Map.of("op", "joinGroup", "client_id", client, "group", "room-1"),
                Map.of("op", "setSession", "client_id", client, "session", Map.of("name", "Ann"))));
            String replyTo = "mg:reply:" + UUID.randomUUID();
            var task = Map.of("command", json.toJson(bind), "reply_to", replyTo);
            redis.xadd("mg:tasks", StreamEntryID.NEW_ENTRY, task);
            List<String> reply = redis.blpop(10, replyTo);
            if (reply == null) throw new IllegalStateException("no node has answered; the task stays in the queue");
            String answer = reply.get(1);
            for (var done : json.fromJson(answer, JsonObject.class).getAsJsonArray("results")) {
                if (!done.getAsJsonObject().has("result")) throw new IllegalStateException("not bound: " + answer);
            }
            System.out.println("bound");

            // To the uid: on how many nodes it is. 0 is nobody: store the message, or send a mail.
            var mail = Map.of("type", "mail", "unread", 3);
            System.out.println("nodes " + redis.publish("mg:uid:42", json.toJson(mail)));

            // To the group, but not to the uid that is typing. To all of it is a plain PUBLISH on mg:group:room-1.
            var message = Map.of("type", "typing", "uid", 42);
            var typing = Map.of("op", "sendToGroup", "group", "room-1", "message", message, "exclude_uid", List.of(42));
            redis.publish("mg:cmd", json.toJson(typing));

            // In two seconds, whatever has become of this program by then.
            var later = Map.of("op", "sendToUid", "uid", 42, "message", "later");
            redis.xadd("mg:tasks", StreamEntryID.NEW_ENTRY, Map.of("command", json.toJson(later), "delay", "2000"));

            // Who is online: plain sets and hashes, to read and never to write.
            System.out.println("online " + String.join(" ", redis.smembers("mg:uid:42:clients")));
            System.out.println("room-1 " + String.join(" ", redis.smembers("mg:group:room-1:clients")));
            System.out.println("session " + redis.hget("mg:client:" + client, "session"));
        }
    }
}
