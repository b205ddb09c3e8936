//! The `[tunnel.endpoints.outbound]` and `[tunnel.endpoints.inbound]` tables.
#![forbid(unsafe_code)]

use std::ops::RangeInclusive;
use std::path::{Path, PathBuf};

use zeroize::Zeroizing;

use super::diagnostic::{Fault, Faults, quoted};
use super::file::{At, Key, Span, Table, Value, closest};
use super::mask;
use super::progress::Progress;
use super::secret::{SecretError, Secrets};
use crate::crypto::aead::{Cipher, KeyMaterial, SALT_LEN};
use crate::ids::{ReservedSpi, Spi};
use crate::ipsec::traffic::Direction;

const SPI: Key = Key::new("spi", "spi = 0x1001");
const CIPHER: Key = Key::new("cipher", "cipher = \"aes-256-gcm\"");
const KEY: Key = Key::new("key", "key = { file = \"tunnel.key\" }");
const ESN: Key = Key::new("esn", "esn = true");
const WINDOW: Key = Key::new("window", "window = 1024");
const OUTBOUND_KEYS: &[&Key] = &[&SPI, &CIPHER, &KEY, &ESN];
const INBOUND_KEYS: &[&Key] = &[&SPI, &CIPHER, &KEY, &ESN, &WINDOW];
/// What the SAs of a split tunnel have in common, and what each has for itself.
const SHARED_OUTBOUND_KEYS: &[&Key] = &[&CIPHER, &ESN];
const SHARED_INBOUND_KEYS: &[&Key] = &[&CIPHER, &ESN, &WINDOW];
const OWN_KEYS: &[&Key] = &[&SPI, &KEY];

const WINDOW_RANGE: RangeInclusive<u32> = 64..=65_536;
const DEFAULT_WINDOW: u32 = 1024;
const KEY_HELP: &str = "write key = { file = \"tunnel.key\" } or key = { env = \"TUNNEL_KEY\" }";

/// What is needed to read keys.
pub(super) struct KeySource<'a> {
    /// Relative paths start here.
    pub(super) directory: &'a Path,
    pub(super) secrets: &'a Secrets,
    /// Told of each tunnel.
    pub(super) progress: &'a Progress,
}

/// What one SA has, or all SAs of a split tunnel in one direction, beside SPI and key.
pub(super) struct Transform {
    cipher: Option<At<Cipher>>,
    esn: bool,
    window: u32,
}

/// One SA as far as it could be read.
pub(super) struct KeyingDraft {
    pub(super) spi: Option<At<Spi>>,
    pub(super) key: Option<At<KeyMaterial>>,
    /// Where a key is given, readable or not.
    pub(super) key_span: Option<Span>,
    pub(super) esn: bool,
    pub(super) window: u32,
}

const WINDOW_ELSEWHERE: (&str, &str) = (
    "window",
    "the window is the receiver's: write it under inbound",
);

/// Reads one SA, and its key.
pub(super) fn read(
    table: &Table<'_>,
    direction: Direction,
    source: &KeySource<'_>,
    faults: &mut Faults<'_>,
) -> KeyingDraft {
    match direction {
        Direction::Outbound => table.refuse_unknown(OUTBOUND_KEYS, &[WINDOW_ELSEWHERE], faults),
        Direction::Inbound => table.refuse_unknown(INBOUND_KEYS, &[], faults),
    }
    let transform = transform(table, direction, faults);
    spi_and_key(table, &transform, source, faults)
}

/// Reads what the SAs of a split tunnel have in common in one direction.
pub(super) fn read_shared(
    table: &Table<'_>,
    direction: Direction,
    faults: &mut Faults<'_>,
) -> Transform {
    const OWN: &str =
        "each SA of a split tunnel has its own: write it under [[tunnel.endpoints.sa]]";
    let own = [("spi", OWN), ("key", OWN)];
    match direction {
        Direction::Outbound => {
            let elsewhere = [own[0], own[1], WINDOW_ELSEWHERE];
            table.refuse_unknown(SHARED_OUTBOUND_KEYS, &elsewhere, faults);
        }
        Direction::Inbound => table.refuse_unknown(SHARED_INBOUND_KEYS, &own, faults),
    }
    transform(table, direction, faults)
}

/// Reads one SA of a split tunnel, and its key.
pub(super) fn read_own(
    table: &Table<'_>,
    transform: &Transform,
    source: &KeySource<'_>,
    faults: &mut Faults<'_>,
) -> KeyingDraft {
    const SHARED: &str = "the SAs of a split tunnel share it: write it once, under [tunnel.endpoints.outbound] or \
                          [tunnel.endpoints.inbound]";
    let shared = ["cipher", "esn", "window"].map(|key| (key, SHARED));
    table.refuse_unknown(OWN_KEYS, &shared, faults);
    spi_and_key(table, transform, source, faults)
}

