//! Where keys come from, and that they go nowhere else.

use std::fs;
use std::os::unix::fs::{PermissionsExt, symlink};
use std::path::Path;

use simplon::policy::{LoadError, Secrets, load};

use super::{BASE, Site, test_key, write_key};

/// What is said where `1.key` is as `make` leaves it.
fn said_of_key_file(make: impl FnOnce(&Path)) -> Option<String> {
    let site = Site::new();
    make(&site.directory.path().join("1.key"));
    said(&site, BASE)
}

/// The only error in `text`: message and help.
fn said(site: &Site, text: &str) -> Option<String> {
    let errors = site.errors(text);
    assert!(errors.len() < 2, "{}", site.render(&errors, text));
    errors
        .first()
        .map(|error| format!("{} {}", error.message(), error.help()))
}

fn assert_says(said: Option<String>, parts: &[&str]) {
    let said = said.unwrap();
    for part in parts {
        assert!(said.contains(part), "{part:?} is not in {said:?}");
    }
}

#[test]
fn key_file_that_others_may_read_is_refused() {
    for mode in [0o640, 0o604, 0o660, 0o601] {
        let set_mode =
            |path: &Path| fs::set_permissions(path, fs::Permissions::from_mode(mode)).unwrap();
        assert_says(
            said_of_key_file(set_mode),
            &[&format!("mode is {mode:04o}"), "chmod 600 /", "1.key"],
        );
    }
    let set_mode =
        |path: &Path| fs::set_permissions(path, fs::Permissions::from_mode(0o400)).unwrap();
    assert_eq!(said_of_key_file(set_mode), None);
}

#[test]
fn key_file_of_another_user_is_refused() {
    if !rustix::process::geteuid().is_root() {
        return;
    }
    let give_away = |path: &Path| std::os::unix::fs::chown(path, Some(65_534), None).unwrap();
    assert_says(
        said_of_key_file(give_away),
        &["belongs to user 65534", "chown 0 /"],
    );
}

#[test]
fn key_file_that_is_no_file_is_refused() {
    let remove = |path: &Path| fs::remove_file(path).unwrap();
    assert_says(said_of_key_file(remove), &["no such file", "create "]);
    let directory = |path: &Path| {
        fs::remove_file(path).unwrap();
        fs::create_dir(path).unwrap();
    };
    assert_says(said_of_key_file(directory), &["not a regular file"]);
    let pipe = |path: &Path| {
        fs::remove_file(path).unwrap();
        rustix::fs::mknodat(
            rustix::fs::CWD,
            path,
            rustix::fs::FileType::Fifo,
            0o600.into(),
            0,
        )
        .unwrap();
    };
    assert_says(said_of_key_file(pipe), &["not a regular file"]);
}

#[test]
fn symlink_is_as_good_as_its_target() {
    let link = |path: &Path| {
        let target = path.with_extension("target");
        fs::rename(path, &target).unwrap();
        symlink(&target, path).unwrap();
    };
    assert_eq!(said_of_key_file(link), None);
    let link_to_open = |path: &Path| {
        link(path);
        fs::set_permissions(path, fs::Permissions::from_mode(0o644)).unwrap();
    };
    assert_says(said_of_key_file(link_to_open), &["mode is 0644"]);
}

#[test]
fn key_file_content() {
    let with = |text: String| said_of_key_file(|path| write_key(path, &text));
    assert_eq!(
        with(format!("  0x{}\r\n", test_key(77, 20).to_uppercase())),
        None
    );
    assert_says(with(String::new()), &["it is empty"]);
    assert_says(
        with(test_key(1, 20).replacen("a7", "g7", 1)),
        &["character 15 is not a hexadecimal digit"],
    );
    assert_says(with(test_key(1, 20) + "a"), &["41 hexadecimal digits"]);
    assert_says(with(test_key(1, 20).repeat(200)), &["more than 4096 bytes"]);
    assert_says(
        with(test_key(1, 36)),
        &[
            "aes-128-gcm takes 20 bytes",
            "not 36",
            "openssl rand -hex 20",
            "or write cipher = \"aes-256-gcm\"",
        ],
    );
    assert_says(with(test_key(1, 16)), &["takes 20 bytes", "not 16"]);
}

