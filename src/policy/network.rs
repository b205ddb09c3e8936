//! Names, addresses, prefixes and choices: what a string in the file must look like.
#![forbid(unsafe_code)]

use std::net::{IpAddr, Ipv6Addr};
use std::str::FromStr;

use ipnet::IpNet;

use super::diagnostic::{Fault, Faults, quoted};
use super::file::{At, Value, closest};
use super::model::MacAddr;

/// Longest name, in characters.
const MAX_NAME_LEN: usize = 63;

/// A name: letters, digits, `-` and `_`, beginning with a letter or digit.
pub(super) fn name<'a>(value: &Value<'a>, faults: &mut Faults<'_>) -> Option<At<&'a str>> {
    name_up_to(MAX_NAME_LEN, value, faults)
}

/// A name of at most `longest` characters.
pub(super) fn name_up_to<'a>(
    longest: usize,
    value: &Value<'a>,
    faults: &mut Faults<'_>,
) -> Option<At<&'a str>> {
    let text = value.text(faults)?;
    let good_char = |c: char| c.is_ascii_alphanumeric() || c == '-' || c == '_';
    let wrong = if text.value.is_empty() {
        "a name has at least one character".to_owned()
    } else if text.value.chars().count() > longest {
        format!("{} has more than {longest} characters", quoted(text.value))
    } else if let Some(bad) = text.value.chars().find(|&c| !good_char(c)) {
        format!("{} has the character {bad:?}", quoted(text.value))
    } else if !text.value.starts_with(|c: char| c.is_ascii_alphanumeric()) {
        format!(
            "{} does not begin with a letter or digit",
            quoted(text.value)
        )
    } else {
        return Some(text);
    };
    let help =
        format!("write 1 to {longest} letters, digits, - and _, beginning with a letter or digit");
    faults.add(Fault::new(&text.span, wrong).help(help));
    None
}

