//! The command line. Data goes to standard output, everything else to standard error; 0 is success, 1 failure, 2 a
//! command that was not understood.
#![forbid(unsafe_code)]

#[cfg(feature = "dpdk")]
mod bench;
mod capture;
mod check;
mod client;
mod events;
mod explain;
mod keys;
#[cfg(feature = "dpdk")]
mod log;
mod man;
mod pcapng;
mod policy;
#[cfg(feature = "dpdk")]
mod run;
mod show;
mod spi;
mod trace;

use std::io::{self, Write};
use std::path::PathBuf;
use std::process::ExitCode;
use std::time::Duration;

use clap::{Args, CommandFactory, Parser, Subcommand, ValueEnum};
use clap_complete::Shell;

use crate::control::events::Kind;
use crate::crypto::aead::Cipher;
use crate::crypto::tier::Tier;

/// simplon, a userspace IPsec gateway
#[derive(Parser)]
#[command(name = "simplon", version = version(), disable_help_subcommand = true, arg_required_else_help = true)]
struct Cli {
    #[command(subcommand)]
    command: Command,
}

#[derive(Subcommand)]
enum Command {
    /// Run a gateway in the foreground until SIGINT or SIGTERM; a second signal stops it at once
    #[cfg(feature = "dpdk")]
    Run(RunArgs),
    /// Measure gateways in this process, or a device under test, with a generator and checker of our own
    #[cfg(feature = "dpdk")]
    #[command(after_help = bench::EXAMPLES)]
    Bench(Box<bench::BenchArgs>),
    /// Check a policy file and report every mistake; needs neither root nor DPDK's set-up
    Check {
        /// The policy file
        file: PathBuf,
        /// Another one: tell what is different from it, by name
        #[arg(long, value_name = "OTHER")]
        against: Option<PathBuf>,
    },
    /// Show what a running gateway is doing
    Show(ShowArgs),
    /// Print what happens in a running gateway, as it comes
    Events(EventsArgs),
    /// Tell what a running gateway would do with a packet, step by step, and why
    #[command(after_help = explain::EXAMPLES)]
    Explain(Box<explain::ExplainArgs>),
    /// Change the policy of a running gateway: load, add, remove, replace, with a look ahead and a way back
    Policy(policy::PolicyArgs),
    /// Follow packets through the stages of a running gateway, a line each, or as pcapng with both forms
    #[command(after_help = trace::EXAMPLES)]
    Trace(Box<trace::TraceArgs>),
    /// Sequence numbers on disk
    #[command(subcommand)]
    State(StateCommand),
    /// Write a new random key to a file that only its owner can read
    Genkey {
        /// The cipher it is for
        #[arg(long, value_parser = parse_cipher, default_value = "aes-256-gcm")]
        cipher: Cipher,
        /// The file to make; an existing one is never overwritten
        file: PathBuf,
    },
    /// Choose inbound SPIs for a split tunnel, each of which a NIC leads to its own receive queue
    Spi(spi::SpiArgs),
    /// Print the manual page, or write those of all commands
    Man {
        /// The directory to write to
        #[arg(long, value_name = "DIR")]
        dir: Option<PathBuf>,
    },
    /// Print shell completions
    Completions {
        /// The shell
        shell: Shell,
    },
}

/// How to run a gateway
#[derive(Args)]
struct RunArgs {
    /// The policy file
    #[arg(long, value_name = "FILE")]
    config: PathBuf,
    /// How to log to standard error
    #[arg(long, value_enum, default_value_t = LogFormat::Text)]
    log_format: LogFormat,
    /// Measure TSC cycles by stage (costs some), for `simplon show workers`
    #[arg(long)]
    measure_stages: bool,
}

#[derive(Clone, Copy, PartialEq, Eq, ValueEnum)]
enum LogFormat {
    /// For people
    Text,
    /// One JSON object a line
    Json,
}

/// What to show of a running gateway
#[derive(Args)]
struct ShowArgs {
    /// What to show
    what: What,
    /// As JSON, for machines
    #[arg(long)]
    json: bool,
    /// Show it again and again, in place on a terminal; with --json one object a line
    #[arg(long, value_name = "SECONDS", num_args = 0..=1, require_equals = true, default_missing_value = "2", value_parser = parse_interval)]
    watch: Option<Duration>,
    #[command(flatten)]
    gateway: GatewayArgs,
}

/// What to print of a running gateway
#[derive(Args)]
struct EventsArgs {
    /// One JSON object a line, for machines
    #[arg(long)]
    json: bool,
    /// Events of this kind alone, or of several, instead of all: link, sa_lifetime
    #[arg(long = "kind", value_name = "KIND", value_parser = events::parse_kind)]
    kinds: Vec<Kind>,
    #[command(flatten)]
    gateway: GatewayArgs,
}

/// Which gateway to ask
#[derive(Args)]
struct GatewayArgs {
    /// The gateway's policy file, to find its control socket
    #[arg(long, value_name = "FILE", conflicts_with = "socket")]
    config: Option<PathBuf>,
    /// The gateway's control socket; without it and --config, the one socket in /run/simplon
    #[arg(long, value_name = "PATH")]
    socket: Option<PathBuf>,
}

