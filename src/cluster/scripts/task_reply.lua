-- Answers a task.
--
-- KEYS[1] the list that it named
-- ARGV[1] the answer   ARGV[2] how long that stands, s
--
-- Returns how many answers there are.
local answers = redis.call('RPUSH', KEYS[1], ARGV[1])
redis.call('EXPIRE', KEYS[1], ARGV[2])
return answers