/// One of a few words.
pub(super) fn choice<T: Copy>(
    value: &Value<'_>,
    choices: &[(&'static str, T)],
    faults: &mut Faults<'_>,
) -> Option<At<T>> {
    let text = value.text(faults)?;
    if let Some((_, chosen)) = choices.iter().find(|(word, _)| *word == text.value) {
        return Some(At {
            value: *chosen,
            span: text.span,
        });
    }
    let words = choices.iter().map(|(word, _)| *word);
    let list = words
        .clone()
        .map(|word| format!("\"{word}\""))
        .collect::<Vec<_>>()
        .join(" or ");
    let help = match closest(text.value, words) {
        Some(near) => format!("did you mean \"{near}\"?"),
        None => format!("write {list}"),
    };
    faults.add(Fault::new(&text.span, format!("{} is not {list}", quoted(text.value))).help(help));
    None
}

/// An address alone, as it may stand on an interface: no multicast, loopback and the like.
pub(super) fn address(value: &Value<'_>, faults: &mut Faults<'_>) -> Option<At<IpAddr>> {
    let text = value.text(faults)?;
    let Ok(address) = IpAddr::from_str(text.value) else {
        let help = match text.value.split_once('/') {
            Some((head, _)) if IpAddr::from_str(head).is_ok() => {
                format!("write the address alone: \"{head}\"")
            }
            _ => "write an IPv4 or IPv6 address: \"192.0.2.1\" or \"2001:db8::1\"".to_owned(),
        };
        faults.add(
            Fault::new(
                &text.span,
                format!("{} is no IP address", quoted(text.value)),
            )
            .help(help),
        );
        return None;
    };
    let address = At {
        value: address,
        span: text.span,
    };
    check_unicast(&address, faults).then_some(address)
}

/// An own address with the length of its subnet, which keeps its host part.
pub(super) fn own_address(value: &Value<'_>, faults: &mut Faults<'_>) -> Option<At<IpNet>> {
    let text = value.text(faults)?;
    let net = prefix(&text, true, faults)?;
    let address = At {
        value: net.addr(),
        span: text.span.clone(),
    };
    check_unicast(&address, faults).then_some(At {
        value: net,
        span: text.span,
    })
}

/// A network: a prefix without host bits, or one address, which is a network of its own.
pub(super) fn network(value: &Value<'_>, faults: &mut Faults<'_>) -> Option<At<IpNet>> {
    let text = value.text(faults)?;
    let net = prefix(&text, false, faults)?;
    if net.trunc() != net {
        let message = format!("{net} has bits set after its first {}", net.prefix_len());
        let help = format!(
            "write \"{}\", or \"{}\" for that one address",
            net.trunc(),
            net.addr()
        );
        faults.add(Fault::new(&text.span, message).help(help));
        return None;
    }
    Some(At {
        value: net,
        span: text.span,
    })
}

fn prefix(text: &At<&str>, needs_length: bool, faults: &mut Faults<'_>) -> Option<IpNet> {
    let (head, length) = match text.value.split_once('/') {
        Some((head, length)) => (head, Some(length)),
        None => (text.value, None),
    };
    let Ok(address) = IpAddr::from_str(head) else {
        let message = format!("{} is no prefix", quoted(text.value));
        let help = "write an address, a slash and a length: \"10.1.0.0/16\" or \"2001:db8::/32\"";
        faults.add(Fault::new(&text.span, message).help(help));
        return None;
    };
    let max = if address.is_ipv4() { 32 } else { 128 };
    let length = match length {
        None if needs_length => {
            let message = format!(
                "{} does not say how long its subnet's prefix is",
                quoted(head)
            );
            let usual = if address.is_ipv4() { 24 } else { 64 };
            let help =
                format!("write \"{address}/{usual}\", or \"{address}/{max}\" if it stands alone");
            faults.add(Fault::new(&text.span, message).help(help));
            return None;
        }
        None => max,
        Some(digits) => {
            let digits = Some(digits).filter(|digits| digits.bytes().all(|b| b.is_ascii_digit()));
            let number = digits.and_then(|digits| digits.parse::<u8>().ok());
            let Some(number) = number.filter(|&number| number <= max) else {
                let message = format!(
                    "{} has no prefix length from 0 to {max}",
                    quoted(text.value)
                );
                let help =
                    format!("write \"{address}/{max}\" for one address, or a shorter prefix");
                faults.add(Fault::new(&text.span, message).help(help));
                return None;
            };
            number
        }
    };
    IpNet::new(address, length).ok()
}

/// Whether packets can come from and go to `address`; complains if not.
fn check_unicast(address: &At<IpAddr>, faults: &mut Faults<'_>) -> bool {
    let ip = address.value;
    let mut help =
        "write the address of one interface: \"192.0.2.1\" or \"2001:db8::1\"".to_owned();
    let kind = match ip {
        ip if ip.is_unspecified() => "the unspecified address",
        ip if ip.is_multicast() => "a multicast address",
        ip if ip.is_loopback() => "a loopback address",
        IpAddr::V4(v4) if v4.is_broadcast() => "the broadcast address",
        IpAddr::V6(v6) => match v6.to_ipv4_mapped() {
            Some(v4) => {
                help = format!("write \"{v4}\"");
                "an IPv4 address written as IPv6"
            }
            None => return true,
        },
        _ => return true,
    };
    faults.add(Fault::new(&address.span, format!("{ip} is {kind}")).help(help));
    false
}

/// A unicast MAC address: six bytes in hexadecimal with colons between them.
pub(super) fn mac(value: &Value<'_>, faults: &mut Faults<'_>) -> Option<At<MacAddr>> {
    let text = value.text(faults)?;
    let Some(mac) = parse_mac(text.value, ':') else {
        let help = match parse_mac(text.value, '-') {
            Some(mac) => format!("write \"{mac}\""),
            None => "write six bytes in hexadecimal: \"02:00:00:00:00:01\"".to_owned(),
        };
        let message = format!("{} is no MAC address", quoted(text.value));
        faults.add(Fault::new(&text.span, message).help(help));
        return None;
    };
    let [first, ..] = mac.0;
    let wrong = match mac.0 {
        [0, 0, 0, 0, 0, 0] => "no station has it",
        _ if first & 1 == 1 => "it is a group address",
        _ => {
            return Some(At {
                value: mac,
                span: text.span,
            });
        }
    };
    let help = "write the MAC address of one station; its first byte is even";
    faults.add(
        Fault::new(
            &text.span,
            format!("{mac} cannot be a neighbour's: {wrong}"),
        )
        .help(help),
    );
    None
}

fn parse_mac(text: &str, separator: char) -> Option<MacAddr> {
    let mut parts = text.split(separator);
    let mut bytes = [0; 6];
    for byte in &mut bytes {
        let digits = parts.next().filter(|digits| digits.len() == 2)?;
        let digits = Some(digits).filter(|digits| digits.bytes().all(|b| b.is_ascii_hexdigit()))?;
        *byte = u8::from_str_radix(digits, 16).ok()?;
    }
    parts.next().is_none().then_some(MacAddr(bytes))
}

/// "IPv4" or "IPv6".
pub(super) fn family(address: IpAddr) -> &'static str {
    if address.is_ipv4() { "IPv4" } else { "IPv6" }
}

/// Whether `address` means something on one link only (RFC 4291 section 2.5.6).
pub(super) fn is_link_local(address: IpAddr) -> bool {
    matches!(address, IpAddr::V6(v6) if Ipv6Addr::is_unicast_link_local(&v6))
}
