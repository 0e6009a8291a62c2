//! `moongate ctl` as its users meet it: in scripts, and at a terminal.

use std::io::{Read as _, Write as _};
use std::net::{SocketAddr, TcpListener};
use std::process::Command;
use std::thread::JoinHandle;

use moongate::command::OPERATIONS;
use serde_json::{Value, json};
use socket2::{Domain, Socket, Type};

use crate::process::{Ended, Process, clean, run, run_command};

/// Asks the node at this address.
fn ctl_at(address: &str, arguments: &[&str]) -> Ended {
    run(&[&["ctl"], arguments].concat(), &[("MOONGATE_API_LISTEN", address)])
}

fn ctl(node: &Process, arguments: &[&str]) -> Ended {
    ctl_at(&node.api.to_string(), arguments)
}

/// What it prints where it is not refused.
fn printed(node: &Process, arguments: &[&str]) -> String {
    let ended = ctl(node, arguments);
    assert_eq!((ended.code, ended.stderr.as_str()), (Some(0), ""), "{arguments:?}: {ended:?}");
    ended.stdout
}

/// Why it is refused.
#[track_caller]
fn refused(ended: Ended, code: i32) -> String {
    assert_eq!((ended.code, ended.stdout.as_str()), (Some(code), ""), "{ended:?}");
    ended.stderr
}

/// The same line of a shell, at a terminal with so many columns.
#[cfg(target_os = "linux")]
fn at_a_terminal(address: SocketAddr, columns: u16, line: &str) -> Ended {
    let line = format!("stty cols {columns} rows 40; '{}' {line}", env!("CARGO_BIN_EXE_moongate"));
    let address = address.to_string();
    let mut ended = run_command(clean(
        Command::new("script"),
        &["-qec", &line, "/dev/null"],
        &[("MOONGATE_API_LISTEN", &address), ("SHELL", "/bin/sh"), ("TZ", "Asia/Shanghai")],
    ));
    ended.stdout = ended.stdout.replace("\r\n", "\n");
    ended
}

/// Answers one request with these bytes, and returns what was asked.
fn answers_once(answer: Vec<u8>) -> (SocketAddr, JoinHandle<String>) {
    let listener = TcpListener::bind("127.0.0.1:0").unwrap();
    let address = listener.local_addr().unwrap();
    let asked = std::thread::spawn(move || {
        let (mut socket, _) = listener.accept().unwrap();
        let mut asked = Vec::new();
        while !asked.ends_with(b"}") {
            let mut bytes = [0; 4096];
            let read = socket.read(&mut bytes).unwrap();
            assert!(read > 0, "cut off");
            asked.extend_from_slice(&bytes[..read]);
        }
        socket.write_all(&answer).unwrap();
        String::from_utf8(asked).unwrap()
    });
    (address, asked)
}

