//! Just enough HTTP/1.1 for the gateway's API: requests with a JSON body, answers with a `Content-Length`.

use std::io::{Read, Write};
use std::net::{SocketAddr, TcpStream, ToSocketAddrs};
use std::time::Duration;

use crate::{PATIENCE, Result, socket};

/// Where and how to reach an API.
#[derive(Debug, Clone)]
pub(crate) struct Api {
    /// Address to connect to.
    pub(crate) address: SocketAddr,
    /// Bearer token, if the API asks for one.
    pub(crate) token: Option<String>,
}

impl Api {
    /// Appends `POST /api/<op>` with `body` to `out`.
    pub(crate) fn post(&self, out: &mut Vec<u8>, op: &str, body: &[u8]) {
        out.extend_from_slice(b"POST /api/");
        out.extend_from_slice(op.as_bytes());
        out.extend_from_slice(b" HTTP/1.1\r\nHost: ");
        out.extend_from_slice(self.address.to_string().as_bytes());
        if let Some(token) = &self.token {
            out.extend_from_slice(b"\r\nAuthorization: Bearer ");
            out.extend_from_slice(token.as_bytes());
        }
        out.extend_from_slice(b"\r\nContent-Type: application/json\r\nContent-Length: ");
        out.extend_from_slice(body.len().to_string().as_bytes());
        out.extend_from_slice(b"\r\n\r\n");
        out.extend_from_slice(body);
    }

    /// Asks `GET /readyz`, which has a second to answer 200; what it did instead is the error.
    pub(crate) fn ready(&self) -> Result<()> {
        let mut stream = TcpStream::connect_timeout(&self.address, Duration::from_secs(1))?;
        stream.set_read_timeout(Some(Duration::from_secs(1)))?;
        write!(stream, "GET /readyz HTTP/1.1\r\nHost: {}\r\nConnection: close\r\n\r\n", self.address)?;
        let mut input = [0; 16];
        stream.read_exact(input.get_mut(..13).unwrap_or_default())?;
        match status(&input) {
            Some(200) => Ok(()),
            Some(status) => Err(format!("{status}").into()),
            None => Err("what answers there speaks no HTTP".into()),
        }
    }
}

/// A kept connection to the API that waits for each answer; for setting up, not for measuring.
#[derive(Debug)]
pub(crate) struct Caller {
    api: Api,
    stream: TcpStream,
}

impl Caller {
    /// Connects.
    pub(crate) fn new(api: &Api) -> Result<Self> {
        let stream = TcpStream::connect_timeout(&api.address, PATIENCE)
            .map_err(|error| format!("the API, http://{}: {}", api.address, socket::explained(&error)))?;
        stream.set_nodelay(true)?;
        stream.set_read_timeout(Some(Duration::from_secs(35)))?;
        Ok(Self { api: api.clone(), stream })
    }

    /// Runs JSON commands (ready texts) as batches of at most 1,000 and makes sure that every one succeeded.
    pub(crate) fn batch(&mut self, commands: &[String]) -> Result<()> {
        for chunk in commands.chunks(1000) {
            let body = format!("{{\"commands\":[{}]}}", chunk.join(","));
            self.ask("batch", &body, |answer| check_batch(answer, chunk.len()))?;
        }
        Ok(())
    }

    /// How many clients the gateway has, on all nodes.
    pub(crate) fn clients(&mut self) -> Result<u64> {
        self.ask("getAllClientIdCount", "{}", |answer| {
            let value: serde_json::Value = serde_json::from_slice(answer.body)?;
            let count = value.get("result").and_then(serde_json::Value::as_u64);
            count.ok_or_else(|| format!("POST /api/getAllClientIdCount: {}", answer.words()).into())
        })
    }

    fn ask<T>(&mut self, op: &str, body: &str, read: impl FnOnce(&Answer<'_>) -> Result<T>) -> Result<T> {
        let mut out = Vec::new();
        self.api.post(&mut out, op, body.as_bytes());
        self.stream.write_all(&out)?;
        let mut input = Vec::new();
        let mut buffer = [0; 16 * 1024];
        loop {
            let count = self.stream.read(&mut buffer).map_err(|error| format!("POST /api/{op}: {error}"))?;
            if count == 0 {
                return Err(format!("POST /api/{op}: the server closed the connection").into());
            }
            input.extend_from_slice(buffer.get(..count).unwrap_or_default());
            if let Some(answer) = answer(&input)? {
                return read(&answer);
            }
        }
    }
}

fn check_batch(answer: &Answer<'_>, commands: usize) -> Result<()> {
    if answer.status != 200 {
        return Err(format!("POST /api/batch: {}", answer.words()).into());
    }
    let value: serde_json::Value = serde_json::from_slice(answer.body)?;
    let results = value.get("results").and_then(|results| results.as_array());
    let results = results.ok_or("POST /api/batch: no `results` in the answer")?;
    if results.len() != commands {
        return Err(format!("POST /api/batch: {} results for {commands} commands", results.len()).into());
    }
    match results.iter().find(|result| result.get("result").is_none()) {
        Some(failed) => Err(format!("POST /api/batch: {failed}").into()),
        None => Ok(()),
    }
}

/// An answer at the front of a buffer.
#[derive(Debug)]
pub(crate) struct Answer<'a> {
    /// Of the status line.
    pub(crate) status: u16,
    /// As long as `Content-Length` says.
    pub(crate) body: &'a [u8],
    /// Bytes of head and body together.
    pub(crate) length: usize,
}

