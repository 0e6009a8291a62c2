//! `moongate check`: whether a node could run with these settings, on this machine, with this Redis, and what had better
//! be otherwise.
//!
//! Mistakes are lines on stderr, as at a start, and exit 2. The rest is on stdout: a line for each thing that was looked
//! at, and at the end that the settings are good. Advice keeps nobody from starting. For a program all of it, mistakes
//! too, is one JSON object on stdout.

use std::fmt::Write as _;
use std::io::{IsTerminal as _, Write as _};
use std::net::Ipv4Addr;
use std::process::ExitCode;

use serde_json::json;

use crate::access::Tokens;
use crate::cluster::{self, Finding, Level};
use crate::config::{Config, ConfigErrors, LanListen, PREFIX, RegisterListen};
use crate::edge::tls::Certificates;
use crate::id::LanAddress;

/// The settings are wrong, or a node cannot run with what they name.
pub const EXIT_SETTINGS: u8 = 2;

/// Descriptors that are no client's: listeners, connections to Redis, callers of the API.
const OTHER_FILES: u64 = 200;

/// Without `MAX_CONNECTIONS`, fewer descriptors than this are worth a word.
const MANY_FILES: u64 = 65_536;

/// What a node asks for; the kernel gives no more than it has itself.
const BACKLOG: u64 = 4096;

/// Looks at everything that these settings name, and prints what it found.
pub async fn run(settings: Result<Config, ConfigErrors>, as_json: bool) -> ExitCode {
    let (findings, good) = match settings {
        Ok(config) => look(&config).await,
        Err(ConfigErrors(lines)) => (lines.iter().map(|line| mistake(line)).collect(), String::new()),
    };
    let is_good = findings.iter().all(|finding| finding.level != Level::Error);
    let mut stdout = std::io::stdout();
    let mut said = if as_json {
        json!({"good": is_good, "findings": findings}).to_string() + "\n"
    } else {
        for Finding { about, words, .. } in findings.iter().filter(|finding| finding.level == Level::Error) {
            eprintln!("{about}: {words}");
        }
        lines(&findings, stdout.is_terminal())
    };
    if is_good && !as_json {
        said += &good;
    }
    // Whoever reads no further knows; the exit code says the rest.
    stdout.write_all(said.as_bytes()).and_then(|()| stdout.flush()).ok();
    if is_good { ExitCode::SUCCESS } else { ExitCode::from(EXIT_SETTINGS) }
}

/// What was found, and the line with which it ends where a node can run.
async fn look(config: &Config) -> (Vec<Finding>, String) {
    let (mut findings, mut others) = (Vec::new(), "standalone".to_owned());
    if let Some(Err(error)) = config.tls.as_ref().map(Certificates::load) {
        findings.push(mistake(&error.to_string()));
    }
    if let Some(cluster) = &config.cluster {
        match Box::pin(cluster::check(cluster)).await {
            Ok((place, found)) => {
                others = place;
                findings.extend(found);
            }
            Err(refused) => findings.push(Finding::error(refused.variable, refused.why)),
        }
    }
    if config.clients.tokens.as_ref().is_some_and(Tokens::is_weak) {
        let words = "shorter than 32 bytes: whoever has one token can guess it, and be any uid";
        findings.push(Finding::advice("JWT_SECRET", words));
    }
    findings.extend(machine(config));
    let good = format!("settings are good: clients on {}, API on {}, {others}\n", config.listen, config.api.listen);
    (findings, good)
}

/// A line that begins with its setting, as at a start.
fn mistake(line: &str) -> Finding {
    let (setting, words) = line.split_once(": ").unwrap_or((PREFIX, line));
    Finding::error(setting, words)
}

/// A line for each finding that is no mistake.
fn lines(findings: &[Finding], colour: bool) -> String {
    let width = findings.iter().map(|finding| finding.about.len()).max().unwrap_or_default();
    let mut lines = String::new();
    for Finding { level, about, words } in findings {
        let (level, sequence) = match level {
            Level::Ok => ("ok", "\x1b[32m"),
            Level::Advice => ("advice", "\x1b[33m"),
            Level::Error => continue,
        };
        let (before, after) = if colour { (sequence, "\x1b[0m") } else { ("", "") };
        writeln!(lines, "{before}{level:6}{after}  {about:width$}  {}", crate::ctl::visible(words)).ok();
    }
    lines
}