#[test]
fn environment() {
    let site = Site::new();
    let unset = BASE.replace("KEY_2", "KEY_22");
    assert_says(
        said(&site, &unset),
        &["variable KEY_22", "no such variable", "set KEY_22"],
    );
    assert_says(
        said(&site, &BASE.replace("KEY_2", "KEY 2")),
        &["name of a variable"],
    );
    assert_says(
        said(&site, &BASE.replace("KEY_2", "KEY_3")),
        &["takes 20 bytes"],
    );
}

#[test]
fn key_used_twice_is_refused() {
    let site = Site::new();
    assert_says(
        said(&site, &BASE.replace("4.key", "3.key")),
        &["another SA has this key"],
    );
    assert_says(
        said(&site, &BASE.replace("KEY_2", "KEY_1")),
        &["another SA has this key"],
    );
    // Another salt does not help: it is not secret, and the key is the same.
    let salted = test_key(1, 16) + "00000000";
    write_key(&site.directory.path().join("1.key"), &salted);
    assert_says(
        said(&site, &BASE.replace("KEY_2", "KEY_1")),
        &["another SA has this key"],
    );
}

#[test]
fn inline_keys_are_refused_and_never_shown() {
    let key = test_key(1, 20);
    let spaced = "5e c0 de 00 00 00 01 a7 a7 a7";
    let lines = [
        format!("key = \"{key}\""),
        format!("key = 0x{key}"),
        format!("key = {key}"),
        format!("key = \"{key}"),
        format!("key = [\"{key}\"]"),
        format!("key = {{ hex = \"{key}\" }}"),
        format!("key = {{ file = \"{key}\" }}"),
        format!("key = {{ env = \"{key}\" }}"),
        format!("key = {{ file = \"1.key\", hex = \"{key}\" }}"),
        format!("key = {{ file = 0x{key} }}"),
        format!("key = {{ hex = \"{key}\""),
        format!("key = \"\"\"\n{key}\n\"\"\""),
        format!("key = \"\"\"\n{spaced}\n\"\"\""),
        format!("key = '''\n{key}\n"),
        format!("key {key}"),
        key.clone(),
        format!("key: {key}"),
        format!("kee = \"{key}\""),
        format!("key = {{ file = \"1.key\" }} # {key}"),
        format!("key = \"{spaced}\""),
        format!("kye = \"{spaced}\""),
        format!("key.hex = \"{spaced}\""),
        format!("key = {{ {key} = 1 }}"),
        format!("[tunnel.endpoints.outbound.key]\nhex = \"{spaced}\""),
        format!("spi = \"{key}\"\nkey = 1"),
    ];
    let site = Site::new();
    for line in lines {
        let text = BASE.replace("key = { file = \"1.key\" }", &line);
        let errors = site.errors(&text);
        let shown = site.render(&errors, &text);
        assert!(!errors.is_empty() || line.contains('#'), "{line}");
        assert!(
            !shown.contains("5e c0") && !shown.contains("a7 a7"),
            "{shown}"
        );
    }
}

#[test]
fn errors_beside_keys_do_not_show_them() {
    let site = Site::new();
    let key = test_key(1, 20);
    let whole = format!("outbound = {{ spi = 0, cipher = \"aes\", key = \"{key}\" }}");
    let start = BASE.find("[tunnel.endpoints.outbound]").unwrap();
    let end = BASE.find("[tunnel.endpoints.inbound]").unwrap();
    let text = format!("{}{whole}\n\n{}", &BASE[..start], &BASE[end..]);
    assert_eq!(site.errors(&text).len(), 3);
}

#[test]
fn load_tells_what_is_wrong_with_the_file() {
    let site = Site::new();
    let path = site.policy_path();
    let outcome = || load(&path, &site.secrets).err().unwrap();
    assert!(matches!(outcome(), LoadError::Io { .. }));
    assert!(outcome().render(false).starts_with("error: cannot read /"));
    fs::write(&path, b"[gateway]\nname = \"\xff\"\n").unwrap();
    assert!(matches!(outcome(), LoadError::NotUtf8 { line: 2, .. }));
    fs::write(&path, "").unwrap();
    assert!(
        outcome().render(false).contains("2 errors in west.toml"),
        "{}",
        outcome().render(false)
    );
    fs::write(&path, BASE).unwrap();
    assert!(load(&path, &site.secrets).is_ok());
    assert!(load(&path, &Secrets::from_process()).is_err());
    assert!(matches!(
        load(site.directory.path(), &site.secrets),
        Err(LoadError::NotRegular { .. })
    ));
}
