use super::client::{MAX_BACKLOG, MAX_REQUEST};
use super::*;
use crate::control::events::{Event, EventQueue, Notification};
use crate::control::protocol::{Method, Response, request_line};
use std::io::{BufRead, BufReader, Read};
use std::os::unix::fs::MetadataExt;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};

/// As [`MAX_UNREAD`], and little enough to be reached.
const MOST_HELD: usize = 16 << 20;

/// What the gateway of these tests answers with: something long to `show.sa`, the call's name to all else.
fn gateway(call: Call) -> Result<Value, ApiError> {
    match call {
        Call::ShowSa => Ok("x".repeat(1 << 20).into()),
        call => Ok(format!("{call:?}").into()),
    }
}

/// What a client under test can see and do beside its connections.
struct Site<'a> {
    path: &'a Path,
    events: &'a EventQueue,
    clients: &'a AtomicUsize,
}

/// Serves while `client` runs.
fn with_server<T: Send>(client: impl FnOnce(&Site<'_>) -> T + Send) -> T {
    let dir = tempfile::TempDir::new().expect("dir");
    let path = dir.path().join("s.sock");
    let mut socket = ControlSocket::bind(&path, None).expect("bound");
    socket.most_held = MOST_HELD;
    let events = EventQueue::default();
    let clients = AtomicUsize::new(0);
    let result = std::thread::scope(|scope| {
        let handle = scope.spawn(|| {
            client(&Site {
                path: &path,
                events: &events,
                clients: &clients,
            })
        });
        while !handle.is_finished() {
            socket
                .serve(Duration::from_millis(2), gateway)
                .expect("served");
            std::iter::from_fn(|| events.next())
                .take(64)
                .for_each(|event| socket.tell(&event));
            socket
                .serve(Duration::ZERO, gateway)
                .expect("served without waiting");
            clients.store(socket.clients.len(), Ordering::SeqCst);
        }
        handle.join().expect("client")
    });
    drop(socket);
    assert!(!path.exists());
    result
}

impl Site<'_> {
    fn connect(&self) -> StdUnixStream {
        let stream = StdUnixStream::connect(self.path).expect("connected");
        let patience = Some(Duration::from_secs(20));
        stream.set_read_timeout(patience).expect("set");
        stream
    }

    /// Asks over a new connection, and returns the result.
    fn ask(&self, method: Method) -> Value {
        let mut stream = self.connect();
        stream.write_all(request(method).as_bytes()).expect("asked");
        read(&mut BufReader::new(stream)).result.expect("a result")
    }

    /// Waits until the server has `count` clients.
    fn wait_for(&self, count: usize) {
        let began = Instant::now();
        while self.clients.load(Ordering::SeqCst) != count {
            assert!(began.elapsed() < Duration::from_secs(20), "clients remain");
            std::thread::sleep(Duration::from_millis(1));
        }
    }
}

fn request(method: Method) -> String {
    request_line(method, &json!({}))
}

fn read(stream: &mut impl BufRead) -> Response {
    let mut line = String::new();
    stream.read_line(&mut line).expect("answered");
    serde_json::from_str(&line).expect("a response")
}

fn link(port: &str) -> Event {
    Event::Link {
        port: port.into(),
        up: true,
    }
}

#[test]
fn socket_is_its_owners_only_and_answers() {
    let (mode, answer) = with_server(|site| {
        let mode = fs::metadata(site.path)
            .expect("socket")
            .permissions()
            .mode()
            & 0o777;
        (mode, site.ask(Method::ShowDrops))
    });
    assert_eq!(mode, 0o600);
    assert_eq!(answer, "ShowDrops");
}

#[test]
fn a_group_is_let_in_where_there_is_one_of_that_name() {
    let dir = tempfile::TempDir::new().expect("dir");
    let path = dir.path().join("s.sock");
    // The one group that whoever runs this may give a file to.
    let own = Group::from_gid(nix::unistd::getegid()).expect("asked");
    if let Some(own) = own {
        let socket = ControlSocket::bind(&path, Some(&own.name)).expect("bound");
        let meta = fs::metadata(&path).expect("socket");
        assert_eq!(meta.permissions().mode() & 0o777, 0o660);
        assert_eq!(meta.gid(), own.gid.as_raw());
        drop(socket);
    }
    let refused = ControlSocket::bind(&path, Some("no-such-group-here"));
    let Err(error @ SocketError::NoSuchGroup { .. }) = refused else {
        panic!("a group that does not exist was taken");
    };
    assert!(error.to_string().contains("control_group"), "{error}");
    assert!(!path.exists());
}

#[test]
fn garbage_is_answered_and_the_connection_goes_on() {
    with_server(|site| {
        let mut stream = site.connect();
        let mut reader = BufReader::new(stream.try_clone().expect("cloned"));
        for garbage in [&b"\n"[..], b"{\n", b"\xff\xfe\x00\n", b"[[[[\n", b"[]\n"] {
            stream.write_all(garbage).expect("wrote");
            assert!(read(&mut reader).error.is_some());
        }
        // Nobody answers a notification.
        let line = "{\"jsonrpc\":\"2.0\",\"method\":\"show.sa\"}\n";
        stream.write_all(line.as_bytes()).expect("wrote");
        let ask = request(Method::ShowPorts);
        stream.write_all(ask.as_bytes()).expect("asked");
        assert_eq!(read(&mut reader).result, Some("ShowPorts".into()));
    });
}

