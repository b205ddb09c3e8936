//! `simplon run`.

use std::sync::Arc;
use std::sync::atomic::AtomicBool;

use rustix::process::{DumpableBehavior, Resource, Rlimit, set_dumpable_behavior, setrlimit};
use signal_hook::consts::{SIGHUP, SIGINT, SIGTERM};
use signal_hook::flag;
use tracing::warn;

use super::{Failure, RunArgs, check, log};
use crate::control::change::PolicyText;
use crate::gateway::{self, RunOptions};

pub(super) fn run(args: &RunArgs) -> Result<(), Failure> {
    log::init(args.log_format);
    forbid_core_dumps();
    gateway::block_signals();
    let (policy, text) = check::load_text(&args.config)?;
    // It may be read again, and has to be found then.
    let path = std::path::absolute(&args.config).map_err(Failure::new)?;
    let options = RunOptions {
        policy: PolicyText { path, text },
        measure_stages: args.measure_stages,
        stop: Arc::new(AtomicBool::new(false)),
        reload: Arc::new(AtomicBool::new(false)),
    };
    watch_signals(&options)
        .map_err(|error| Failure::new(format_args!("cannot watch signals: {error}")))?;
    let ending = gateway::run(policy, &options).map_err(Failure::new)?;
    if ending.pool_missing > 0 {
        return Err(Failure::new(format_args!(
            "{} of {} buffers did not come back to the pool; please report this",
            ending.pool_missing, ending.pool_size
        )));
    }
    if !ending.balanced {
        return Err(Failure::new(
            "packets received are not those sent, dropped and punted; please report this",
        ));
    }
    Ok(())
}

/// Keys must not land in a core file.
fn forbid_core_dumps() {
    let none = Rlimit {
        current: Some(0),
        maximum: Some(0),
    };
    let limited = setrlimit(Resource::Core, none);
    let dumpable = set_dumpable_behavior(DumpableBehavior::NotDumpable);
    if let Err(error) = limited.and(dumpable) {
        warn!("cannot forbid core dumps: {error}");
    }
}

/// The first SIGINT or SIGTERM sets `stop`, a second one ends the process where it stands: leases on disk make that safe.
fn watch_signals(options: &RunOptions) -> std::io::Result<()> {
    for signal in [SIGINT, SIGTERM] {
        flag::register_conditional_shutdown(signal, 128 + signal, Arc::clone(&options.stop))?;
        flag::register(signal, Arc::clone(&options.stop))?;
    }
    flag::register(SIGHUP, Arc::clone(&options.reload))?;
    Ok(())
}