#[derive(Clone, Copy, PartialEq, Eq, ValueEnum)]
enum What {
    /// Ports, their link and counters
    Ports,
    /// Neighbours: their MAC addresses, and who said so
    Neighbours,
    /// Policies: what is protected, bypassed and discarded, in the order in which it is asked
    Policies,
    /// Tunnels: whether they are up, and what fits into them
    Tunnels,
    /// Security associations
    Sa,
    /// Drops by reason, and whether every packet is accounted for
    Drops,
    /// Workers, their queues and cycles
    Workers,
}

#[derive(Subcommand)]
enum StateCommand {
    /// Declare that the keys of a policy file have never sealed a packet, and make records for them
    Init {
        /// The policy file
        #[arg(long, value_name = "FILE")]
        config: PathBuf,
    },
}

/// Runs the command that the process was started with.
pub fn main() -> ExitCode {
    let cli = Cli::parse();
    let done = Tier::from_environment()
        .map_err(Failure::new)
        .and_then(|_| execute(cli.command));
    match done {
        Ok(()) => ExitCode::SUCCESS,
        Err(Failure(message)) => {
            if !message.is_empty() {
                eprint!("{}", message);
            }
            ExitCode::FAILURE
        }
    }
}

fn execute(command: Command) -> Result<(), Failure> {
    match command {
        #[cfg(feature = "dpdk")]
        Command::Run(args) => run::run(&args),
        #[cfg(feature = "dpdk")]
        Command::Bench(args) => bench::bench(*args),
        Command::Check { file, against } => check::check(&file, against.as_deref()),
        Command::Show(args) => show::show(&args),
        Command::Events(args) => events::events(&args),
        Command::Explain(args) => explain::explain(&args),
        Command::Policy(args) => policy::policy(&args),
        Command::Trace(args) => trace::trace(&args),
        Command::State(StateCommand::Init { config }) => keys::state_init(&config),
        Command::Genkey { cipher, file } => keys::genkey(cipher, &file),
        Command::Spi(args) => spi::spi(&args),
        Command::Man { dir } => man::man(dir.as_deref()),
        Command::Completions { shell } => {
            let mut script = Vec::new();
            clap_complete::generate(shell, &mut Cli::command(), "simplon", &mut script);
            print(&script).map(drop)
        }
    }
}

/// Why a command failed, ready to print, line ends included.
struct Failure(String);

impl Failure {
    fn new(message: impl std::fmt::Display) -> Self {
        Self(format!("simplon: {message}\n"))
    }
}

/// Writes to standard output. Returns whether anybody reads it still: a reader that has seen enough (`| head`) is no failure.
fn print(text: &[u8]) -> Result<bool, Failure> {
    let mut output = io::stdout();
    match output.write_all(text).and_then(|()| output.flush()) {
        Ok(()) => Ok(true),
        Err(error) if error.kind() == io::ErrorKind::BrokenPipe => Ok(false),
        Err(error) => Err(Failure::new(error)),
    }
}

fn parse_cipher(name: &str) -> Result<Cipher, String> {
    Cipher::from_name(name).ok_or_else(|| {
        let names: Vec<_> = Cipher::ALL.iter().map(|cipher| cipher.name()).collect();
        format!("one of {}", names.join(", "))
    })
}

fn parse_interval(text: &str) -> Result<Duration, String> {
    text.parse::<f64>()
        .ok()
        .filter(|seconds| (0.1..=86_400.0).contains(seconds))
        .map(Duration::from_secs_f64)
        .ok_or_else(|| "seconds, from 0.1 to 86400".into())
}

fn version() -> String {
    #[cfg(feature = "dpdk")]
    let dpdk = crate::dpdk::eal::version();
    #[cfg(not(feature = "dpdk"))]
    let dpdk = "without DPDK";
    format!(
        "{} ({dpdk}, AES-GCM {})",
        env!("CARGO_PKG_VERSION"),
        aead_tier()
    )
}

/// The AEAD tier, or what is wrong with the one asked for: `--version` must not fail on it, the other commands do.
fn aead_tier() -> String {
    match Tier::from_environment() {
        Ok(tier) => tier.to_string(),
        Err(error) => format!("refused: {error}"),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn command_line_is_consistent() {
        Cli::command().debug_assert();
    }

    #[test]
    fn watching_goes_by_seconds_and_by_two_without_a_number() {
        let watch = |arguments: &[&str]| {
            let arguments = ["simplon", "show"].iter().chain(arguments);
            match Cli::try_parse_from(arguments).map(|cli| cli.command) {
                Ok(Command::Show(args)) => args.watch,
                _ => None,
            }
        };
        assert_eq!(watch(&["sa", "--watch"]), Some(Duration::from_secs(2)));
        let half = Some(Duration::from_millis(500));
        assert_eq!(watch(&["--watch=0.5", "neighbours", "--json"]), half);
        assert_eq!(watch(&["sa"]), None);
        for bad in ["", "0", "-1", "nan", "1e9", "x"] {
            assert!(parse_interval(bad).is_err(), "{bad}");
        }
    }
}
