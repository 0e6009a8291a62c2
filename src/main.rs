//! Command line, settings, log, run until a signal; nothing else.

use std::io::IsTerminal as _;
use std::process::ExitCode;

use clap::{Parser, Subcommand};
use moongate::access::Tokens;
use moongate::check::EXIT_SETTINGS;
use moongate::config::{CallerConfig, Config, LogConfig, LogFormat};
use moongate::server::{Ended, Server, StartError};
use moongate::{check, ctl};
use tokio::signal::unix::{SignalKind, signal};
use tokio_util::sync::CancellationToken;
use tracing_subscriber::EnvFilter;
use tracing_subscriber::filter::LevelFilter;

#[cfg(feature = "jemalloc")]
mod allocator {
    #[global_allocator]
    static ALLOCATOR: tikv_jemallocator::Jemalloc = tikv_jemallocator::Jemalloc;

    // SAFETY: the symbol is jemalloc's documented option string, NUL-terminated.
    #[allow(unsafe_code, non_upper_case_globals)]
    #[unsafe(export_name = "_rjem_malloc_conf")]
    pub(crate) static malloc_conf: &[u8] = b"background_thread:true,dirty_decay_ms:1000,muzzy_decay_ms:0\0";
}

/// A push gateway. Settings come from environment variables whose names begin with `MOONGATE_`.
#[derive(Parser)]
#[command(version)]
struct Arguments {
    #[command(subcommand)]
    action: Option<Action>,
}

#[derive(Subcommand)]
enum Action {
    /// Run a node (the default).
    Serve,
    /// Check the settings, the certificate, Redis and this machine, give advice, and exit.
    #[command(
        after_help = "Exit code 0: a node can run, whatever is advised; 2: it cannot.\nWith --ready 0: the node is ready; 1: it is not, or gives no answer within 2 s."
    )]
    Check(Check),
    /// Give a running node one command, and print its result as JSON.
    #[command(after_help = ctl::help())]
    Ctl(ctl::Request),
    /// Watch all nodes, live: clients, rates, processor and memory of each.
    #[command(after_help = ctl::top::HELP)]
    Top(ctl::top::Options),
}

#[derive(clap::Args)]
struct Check {
    /// Ask the node that runs with these settings whether it is ready, and nothing else.
    #[arg(long)]
    ready: bool,
    /// Print what was found as JSON.
    #[arg(long, conflicts_with = "ready")]
    json: bool,
}

fn main() -> ExitCode {
    let action = Arguments::parse().action.unwrap_or(Action::Serve);
    let ended = match action {
        Action::Serve => Config::from_env().map(|config| {
            start_log(&config.log);
            with_runtime(serve(config))
        }),
        Action::Check(Check { ready: true, .. }) => {
            CallerConfig::from_env().map(|config| with_runtime(ctl::ready(&config)))
        }
        Action::Check(Check { json, .. }) => Ok(with_runtime(check::run(Config::from_env(), json))),
        Action::Ctl(request) => CallerConfig::from_env().map(|config| with_runtime(ctl::run(&request, &config))),
        Action::Top(options) => CallerConfig::from_env().map(|config| with_runtime(ctl::top::run(&options, &config))),
    };
    ended.unwrap_or_else(|errors| {
        eprintln!("{errors}");
        ExitCode::from(EXIT_SETTINGS)
    })
}

fn with_runtime(work: impl Future<Output = ExitCode>) -> ExitCode {
    match tokio::runtime::Builder::new_multi_thread().enable_all().build() {
        Ok(runtime) => runtime.block_on(work),
        Err(error) => {
            eprintln!("cannot start: {error}");
            ExitCode::FAILURE
        }
    }
}

async fn serve(config: Config) -> ExitCode {
    let tls = config.tls.is_some();
    if config.clients.tokens.as_ref().is_some_and(Tokens::is_weak) {
        tracing::warn!(
            "MOONGATE_JWT_SECRET is shorter than 32 bytes: whoever has one token can guess it, and be any uid"
        );
    }
    let stop = CancellationToken::new();
    let mut signals = match (signal(SignalKind::terminate()), signal(SignalKind::interrupt())) {
        (Ok(terminate), Ok(interrupt)) => (terminate, interrupt),
        (Err(error), _) | (_, Err(error)) => {
            return cannot_start(&error);
        }
    };
    let server = match Server::bind(config) {
        Ok(server) => server,
        Err(error) => {
            let exit = cannot_start(&error);
            return if matches!(error, StartError::Tls(_)) { ExitCode::from(EXIT_SETTINGS) } else { exit };
        }
    };
    // One descriptor a client: the usual soft limit of 1,024 is far below what a node carries.
    let open_files = rlimit::increase_nofile_limit(u64::MAX).unwrap_or_default();
    tracing::info!(open_files, clients = %server.clients_address(), tls, api = %server.api_address(), "listening");
    for (protocol, clients) in server.stream_addresses() {
        tracing::info!(?protocol, %clients, "listening");
    }
    let on_signal = stop.clone();
    let second = async {
        for number in 1..=2 {
            tokio::select! {
                _ = signals.0.recv() => {}
                _ = signals.1.recv() => {}
            }
            if number == 1 {
                on_signal.cancel();
            }
        }
    };
    tokio::select! {
        ended = server.run(stop) => match ended {
            Ok(_) => ExitCode::SUCCESS,
            Err(refused @ Ended::Refused(_)) => {
                cannot_start(&refused);
                ExitCode::from(EXIT_SETTINGS)
            }
            Err(broken) => {
                tracing::error!("{broken}");
                ExitCode::FAILURE
            }
        },
        () = second => {
            tracing::warn!("second signal: not drained");
            ExitCode::FAILURE
        }
    }
}

/// Says why, whatever the log's filter lets through.
fn cannot_start(error: &dyn std::error::Error) -> ExitCode {
    if tracing::enabled!(tracing::Level::ERROR) {
        tracing::error!("cannot start: {error}");
    } else {
        eprintln!("cannot start: {error}");
    }
    ExitCode::FAILURE
}

/// The libraries log whole payloads at `trace`: they stay at `info` unless the filter names them.
fn start_log(config: &LogConfig) {
    let mut filter = EnvFilter::new(&config.filter);
    let verbose = filter.max_level_hint().is_none_or(|level| level > LevelFilter::INFO);
    // What it warns of is said in our own words.
    if !config.filter.contains("fred")
        && let Ok(directive) = "fred=error".parse()
    {
        filter = filter.add_directive(directive);
    }
    for library in ["tungstenite", "tokio_tungstenite", "hyper", "rustls"] {
        if verbose
            && !config.filter.contains(library)
            && let Ok(directive) = format!("{library}=info").parse()
        {
            filter = filter.add_directive(directive);
        }
    }
    let log = tracing_subscriber::fmt()
        .with_env_filter(filter)
        .with_writer(std::io::stderr)
        .with_ansi(std::io::stderr().is_terminal());
    match config.format {
        LogFormat::Text => log.init(),
        LogFormat::Json => log.json().flatten_event(true).init(),
    }
}
