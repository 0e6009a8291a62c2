//! The gateway under test: a child process or one that runs already; and the kernel's accounting of any process.

use std::fs::File;
use std::net::{Ipv4Addr, SocketAddr, TcpListener};
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::sync::Arc;
use std::time::{Duration, Instant};

use clap::Args;
use rustix::process::{Pid, Resource, Rlimit, Signal};
use rustix::thread::CpuSet;
use rustls::ClientConfig;
use tempfile::TempDir;

use crate::certificate::Certificate;
use crate::http::{self, Api};
use crate::{PATIENCE, Result};

/// Which gateway to test.
#[derive(Debug, Args)]
pub(crate) struct TargetArgs {
    /// Start this gateway for the run: on free ports, without heartbeats (`MOONGATE_PING_INTERVAL=0s`)
    #[arg(long, value_name = "PATH", conflicts_with_all = ["ws", "api"])]
    spawn: Option<PathBuf>,
    /// One more variable for the started gateway; may be repeated, and wins over ours
    #[arg(long, value_name = "KEY=VALUE", requires = "spawn")]
    env: Vec<String>,
    /// The started gateway speaks wss, with a certificate made for the run; modes that publish run the same against a
    /// plain one, in turn
    #[arg(long)]
    tls: bool,
    /// A running gateway instead: where clients connect; may be repeated for several nodes
    #[arg(long, value_name = "URL", requires = "api")]
    ws: Vec<String>,
    /// Its HTTP API
    #[arg(long, value_name = "URL", requires = "ws")]
    api: Option<String>,
    /// Bearer token of the API; a started gateway gets it too
    #[arg(long)]
    token: Option<String>,
    /// Process whose CPU and memory count as the server's; may be repeated, and adds to a started gateway (its Redis)
    #[arg(long)]
    pid: Vec<u32>,
}

/// A gateway that answers.
#[derive(Debug)]
pub(crate) struct Target {
    /// Where clients connect.
    pub(crate) clients: Vec<SocketAddr>,
    /// Whose certificate they trust, when they speak TLS.
    pub(crate) trust: Option<Arc<ClientConfig>>,
    /// Where publishing happens.
    pub(crate) api: Api,
    /// What its processes use.
    pub(crate) meter: Meter,
    gateway: Option<Gateway>,
}

impl TargetArgs {
    /// Whether TLS was asked for; refuses it for gateways that are not ours.
    pub(crate) fn tls(&self) -> Result<bool> {
        if self.tls && self.spawn.is_none() {
            return Err(
                "--tls: only with --spawn, as the gateway has to show the certificate that the tester makes".into()
            );
        }
        if self.tls && !self.pid.is_empty() {
            return Err(
                "--tls: not with --pid, as the process would count for the gateway over TLS and for the plain one"
                    .into(),
            );
        }
        Ok(self.tls)
    }

    /// Starts (with `tls`, as one that speaks wss) or finds the gateway and waits until it is ready; `None` when none was
    /// named.
    pub(crate) fn open(&self, tls: bool) -> Result<Option<Target>> {
        let mut pids = self.pid.clone();
        let certificate = if tls { Some(Certificate::issue()?) } else { None };
        let trust = certificate.as_ref().map(Certificate::trust).transpose()?;
        let (clients, api, gateway) = if let Some(path) = &self.spawn {
            let (clients, api) = (free_port()?, free_port()?);
            let gateway = Gateway::start(path, clients, api, self.token.as_deref(), &self.env, certificate.as_ref())?;
            pids.push(gateway.child.id());
            (vec![clients], api, Some(gateway))
        } else if let Some(api) = &self.api {
            let clients = self.ws.iter().map(|url| http::address(url)).collect::<Result<Vec<_>>>()?;
            (clients, http::address(api)?, None)
        } else {
            return Ok(None);
        };
        let api = Api { address: api, token: self.token.clone() };
        let mut target = Target { clients, trust, api, meter: Meter { pids }, gateway };
        target.await_ready()?;
        Ok(Some(target))
    }
}

impl Target {
    fn await_ready(&mut self) -> Result<()> {
        let deadline = Instant::now() + PATIENCE;
        while !self.api.ready() {
            crate::interrupted()?;
            if let Some(gateway) = &mut self.gateway {
                gateway.check()?;
            }
            if Instant::now() > deadline {
                return Err(format!("http://{}/readyz: not 200 within {PATIENCE:?}", self.api.address).into());
            }
            std::thread::sleep(Duration::from_millis(20));
        }
        Ok(())
    }
}

fn free_port() -> Result<SocketAddr> {
    Ok(TcpListener::bind((Ipv4Addr::LOCALHOST, 0))?.local_addr()?)
}

/// Name of its log in its directory.
const LOG: &str = "gateway.log";

/// A gateway as a child process, stopped with this value.
#[derive(Debug)]
struct Gateway {
    child: Child,
    /// Its log and, with TLS, the files of its certificate.
    directory: TempDir,
}

