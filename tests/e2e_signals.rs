//! How a gateway stops: it drains and exits with 0 when asked, at once when asked twice, and leaves nothing behind.
#![cfg(feature = "dpdk")]

mod testbed;

use std::time::Duration;

use rustix::process::Signal;
use testbed::{Failure, Ping, READY_TIMEOUT, Result, Testbed, TunnelSpec, dpdk_traces};

/// Echo requests that go on for longer than anything here.
fn long_ping() -> Ping {
    Ping {
        count: 100_000,
        at_once: 1,
        interval: Duration::from_millis(10),
        ..Ping::default()
    }
}

/// What a gateway's process should have taken away when it ended.
fn left_behind(bed: &Testbed) -> Vec<String> {
    let mut left: Vec<String> = dpdk_traces(bed.west.name())
        .iter()
        .map(|path| path.display().to_string())
        .collect();
    if bed.west.socket().exists() {
        left.push(bed.west.socket().display().to_string());
    }
    left
}

#[test]
fn first_signal_drains_and_exits_with_0_under_traffic() -> Result<()> {
    let Some(mut bed) = Testbed::for_test(TunnelSpec::default())? else {
        return Ok(());
    };
    let _traffic = bed.start_ping(&long_ping())?;
    for signal in [Signal::TERM, Signal::INT, Signal::TERM] {
        std::thread::sleep(Duration::from_millis(300));
        bed.west.signal(signal);
        let exit = bed.west.wait_end()?;
        if exit.status.code() != Some(0) {
            return Err(Failure(format!(
                "{signal:?}: {}\n{}",
                exit.status, exit.stderr
            )));
        }
        let left = left_behind(&bed);
        if !left.is_empty() {
            return Err(Failure(format!("{signal:?} leaves behind {left:?}")));
        }
        bed.west.start()?;
        bed.west.wait_ready(READY_TIMEOUT)?;
        let ping = Ping::default();
        assert_eq!(bed.ping(&ping)?.received, ping.count, "after the restart");
    }
    Ok(())
}

#[test]
fn second_signal_stops_at_once() -> Result<()> {
    let Some(mut bed) = Testbed::for_test(TunnelSpec::default())? else {
        return Ok(());
    };
    let _traffic = bed.start_ping(&long_ping())?;
    std::thread::sleep(Duration::from_millis(300));
    bed.west.signal(Signal::TERM);
    bed.west.signal(Signal::INT);
    let exit = bed.west.wait_end()?;
    if exit.took > Duration::from_millis(1500) {
        return Err(Failure(format!(
            "it took {:?}, {}\n{}",
            exit.took, exit.status, exit.stderr
        )));
    }
    // Whatever it could not put away does not keep the next one from starting.
    bed.west.start()?;
    bed.west.wait_ready(READY_TIMEOUT)?;
    let ping = Ping::default();
    assert_eq!(bed.ping(&ping)?.received, ping.count, "after the restart");
    Ok(())
}

#[test]
fn signal_during_start_still_leaves_nothing_behind() -> Result<()> {
    let Some(mut bed) = Testbed::for_test(TunnelSpec::default())? else {
        return Ok(());
    };
    bed.west.stop()?;
    for after in [100, 300, 600] {
        bed.west.start()?;
        std::thread::sleep(Duration::from_millis(after));
        let exit = bed.west.stop()?;
        let left = left_behind(&bed);
        // Before the handlers stand, SIGTERM ends the process as it ends any other: nothing has been made yet.
        if !left.is_empty() && exit.status.code() == Some(0) {
            return Err(Failure(format!(
                "stopped after {after} ms, it leaves behind {left:?}\n{}",
                exit.stderr
            )));
        }
    }
    Ok(())
}
