//! `simplon bench` as an operator runs it: what it promises of its output, and what it refuses.
#![cfg(feature = "dpdk")]

use std::process::{Command, Output};

use serde_json::Value;
use simplon::bench::report::Report;

fn bench(arguments: &str) -> Output {
    Command::new(env!("CARGO_BIN_EXE_simplon"))
        .arg("bench")
        .args(arguments.split_whitespace())
        .output()
        .expect("simplon")
}

/// The report of a run that must succeed, as written and as its type has it.
fn report(arguments: &str) -> (Value, Report) {
    let output = bench(&format!("{arguments} --json"));
    let said = String::from_utf8_lossy(&output.stderr);
    assert!(output.status.success(), "{arguments}: {said}");
    let value = serde_json::from_slice(&output.stdout).expect("JSON");
    let report = serde_json::from_slice(&output.stdout).expect("a report");
    (value, report)
}

#[test]
fn pair_of_gateways_loses_breaks_and_reorders_nothing() {
    let (_, report) = report(
        "--packets 300k --warmup 0 --both-ways --sas 8 --families 4in4,4in6,6in4,6in6 --window 65536 --stages",
    );
    let trial = &report.trials[0];
    assert!(trial.sent >= 300_000, "{}", trial.sent);
    assert_eq!(
        (trial.received, trial.checked, trial.lost),
        (trial.sent, trial.sent, 0)
    );
    assert_eq!(
        (
            trial.mismatched,
            trial.reordered,
            trial.duplicates,
            trial.foreign
        ),
        (0, 0, 0, 0)
    );
    assert!(trial.drops.is_empty(), "{:?}", trial.drops);
    assert!(report.balanced);
    assert_eq!(report.buffers_missing, 0);
    assert!(report.faults.is_empty());
    // IMIX, with packets of IPv6 no shorter than 64 bytes: half of seven twelfths are 18 longer.
    let inner = trial.inner_gbps * 1000.0 / 8.0 / trial.mpps;
    assert!((inner - (335.83 + 5.25)).abs() < 1.0, "{inner}");
    assert!(trial.outer_gbps > trial.inner_gbps * 1.1);
    for gateway in &report.stages {
        let aead = gateway
            .stages
            .iter()
            .find(|stage| stage.stage == "aead")
            .expect("a stage");
        assert!(gateway.packets > 0 && aead.cycles > 1.0, "{gateway:?}");
    }
    assert_eq!(report.stages.len(), 2);
}

#[test]
fn search_latency_and_chart_are_told_in_the_promised_fields() {
    let dir = tempfile::TempDir::new().expect("dir");
    let chart = dir.path().join("bench.svg");
    let (value, report) = report(&format!(
        "--duration 0.05 --warmup 0 --repeat 3 --ndr --attempts 1 --width 10% --latency 20% --chart {}",
        chart.display()
    ));
    for field in [
        "/trials/0/mpps",
        "/trials/0/inner_gbps",
        "/trials/0/outer_gbps",
        "/trials/0/loss_ratio",
    ] {
        assert!(
            value.pointer(field).is_some_and(Value::is_f64),
            "{field}: {value:#}"
        );
    }
    for field in [
        "/summary/mpps/median",
        "/summary/seal/median",
        "/summary/open/least",
        "/trials/0/cycles/threads",
    ] {
        let cycles = value.pointer(field).and_then(Value::as_f64);
        assert!(
            cycles.is_some_and(|number| number > 0.0),
            "{field}: {value:#}"
        );
    }
    assert_eq!(report.trials.len(), 3);
    let search = report.search.expect("searched");
    assert!(!search.trials.is_empty());
    if let (Some(ndr), Some(pdr)) = (search.ndr.mpps, search.pdr.mpps) {
        assert!(ndr > 0.0 && pdr > 0.0);
    }
    let latency = report.latency.expect("measured");
    assert!(latency.samples > 0);
    let percents: Vec<f64> = latency
        .percentiles
        .iter()
        .map(|each| each.percent)
        .collect();
    assert_eq!(percents, [50.0, 75.0, 90.0, 99.0, 99.9, 99.99, 100.0]);
    assert!(
        latency
            .percentiles
            .windows(2)
            .all(|pair| pair[0].ns <= pair[1].ns)
    );
    let memory = report.memory.expect("told");
    assert!(memory.outbound_bytes > 100 && memory.inbound_bytes > 100);
    let text = std::fs::read_to_string(&chart).expect("chart");
    assert!(text.starts_with("<svg") && text.contains("Latency at") && text.contains("NDR"));
}

