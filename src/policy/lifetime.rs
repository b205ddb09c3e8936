//! The lifetime of a tunnel's SAs: the `lifetime_…` keys of `[[tunnel]]`.
#![forbid(unsafe_code)]

use std::time::Duration;

use bytesize::ByteSize;

use super::diagnostic::{Fault, Faults, quoted};
use super::file::{Key, Table, Value};
use super::model::{Lifetime, Limit};

pub(super) const BYTES: Key = Key::new("lifetime_bytes", "lifetime_bytes = \"500 GB\"");
pub(super) const PACKETS: Key = Key::new("lifetime_packets", "lifetime_packets = 1_000_000_000");
pub(super) const TIME: Key = Key::new("lifetime_time", "lifetime_time = \"8h\"");
pub(super) const SOFT_PERCENT: Key =
    Key::new("lifetime_soft_percent", "lifetime_soft_percent = 90");

/// What a TOML file has for the largest number.
const MAX_COUNT: u64 = i64::MAX as u64;
/// Shorter than what the control thread needs to notice would be no limit.
const LEAST_TIME: Duration = Duration::from_secs(1);
/// Ten years: what is longer was written by mistake.
const MOST_TIME: Duration = Duration::from_secs(10 * 365 * 24 * 3600);
const DEFAULT_SOFT_PERCENT: u8 = 90;

/// Reads the limits of a tunnel's SAs; none is the default.
pub(super) fn read(table: &Table<'_>, faults: &mut Faults<'_>) -> Lifetime {
    let limits = [&BYTES, &PACKETS, &TIME].map(|key| table.find(key));
    let percent = table.find(&SOFT_PERCENT);
    if let Some(percent) = &percent
        && limits.iter().all(Option::is_none)
    {
        let fault = Fault::new(
            &percent.span,
            "lifetime_soft_percent without a lifetime that it is a part of",
        );
        let keys = format!("{}, {} or {}", BYTES.name, PACKETS.name, TIME.name);
        faults.add(fault.help(format!("remove it, or write {keys}")));
    }
    let percent = percent.and_then(|value| value.number(1..=99, faults));
    let percent = percent.map_or(DEFAULT_SOFT_PERCENT, |percent| percent.value);
    let [bytes, packets, time] = limits;
    let packets = packets.and_then(|value| value.number(1..=MAX_COUNT, faults));
    Lifetime {
        bytes: bytes
            .and_then(|value| bytes_of(&value, faults))
            .map(|hard| limit(hard, percent)),
        packets: packets.map(|hard| limit(hard.value, percent)),
        time_ms: time
            .and_then(|value| time_of(&value, faults))
            .map(|hard| limit(hard, percent)),
    }
}

/// A limit of which `percent`, 1 to 99, are the soft one: at least 1, and rounded down.
fn limit(hard: u64, percent: u8) -> Limit {
    let soft = u128::from(hard) * u128::from(percent) / 100;
    Limit {
        soft: u64::try_from(soft).unwrap_or(hard).max(1),
        hard,
    }
}

/// A number of bytes, or one with its unit in text.
fn bytes_of(value: &Value<'_>, faults: &mut Faults<'_>) -> Option<u64> {
    let Some(text) = value.as_text() else {
        return Some(value.number(1..=MAX_COUNT, faults)?.value);
    };
    let message = match text.value.parse::<ByteSize>() {
        Ok(bytes) if (1..=MAX_COUNT).contains(&bytes.as_u64()) => return Some(bytes.as_u64()),
        Ok(bytes) => format!(
            "{} is {} bytes, which is not from 1 to {MAX_COUNT}",
            BYTES.name,
            bytes.as_u64()
        ),
        Err(_) => format!("{} is no number of bytes", quoted(text.value)),
    };
    let help = format!(
        "write a number and B, kB, MB, GB or TB (by 1000), or KiB, MiB, GiB or TiB (by 1024): {}",
        BYTES.example
    );
    faults.add(Fault::new(&text.span, message).help(help));
    None
}

/// A time in text, in milliseconds.
fn time_of(value: &Value<'_>, faults: &mut Faults<'_>) -> Option<u64> {
    let text = value.text(faults)?;
    let message = match humantime::parse_duration(text.value) {
        Ok(time) if (LEAST_TIME..=MOST_TIME).contains(&time) => {
            return u64::try_from(time.as_millis()).ok();
        }
        Ok(_) => format!(
            "{} is {}, which is not from a second to 3650 days",
            TIME.name,
            quoted(text.value)
        ),
        Err(_) => format!("{} is no time", quoted(text.value)),
    };
    let help = format!("write numbers with s, m, h or days: {}", TIME.example);
    faults.add(Fault::new(&text.span, message).help(help));
    None
}