/// What this machine, or this container, would keep a node from.
fn machine(config: &Config) -> Vec<Finding> {
    let mut findings = Vec::new();
    if let Ok((_, hard)) = rlimit::getrlimit(rlimit::Resource::NOFILE) {
        findings.push(open_files(hard, config.clients.max_connections.map(|most| u64::from(most.get()))));
    }
    // Other systems have neither.
    let read = |file| std::fs::read_to_string(format!("/proc/sys/net/{file}")).ok();
    findings.extend(read("core/somaxconn").and_then(|value| Some(backlog(value.trim().parse().ok()?))));
    if let Some(given) = read("ipv4/ip_local_port_range") {
        findings.extend(ports(&listened(config), &given, &read("ipv4/ip_local_reserved_ports").unwrap_or_default()));
    }
    findings
}

/// A node raises its soft limit to the hard one, so this is what counts.
fn open_files(hard: u64, max_connections: Option<u64>) -> Finding {
    let about = "open files";
    let how = "LimitNOFILE of systemd, ulimits in Compose";
    match max_connections {
        Some(most) if hard < most.saturating_add(OTHER_FILES) => Finding::advice(
            about,
            format!(
                "{hard}: not enough for MAX_CONNECTIONS={most}, as each client is one, and a node takes some ({how})"
            ),
        ),
        None if hard < MANY_FILES => {
            Finding::advice(about, format!("{hard}: not more clients than that, as each is one ({how})"))
        }
        _ => Finding::ok(about, format!("{hard}, of which each client is one")),
    }
}

fn backlog(most: u64) -> Finding {
    let about = "net.core.somaxconn";
    if most < BACKLOG {
        let words =
            format!("{most}: where many connect at once, more of them have to try again; sysctl {about}={BACKLOG}");
        Finding::advice(about, words)
    } else {
        Finding::ok(about, most.to_string())
    }
}

/// The ports of listeners, each with its setting.
fn listened(config: &Config) -> Vec<(&'static str, u16)> {
    let mut listened = vec![("LISTEN", config.listen.port()), ("API_LISTEN", config.api.listen.port())];
    listened.extend(
        config
            .streams
            .iter()
            .map(|stream| (stream.variable.strip_prefix(PREFIX).unwrap_or(stream.variable), stream.listen.port())),
    );
    // Of an address that is found at the start only the port is known.
    let lan = LanAddress { ip: config.lan.ip.unwrap_or(Ipv4Addr::LOCALHOST), port: config.lan.port };
    if let Some(address) = config.php.lan_listen(lan) {
        let is_set = matches!(config.php.lan_listen, LanListen::At(_));
        listened.push((if is_set { "LAN_LISTEN" } else { "LAN_PORT" }, address.port()));
    }
    if let RegisterListen::At(address) | RegisterListen::Usual(address) = config.php.register_listen {
        listened.push(("REGISTER_LISTEN", address.port()));
    }
    listened
}

