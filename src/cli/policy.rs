//! `simplon policy`: changes the policy of a running gateway.

use std::io::{IsTerminal, Read};
use std::path::{Path, PathBuf};
use std::time::Duration;

use clap::{Args, Subcommand};
use indicatif::{ProgressBar, ProgressDrawTarget, ProgressStyle};
use serde::Serialize;
use serde_json::Value;

use super::client::Connection;
use super::{Failure, GatewayArgs, client, print, show};
use crate::control::change::report::{
    ChangeKind, ChangeSettings, DiffParams, JobParams, JobReport, JobState, LoadParams,
    PolicyTextReport, RemoveParams, TablesParams,
};
use crate::control::protocol::Method;

/// Time between two looks at a job.
const LOOK: Duration = Duration::from_millis(25);
/// Tables that can be sent; longer ones are for a file that the gateway reads.
const MOST_TEXT: usize = 200 << 10;

#[derive(Args)]
pub(super) struct PolicyArgs {
    #[command(subcommand)]
    command: PolicyCommand,
}

#[derive(Subcommand)]
enum PolicyCommand {
    /// Run by this policy file from now on; what is as it was goes on undisturbed
    Load {
        /// The policy file, as the gateway can read it
        file: PathBuf,
        #[command(flatten)]
        how: How,
    },
    /// Tell what would change with a policy file, by name
    Diff {
        /// The policy file, as the gateway can read it
        file: PathBuf,
        /// JSON, for machines
        #[arg(long)]
        json: bool,
        #[command(flatten)]
        gateway: GatewayArgs,
    },
    /// Add the tables of a file: [[tunnel]], [[policy]], [[bypass]], [[discard]], [[route]], [[neighbour]]
    Add {
        /// The file with the tables; - for standard input
        file: PathBuf,
        #[command(flatten)]
        how: How,
    },
    /// Remove tunnels, policies, bypasses and discards by name
    Remove {
        /// Their names
        #[arg(required = true)]
        names: Vec<String>,
        #[command(flatten)]
        how: How,
    },
    /// Put the tables of a file in the place of those with the same names, with other keys for instance
    Replace {
        /// The file with the tables; - for standard input
        file: PathBuf,
        #[command(flatten)]
        how: How,
    },
    /// Keep a change that waits to be confirmed
    Confirm {
        #[command(flatten)]
        gateway: GatewayArgs,
    },
    /// Take back a change that waits to be confirmed
    Rollback {
        /// JSON, for machines
        #[arg(long)]
        json: bool,
        #[command(flatten)]
        gateway: GatewayArgs,
    },
    /// Print the policy in force, with what was changed since it was loaded
    Show {
        /// JSON, for machines
        #[arg(long)]
        json: bool,
        #[command(flatten)]
        gateway: GatewayArgs,
    },
}

#[derive(Args)]
struct How {
    /// Keys that the gateway does not know have never sealed a packet
    #[arg(long)]
    fresh_keys: bool,
    /// Take the change back after so many seconds, unless `simplon policy confirm` is given
    #[arg(long, value_name = "SECONDS", value_parser = clap::value_parser!(u32).range(1..=86_400))]
    confirm: Option<u32>,
    /// Seal with new SAs after so many seconds, even if the peer has not used its own
    #[arg(long, value_name = "SECONDS", default_value_t = 10, value_parser = clap::value_parser!(u32).range(0..=86_400))]
    outbound_after: u32,
    /// Open with the old SAs for so many seconds after that
    #[arg(long, value_name = "SECONDS", default_value_t = 30, value_parser = clap::value_parser!(u32).range(0..=86_400))]
    grace: u32,
    /// JSON, for machines
    #[arg(long)]
    json: bool,
    #[command(flatten)]
    gateway: GatewayArgs,
}

impl How {
    fn settings(&self) -> ChangeSettings {
        ChangeSettings {
            fresh_keys: self.fresh_keys,
            confirm_s: self.confirm,
            outbound_after_s: self.outbound_after,
            grace_s: self.grace,
        }
    }
}