#[test]
fn sealing_alone_checks_a_sample_and_opening_alone_all() {
    let (_, seal) = report("--through seal --packets 100k --warmup 0 --sizes 64,1420");
    let trial = &seal.trials[0];
    assert_eq!(
        (trial.received, trial.lost, trial.unchecked),
        (trial.sent, 0, 0)
    );
    assert!(
        (4_000..=9_000).contains(&trial.checked),
        "{}",
        trial.checked
    );
    assert!(trial.cycles.seal > 0.0 && trial.cycles.open == 0.0);
    let (_, open) = report("--through open --packets 100k --warmup 0.05 --sas 50 --no-esn");
    let trial = &open.trials[0];
    assert_eq!(
        (trial.received, trial.checked, trial.lost),
        (trial.sent, trial.sent, 0)
    );
    assert!(trial.cycles.open > 0.0 && trial.cycles.seal == 0.0);
}

#[test]
fn scattered_flows_lose_nothing_either() {
    for through in ["seal", "open", "pair"] {
        let (_, report) = report(&format!(
            "--through {through} --order scattered --packets 50k --warmup 0 --sas 300 --flows 700 --train 3"
        ));
        let trial = &report.trials[0];
        assert_eq!((trial.received, trial.lost), (trial.sent, 0), "{through}");
        assert_eq!((trial.mismatched, trial.reordered), (0, 0), "{through}");
        assert!(trial.checked > 0, "{through}");
        assert_eq!(report.scenario.order, "scattered");
        assert!(report.text().contains(", 700 flows, scattered"));
    }
}

#[test]
fn device_that_is_too_slow_is_seen_to_lose() {
    // Far more than any core seals and opens, so the rings overflow; nothing that arrives is broken for that.
    let (_, report) = report("--rate 500M --duration 0.1 --warmup 0 --repeat 1 --sizes 1420");
    let trial = &report.trials[0];
    assert!(
        trial.lost > 0 && trial.loss_ratio > 0.1,
        "{}",
        trial.loss_ratio
    );
    assert_eq!(trial.sent, trial.received + trial.lost);
    assert_eq!((trial.mismatched, trial.checked), (0, trial.received));
}

#[test]
fn what_two_workers_on_one_sa_lose_is_dropped_by_a_gateway_that_says_so() {
    if std::thread::available_parallelism().map_or(1, std::num::NonZero::get) < 2 {
        // The refusals below cover what is said then.
        return;
    }
    // One generator deals bursts of one SA out to two workers, and shares the core of one of them. How much is lost
    // depends on the scheduler; that none of it is lost silently does not.
    let (_, report) = report(
        "--cores 0,1 --generator-core 0 --spray --window 64 --packets 50k --warmup 0 --repeat 1",
    );
    let trial = &report.trials[0];
    let dropped: u64 = trial.drops.iter().map(|drop| drop.packets).sum();
    assert_eq!(trial.lost, dropped, "{:?}", trial.drops);
    assert_eq!((trial.mismatched, trial.checked), (0, trial.received));
    assert!(report.balanced);
}

#[test]
fn what_cannot_be_measured_is_refused_with_what_could() {
    let refusals = [
        ("--sizes 12", "from 44 to 8900"),
        ("--sizes huge", "write `imix`"),
        ("--families 4in5", "4in4, 4in6, 6in4, 6in6"),
        ("--families 4in4,6in6", "say --sas 2 or more"),
        ("--sas 100 --flows 10", "say --flows 100 or more"),
        ("--sas 70000", "from 1 to 65536"),
        ("--window 1000", "power of two"),
        ("--cores 0,0", "given twice"),
        ("--cores 4000", "core 4000 is not one"),
        ("--order random", "[possible values: in-turn, scattered]"),
        ("--spray", "say --generator-core CORE"),
        ("--through open --rate 1k", "say --through pair"),
        ("--through seal --latency", "say --through pair"),
        ("--through seal --both-ways", "say --through pair"),
        ("--rate fast", "packets a second such as 800k"),
        ("--packets 5 --duration 1", "cannot be used with"),
        ("--packets 0", "at least 1"),
        ("--repeat 0", "--repeat 1 or more"),
        ("--attempts 2", "odd number"),
        ("--port net_null0", "--return"),
        (
            "--port net_null0 --return net_null1 --gateway-mac 02:00:00:00:00:01 --source 10.0.0.1 --destination fd00::1",
            "two families",
        ),
        (
            "--port net_null0 --return net_null1 --gateway-mac 02:00:00:00:00:01 --source 10.0.0.1 --destination 10.0.0.2 --stages",
            "leave them out with --port",
        ),
    ];
    for (arguments, wanted) in refusals {
        let output = bench(arguments);
        let said = String::from_utf8_lossy(&output.stderr);
        assert!(!output.status.success(), "{arguments}");
        assert!(said.contains(wanted), "{arguments}: {said}");
        assert!(output.stdout.is_empty(), "{arguments}");
    }
}

#[test]
fn device_that_sends_nothing_back_is_told_of() {
    let output = bench(
        "--port net_null0,no-rx=1 --return net_null1,no-rx=1 --gateway-mac 02:00:00:00:00:01 \
         --source 10.0.0.1 --destination 10.0.0.2 --rate 10k --duration 0.1 --warmup 0",
    );
    let said = String::from_utf8_lossy(&output.stderr);
    assert!(!output.status.success());
    assert!(said.contains("none came back"), "{said}");
}