impl Gateway {
    fn start(
        path: &Path,
        ws: SocketAddr,
        api: SocketAddr,
        token: Option<&str>,
        env: &[String],
        certificate: Option<&Certificate>,
    ) -> Result<Self> {
        let directory = tempfile::Builder::new().prefix("loadtest-").tempdir()?;
        let output = File::create(directory.path().join(LOG))?;
        let mut command = Command::new(path);
        command
            .env("MOONGATE_LISTEN", ws.to_string())
            .env("MOONGATE_API_LISTEN", api.to_string())
            .env("MOONGATE_PING_INTERVAL", "0s")
            .env("MOONGATE_DRAIN", "0s")
            .stdin(Stdio::null())
            .stdout(output.try_clone()?)
            .stderr(output);
        if let Some(certificate) = certificate {
            let (cert, key) = (directory.path().join("tls.crt"), directory.path().join("tls.key"));
            certificate.write(&cert, &key)?;
            command.env("MOONGATE_TLS_CERT", cert).env("MOONGATE_TLS_KEY", key);
        }
        if let Some(token) = token {
            command.env("MOONGATE_API_TOKEN", token);
        }
        for pair in env {
            let (key, value) = pair.split_once('=').ok_or_else(|| format!("--env {pair}: KEY=VALUE is wanted"))?;
            command.env(key, value);
        }
        let child = command.spawn().map_err(|error| format!("{}: {error}", path.display()))?;
        Ok(Self { child, directory })
    }

    /// Fails, with its last words, when it has ended.
    fn check(&mut self) -> Result<()> {
        let Some(status) = self.child.try_wait()? else {
            return Ok(());
        };
        let log = std::fs::read_to_string(self.directory.path().join(LOG)).unwrap_or_default();
        let skip = log.lines().count().saturating_sub(20);
        let last: Vec<&str> = log.lines().skip(skip).collect();
        Err(format!("the gateway ended ({status}):\n{}", last.join("\n")).into())
    }
}

impl Drop for Gateway {
    fn drop(&mut self) {
        if let Some(pid) = Pid::from_raw(self.child.id().cast_signed()) {
            rustix::process::kill_process(pid, Signal::TERM).ok();
        }
        let deadline = Instant::now() + Duration::from_secs(5);
        while matches!(self.child.try_wait(), Ok(None)) && Instant::now() < deadline {
            std::thread::sleep(Duration::from_millis(10));
        }
        self.child.kill().ok();
        self.child.wait().ok();
    }
}

/// CPU time in microseconds.
#[derive(Debug, Default, Clone, Copy)]
pub(crate) struct Cpu {
    /// In user space.
    pub(crate) user: u64,
    /// In the kernel, on behalf of the process.
    pub(crate) system: u64,
}

impl Cpu {
    /// Both.
    pub(crate) fn total(self) -> u64 {
        self.user + self.system
    }

    /// What was used since `before`.
    pub(crate) fn since(self, before: Self) -> Self {
        Self { user: self.user.saturating_sub(before.user), system: self.system.saturating_sub(before.system) }
    }
}

/// Reads the accounting of some processes together, as the kernel keeps it under `/proc`.
#[derive(Debug, Clone)]
pub(crate) struct Meter {
    /// The processes; none means that nothing can be said.
    pub(crate) pids: Vec<u32>,
}

impl Meter {
    /// CPU time so far, ended threads included, in steps of a clock tick (10 ms on most machines).
    pub(crate) fn cpu(&self) -> Result<Cpu> {
        let mut sum = Cpu::default();
        for pid in &self.pids {
            let cpu = read_cpu(&format!("/proc/{pid}/stat"))?;
            sum.user += cpu.user;
            sum.system += cpu.system;
        }
        Ok(sum)
    }

    /// Resident memory in bytes. The kernel's own memory for sockets is no part of it.
    pub(crate) fn resident(&self) -> Result<u64> {
        let mut sum = 0;
        for pid in &self.pids {
            // smaps_rollup walks the page tables, while VmRSS may lag by some pages per thread
            let exact = std::fs::read_to_string(format!("/proc/{pid}/smaps_rollup")).ok();
            let exact = exact.as_deref().and_then(|text| kilobytes(text, "Rss:"));
            sum += match exact {
                Some(bytes) => bytes,
                None => kilobytes(&read(&format!("/proc/{pid}/status"))?, "VmRSS:").ok_or("no VmRSS in /proc")?,
            };
        }
        Ok(sum)
    }

    /// Makes sure that each process may open `needed` descriptors.
    pub(crate) fn check_descriptors(&self, needed: u64) -> Result<()> {
        for pid in &self.pids {
            let limits = read(&format!("/proc/{pid}/limits"))?;
            let soft = limits.lines().find_map(|line| line.strip_prefix("Max open files")?.split_whitespace().next());
            if let Some(soft) = soft.and_then(|soft| soft.parse::<u64>().ok())
                && soft < needed
            {
                let words = "raise it (`ulimit -n`, LimitNOFILE) or ask for fewer --clients";
                return Err(
                    format!("the server (process {pid}) may open {soft} files, {needed} are needed: {words}").into()
                );
            }
        }
        Ok(())
    }
}

