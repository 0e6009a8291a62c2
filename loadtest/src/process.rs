//! Processes: children that end with the value that holds them, the kernel's accounting of any, and where they may run.

use std::fs::File;
use std::net::{Ipv4Addr, SocketAddr};
use std::process::{Child, Command, Stdio};
use std::time::{Duration, Instant};

use rustix::process::{Pid, Resource, Rlimit, Signal};
use rustix::thread::CpuSet;
use socket2::{Domain, Socket, Type};
use tempfile::TempDir;

use crate::Result;

/// Name of its log in its directory.
const LOG: &str = "log";

/// A child process, stopped with this value.
#[derive(Debug)]
pub(crate) struct Process {
    name: &'static str,
    child: Child,
    /// Its log, and whatever else it was given.
    directory: TempDir,
}

impl Process {
    /// A directory for a process to be.
    pub(crate) fn directory() -> Result<TempDir> {
        Ok(tempfile::Builder::new().prefix("loadtest-").tempdir()?)
    }

    /// Starts it; `name` is for error messages.
    pub(crate) fn start(name: &'static str, command: &mut Command, directory: TempDir) -> Result<Self> {
        let output = File::create(directory.path().join(LOG))?;
        command.stdin(Stdio::null()).stdout(output.try_clone()?).stderr(output);
        let child = command.spawn();
        let child = child.map_err(|error| format!("{}: {error}", command.get_program().to_string_lossy()))?;
        Ok(Self { name, child, directory })
    }

    /// Its id.
    pub(crate) fn id(&self) -> u32 {
        self.child.id()
    }

    /// Fails, with its last words, when it has ended.
    pub(crate) fn check(&mut self) -> Result<()> {
        let Some(status) = self.child.try_wait()? else {
            return Ok(());
        };
        let log = std::fs::read_to_string(self.directory.path().join(LOG)).unwrap_or_default();
        let skip = log.lines().count().saturating_sub(20);
        let last: Vec<&str> = log.lines().skip(skip).collect();
        Err(format!("{} ended ({status}):\n{}", self.name, last.join("\n")).into())
    }
}

impl Drop for Process {
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

/// A loopback address for one to listen at that takes it with `SO_REUSEADDR`, as servers do. Until the socket is closed, the
/// kernel gives the port to nobody who takes any, not even to an outgoing connection.
pub(crate) fn reserve_port() -> Result<(Socket, SocketAddr)> {
    let socket = Socket::new(Domain::IPV4, Type::STREAM, None)?;
    socket.set_reuse_address(true)?;
    socket.bind(&SocketAddr::from((Ipv4Addr::LOCALHOST, 0)).into())?;
    let address = socket.local_addr()?.as_socket().ok_or("a port was taken, and has no address")?;
    Ok((socket, address))
}

/// CPU time in microseconds.
#[derive(Debug, Default, Clone, Copy, PartialEq, Eq)]
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

    /// Open descriptors.
    pub(crate) fn descriptors(&self) -> Result<u64> {
        let count = |pid| -> Result<u64> {
            let path = format!("/proc/{pid}/fd");
            Ok(std::fs::read_dir(&path).map_err(|error| format!("{path}: {error}"))?.count() as u64)
        };
        self.pids.iter().map(count).sum()
    }

    /// Threads.
    pub(crate) fn threads(&self) -> Result<u64> {
        let count = |pid| -> Result<u64> {
            let status = read(&format!("/proc/{pid}/status"))?;
            let value = status.lines().find_map(|line| line.strip_prefix("Threads:"));
            Ok(value.ok_or("no Threads in /proc")?.trim().parse()?)
        };
        self.pids.iter().map(count).sum()
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

/// Kernel id of the calling thread.
pub(crate) fn own_thread() -> i32 {
    rustix::thread::gettid().as_raw_nonzero().get()
}

/// CPU time of the calling thread, µs.
pub(crate) fn own_thread_cpu() -> Result<u64> {
    Ok(thread_cpu(own_thread())?.total())
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
    fn this_process_is_measured() {
        let meter = Meter { pids: vec![std::process::id()] };
        assert!(meter.resident().unwrap() > 100_000);
        assert!(meter.cpu().is_ok() && own_cpu().is_ok());
        assert!(meter.descriptors().unwrap() > 2 && meter.threads().unwrap() > 0);
        assert!(meter.check_descriptors(1).is_ok());
        assert!(meter.check_descriptors(u64::MAX).is_err());
    }

    #[test]
    fn a_child_ends_with_its_value_or_tells_its_last_words() {
        let start = |script| {
            Process::start("sh", Command::new("sh").args(["-c", script]), Process::directory().unwrap()).unwrap()
        };
        let mut child = start("sleep 60");
        child.check().unwrap();
        let stat = format!("/proc/{}", child.id());
        drop(child);
        assert!(!std::path::Path::new(&stat).exists());
        let mut child = start("echo no such luck; exit 3");
        child.child.wait().unwrap();
        let error = child.check().unwrap_err().to_string();
        assert!(error.contains("exit status: 3") && error.contains("no such luck"), "{error}");
    }
}
