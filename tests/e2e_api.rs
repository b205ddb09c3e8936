//! The control API of a running gateway, as a program of somebody else's sees it. Needs no network and no namespaces.
#![cfg(feature = "dpdk")]

mod process;

use std::fs;
use std::io::{BufRead, BufReader, Write};
use std::os::unix::fs::PermissionsExt;
use std::os::unix::net::UnixStream;
use std::path::Path;
use std::process::Stdio;
use std::time::{Duration, Instant};

use nix::unistd::{Group, getegid};
use process::{Gateway, simplon};
use serde_json::{Value, json};
use tempfile::TempDir;

const TIMEOUT: Duration = Duration::from_secs(60);

fn policy_text(dir: &Path, name: &str) -> String {
    let dir = dir.display();
    // The one that whoever runs this may give a file to.
    let group = Group::from_gid(getegid()).expect("asked");
    let group = group.expect("a group of that number").name;
    format!(
        r#"
[gateway]
name = "{name}"
workers = [0]
state_dir = "{dir}/state"
control_socket = "{dir}/api.sock"
control_group = "{group}"
[[port]]
host = false
name = "lan"
device = "net_null0,no-rx=1"
side = "protected"
pair = "wan"
[[port]]
host = false
name = "wan"
device = "net_null1,no-rx=1"
side = "unprotected"
pair = "lan"
addresses = ["192.0.2.1/24"]
[[neighbour]]
address = "192.0.2.2"
mac = "02:00:00:00:00:02"
port = "wan"
"#
    )
}

/// Connects as soon as there is somebody to connect to.
fn connect(socket: &Path) -> BufReader<UnixStream> {
    let deadline = Instant::now() + TIMEOUT;
    loop {
        if let Ok(stream) = UnixStream::connect(socket) {
            stream.set_read_timeout(Some(TIMEOUT)).expect("set");
            return BufReader::new(stream);
        }
        assert!(Instant::now() < deadline, "nobody listens");
        std::thread::sleep(Duration::from_millis(1));
    }
}

fn send(stream: &mut BufReader<UnixStream>, message: &Value) {
    let line = format!("{message}\n");
    stream.get_mut().write_all(line.as_bytes()).expect("sent");
}

fn read(stream: &mut impl BufRead) -> Value {
    let mut line = String::new();
    stream.read_line(&mut line).expect("read");
    serde_json::from_str(&line).expect("JSON")
}

#[test]
fn a_client_asks_in_batches_and_is_told_of_links() {
    let dir = TempDir::new().expect("dir");
    let name = format!("api-{}", std::process::id());
    let mut gateway = Gateway::start(dir.path(), &name, &policy_text(dir.path(), &name));
    let socket = dir.path().join("api.sock");
    // It is answered once the gateway runs, and then told what the gateway sees first.
    let mut client = connect(&socket);
    send(
        &mut client,
        &json!({ "jsonrpc": "2.0", "id": 1, "method": "events.subscribe" }),
    );
    let answer = read(&mut client);
    assert_eq!(
        answer["result"],
        json!({ "kinds": ["link", "sa_lifetime", "policy"] })
    );
    for port in ["lan", "wan"] {
        let told = read(&mut client);
        assert_eq!(told["method"], "event", "{told}");
        assert_eq!(told["params"]["kind"], "link");
        assert_eq!(told["params"]["port"], port);
        assert_eq!(told["params"]["up"], true);
    }
    send(
        &mut client,
        &json!([
            { "jsonrpc": "2.0", "id": "v", "method": "api.version" },
            { "jsonrpc": "2.0", "method": "show.sa" },
            { "jsonrpc": "2.0", "id": 2, "method": "show.neighbours" },
            { "jsonrpc": "2.0", "id": 3, "method": "show.sa", "params": { "spi": 1 } },
        ]),
    );
    let answers = read(&mut client);
    assert_eq!(answers.as_array().map(Vec::len), Some(3), "{answers}");
    assert_eq!(
        answers[0]["result"],
        json!({ "api": 1, "simplon": env!("CARGO_PKG_VERSION") })
    );
    let neighbour = &answers[1]["result"]["neighbours"][0];
    assert_eq!(neighbour["mac"], "02:00:00:00:00:02", "{answers}");
    assert_eq!(neighbour["origin"], "static");
    assert_eq!(answers[2]["error"]["code"], -32602);

    let mode = fs::metadata(&socket).expect("socket").permissions().mode();
    assert_eq!(mode & 0o777, 0o660);
    watch(&dir.path().join(format!("{name}.toml")));
    gateway.wait("neighbours", |shown| shown["neighbours"].is_array());
    gateway.stop();
    let mut rest = String::new();
    let ended = client.read_line(&mut rest);
    assert!(matches!(ended, Ok(0) | Err(_)), "{rest}");
}

/// `show --watch` goes on until nobody reads it.
fn watch(policy: &Path) {
    let arguments = ["show", "neighbours", "--json", "--watch=0.1"];
    let mut watching = simplon(&arguments, policy)
        .stdout(Stdio::piped())
        .spawn()
        .expect("simplon");
    let mut shown = BufReader::new(watching.stdout.take().expect("a pipe"));
    for _ in 0..3 {
        assert!(read(&mut shown)["neighbours"].is_array());
    }
    drop(shown);
    assert!(watching.wait().expect("ended").success());
}
