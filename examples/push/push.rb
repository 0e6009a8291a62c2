# Bind, push, queue, and see who is online: ruby push.rb <client_id>

require "json"
require "redis"
require "securerandom"

client = ARGV.fetch(0)
redis = Redis.new(url: ENV.fetch("REDIS_URL", "redis://127.0.0.1:7279"))

# Bind with certainty: by a queued task, and wait for its answer. After a bindUid that is only published, on mg:cmd,
# the next PUBLISH, on another channel, may come first, and finds nobody.
bind = { op: "batch", commands: [
  { op: "bindUid", client_id: client, uid: 42 },
  { op: "joinGroup", client_id: client, group: "room-1" },
  { op: "setSession", client_id: client, session: { name: "Ann" } }
] }
reply_to = "mg:reply:#{SecureRandom.uuid}"
redis.xadd("mg:tasks", { command: bind.to_json, reply_to: reply_to })
_, reply = redis.blpop(reply_to, timeout: 10)
abort "no node has answered; the task stays in the queue" unless reply
abort "not bound: #{reply}" unless JSON.parse(reply)["results"]&.all? { |done| done["result"] }
puts "bound"

# To the uid: on how many nodes it is. 0 is nobody: store the message, or send a mail.
puts "nodes #{redis.publish("mg:uid:42", { type: "mail", unread: 3 }.to_json)}"

# To the group, but not to the uid that is typing. To all of it is a plain PUBLISH on mg:group:room-1.
typing = { op: "sendToGroup", group: "room-1", message: { type: "typing", uid: 42 }, exclude_uid: [42] }
redis.publish("mg:cmd", typing.to_json)

# In two seconds, whatever has become of this program by then.
later = { op: "sendToUid", uid: 42, message: "later" }
redis.xadd("mg:tasks", { command: later.to_json, delay: 2000 })

# Who is online: plain sets and hashes, to read and never to write.
puts "online #{redis.smembers("mg:uid:42:clients").join(" ")}"
puts "room-1 #{redis.smembers("mg:group:room-1:clients").join(" ")}"
puts "session #{redis.hget("mg:client:#{client}", "session")}"