/// CPU time of this process.
pub(crate) fn own_cpu() -> Result<Cpu> {
    read_cpu("/proc/self/stat")
}

/// CPU time of a thread of this process.
pub(crate) fn thread_cpu(thread: i32) -> Result<Cpu> {
    read_cpu(&format!("/proc/self/task/{thread}/stat"))
}

fn read(path: &str) -> Result<String> {
    std::fs::read_to_string(path).map_err(|error| format!("{path}: {error}").into())
}

fn read_cpu(path: &str) -> Result<Cpu> {
    let (user, system) = ticks(&read(path)?).ok_or_else(|| format!("{path}: not understood"))?;
    let micros = 1_000_000 / rustix::param::clock_ticks_per_second().max(1);
    Ok(Cpu { user: user * micros, system: system * micros })
}

/// Fields 14 and 15 of proc(5)'s `stat`; the second field, a name in parentheses, may hold anything.
fn ticks(stat: &str) -> Option<(u64, u64)> {
    let (_, rest) = stat.rsplit_once(')')?;
    let mut fields = rest.split_whitespace().skip(11);
    Some((fields.next()?.parse().ok()?, fields.next()?.parse().ok()?))
}

/// The value of a line such as `Rss:   1836 kB`, in bytes.
fn kilobytes(text: &str, key: &str) -> Option<u64> {
    let value = text.lines().find_map(|line| line.strip_prefix(key))?;
    Some(value.split_whitespace().next()?.parse::<u64>().ok()? * 1024)
}

/// Raises our own limit of descriptors as far as allowed (children inherit it), and fails with words when `needed` is more.
pub(crate) fn raise_descriptors(needed: u64) -> Result<()> {
    let limit = rustix::process::getrlimit(Resource::Nofile);
    if limit.current.is_some_and(|soft| soft < needed) {
        rustix::process::setrlimit(Resource::Nofile, Rlimit { current: limit.maximum, maximum: limit.maximum }).ok();
    }
    match rustix::process::getrlimit(Resource::Nofile).current {
        Some(soft) if soft < needed => Err(format!(
            "the tester may open {soft} files, {needed} are needed (one for each client of each server under test): \
             raise the hard limit (`ulimit -Hn`) or ask for fewer --clients"
        )
        .into()),
        _ => Ok(()),
    }
}

/// Which processors servers and tester may use.
#[derive(Debug)]
pub(crate) struct Pin {
    servers: CpuSet,
    tester: CpuSet,
}

impl Pin {
    /// The last of our processors for the tester, all others for the servers.
    pub(crate) fn new() -> Result<Self> {
        let all = rustix::thread::sched_getaffinity(None)?;
        let last = (0..CpuSet::MAX_CPU).rev().find(|&cpu| all.is_set(cpu));
        let last = last.filter(|_| all.count() > 1).ok_or("--pin: at least two processors are needed")?;
        let (mut servers, mut tester) = (all, CpuSet::new());
        servers.unset(last);
        tester.set(last);
        Ok(Self { servers, tester })
    }

    /// For this thread and the processes that it starts from now on.
    pub(crate) fn as_server(&self) -> Result<()> {
        Ok(rustix::thread::sched_setaffinity(None, &self.servers)?)
    }

    /// For this thread and the threads that it starts from now on.
    pub(crate) fn as_tester(&self) -> Result<()> {
        Ok(rustix::thread::sched_setaffinity(None, &self.tester)?)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn accounting_is_read() {
        let stat = "7 (a ) b (c) S 1 2 3 4 5 6 7 8 9 10 1234 567 20 0 1 0 93443 313344";
        assert_eq!(ticks(stat), Some((1234, 567)));
        assert_eq!(ticks("7 (short) S 1"), None);
        assert_eq!(kilobytes("Size: 5 kB\nRss:            1836 kB\nPss: 1 kB\n", "Rss:"), Some(1836 * 1024));
    }

    #[test]
    fn tls_is_for_gateways_of_our_own() {
        use clap::Parser as _;
        #[derive(clap::Parser)]
        struct Line {
            #[command(flatten)]
            target: TargetArgs,
        }
        let tls = |line: &str| Line::parse_from(format!("loadtest {line}").split(' ')).target.tls();
        assert!(tls("--spawn moongate --tls").unwrap() && !tls("--spawn moongate --pid 7").unwrap());
        let refused = |line| tls(line).unwrap_err().to_string().starts_with("--tls: ");
        assert!(refused("--tls"));
        assert!(refused("--ws 127.0.0.1:1 --api 127.0.0.1:2 --pid 7 --tls"));
        assert!(refused("--spawn moongate --pid 7 --tls"));
    }

    #[test]
    fn this_process_is_measured() {
        let meter = Meter { pids: vec![std::process::id()] };
        assert!(meter.resident().unwrap() > 100_000);
        assert!(meter.cpu().is_ok() && own_cpu().is_ok());
        assert!(meter.check_descriptors(1).is_ok());
        assert!(meter.check_descriptors(u64::MAX).is_err());
    }
}
