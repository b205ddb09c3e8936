//! Sequence numbers across restarts. With a static key and AES-GCM a number used twice is an IV used twice, and that
//! gives the key away (RFC 4106 section 2); so this reads every number and IV off the wire.
#![cfg(feature = "dpdk")]

mod testbed;

use std::collections::{HashMap, HashSet};
use std::path::Path;
use std::time::Duration;

use testbed::{
    Failure, Ping, READY_TIMEOUT, Result, Site, Testbed, TunnelSpec, WireFrame, WireProtocol,
    assert_wire_shows_only_esp, run,
};

/// Restarts of each kind.
const ROUNDS: usize = 3;

#[test]
fn numbers_and_ivs_never_repeat_across_stops_and_crashes() -> Result<()> {
    let Some(mut bed) = Testbed::for_test(TunnelSpec::default())? else {
        return Ok(());
    };
    let capture = bed.capture(128)?;
    let traffic = bed.start_ping(&Ping {
        count: 100_000,
        at_once: 1,
        interval: Duration::from_millis(2),
        ..Ping::default()
    })?;
    for round in 0..ROUNDS {
        for crash in [false, true] {
            std::thread::sleep(Duration::from_millis(400));
            if crash {
                bed.west.kill9()?;
            } else {
                bed.west.stop()?;
            }
            bed.west.start()?;
            bed.west.wait_ready(READY_TIMEOUT)?;
            for from in [Site::West, Site::East] {
                let ping = Ping {
                    from,
                    ..Ping::default()
                };
                let result = bed.ping(&ping)?;
                if result.received != ping.count {
                    let shown = bed.west.show("drops")?;
                    return Err(Failure(format!(
                        "round {round}, crash: {crash}: {ping:?}: {result:?}: {shown}"
                    )));
                }
            }
        }
    }
    std::thread::sleep(Duration::from_millis(400));
    drop(traffic);
    let frames = capture.frames()?;
    let counts = assert_wire_shows_only_esp(bed.spec(), &frames, None)?;
    // Three thousand where nothing else runs; a busy machine holds most of them back.
    assert!(counts.iter().all(|count| *count > 100), "{counts:?}");
    assert_numbers_grow(&frames)
}

/// Per SPI, sequence numbers strictly grow in the order of the wire, and no IV comes twice.
fn assert_numbers_grow(frames: &[WireFrame]) -> Result<()> {
    let mut last: HashMap<u32, u32> = HashMap::new();
    let mut ivs = HashSet::new();
    for (at, frame) in frames.iter().enumerate() {
        let WireProtocol::Esp {
            spi, sequence, iv, ..
        } = frame.protocol
        else {
            continue;
        };
        if let Some(before) = last.insert(spi, sequence)
            && sequence <= before
        {
            return Err(Failure(format!(
                "frame {at}: SPI {spi:#x}: number {sequence} after {before}"
            )));
        }
        if !ivs.insert((spi, iv)) {
            return Err(Failure(format!(
                "frame {at}: SPI {spi:#x}: IV {iv:#018x} a second time"
            )));
        }
    }
    Ok(())
}

#[test]
fn sa_without_its_lease_stays_down() -> Result<()> {
    let Some(mut bed) = Testbed::for_test(TunnelSpec::default())? else {
        return Ok(());
    };
    assert_ping_passes(&bed)?;
    bed.west.stop()?;
    std::fs::remove_dir_all(bed.west.state_dir())?;
    bed.west.start()?;
    bed.west.wait_ready(READY_TIMEOUT)?;
    assert_sa_is_down(&mut bed)
}

#[test]
fn sa_with_an_old_copy_of_its_lease_stays_down() -> Result<()> {
    let Some(mut bed) = Testbed::for_test(TunnelSpec::default())? else {
        return Ok(());
    };
    assert_ping_passes(&bed)?;
    let aside = bed.dir().join("aside");
    bed.west.stop()?;
    copy(bed.west.state_dir(), &aside)?;
    bed.west.start()?;
    bed.west.wait_ready(READY_TIMEOUT)?;
    assert_ping_passes(&bed)?;
    bed.west.stop()?;
    std::fs::remove_dir_all(bed.west.state_dir())?;
    copy(&aside, bed.west.state_dir())?;
    bed.west.start()?;
    bed.west.wait_ready(READY_TIMEOUT)?;
    assert_sa_is_down(&mut bed)
}

#[test]
fn old_copy_written_over_its_lease_after_a_crash_is_refused_too() -> Result<()> {
    let Some(mut bed) = Testbed::for_test(TunnelSpec::default())? else {
        return Ok(());
    };
    assert_ping_passes(&bed)?;
    let aside = bed.dir().join("aside");
    copy(bed.west.state_dir(), &aside)?;
    assert_ping_passes(&bed)?;
    bed.west.kill9()?;
    copy(&aside.join("."), bed.west.state_dir())?;
    bed.west.start()?;
    bed.west.wait_ready(READY_TIMEOUT)?;
    assert_sa_is_down(&mut bed)
}

/// Copies as an operator's backup would: times and modes and all.
fn copy(from: &Path, to: &Path) -> Result<()> {
    run(&["cp", "-a", &from.to_string_lossy(), &to.to_string_lossy()]).map(drop)
}

fn assert_ping_passes(bed: &Testbed) -> Result<()> {
    let ping = Ping {
        count: 20,
        at_once: 20,
        ..Ping::default()
    };
    let result = bed.ping(&ping)?;
    if result.received == ping.count {
        Ok(())
    } else {
        Err(Failure(format!("{result:?}\n{}", bed.west.log())))
    }
}

/// The west gateway's outbound SA refuses to seal and says so; the gateway itself runs on.
fn assert_sa_is_down(bed: &mut Testbed) -> Result<()> {
    let capture = bed.capture(128)?;
    let shown = bed.west.show("sa")?;
    let mut rows = shown["sas"].as_array().into_iter().flatten();
    let outbound = rows.find(|row| row["direction"] == "outbound");
    if outbound.is_none_or(|row| row["state"] != "refused" || !row["reason"].is_string()) {
        return Err(Failure(format!(
            "the outbound SA is not refused for a reason: {shown}"
        )));
    }
    let ping = Ping {
        count: 10,
        at_once: 10,
        patience: Duration::from_millis(300),
        ..Ping::default()
    };
    let result = bed.ping(&ping)?;
    let dropped = bed.west.dropped_for("outbound", "sa-down")?;
    let frames = capture.frames()?;
    let sealed = frames
        .iter()
        .filter(|f| f.source == Some(Site::West.wan_address(bed.spec().outer)))
        .count();
    if result.received != 0
        || dropped < u64::from(ping.count)
        || sealed != 0
        || !bed.west.is_running()
    {
        let log = bed.west.log();
        return Err(Failure(format!(
            "{result:?}, {dropped} dropped as sa-down, {sealed} sealed: {shown}\n{log}"
        )));
    }
    Ok(())
}