#[tokio::test]
async fn a_script_binds_sends_and_asks_and_reads_one_line_of_json() {
    let node = Process::start(&[]).await;
    let mut client = node.connect().await;
    let client_id = format!("client_id={}", client.id);
    assert_eq!(printed(&node, &["bindUid", &client_id, "uid=42"]), "true\n");
    assert_eq!(printed(&node, &["joinGroup", "uid=42", "group=true"]), "true\n");
    for message in ["hello there", "7", r#"{"unread": 3}"#, "[1, 2]", "a=b", "null", ""] {
        let sent = printed(&node, &["sendToUid", "uid=42", &format!("message={message}")]);
        assert_eq!(sent, "{\"nodes\":1}\n");
        assert_eq!(client.text().await, message);
    }
    let several = printed(&node, &["sendToUid", r#"uid=[42,"no body"]"#, "message=x", "confirm=true"]);
    let several: Value = serde_json::from_str(&several).unwrap();
    assert_eq!(several, json!({"nodes": 1, "clients": 1, "offline": ["no body"]}));
    assert_eq!(printed(&node, &["isUidsOnline", r#"uid=["42","7"]"#]), "{\"42\":true,\"7\":false}\n");
    assert_eq!(printed(&node, &["getUidListByGroup", "group=true"]), "[\"42\"]\n");
    assert_eq!(printed(&node, &["setSession", &client_id, r#"session={"z":1.50,"a":[1]}"#]), "true\n");
    assert_eq!(
        serde_json::from_str::<Value>(&printed(&node, &["getSession", &client_id])).unwrap(),
        json!({"z": 1.5, "a": [1]})
    );
    assert_eq!(printed(&node, &["getSession", "client_id=7f0000010b5400000001"]), "null\n");
    assert_eq!(printed(&node, &["isUidOnline", "uid=7"]), "false\n");
    let page: Value = serde_json::from_str(&printed(&node, &["getAllClientInfo", "limit=10"])).unwrap();
    assert_eq!(page["items"][&client.id]["a"], json!([1]));
}

#[tokio::test]
async fn every_operation_of_the_vocabulary_is_there_and_in_the_help() {
    let node = Process::start(&[]).await;
    let help = run(&["ctl", "--help"], &[]);
    for operation in OPERATIONS {
        let ended = ctl(&node, &[operation.name]);
        assert!(
            ended.code == Some(0) || ended.stderr.ends_with(" (invalid_request)\n"),
            "{}: {ended:?}",
            operation.name
        );
        assert!(help.stdout.contains(&format!("\n  {} ", operation.name)), "{help:?}");
    }
}

#[tokio::test]
async fn what_the_node_refuses_is_said_in_its_words_with_exit_1() {
    let node = Process::start(&[]).await;
    for (arguments, words) in [
        (&["sendToEverybody", "message=x"][..], "unknown operation \"sendToEverybody\" (unknown_op)\n"),
        (&["send/to?all"], "unknown operation \"send/to?all\" (unknown_op)\n"),
        (&["sendToUid", "uid=42"], "(invalid_request)\n"),
        (&["sendToAll", "message=x", "exlude=[]"], "exlude"),
        (&["sendToUid", "uid=1", "uid=2", "message=x"], "uid"),
        (&["getAllUidList", "limit=0"], "limit"),
        (&["joinGroup", "client_id=7f0000010b5400000001", "group=g"], "(client_not_found)\n"),
    ] {
        let said = refused(ctl(&node, arguments), 1);
        assert!(said.contains(words) && said.lines().count() == 1, "{arguments:?}: {said}");
    }
}

#[test]
fn wrong_use_is_told_with_exit_2() {
    for arguments in [&["ctl"][..], &["ctl", "sendToUid", "42"], &["ctl", "sendToUid", "=42"], &["ctl", "uid=42"]] {
        let said = refused(run(arguments, &[]), 2);
        assert!(said.contains("--help") && !said.contains("panicked"), "{arguments:?}: {said}");
    }
    let said = refused(run(&["ctl", "isUidOnline", "uid=1"], &[("MOONGATE_API_LISTEN", "7273")]), 2);
    assert_eq!(said, "MOONGATE_API_LISTEN: got \"7273\", takes an address and port, such as 0.0.0.0:7272\n");
}

#[test]
fn where_no_node_is_one_line_names_the_address() {
    // Bound and not listening: nobody else gets the port.
    let held = Socket::new(Domain::IPV4, Type::STREAM, None).unwrap();
    held.bind(&SocketAddr::from(([127, 0, 0, 1], 0)).into()).unwrap();
    let nobody = held.local_addr().unwrap().as_socket().unwrap();
    let said = refused(ctl_at(&format!("0.0.0.0:{}", nobody.port()), &["getAllUidCount"]), 1);
    assert!(said.starts_with(&format!("cannot connect to {nobody}: ")) && said.lines().count() == 1, "{said}");

    let (silent, _) = answers_once(Vec::new());
    let said = refused(ctl_at(&silent.to_string(), &["getAllUidCount"]), 1);
    assert!(said.starts_with(&format!("no answer from {silent}: ")), "{said}");
    assert!(said.ends_with("; not known to be done\n") && said.lines().count() == 1, "{said}");

    let (stranger, _) = answers_once(b"HTTP/1.1 200 OK\r\nContent-Length: 2\r\n\r\nok".to_vec());
    let said = refused(ctl_at(&stranger.to_string(), &["getAllUidCount"]), 1);
    assert_eq!(said, format!("{stranger} answers 200 OK, and not as a node does\n"));
}

#[tokio::test]
async fn a_node_that_listens_everywhere_is_asked_on_loopback_with_its_token() {
    let node = Process::start(&[("MOONGATE_API_LISTEN", "0.0.0.0:0"), ("MOONGATE_API_TOKEN", "hunter2")]).await;
    let address = node.api.to_string();
    assert!(address.starts_with("0.0.0.0:"), "{address}");
    // The node's other settings are its own affair.
    let ask = |token| {
        let settings =
            [("MOONGATE_API_LISTEN", address.as_str()), ("MOONGATE_API_TOKEN", token), ("MOONGATE_LISTEN", "nowhere")];
        run(&["ctl", "getAllUidCount"], &settings)
    };
    let good = ask("hunter2");
    assert_eq!((good.code, good.stdout.as_str(), good.stderr.as_str()), (Some(0), "0\n", ""));
    for wrong in ["", "hunter3"] {
        let said = refused(ask(wrong), 1);
        assert!(said.contains("(unauthorized)") && said.contains("MOONGATE_API_TOKEN"), "{said}");
        assert!(!said.contains("hunter") && said.lines().count() == 1, "{said}");
    }
}

#[tokio::test]
async fn a_batch_of_which_something_is_refused_is_printed_and_exits_1() {
    let node = Process::start(&[]).await;
    let all = r#"commands=[{"op":"isUidOnline","uid":1},{"op":"getAllUidCount"}]"#;
    assert_eq!(printed(&node, &["batch", all]), "[{\"result\":false},{\"result\":0}]\n");
    let ended = ctl(&node, &["batch", r#"commands=[{"op":"getAllUidCount"},{"op":"nope"}]"#]);
    assert_eq!((ended.code, ended.stderr.as_str()), (Some(1), ""), "{ended:?}");
    let results: Value = serde_json::from_str(&ended.stdout).unwrap();
    assert_eq!((&results[0]["result"], &results[1]["error"]["code"]), (&json!(0), &json!("unknown_op")));
}

#[cfg(target_os = "linux")]
#[tokio::test]
async fn a_result_that_cannot_be_printed_exits_1() {
    let node = Process::start(&[]).await;
    let script = "\"$0\" ctl getAllUidCount >/dev/full";
    let arguments = ["-c", script, env!("CARGO_BIN_EXE_moongate")];
    let address = node.api.to_string();
    let ended = run_command(clean(Command::new("/bin/sh"), &arguments, &[("MOONGATE_API_LISTEN", &address)]));
    assert!(refused(ended, 1).starts_with("cannot print the result: "));
}

#[cfg(target_os = "linux")]
#[tokio::test]
async fn at_a_terminal_what_is_told_of_many_is_a_table_and_other_results_are_in_lines() {
    let node = Process::start(&[]).await;
    let ended = at_a_terminal(node.api, 80, r#"ctl isUidsOnline 'uid=["a","bob"]'"#);
    assert_eq!((ended.code, ended.stdout.as_str()), (Some(0), "a    false\nbob  false\n"), "{ended:?}");
    let ended = at_a_terminal(node.api, 80, "ctl sendToUid uid=a message=x");
    assert_eq!((ended.code, ended.stdout.as_str()), (Some(0), "{\n  \"nodes\": 0\n}\n"), "{ended:?}");
    let ended = at_a_terminal(node.api, 80, "ctl nope");
    assert_eq!(
        (ended.code, ended.stdout.as_str()),
        (Some(1), "unknown operation \"nope\" (unknown_op)\n"),
        "{ended:?}"
    );
}

#[cfg(target_os = "linux")]
#[tokio::test(flavor = "multi_thread")]
async fn at_a_terminal_tasks_are_a_table_and_in_a_script_json() {
    let node = Process::start(&[]).await;
    let ctl = |arguments: &[&str]| ctl_at(&node.api.to_string(), arguments);
    for (id, op) in [("mail", "ungroup"), ("7", "bindUid")] {
        let command = json!({"op": op, "client_id": "7f0000010b5400000001", "uid": "u"});
        let command = if op == "bindUid" { command } else { json!({"op": op, "group": "g"}) };
        let ended = ctl(&["addTask", &format!("command={command}"), &format!("id={id}")]);
        assert_eq!((ended.code, ended.stdout), (Some(0), format!("{{\"id\":\"{id}\"}}\n")));
    }
    crate::harness::eventually("both are over", async || {
        let state = |id: &str| ctl(&["getTask", &format!("id={id}")]).stdout;
        state("mail").contains(r#""state":"done""#) && state("7").contains(r#""state":"dead""#)
    })
    .await;
    let ended = at_a_terminal(node.api, 70, "ctl listTasks");
    let (table, expected) = (
        ended.stdout.as_str(),
        "\
ID    STATE  ATTEMPTS  NEXT  WHAT     REASON
mail  done   1         -     ungroup
7     dead   1         -     bindUid  no client 7f0000010b5400000001 …
",
    );
    assert_eq!((ended.code, table), (Some(0), expected), "{ended:?}");
    let ended = at_a_terminal(node.api, 70, "ctl listTasks limit=1");
    let more = ended.stdout.lines().last().unwrap();
    assert!(more.starts_with("There are more: moongate ctl listTasks limit=1 cursor="), "{ended:?}");
    let ended = ctl(&["listTasks", "state=dead"]);
    let page: Value = serde_json::from_str(&ended.stdout).unwrap();
    assert_eq!((ended.stdout.lines().count(), &page["items"][0]["id"]), (1, &json!("7")));
}
