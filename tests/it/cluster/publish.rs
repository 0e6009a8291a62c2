//! Redis publish: whom a payload reaches.

use super::*;

#[tokio::test(flavor = "multi_thread")]
async fn one_publish_reaches_a_uid_a_group_a_client_or_everyone_on_whatever_nodes_they_are() {
    Pair::run(async |pair| {
        let (mut phone, mut desk) = (pair.a.member("ann", "red").await, pair.b.member("ann", "blue").await);
        let (mut bob, mut nobody) = (pair.b.member("bob", "red").await, pair.a.connect().await);
        for (channel, nodes, who) in [
            ("mg:uid:ann".to_owned(), 2, [true, true, false, false]),
            ("mg:uid:bob".to_owned(), 1, [false, false, true, false]),
            ("mg:group:red".to_owned(), 2, [true, false, true, false]),
            ("mg:group:blue".to_owned(), 1, [false, true, false, false]),
            (format!("mg:client:{}", desk.id), 1, [false, true, false, false]),
            (format!("mg:client:{}", nobody.id), 1, [false, false, false, true]),
            ("mg:all".to_owned(), 2, [true, true, true, true]),
            ("mg:uid:nobody".to_owned(), 0, [false; 4]),
            ("mg:group:nobody".to_owned(), 0, [false; 4]),
            ("mg:client:7f000001ffff00000007".to_owned(), 0, [false; 4]),
        ] {
            assert_eq!(pair.publish(&channel, &channel).await, nodes, "{channel}");
            for (client, hears) in [&mut phone, &mut desk, &mut bob, &mut nobody].into_iter().zip(who) {
                if hears {
                    assert_eq!(client.text().await, channel);
                }
                client.heard_nothing(&pair.a).await;
            }
        }
        drop((phone, desk, bob));
    })
    .await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_payload_arrives_byte_for_byte_as_text_when_it_is_utf_8_and_else_as_binary() {
    let texts: [&[u8]; 9] = [
        b"",
        b"hello",
        "你好, мир, 🌕".as_bytes(),
        b"\0\0\0",
        "\u{feff}begins with a byte order mark".as_bytes(),
        "\u{10ffff}\u{fffe}\u{200d}e\u{301}".as_bytes(),
        b"line\r\n*1\r\n$4\r\nPING\r\n",
        br#"{"op":"closeClient","client_id":"x"}"#,
        b"\0mg2 is not an envelope",
    ];
    let every_byte: Vec<u8> = (0..=255).collect();
    let binaries: [&[u8]; 6] = [
        b"\xff",
        b"\xed\xa0\x80",
        b"\xc0\x80",
        b"\xf4\x90\x80\x80",
        "房".as_bytes().split_last().unwrap().1,
        &every_byte,
    ];
    Pair::run(async |pair| {
        let (mut here, mut there) = (pair.a.member("u", "g").await, pair.b.member("u", "g").await);
        for (payload, text) in texts.iter().map(|text| (text, true)).chain(binaries.iter().map(|bytes| (bytes, false)))
        {
            for channel in ["mg:uid:u", "mg:group:g", "mg:all"] {
                assert_eq!(pair.publish(channel, payload).await, 2);
            }
            for client in [&mut here, &mut there] {
                assert_eq!(pair.publish(&format!("mg:client:{}", client.id), payload).await, 1);
                for _ in 0..4 {
                    let heard = client.next().await.unwrap();
                    assert_eq!((heard.is_text(), heard.into_data()), (text, Bytes::copy_from_slice(payload)));
                }
            }
        }
    })
    .await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_payload_of_one_mebibyte_arrives_and_one_byte_more_is_counted_and_does_not() {
    Pair::run(async |pair| {
        let mut client = pair.b.member("u", "g").await;
        let text = "x".repeat(MEBIBYTE);
        let binary = vec![0xff; MEBIBYTE];
        for channel in ["mg:uid:u", "mg:group:g", "mg:all", &format!("mg:client:{}", client.id)] {
            assert_eq!(pair.publish(channel, &text).await, 1);
            assert_eq!(client.next().await, Some(Message::text(text.as_str())));
            assert_eq!(pair.publish(channel, &binary).await, 1);
            assert_eq!(client.next().await, Some(Message::binary(binary.clone())));
            assert_eq!(pair.publish(channel, text.clone() + "x").await, 1);
            client.heard_nothing(&pair.a).await;
        }
        assert_eq!(counted(&pair.b, r#"moongate_bus_lost_total{reason="too_large"}"#).await, 4);
        assert_eq!(counted(&pair.a, LOST).await, 0);
    })
    .await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_payload_that_begins_like_an_envelope_and_is_none_is_counted_and_not_delivered() {
    Pair::run(async |pair| {
        let mut client = pair.b.member("u", "g").await;
        let garbage: [&[u8]; 7] = [
            b"",
            b"hello",
            &[0, 0, 0, 0],
            &[0, 0, 0, 2, b'{', b'}'],
            &[0, 0, 0, 200, b'{', b'}'],
            &[0xff, 0xff, 0xff, 0xff],
            &envelope(r#"{"do":{"send":7}}"#, b"hello")[4..],
        ];
        let channels = ["mg:uid:u", "mg:group:g", "mg:all", &format!("mg:client:{}", client.id)];
        for channel in channels {
            for rest in garbage {
                assert_eq!(pair.publish(channel, [&MAGIC[..], rest].concat()).await, 1);
            }
        }
        client.heard_nothing(&pair.a).await;
        let lost = channels.len() * garbage.len();
        assert_eq!(counted(&pair.b, r#"moongate_bus_lost_total{reason="garbage"}"#).await, lost as u64);
        // Three of the four bytes are no envelope.
        assert_eq!(pair.publish("mg:uid:u", &MAGIC[..3]).await, 1);
        assert_eq!(client.next().await, Some(frame(&MAGIC[..3])));
    })
    .await;
}

#[tokio::test(flavor = "multi_thread")]
async fn what_a_bare_payload_cannot_say_arrives_intact_over_http() {
    Pair::run(async |pair| {
        let mut client = pair.b.member("u", "g").await;
        let lookalike = String::from_utf8(MAGIC.to_vec()).unwrap();
        let sealed = envelope(r#"{"do":{"ungroup":{"group":"g"}}}"#, b"");
        for (message, expected) in [
            (json!({"message": lookalike}), Message::text(lookalike.as_str())),
            (json!({"message": format!("{lookalike}and more")}), Message::text(format!("{lookalike}and more"))),
            (json!({"binary": BASE64_STANDARD.encode(&sealed)}), Message::binary(sealed.clone())),
            (json!({"binary": BASE64_STANDARD.encode(MAGIC)}), Message::binary(MAGIC.to_vec())),
            (json!({"binary": BASE64_STANDARD.encode("plain UTF-8")}), Message::binary(&b"plain UTF-8"[..])),
            (json!({"binary": ""}), Message::binary(&b""[..])),
            (json!({"binary": BASE64_STANDARD.encode(b"\xff\0")}), Message::binary(&b"\xff\0"[..])),
        ] {
            for (op, target) in [
                ("sendToUid", json!({"uid": "u"})),
                ("sendToUid", json!({"uid": ["u", "nobody"]})),
                ("sendToGroup", json!({"group": "g"})),
                ("sendToClient", json!({"client_id": client.id})),
                ("sendToAll", json!({})),
            ] {
                for confirm in [false, true] {
                    let mut fields = target.clone();
                    fields.as_object_mut().unwrap().extend(message.as_object().unwrap().clone());
                    if confirm {
                        fields["confirm"] = json!(true);
                    }
                    assert_eq!(pair.a.ask(op, fields.clone()).await["nodes"], 1, "{op} {fields}");
                    assert_eq!(client.next().await.as_ref(), Some(&expected), "{op} {fields}");
                }
            }
        }
        client.heard_nothing(&pair.a).await;
        assert_eq!(pair.lost().await, 0);
    })
    .await;
}

#[tokio::test(flavor = "multi_thread")]
async fn names_stand_in_channels_and_keys_as_they_are() {
    let odd = [
        "*",
        "?",
        "[a-z]",
        "u*",
        "u?",
        "u[12]",
        "u1",
        "u2",
        "\\*",
        "a:b",
        "a:b:clients",
        "a",
        ":",
        "a b",
        " ",
        "房间 1",
        "房间",
        "{tag}",
        "line\nbreak",
        "\"quoted\"",
        "mg:all",
        "🌕",
        "0",
        "\u{0}",
    ];
    let long = "名".repeat(85) + "x";
    let odd: Vec<&str> = odd.into_iter().chain([&*long]).collect();
    Pair::run(async |pair| {
        let mut clients = Vec::new();
        for (place, name) in odd.iter().enumerate() {
            clients.push(pair.nodes()[place % 2].member(name, name).await);
        }
        let mut channels = pair.own_channels().await;
        channels.insert("mg:all".to_owned());
        for (name, client) in odd.iter().zip(&mut clients) {
            for kind in ["uid", "group"] {
                let channel = format!("mg:{kind}:{name}");
                assert_eq!(pair.publish(&channel, &channel).await, 1, "{channel:?}");
                assert_eq!(client.text().await, channel);
                let key = format!("{channel}:clients");
                assert_eq!(
                    pair.redis.command(&["SMEMBERS", &key]).await.names(),
                    [client.id.clone()].into(),
                    "{key:?}"
                );
                channels.insert(channel);
            }
            let groups = format!("mg:client:{}:groups", client.id);
            assert_eq!(pair.redis.command(&["SMEMBERS", &groups]).await.names(), names(&[name]));
            assert_eq!(pair.a.ask("getUidByClientId", json!({"client_id": client.id})).await, json!(name));
            assert_eq!(pair.b.ask("getClientIdListByGroup", json!({"group": name})).await, json!([client.id]));
        }
        assert_eq!(pair.redis.pubsub_channels().await, channels);
        // Nobody heard what was for another.
        for client in &mut clients {
            client.heard_nothing(&pair.a).await;
        }
    })
    .await;
}