impl Answer<'_> {
    /// Status and body for an error message, shortened.
    pub(crate) fn words(&self) -> String {
        let body = self.body.get(..300).unwrap_or(self.body);
        format!("HTTP {} {}", self.status, String::from_utf8_lossy(body))
    }
}

/// The answer at the front of `input`, `None` while it is incomplete.
pub(crate) fn answer(input: &[u8]) -> Result<Option<Answer<'_>>> {
    let Some(end) = head_end(input) else {
        return if input.len() > 64 * 1024 { Err("an answer's head of more than 64 KiB".into()) } else { Ok(None) };
    };
    let (head, rest) = input.split_at_checked(end).unwrap_or_default();
    let status = status(head).ok_or_else(|| format!("no HTTP answer: {}", String::from_utf8_lossy(head)))?;
    let length = header(head, "content-length").ok_or("an answer without Content-Length")?;
    let length: usize = length.parse().map_err(|_| format!("Content-Length: {length}"))?;
    Ok(rest.get(..length).map(|body| Answer { status, body, length: end + length }))
}

/// Where the empty line ends, if it is there.
pub(crate) fn head_end(input: &[u8]) -> Option<usize> {
    input.windows(4).position(|bytes| bytes == b"\r\n\r\n").map(|at| at + 4)
}

/// Status code of an answer's head.
pub(crate) fn status(head: &[u8]) -> Option<u16> {
    let code = head.strip_prefix(b"HTTP/1.1 ")?.get(..3)?;
    std::str::from_utf8(code).ok()?.parse().ok()
}

/// Value of the header `name` (in lower case) in `head`.
pub(crate) fn header<'a>(head: &'a [u8], name: &str) -> Option<&'a str> {
    head.split(|&byte| byte == b'\n').find_map(|line| {
        let (key, value) = std::str::from_utf8(line).ok()?.split_once(':')?;
        key.eq_ignore_ascii_case(name).then(|| value.trim())
    })
}

/// Reads `scheme://host:port` or `host:port`; gives the address.
pub(crate) fn address(scheme: &str, url: &str) -> Result<SocketAddr> {
    let wanted = |why: &str| format!("{url}: {scheme}://host:port is wanted{why}");
    let (named, rest) = url.split_once("://").unwrap_or((scheme, url));
    let host = rest.strip_suffix('/').unwrap_or(rest);
    if named != scheme || host.contains('/') {
        return Err(wanted(", and no path").into());
    }
    let mut found = host.to_socket_addrs().map_err(|error| wanted(&format!("; {error}")))?;
    found.next().ok_or_else(|| wanted(", there is no such address").into())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn answers_whole_and_cut() {
        let input = b"HTTP/1.1 200 OK\r\ncontent-LENGTH: 5\r\n\r\nhelloHTTP";
        for cut in 0..input.len() - 4 {
            assert!(answer(&input[..cut]).unwrap().is_none(), "cut at {cut}");
        }
        let answer = answer(input).unwrap().unwrap();
        assert_eq!((answer.status, answer.body, answer.length), (200, &b"hello"[..], input.len() - 4));
    }

    #[test]
    fn answers_that_are_none() {
        assert!(answer(b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n").is_err());
        assert!(answer(b"SSH-2.0\r\n\r\n").is_err());
    }

    #[test]
    fn batches_are_checked() {
        let check =
            |status, body: &str, commands| check_batch(&Answer { status, body: body.as_bytes(), length: 0 }, commands);
        assert!(check(200, r#"{"results":[{"result":true},{"result":{"nodes":1}}]}"#, 2).is_ok());
        assert!(check(200, r#"{"results":[{"result":true}]}"#, 2).is_err());
        let error = check(200, r#"{"results":[{"error":{"code":"client_not_found"}}]}"#, 1).unwrap_err();
        assert!(error.to_string().contains("client_not_found"));
        assert!(check(401, "{}", 1).is_err());
    }

    #[test]
    fn an_api_that_is_not_there_is_named() {
        let (_reserved, gone) = crate::process::reserve_port().unwrap();
        let error = Caller::new(&Api { address: gone, token: None }).unwrap_err().to_string();
        assert!(error.starts_with(&format!("the API, http://{gone}: ")), "{error}");
    }

    #[test]
    fn urls() {
        let expected: SocketAddr = "127.0.0.1:7272".parse().unwrap();
        for url in ["ws://127.0.0.1:7272", "ws://127.0.0.1:7272/", "127.0.0.1:7272"] {
            assert_eq!(address("ws", url).unwrap(), expected);
        }
        for refused in ["ws://127.0.0.1", "wss://127.0.0.1:7272", "http://127.0.0.1:7272", "ws://127.0.0.1:7272/path"] {
            assert!(address("ws", refused).is_err(), "{refused}");
        }
    }
}