pub(super) fn policy(args: &PolicyArgs) -> Result<(), Failure> {
    match &args.command {
        PolicyCommand::Load { file, how } => {
            let params = LoadParams {
                path: absolute(file)?,
                settings: how.settings(),
            };
            change(Method::PolicyLoad, &params, &how.gateway, how.json)
        }
        PolicyCommand::Diff {
            file,
            json,
            gateway,
        } => {
            let path = absolute(file)?;
            change(Method::PolicyDiff, &DiffParams { path }, gateway, *json)
        }
        PolicyCommand::Add { file, how } => tables(Method::PolicyAdd, file, how),
        PolicyCommand::Remove { names, how } => {
            let params = RemoveParams {
                names: names.clone(),
                settings: how.settings(),
            };
            change(Method::PolicyRemove, &params, &how.gateway, how.json)
        }
        PolicyCommand::Replace { file, how } => tables(Method::PolicyReplace, file, how),
        PolicyCommand::Confirm { gateway } => {
            let result = client::ask(&socket(gateway)?, Method::PolicyConfirm)?;
            let generation = result.get("generation").and_then(Value::as_u64);
            let text = format!("policy {} is kept\n", generation.unwrap_or_default());
            print(text.as_bytes()).map(drop)
        }
        PolicyCommand::Rollback { json, gateway } => change(
            Method::PolicyRollback,
            &serde_json::Map::new(),
            gateway,
            *json,
        ),
        PolicyCommand::Show { json, gateway } => {
            let result = client::ask(&socket(gateway)?, Method::PolicyShow)?;
            let text = if *json {
                format!("{result:#}\n")
            } else {
                show::read::<PolicyTextReport>(result)?.text
            };
            print(text.as_bytes()).map(drop)
        }
    }
}

fn socket(gateway: &GatewayArgs) -> Result<PathBuf, Failure> {
    client::socket_path(gateway.socket.as_deref(), gateway.config.as_deref())
}

fn absolute(file: &Path) -> Result<PathBuf, Failure> {
    std::path::absolute(file)
        .map_err(|error| Failure::new(format_args!("{}: {error}", file.display())))
}

fn tables(method: Method, file: &Path, how: &How) -> Result<(), Failure> {
    let failed = |error: std::io::Error| Failure::new(format_args!("{}: {error}", file.display()));
    let mut text = String::new();
    if file == Path::new("-") {
        std::io::stdin().read_to_string(&mut text).map_err(failed)?;
    } else {
        text = std::fs::read_to_string(file).map_err(failed)?;
    }
    if text.len() > MOST_TEXT {
        return Err(Failure::new(format_args!(
            "{} has {} bytes, and {MOST_TEXT} can be sent: put so much into the policy file, and load that",
            file.display(),
            text.len()
        )));
    }
    let params = TablesParams {
        text,
        settings: how.settings(),
    };
    change(method, &params, &how.gateway, how.json)
}

/// Asks for a change, waits until it is done or refused, and tells what came of it.
fn change(
    method: Method,
    params: &impl Serialize,
    gateway: &GatewayArgs,
    json: bool,
) -> Result<(), Failure> {
    let socket = socket(gateway)?;
    let mut connection = Connection::open(&socket)?;
    let mut report: JobReport = show::read(connection.ask(method, params)?)?;
    let bar = progress();
    while report.state == JobState::Running {
        std::thread::sleep(LOOK);
        let params = JobParams { job: report.job };
        report = show::read(connection.ask(Method::PolicyJob, &params)?)?;
        draw(&bar, &report);
    }
    bar.finish_and_clear();
    if json {
        let text = serde_json::to_string_pretty(&report).map_err(Failure::new)?;
        print(format!("{text}\n").as_bytes())?;
    }
    match (report.state, json) {
        (JobState::Refused, true) => Err(Failure(String::new())),
        (JobState::Refused, false) => Err(Failure(format!(
            "{}simplon: the policy in force stays as it is\n",
            report.error.unwrap_or_default()
        ))),
        (_, true) => Ok(()),
        (_, false) => print(told(&report).as_bytes()).map(drop),
    }
}

fn told(report: &JobReport) -> String {
    let mut text = String::new();
    for line in &report.difference {
        text += line;
        text.push('\n');
    }
    if report.difference.is_empty() {
        text += "no difference\n";
    }
    if report.what != ChangeKind::Diff {
        let generation = report.generation.unwrap_or_default();
        text += &format!("policy {generation} is in force\n");
    }
    if let Some(seconds) = report.confirm_within_s {
        text += &format!(
            "it is taken back in {seconds} seconds, unless `simplon policy confirm` is given\n"
        );
    }
    text
}

/// A bar on a terminal, and nothing elsewhere.
fn progress() -> ProgressBar {
    if !std::io::stderr().is_terminal() {
        return ProgressBar::with_draw_target(None, ProgressDrawTarget::hidden());
    }
    let bar = ProgressBar::with_draw_target(Some(1000), ProgressDrawTarget::stderr());
    let style =
        ProgressStyle::with_template("{spinner} {msg:11} [{bar:40}] {percent:>3} % {elapsed}");
    if let Ok(style) = style {
        bar.set_style(style.progress_chars("=> "));
    }
    bar
}

fn draw(bar: &ProgressBar, report: &JobReport) {
    bar.set_message(report.phase.clone());
    bar.set_position(report.permille.into());
    bar.tick();
}
