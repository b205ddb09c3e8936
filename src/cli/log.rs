//! Logging, to standard error.

use std::io::IsTerminal;

use tracing_subscriber::EnvFilter;
use tracing_subscriber::filter::LevelFilter;

use super::LogFormat;

/// Sets up logging from information up; `SIMPLON_LOG` chooses levels as `tracing` has them (`debug`, `simplon::control=debug`).
pub(super) fn init(format: LogFormat) {
    init_from(LevelFilter::INFO, format);
}

/// The same from warnings up, for a command whose output is something else.
pub(super) fn init_warnings() {
    init_from(LevelFilter::WARN, LogFormat::Text);
}

fn init_from(level: LevelFilter, format: LogFormat) {
    let filter = EnvFilter::builder()
        .with_default_directive(level.into())
        .with_env_var("SIMPLON_LOG")
        .from_env_lossy();
    let builder = tracing_subscriber::fmt()
        .with_env_filter(filter)
        .with_writer(std::io::stderr)
        .with_target(false);
    match format {
        LogFormat::Text => builder.with_ansi(std::io::stderr().is_terminal()).init(),
        LogFormat::Json => builder.json().flatten_event(true).init(),
    }
}