#[test]
fn messages_in_pieces_are_put_together_and_half_ones_keep_nobody_waiting() {
    with_server(|site| {
        let mut half = site.connect();
        half.write_all(b"{\"jsonrpc\":\"2.0\",\"meth")
            .expect("wrote");
        let mut slow = site.connect();
        for byte in request(Method::ShowPorts).as_bytes() {
            slow.write_all(&[*byte]).expect("wrote");
        }
        assert_eq!(
            read(&mut BufReader::new(slow)).result,
            Some("ShowPorts".into())
        );
        assert_eq!(site.ask(Method::ShowDrops), "ShowDrops");
        drop(half);
        site.wait_for(0);
    });
}

#[test]
fn what_was_asked_is_answered_after_the_client_has_closed_its_side() {
    with_server(|site| {
        let mut stream = site.connect();
        let (sa, drops) = (request(Method::ShowSa), request(Method::ShowDrops));
        let asked = sa.clone() + &sa + drops.trim_end();
        stream.write_all(asked.as_bytes()).expect("asked");
        stream
            .shutdown(std::net::Shutdown::Write)
            .expect("closed half");
        let mut answers = String::new();
        stream.read_to_string(&mut answers).expect("read to end");
        assert_eq!(answers.lines().count(), 3);
        assert!(answers.ends_with("\"ShowDrops\"}\n"));
    });
}

#[test]
fn a_line_without_end_is_refused_and_closed() {
    with_server(|site| {
        let mut noisy = site.connect();
        let _ = noisy.write_all(&vec![b'x'; MAX_REQUEST * 2]);
        let error = read(&mut BufReader::new(noisy)).error.expect("an error");
        assert!(error.message.contains("bytes"), "{error:?}");
        site.wait_for(0);
    });
}

#[test]
fn who_asks_and_never_reads_is_not_answered_any_more_and_others_are() {
    with_server(|site| {
        let mut deaf = site.connect();
        let limit = Some(Duration::from_millis(200));
        deaf.set_write_timeout(limit).expect("set");
        let ask = request(Method::ShowSa);
        let asked = (0..100_000)
            .take_while(|_| deaf.write_all(ask.as_bytes()).is_ok())
            .count();
        assert!(
            asked < 100_000,
            "the gateway took everything that was asked"
        );
        assert_eq!(site.ask(Method::ShowDrops), "ShowDrops");
    });
}

#[test]
fn what_is_unread_is_bounded_in_all_and_in_a_batch() {
    with_server(|site| {
        let ask = request(Method::ShowSa);
        let batch = format!("[{}]\n", [ask.trim_end()].repeat(40).join(","));
        let mut client = BufReader::new(site.connect());
        client.get_mut().write_all(batch.as_bytes()).expect("asked");
        let mut line = String::new();
        client.read_line(&mut line).expect("answered");
        assert!((MOST_HELD..2 * MOST_HELD).contains(&line.len()));
        let answers: Vec<Response> = serde_json::from_str(&line).expect("a batch");
        assert_eq!(answers.len(), 40);
        let last = answers.last().and_then(|answer| answer.error.as_ref());
        assert_eq!(last.map(|error| error.code), Some(BUSY));

        // As much is kept for one who does not read, and it does not harm for longer than that one is there. How much of it the
        // kernel takes meanwhile is its own affair, so others ask all the time, and once more where they came too late.
        drop(client);
        let mut other = BufReader::new(site.connect());
        let mut is_busy = |times: usize| {
            let ask = request(Method::ShowDrops).repeat(times);
            other.get_mut().write_all(ask.as_bytes()).expect("asked");
            let errors = (0..times).map(|_| read(&mut other).error);
            let busy = errors.filter(|error| matches!(error, Some(error) if error.code == BUSY));
            busy.count() > 0
        };
        let began = Instant::now();
        loop {
            let mut deaf = site.connect();
            deaf.write_all(batch.as_bytes()).expect("asked");
            if is_busy(100) {
                break;
            }
            assert!(began.elapsed() < Duration::from_secs(20), "never busy");
        }
        site.wait_for(1);
        assert!(!is_busy(1));
    });
}

#[test]
fn clients_killed_in_the_middle_are_forgotten() {
    with_server(|site| {
        for at in 0..200 {
            let mut stream = site.connect();
            let ask = request(Method::ShowSa);
            let _ = stream.write_all(&ask.as_bytes()[..ask.len() - at % 3]);
        }
        site.wait_for(0);
        assert_eq!(site.ask(Method::ShowDrops), "ShowDrops");
    });
}

