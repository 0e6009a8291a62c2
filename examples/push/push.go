// Bind, push, queue, and see who is online: go run push.go <client_id>
package main

import (
	"crypto/rand"
	"encoding/json"
	"errors"
	"fmt"
	"log"
	"os"
	"strings"
	"time"

	"github.com/gomodule/redigo/redis"
)

// A command, or a message.
type object map[string]any

func main() {
	client := os.Args[1]
	url := os.Getenv("REDIS_URL")
	if url == "" {
		url = "redis://127.0.0.1:7279"
	}
	// With go-redis: redis.NewClient(must(redis.ParseURL(url))), and its Publish, XAdd, BLPop, SMembers and HGet.
	conn := must(redis.DialURL(url, redis.DialConnectTimeout(5*time.Second), redis.DialReadTimeout(20*time.Second)))
	defer conn.Close()

	// Bind with certainty: by a queued task, and wait for its answer. After a bindUid that is only published, on
	// mg:cmd, the next PUBLISH, on another channel, may come first, and finds nobody.
	bind := object{"op": "batch", "commands": []object{
		{"op": "bindUid", "client_id": client, "uid": 42},
		{"op": "joinGroup", "client_id": client, "group": "room-1"},
		{"op": "setSession", "client_id": client, "session": object{"name": "Ann"}},
	}}
	random := make([]byte, 16)
	must(rand.Read(random))
	replyTo := fmt.Sprintf("mg:reply:%x", random)
	must(conn.Do("XADD", "mg:tasks", "*", "command", toJSON(bind), "reply_to", replyTo))
	reply, err := redis.ByteSlices(conn.Do("BLPOP", replyTo, 10))
	if errors.Is(err, redis.ErrNil) {
		log.Fatal("no node has answered; the task stays in the queue")
	}
	answer := must(reply, err)[1]
	var done struct{ Results []struct{ Result bool } }
	if err := json.Unmarshal(answer, &done); err != nil {
		log.Fatal(err)
	}
	bound := len(done.Results) > 0
	for _, each := range done.Results {
		bound = bound && each.Result
	}
	if !bound {
		log.Fatalf("not bound: %s", answer)
	}
	fmt.Println("bound")

	// To the uid: on how many nodes it is. 0 is nobody: store the message, or send a mail.
	mail := object{"type": "mail", "unread": 3}
	fmt.Println("nodes", must(conn.Do("PUBLISH", "mg:uid:42", toJSON(mail))))

	// To the group, but not to the uid that is typing. To all of it is a plain PUBLISH on mg:group:room-1.
	message := object{"type": "typing", "uid": 42}
	typing := object{"op": "sendToGroup", "group": "room-1", "message": message, "exclude_uid": []int{42}}
	must(conn.Do("PUBLISH", "mg:cmd", toJSON(typing)))

	// In two seconds, whatever has become of this program by then.
	later := object{"op": "sendToUid", "uid": 42, "message": "later"}
	must(conn.Do("XADD", "mg:tasks", "*", "command", toJSON(later), "delay", 2000))

	// Who is online: plain sets and hashes, to read and never to write.
	fmt.Println("online", strings.Join(must(redis.Strings(conn.Do("SMEMBERS", "mg:uid:42:clients"))), " "))
	fmt.Println("room-1", strings.Join(must(redis.Strings(conn.Do("SMEMBERS", "mg:group:room-1:clients"))), " "))
	fmt.Println("session", must(redis.String(conn.Do("HGET", "mg:client:"+client, "session"))))
}

func toJSON(command object) []byte { return must(json.Marshal(command)) }

func must[T any](value T, err error) T {
	if err != nil {
		log.Fatal(err)
	}
	return value
}