fn transform(table: &Table<'_>, direction: Direction, faults: &mut Faults<'_>) -> Transform {
    let cipher = table
        .need(&CIPHER, faults)
        .and_then(|value| cipher(&value, faults));
    let esn = table.find(&ESN).and_then(|value| value.boolean(faults));
    let window = match direction {
        Direction::Inbound => table.find(&WINDOW).and_then(|value| window(&value, faults)),
        Direction::Outbound => None,
    };
    Transform {
        cipher,
        esn: esn.is_none_or(|esn| esn.value),
        window: window.unwrap_or(DEFAULT_WINDOW),
    }
}

fn spi_and_key(
    table: &Table<'_>,
    transform: &Transform,
    source: &KeySource<'_>,
    faults: &mut Faults<'_>,
) -> KeyingDraft {
    let spi = table
        .need(&SPI, faults)
        .and_then(|value| spi(&value, faults));
    let key = table.need(&KEY, faults);
    let material = key
        .as_ref()
        .and_then(|value| key_material(value, transform.cipher.as_ref(), source, faults));
    KeyingDraft {
        spi,
        key: material,
        key_span: key.map(|value| value.span),
        esn: transform.esn,
        window: transform.window,
    }
}

fn spi(value: &Value<'_>, faults: &mut Faults<'_>) -> Option<At<Spi>> {
    let number = value.integer(faults)?;
    let message = match u32::try_from(number.value).map(Spi::new) {
        Ok(Ok(spi)) => {
            return Some(At {
                value: spi,
                span: number.span,
            });
        }
        //= https://www.rfc-editor.org/rfc/rfc4303#section-2.1
        //# The set of SPI values in the range 1 through 255 are reserved by the
        //# Internet Assigned Numbers Authority (IANA) for future use
        Ok(Err(reserved @ ReservedSpi(_))) => reserved.to_string(),
        Err(_) => format!("{} is no SPI: an SPI has 32 bits", number.value),
    };
    faults.add(Fault::new(&number.span, message).help("write a number from 0x100 to 0xffffffff"));
    None
}

fn cipher(value: &Value<'_>, faults: &mut Faults<'_>) -> Option<At<Cipher>> {
    let text = value.text(faults)?;
    if let Some(cipher) = Cipher::from_name(text.value) {
        return Some(At {
            value: cipher,
            span: text.span,
        });
    }
    let names = Cipher::ALL.map(Cipher::name);
    let help = match closest(text.value, names) {
        Some(near) => format!("did you mean \"{near}\"?"),
        None => format!("ciphers are {}", names.join(", ")),
    };
    faults.add(
        Fault::new(
            &text.span,
            format!("no cipher is called {}", quoted(text.value)),
        )
        .help(help),
    );
    None
}

fn window(value: &Value<'_>, faults: &mut Faults<'_>) -> Option<u32> {
    let number = value.integer(faults)?;
    let (min, max) = (*WINDOW_RANGE.start(), *WINDOW_RANGE.end());
    let fits = u32::try_from(number.value)
        .ok()
        .filter(|number| WINDOW_RANGE.contains(number));
    let (message, better) = match fits {
        Some(window) if window.is_power_of_two() => return Some(window),
        Some(window) => ("not a power of two".to_owned(), window.next_power_of_two()),
        None => (
            format!("not from {min} to {max}"),
            if number.value < i128::from(min) {
                min
            } else {
                max
            },
        ),
    };
    let message = format!("the window is {}, which is {message}", number.value);
    faults.add(Fault::new(&number.span, message).help(format!("write window = {better}")));
    None
}

/// Reads the key that `value` names. Whatever else stands there is never shown.
fn key_material(
    value: &Value<'_>,
    cipher: Option<&At<Cipher>>,
    source: &KeySource<'_>,
    faults: &mut Faults<'_>,
) -> Option<At<KeyMaterial>> {
    let Some(table) = value.as_table("key") else {
        faults.hide(&value.span);
        let message = "a key itself does not belong in this file";
        faults.add(Fault::new(&value.span, message).help(KEY_HELP));
        return None;
    };
    let (place, outcome) = key_bytes(&table, source, faults)?;
    let bytes = match outcome {
        Ok(bytes) => bytes,
        Err((message, help)) => {
            faults.add(Fault::new(&place, message).help(help));
            return None;
        }
    };
    let length = bytes.len();
    let Some(cipher) = cipher else {
        let lengths = Cipher::ALL.map(|cipher| cipher.key_len() + SALT_LEN);
        if !lengths.contains(&length) {
            let message = format!("the key has {length} bytes, and no cipher takes that many");
            faults.add(
                Fault::new(&place, message)
                    .help("write 20, 28 or 36 bytes: the key and then a 4-byte salt"),
            );
        }
        return None;
    };
    match KeyMaterial::new(cipher.value, bytes) {
        Ok(material) => Some(At {
            value: material,
            span: value.span.clone(),
        }),
        Err(error) => {
            let fitting = Cipher::ALL
                .into_iter()
                .find(|cipher| cipher.key_len() + SALT_LEN == length);
            let make = format!("give it {0} bytes: openssl rand -hex {0}", error.expected);
            let help = match fitting {
                Some(fitting) => format!("{make}; or write cipher = \"{fitting}\""),
                None => make,
            };
            faults.add(
                Fault::new(&place, error.to_string())
                    .related(&cipher.span, "the cipher")
                    .help(help),
            );
            None
        }
    }
}

