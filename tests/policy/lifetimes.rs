//! Lifetimes of SAs: what is read, and what is said about nonsense.

use simplon::policy::model::{Lifetime, Limit};

use super::checks::{case, check};
use super::{BASE, Site};

/// A line of the first tunnel.
const NAME: &str = "name = \"first\"";

/// The first tunnel's lifetime where these lines stand in it.
fn lifetime(lines: &str) -> Lifetime {
    let site = Site::new();
    let text = BASE.replacen("[[tunnel]]\n", &format!("[[tunnel]]\n{lines}\n"), 1);
    let policy = site
        .parse(&text)
        .unwrap_or_else(|errors| panic!("{}", site.render(&errors, &text)));
    assert_eq!(policy.tunnels[1].lifetime, Lifetime::default());
    policy.tunnels[0].lifetime
}

fn limit(soft: u64, hard: u64) -> Option<Limit> {
    Some(Limit { soft, hard })
}

#[test]
fn no_limit_is_the_default() {
    assert_eq!(lifetime(""), Lifetime::default());
}

#[test]
fn limits_are_read_with_their_units_and_nine_tenths_are_soft() {
    let all = lifetime(
        "lifetime_bytes = \"500 GB\"\nlifetime_packets = 1_000\nlifetime_time = \"1h 30m\"",
    );
    assert_eq!(all.bytes, limit(450_000_000_000, 500_000_000_000));
    assert_eq!(all.packets, limit(900, 1000));
    assert_eq!(all.time_ms, limit(4_860_000, 5_400_000));
    for (text, hard) in [
        ("4096", 4096),
        ("\"4096\"", 4096),
        ("\"4096 B\"", 4096),
        ("\"4 kB\"", 4000),
        ("\"4KiB\"", 4096),
        ("\"1.5 TB\"", 1_500_000_000_000),
    ] {
        let bytes = lifetime(&format!("lifetime_bytes = {text}")).bytes;
        assert_eq!(bytes.map(|limit| limit.hard), Some(hard), "{text}");
    }
}

#[test]
fn soft_part_is_as_the_policy_has_it_and_never_nothing() {
    let soft = |packets: u64, percent: u8| {
        let lines = format!("lifetime_packets = {packets}\nlifetime_soft_percent = {percent}");
        lifetime(&lines).packets
    };
    assert_eq!(soft(200, 50), limit(100, 200));
    assert_eq!(soft(1, 50), limit(1, 1));
    assert_eq!(soft(2, 1), limit(1, 2));
    let most = u64::try_from(i64::MAX).unwrap();
    assert_eq!(soft(most, 99), limit(9_131_138_316_486_228_048, most));
}

#[test]
fn numbers_that_are_nonsense_are_refused_with_their_line() {
    check(&[
        case(
            &[(NAME, "name = \"first\"\nlifetime_packets = 0")],
            &[(
                "lifetime_packets",
                "lifetime_packets is 0, which is not from 1 to",
            )],
        ),
        case(
            &[(NAME, "name = \"first\"\nlifetime_packets = \"many\"")],
            &[("lifetime_packets", "takes a number, not text")],
        ),
        case(
            &[(NAME, "name = \"first\"\nlifetime_bytes = 0")],
            &[(
                "lifetime_bytes",
                "lifetime_bytes is 0, which is not from 1 to",
            )],
        ),
        case(
            &[(NAME, "name = \"first\"\nlifetime_bytes = \"0 GB\"")],
            &[("lifetime_bytes", "lifetime_bytes is 0 bytes")],
        ),
        case(
            &[(NAME, "name = \"first\"\nlifetime_bytes = \"500 bananas\"")],
            &[("lifetime_bytes", "\"500 bananas\" is no number of bytes")],
        ),
        case(
            &[(NAME, "name = \"first\"\nlifetime_bytes = \"-1 GB\"")],
            &[("lifetime_bytes", "is no number of bytes")],
        ),
        case(
            &[(NAME, "name = \"first\"\nlifetime_bytes = \"20 EB\"")],
            &[("lifetime_bytes", "which is not from 1 to")],
        ),
    ]);
}

#[test]
fn times_and_parts_that_are_nonsense_are_refused_with_their_line() {
    check(&[
        case(
            &[(NAME, "name = \"first\"\nlifetime_time = \"0s\"")],
            &[("lifetime_time", "is \"0s\", which is not from a second")],
        ),
        case(
            &[(NAME, "name = \"first\"\nlifetime_time = \"100 years\"")],
            &[("lifetime_time", "to 3650 days")],
        ),
        case(
            &[(NAME, "name = \"first\"\nlifetime_time = \"soon\"")],
            &[("lifetime_time", "\"soon\" is no time")],
        ),
        case(
            &[(NAME, "name = \"first\"\nlifetime_time = 28800")],
            &[("lifetime_time", "takes text, not a number")],
        ),
        case(
            &[(
                NAME,
                "name = \"first\"\nlifetime_time = \"8h\"\nlifetime_soft_percent = 100",
            )],
            &[("lifetime_soft_percent", "100, which is not from 1 to 99")],
        ),
        case(
            &[(NAME, "name = \"first\"\nlifetime_soft_percent = 50")],
            &[("lifetime_soft_percent", "without a lifetime")],
        ),
        case(
            &[(
                "local = \"192.0.2.1\"",
                "local = \"192.0.2.1\"\nlifetime_time = \"8h\"",
            )],
            &[("lifetime_time", "[[tunnel.endpoints]] has no key")],
        ),
    ]);
}
