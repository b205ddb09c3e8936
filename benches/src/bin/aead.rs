//! AES-GCM alone: simplon's tiers beside `aes-gcm`, `ring`, `aws-lc-rs` and Intel's library, and whether the limits that
//! simplon sets itself are reached.

use std::process::ExitCode;

use clap::Parser;
use simplon::crypto::aead::Cipher;
use simplon_benches::burst::{Load, Sizes};
use simplon_benches::contender::Field;
use simplon_benches::measure::{self, Effort, Way};
use simplon_benches::report::{self, Row};
use simplon_benches::{clock, intel};

/// Measures AES-GCM on bursts of 32 packets.
#[derive(Parser)]
struct Options {
    /// Only the active tier and Intel's library, only 128 bits, fewer rounds: under 20 seconds.
    #[arg(long)]
    quick: bool,
    /// Every figure as JSON on standard output, instead of tables.
    #[arg(long)]
    json: bool,
    /// Rounds in which every contender comes once.
    #[arg(long)]
    rounds: Option<usize>,
    /// The processor to run on; the last one otherwise.
    #[arg(long)]
    cpu: Option<usize>,
    /// Only loads of which the name, such as `128 seal 64` or `256 open imix 1000`, holds all of these words.
    only: Vec<String>,
}

const LENGTHS: [usize; 8] = [48, 64, 128, 256, 576, 1024, 1408, 8192];
const KEYS: [usize; 3] = [200, 1000, 4000];
const KEYED: [Sizes; 3] = [Sizes::Equal(64), Sizes::Equal(1408), Sizes::Imix];

fn main() -> ExitCode {
    match run(&Options::parse()) {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            eprintln!("{error}");
            ExitCode::FAILURE
        }
    }
}

fn loads(cipher: Cipher) -> Vec<Load> {
    let sizes = LENGTHS.map(Sizes::Equal).into_iter().chain([Sizes::Imix]);
    let one_key = sizes.map(|sizes| (sizes, 1));
    let many = KEYED
        .into_iter()
        .flat_map(|sizes| KEYS.map(|keys| (sizes, keys)));
    let load = |(sizes, keys)| Load {
        cipher,
        sizes,
        keys,
    };
    one_key.chain(many).map(load).collect()
}

/// Whether the words in `only` all stand in the load's name.
fn wanted(only: &[String], load: &Load, way: Way) -> bool {
    let bits = (8 * load.cipher.key_len()).to_string();
    let sizes = match load.sizes {
        Sizes::Equal(len) => len.to_string(),
        Sizes::Imix => "imix".into(),
    };
    let way = format!("{way:?}").to_lowercase();
    let keys = load.keys.to_string();
    let words = [&bits, &way, &sizes, &keys];
    only.iter().all(|word| words.contains(&word))
}

fn run(options: &Options) -> Result<(), String> {
    let cpu = clock::pin(options.cpu).map_err(|error| format!("cannot pin: {error}"))?;
    let effort = Effort {
        rounds: options
            .rounds
            .unwrap_or(if options.quick { 31 } else { 41 }),
        bursts: 64,
        field: if options.quick {
            Field::Pair
        } else {
            Field::All
        },
    };
    let ciphers: &[_] = if options.quick {
        &[Cipher::Aes128Gcm]
    } else {
        &[Cipher::Aes128Gcm, Cipher::Aes256Gcm]
    };
    let (hz, ratio) = (clock::tsc_hz(), clock::core_cycles_per_tsc_cycle());
    if !options.json {
        println!("{}", processor());
        println!(
            "CPU {cpu}, TSC {:.0} MHz, {ratio:.3} core cycles in a TSC cycle; Intel's library {}",
            hz / 1e6,
            intel::description(),
        );
        println!(
            "bursts of 32; {} rounds of {} bursts; median (10th–90th percentile of rounds)",
            effort.rounds, effort.bursts
        );
    }
    let mut all = Vec::new();
    for &cipher in ciphers {
        for way in [Way::Seal, Way::Open] {
            let mut rows = Vec::new();
            for load in loads(cipher) {
                if wanted(&options.only, &load, way) {
                    let figures = measure::run(way, load, effort)?;
                    rows.push(Row::new(way, &load, figures));
                }
            }
            if !options.json {
                print_tables(&report::title(cipher, way), &rows);
            }
            all.extend(rows);
        }
    }
    if options.json {
        let document = serde_json::json!({
            "processor": processor(),
            "cpu": cpu,
            "tsc_hz": hz,
            "core_cycles_per_tsc_cycle": ratio,
            "intel": intel::description(),
            "rounds": effort.rounds,
            "bursts": effort.bursts,
            "rows": all,
        });
        println!("{document}");
    } else {
        print!("{}", report::verdict(&all));
    }
    Ok(())
}

fn print_tables(title: &str, rows: &[Row]) {
    let (one, many): (Vec<_>, Vec<_>) = rows.iter().partition(|row| row.keys == 1);
    for (title, rows) in [
        (title.to_owned(), one),
        (format!("{title}, another key for each packet"), many),
    ] {
        if !rows.is_empty() {
            print!("{}", report::table(&title, &rows));
        }
    }
}

fn processor() -> String {
    let cpuinfo = std::fs::read_to_string("/proc/cpuinfo").unwrap_or_default();
    let field = |name: &str| {
        let line = cpuinfo.lines().find(|line| line.starts_with(name));
        line.and_then(|line| line.split_once(": "))
            .map(|(_, value)| value)
            .unwrap_or("?")
    };
    format!(
        "{} (family {}, model {})",
        field("model name"),
        field("cpu family"),
        field("model\t"),
    )
}