#[test]
fn a_thousand_clients_are_all_served_while_one_never_stops_asking() {
    with_server(|site| {
        let done = AtomicBool::new(false);
        std::thread::scope(|scope| {
            scope.spawn(|| {
                let mut greedy = site.connect();
                let ask = request(Method::ShowPorts).repeat(100);
                let mut reader = BufReader::new(greedy.try_clone().expect("cloned"));
                while !done.load(Ordering::SeqCst) {
                    greedy.write_all(ask.as_bytes()).expect("asked");
                    for _ in 0..100 {
                        read(&mut reader);
                    }
                }
            });
            let mut all: Vec<_> = (0..1000).map(|_| BufReader::new(site.connect())).collect();
            for method in [Method::ShowDrops, Method::ShowPorts] {
                for client in &mut all {
                    let ask = request(method);
                    client.get_mut().write_all(ask.as_bytes()).expect("asked");
                }
                for client in &mut all {
                    assert!(read(client).result.is_some());
                }
            }
            done.store(true, Ordering::SeqCst);
        });
        site.wait_for(0);
    });
}

#[test]
fn clients_beyond_the_most_are_told_why_and_there_is_room_again_when_one_goes() {
    with_server(|site| {
        let mut all: Vec<_> = (0..MAX_CLIENTS).map(|_| site.connect()).collect();
        site.wait_for(MAX_CLIENTS);
        let error = read(&mut BufReader::new(site.connect())).error;
        let error = error.expect("an error");
        assert_eq!(error.code, TOO_MANY_CLIENTS);
        assert_eq!(error.data, Some(json!({ "clients": MAX_CLIENTS })));
        all.pop();
        site.wait_for(MAX_CLIENTS - 1);
        assert_eq!(site.ask(Method::ShowDrops), "ShowDrops");
    });
}

#[test]
fn subscribers_get_their_answer_and_then_what_they_asked_for() {
    with_server(|site| {
        let mut stream = site.connect();
        let ask = request_line(Method::EventsSubscribe, &json!({ "kinds": ["link"] }));
        stream.write_all(ask.as_bytes()).expect("asked");
        let mut reader = BufReader::new(stream.try_clone().expect("cloned"));
        assert_eq!(read(&mut reader).result, Some(json!({ "kinds": ["link"] })));
        site.events.emit(Event::SaLifetime {
            tunnel: "west-east".into(),
            spi: "0x1001".into(),
            direction: "inbound".into(),
            limit: crate::control::lifetimes::LimitKind::Time,
            hard: true,
        });
        site.events.emit(link("lan"));
        let mut line = String::new();
        reader.read_line(&mut line).expect("told");
        let told: Notification = serde_json::from_str(&line).expect("a notification");
        assert_eq!(told.params.event, link("lan"));
        // It may still ask, and listen when it has closed its side.
        let ask = request(Method::ShowDrops);
        stream.write_all(ask.as_bytes()).expect("asked");
        assert_eq!(read(&mut reader).result, Some("ShowDrops".into()));
        stream
            .shutdown(std::net::Shutdown::Write)
            .expect("closed half");
        std::thread::sleep(Duration::from_millis(20));
        site.events.emit(link("wan"));
        line.clear();
        reader.read_line(&mut line).expect("told");
        assert!(line.contains("wan"), "{line}");
        drop((stream, reader));
        site.wait_for(0);
    });
}

#[test]
fn a_subscriber_that_does_not_read_is_cut_off_and_the_others_miss_nothing() {
    /// More than backlog and the system's buffers hold.
    const EVENTS: usize = 3 * MAX_BACKLOG / 64;
    with_server(|site| {
        let mut both: Vec<_> = (0..2).map(|_| BufReader::new(site.connect())).collect();
        for stream in &mut both {
            let ask = request(Method::EventsSubscribe);
            stream.get_mut().write_all(ask.as_bytes()).expect("asked");
            assert!(read(stream).result.is_some());
        }
        let mut listening = both.pop().expect("one");
        let mut deaf = both.pop().expect("another");
        for at in 0..EVENTS {
            site.events.emit(link(&at.to_string()));
            let mut line = String::new();
            listening.read_line(&mut line).expect("told");
            let told: Notification = serde_json::from_str(&line).expect("a notification");
            assert_eq!(told.params.event, link(&at.to_string()));
        }
        site.wait_for(1);
        let mut rest = String::new();
        let _ = deaf.read_to_string(&mut rest);
        assert!(rest.lines().count() < EVENTS);
    });
}

#[test]
fn live_socket_is_not_taken_over_and_a_stale_one_is() {
    let dir = tempfile::TempDir::new().expect("dir");
    let path = dir.path().join("s.sock");
    let first = ControlSocket::bind(&path, None).expect("bound");
    assert!(matches!(
        ControlSocket::bind(&path, None),
        Err(SocketError::InUse { .. })
    ));
    // As a killed process leaves it: the file stays, nobody listens.
    std::mem::forget(first);
    let stale = dir.path().join("stale.sock");
    drop(std::os::unix::net::UnixListener::bind(&stale).expect("bound"));
    assert!(ControlSocket::bind(&stale, None).is_ok());
    fs::write(dir.path().join("file"), b"").expect("file");
    assert!(matches!(
        ControlSocket::bind(&dir.path().join("file"), None),
        Err(SocketError::NotASocket { .. })
    ));
}