/// The key's bytes or message and help.
type KeyOutcome = Result<Zeroizing<Vec<u8>>, (String, String)>;

/// Where the key is said to be, and what is there.
fn key_bytes(
    table: &Table<'_>,
    source: &KeySource<'_>,
    faults: &mut Faults<'_>,
) -> Option<(Span, KeyOutcome)> {
    let mut found = None;
    let mut clean = true;
    for (name, value) in table.entries() {
        let text = value.as_text().filter(|text| !may_be_key(text.value));
        match (name.value, text) {
            ("file" | "env", Some(text)) if found.is_none() => found = Some((name.value, text)),
            ("file" | "env", Some(_)) => {
                clean = false;
                faults.add(
                    Fault::new(&name.span, "a key has one source, file or env, not both")
                        .help(KEY_HELP),
                );
            }
            ("file" | "env", None) => {
                clean = false;
                faults.hide(&value.span);
                let message = format!("{} takes where the key is, not the key", name.value);
                faults.add(Fault::new(&value.span, message).help(KEY_HELP));
            }
            _ => {
                clean = false;
                faults.hide(&value.span);
                let message = format!("key has no key {}", quoted(name.value));
                faults.add(Fault::new(&name.span, message).help(KEY_HELP));
            }
        }
    }
    match found {
        _ if !clean => None,
        None => {
            faults.add(
                Fault::missing(&table.span, "key does not say where the key is").help(KEY_HELP),
            );
            None
        }
        Some(("env", name)) => {
            let outcome = env_key(name.value, source.secrets);
            Some((name.span, outcome))
        }
        Some((_, path)) => {
            let outcome = file_key(path.value, source);
            Some((path.span, outcome))
        }
    }
}

/// Whether a text is rather a key than the name of one.
fn may_be_key(text: &str) -> bool {
    let digits = text.strip_prefix("0x").unwrap_or(text);
    digits.len() >= mask::DIGIT_RUN_LEN && digits.bytes().all(|byte| byte.is_ascii_hexdigit())
}

fn env_key(name: &str, secrets: &Secrets) -> KeyOutcome {
    let good = |c: char| c.is_ascii_alphanumeric() || c == '_';
    if name.is_empty() || !name.chars().all(good) || name.starts_with(|c: char| c.is_ascii_digit())
    {
        let message = "env takes the name of a variable: letters, digits and _".to_owned();
        return Err((message, KEY_HELP.to_owned()));
    }
    secrets.env(name).map_err(|error| {
        let help = match error {
            SecretError::Unset => {
                format!("set {name} before the start, or write key = {{ file = \"…\" }}")
            }
            _ => format!("put the key and salt in hexadecimal in {name}"),
        };
        (
            format!("cannot read the key in the environment variable {name}: {error}"),
            help,
        )
    })
}

fn file_key(path: &str, source: &KeySource<'_>) -> KeyOutcome {
    if path.is_empty() || path.contains('\0') {
        return Err((
            "file takes the path of a key file".to_owned(),
            KEY_HELP.to_owned(),
        ));
    }
    let full: PathBuf = source.directory.join(path);
    source.secrets.file(&full).map_err(|error| {
        let shown = shell_word(&mask::cover_digits(&full.display().to_string()));
        let help = match error {
            SecretError::Mode { .. } => format!("chmod 600 {shown}"),
            SecretError::Owner { user, .. } => format!("chown {user} {shown}"),
            SecretError::Missing => format!(
                "create {shown} with mode 600, or correct the path, which starts from the policy file's directory"
            ),
            SecretError::Io(_) | SecretError::NotRegular => {
                "name a file that this user owns and may read".to_owned()
            }
            _ => "write nothing but the key and then the salt in hexadecimal into the file".to_owned(),
        };
        (format!("cannot use the key file {}: {error}", quoted(path)), help)
    })
}

/// `path` as one word of a shell command.
fn shell_word(path: &str) -> String {
    let plain = |c: char| c.is_ascii_alphanumeric() || "/._-+,:@".contains(c);
    if path.chars().all(plain) {
        path.to_owned()
    } else {
        let escaped: String = path.chars().flat_map(char::escape_debug).collect();
        format!("'{escaped}'")
    }
}
