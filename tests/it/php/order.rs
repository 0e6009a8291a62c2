//! Callers open a connection for each command, and wait for nothing: what they have sent first is done first.

use std::io::{Read as _, Write as _};
use std::net::{SocketAddr, TcpStream};

use super::{
    BIND_UID, Browser, CLIENT_CONNECT, COUNT, GET_SESSION, JOIN_GROUP, LEAVE_GROUP, PHP, SEND_TO_UID, SET_SESSION,
    connection, inner_address, packet,
};
use crate::harness::{Node, rounds};

/// As PHP does it: connect, write, close.
fn say(inner: SocketAddr, packet: &[u8]) {
    TcpStream::connect(inner).unwrap().write_all(packet).unwrap();
}

fn ask(inner: SocketAddr, packet: &[u8]) -> Vec<u8> {
    let mut socket = TcpStream::connect(inner).unwrap();
    socket.write_all(packet).unwrap();
    read_answer(&mut socket)
}

fn read_answer(socket: &mut TcpStream) -> Vec<u8> {
    let mut length = [0; 4];
    socket.read_exact(&mut length).unwrap();
    let mut payload = vec![0; u32::from_be_bytes(length) as usize];
    socket.read_exact(&mut payload).unwrap();
    payload
}

#[tokio::test(flavor = "multi_thread")]
async fn a_command_finds_done_what_was_sent_over_earlier_connections() {
    const CALLERS: usize = 4;
    let rounds = rounds(2000);
    let node = Node::start_with(PHP).await;
    let mut browsers = Vec::new();
    for _ in 0..CALLERS {
        browsers.push(Browser::connect(&node).await);
    }
    // Several applications at once, as the busier the node is, the easier an order is lost.
    let callers = browsers.iter().enumerate().map(|(caller, browser)| {
        let (inner, id) = (inner_address(&browser.id), connection(&browser.id));
        tokio::task::spawn_blocking(move || {
            for round in 0..rounds {
                let name = format!("caller {caller}, round {round}");
                say(inner, &packet(BIND_UID, id, name.as_bytes(), b""));
                say(inner, &packet(SEND_TO_UID, 0, format!("[\"{name}\"]").as_bytes(), name.as_bytes()));
                say(inner, &packet(JOIN_GROUP, id, name.as_bytes(), b""));
                assert_eq!(ask(inner, &packet(COUNT, 0, name.as_bytes(), b"")), b"i:1;", "{name}");
                say(inner, &packet(LEAVE_GROUP, id, name.as_bytes(), b""));
                assert_eq!(ask(inner, &packet(COUNT, 0, name.as_bytes(), b"")), b"i:0;", "{name}");
            }
        })
    });
    for caller in callers.collect::<Vec<_>>() {
        caller.await.unwrap();
    }
    for (caller, browser) in browsers.iter_mut().enumerate() {
        for round in 0..rounds {
            let name = format!("caller {caller}, round {round}").into_bytes();
            assert_eq!(browser.frame().await, Some((1, name)));
        }
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_question_over_one_connection_finds_done_what_was_written_to_another_one() {
    let node = Node::start_with(PHP).await;
    let browser = Browser::connect(&node).await;
    let (inner, id) = (inner_address(&browser.id), connection(&browser.id));
    // As a worker does it: it writes to one, and asks over the other.
    let rounds = tokio::task::spawn_blocking(move || {
        let (mut writes, mut asks) = (TcpStream::connect(inner).unwrap(), TcpStream::connect(inner).unwrap());
        for round in 0..rounds(5000) {
            let session = format!("a:1:{{s:5:\"round\";i:{round};}}").into_bytes();
            writes.write_all(&packet(SET_SESSION, id, &session, b"")).unwrap();
            asks.write_all(&packet(GET_SESSION, id, b"", b"")).unwrap();
            assert_eq!(read_answer(&mut asks), session);
        }
    });
    rounds.await.unwrap();
}

#[tokio::test(flavor = "multi_thread")]
async fn a_burst_of_callers_with_a_key_loses_no_command() {
    const CALLERS: usize = 3_000;
    let node =
        Node::start_with(&[PHP, &[("MOONGATE_SECRET_KEY", "k"), ("MOONGATE_MAX_GROUPS_PER_CLIENT", "10000")]].concat())
            .await;
    let browser = Browser::connect(&node).await;
    let (inner, id) = (inner_address(&browser.id), connection(&browser.id));
    let key = packet(CLIENT_CONNECT, 0, b"", br#"{"secret_key":"k"}"#);
    let groups = tokio::task::spawn_blocking(move || {
        // All are in the kernel's queue before the node may have looked at the first.
        let open: Vec<TcpStream> = (0..CALLERS)
            .map(|number| {
                let mut socket = TcpStream::connect(inner).unwrap();
                let join = packet(JOIN_GROUP, id, format!("g{number}").as_bytes(), b"");
                socket.write_all(&[&key[..], &join].concat()).unwrap();
                socket
            })
            .collect();
        drop(open);
        ask(inner, &[&key[..], &packet(26, 0, b"", b"")].concat())
    });
    let groups = String::from_utf8(groups.await.unwrap()).unwrap();
    assert!(groups.starts_with(&format!("a:{CALLERS}:{{")), "{groups:.60}");
}