/// A port that the kernel gives to anybody's outgoing connection may be taken when a node starts.
fn ports(listened: &[(&str, u16)], given: &str, reserved: &str) -> Option<Finding> {
    let mut given = given.split_ascii_whitespace().map(str::parse::<u16>);
    let given = given.next()?.ok()?..=given.next()?.ok()?;
    let is_reserved = |port: u16| {
        reserved.trim().split(',').any(|range| {
            let (first, last) = range.split_once('-').unwrap_or((range, range));
            matches!((first.parse::<u16>(), last.parse::<u16>()), (Ok(first), Ok(last)) if (first..=last).contains(&port))
        })
    };
    let open: Vec<_> = listened.iter().filter(|(_, port)| given.contains(port) && !is_reserved(*port)).collect();
    if open.is_empty() {
        return None;
    }
    let list = open.iter().map(|(name, port)| format!("{name} ({port})")).collect::<Vec<_>>().join(", ");
    // What is said there takes the place of what was.
    let mut all: Vec<String> =
        reserved.trim().split(',').filter(|range| !range.is_empty()).map(str::to_owned).collect();
    for port in open.iter().map(|(_, port)| port.to_string()) {
        if !all.contains(&port) {
            all.push(port);
        }
    }
    let all = all.join(",");
    Some(Finding::advice(
        "ports",
        format!(
            "{list}: within net.ipv4.ip_local_port_range, so a connection of any program may have it when the node starts; sysctl net.ipv4.ip_local_reserved_ports={all}, or another port"
        ),
    ))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn open_files_are_enough_for_the_clients_that_may_come() {
        for (hard, most, level) in [
            (1_048_576, None, Level::Ok),
            (u64::MAX, Some(u64::MAX), Level::Ok),
            (1024, None, Level::Advice),
            (1024, Some(500), Level::Ok),
            (10_000, Some(9_900), Level::Advice),
            (100_000, Some(90_000), Level::Ok),
        ] {
            assert_eq!(open_files(hard, most).level, level, "{hard} {most:?}");
        }
        assert_eq!(backlog(128).level, Level::Advice);
        assert_eq!(backlog(4096).level, Level::Ok);
    }

    #[test]
    fn a_port_that_anybody_may_be_given_is_told_unless_it_is_reserved() {
        let listened = [("LISTEN", 40_000), ("API_LISTEN", 7273), ("TEXT_LISTEN", 50_000), ("TCP_LISTEN", 0)];
        let found = |reserved: &str| ports(&listened, "32768\t60999\n", reserved).map(|finding| finding.words);
        let words = found("\n").unwrap();
        assert!(words.starts_with("LISTEN (40000), TEXT_LISTEN (50000): "), "{words}");
        assert!(words.contains("ip_local_reserved_ports=40000,50000, or"), "{words}");
        let words = found("1238,2900,39999-40001\n").unwrap();
        assert!(words.starts_with("TEXT_LISTEN (50000): "), "{words}");
        // The list as a whole: what is reserved already stays so.
        assert!(words.contains("ip_local_reserved_ports=1238,2900,39999-40001,50000, or"), "{words}");
        let twice = [("LISTEN", 40_000), ("API_LISTEN", 40_000)];
        let words = ports(&twice, "32768 60999", "").unwrap().words;
        assert!(words.contains("ip_local_reserved_ports=40000, or"), "{words}");
        assert_eq!(found("40000,50000"), None);
        assert_eq!(ports(&[("LISTEN", 7272)], "32768 60999", ""), None);
        assert_eq!(ports(&listened, "strange", ""), None);
    }

    #[test]
    fn every_port_that_a_node_listens_on_is_looked_at() {
        let of = |settings: &[(&str, &str)]| {
            let settings = settings.iter().map(|(name, value)| (format!("{PREFIX}{name}").into(), (*value).into()));
            listened(&Config::read(settings).unwrap())
        };
        let usual = [("LISTEN", 7272), ("API_LISTEN", 7273), ("LAN_PORT", 2900), ("REGISTER_LISTEN", 1238)];
        assert_eq!(of(&[]), usual);
        let set = [
            ("LISTEN", "127.0.0.1:1"),
            ("API_LISTEN", "127.0.0.1:2"),
            ("TEXT_LISTEN", "127.0.0.1:3"),
            ("FRAME_LISTEN", "127.0.0.1:4"),
            ("TCP_LISTEN", "127.0.0.1:5"),
            ("LAN_LISTEN", "127.0.0.1:6"),
            ("REGISTER_LISTEN", "127.0.0.1:7"),
        ];
        assert_eq!(of(&set), set.map(|(name, address)| (name, address.rsplit(':').next().unwrap().parse().unwrap())));
        let off = [("LAN_LISTEN", "off"), ("REGISTER_LISTEN", "off")];
        assert_eq!(of(&off), usual[..2]);
    }

    #[test]
    fn findings_are_aligned_and_coloured_for_a_terminal_only() {
        let findings = [Finding::ok("timeout", "0"), Finding::advice("open files", "1024\u{1b}[2J: few")];
        assert_eq!(lines(&findings, false), "ok      timeout     0\nadvice  open files  1024\u{fffd}[2J: few\n");
        assert!(lines(&findings, true).starts_with("\x1b[32mok    \x1b[0m  timeout"));
    }
}
