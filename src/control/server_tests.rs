//! The server at a real socket, with an outside that answers.

use std::io::{BufRead, BufReader};

use super::*;

/// A server whose control thread answers every request by the process id 7.
struct Fixture {
    _folder: tempfile::TempDir,
    path: PathBuf,
    server: Option<Server>,
    requests: Receiver<Asked>,
}

impl Fixture {
    fn new() -> Fixture {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("run/uvs.sock");
        let (sender, requests) = crossbeam_channel::unbounded();
        let server = Server::start(&path, sender).unwrap_or_else(|error| panic!("{error}"));
        Fixture {
            _folder: folder,
            path,
            server: Some(server),
            requests,
        }
    }

    fn answer_all(&self) {
        let requests = self.requests.clone();
        thread::spawn(move || {
            for asked in requests {
                let (_, answering) = asked.into_parts();
                answering.reply(ok());
            }
        });
    }

    fn connect(&self) -> BufReader<UnixStream> {
        let stream = UnixStream::connect(&self.path).unwrap();
        stream.set_read_timeout(Some(Duration::from_secs(20))).unwrap();
        BufReader::new(stream)
    }
}

fn send(client: &mut BufReader<UnixStream>, bytes: &[u8]) {
    client.get_mut().write_all(bytes).unwrap();
}

fn receive(client: &mut BufReader<UnixStream>) -> Reply {
    let mut line = String::new();
    client.read_line(&mut line).unwrap();
    serde_json::from_str(&line).unwrap_or_else(|error| panic!("{line:?}: {error}"))
}

fn ok() -> Reply {
    Reply::Ok {
        version: "v".to_owned(),
        pid: 7,
    }
}

fn is_ok(reply: &Reply) -> bool {
    *reply == ok()
}

#[test]
fn several_clients_several_requests_and_the_mode() {
    let fixture = Fixture::new();
    fixture.answer_all();
    let mode = fs::metadata(&fixture.path).unwrap().mode();
    assert_eq!(mode & 0o777, 0o600);
    let (mut first, mut second) = (fixture.connect(), fixture.connect());
    // Two in one piece, and one in two.
    send(&mut first, b"{\"request\":\"ping\"}\n{\"request\":\"ping\"}\n");
    send(&mut second, b"{\"request\":");
    assert!(is_ok(&receive(&mut first)) && is_ok(&receive(&mut first)));
    send(&mut second, b"\"ping\"}\n");
    assert!(is_ok(&receive(&mut second)));
}

/// Goal: an answer is with its client before the client's own thread wakes.
#[test]
fn a_short_answer_is_sent_by_who_has_it() {
    let (client, servers) = UnixStream::pair().unwrap();
    let (asked, rest) = Asked::new(Request::Ping, Arc::new(servers));
    asked.into_parts().1.reply(ok());
    assert!(is_ok(&receive(&mut BufReader::new(client))));
    assert_eq!(rest.recv().unwrap()().unwrap(), b"");
}

/// How: answers of many lengths to a client that does not read, until one is sent by half. Goal: what was sent and what is left are
/// the answer, and of a long one all is left.
#[test]
fn what_has_no_room_is_left_to_the_clients_thread() {
    let reply = |len| Reply::Error {
        message: "x".repeat(len),
    };
    let mut by_half = 0;
    for len in (SHORT_MAX / 2..SHORT_MAX - 100).step_by(1000).chain([SHORT_MAX]) {
        let (mut client, servers) = UnixStream::pair().unwrap();
        let servers = Arc::new(servers);
        let (mut expected, mut left) = (Vec::new(), Vec::new());
        while left.is_empty() {
            let (asked, answer) = Asked::new(Request::Ping, servers.clone());
            asked.into_parts().1.reply(reply(len));
            left = answer.recv().unwrap()().unwrap();
            expected.extend(to_line(&reply(len)).unwrap());
            by_half += usize::from(!left.is_empty() && left[0] != b'{');
        }
        drop(servers);
        let mut sent = Vec::new();
        client.read_to_end(&mut sent).unwrap();
        assert_eq!(sent.is_empty(), len == SHORT_MAX);
        sent.extend(left);
        assert!(sent == expected, "{len}");
    }
    assert!(by_half > 0);
}

/// How: a client that reads nothing until its answers have no room. Goal: nobody waits for it, and it gets each answer whole and in
/// order.
#[test]
fn who_does_not_read_holds_nobody_up() {
    const ASKED: usize = 100;
    let fixture = Fixture::new();
    let requests = fixture.requests.clone();
    let answered = Arc::new(AtomicUsize::new(0));
    let count = answered.clone();
    thread::spawn(move || {
        for (n, asked) in requests.iter().enumerate() {
            let (_, answering) = asked.into_parts();
            let message = format!("{n} {}", "x".repeat(60_000));
            answering.reply(Reply::Error { message });
            count.fetch_add(1, Ordering::SeqCst);
        }
    });
    let mut slow = fixture.connect();
    send(&mut slow, &b"{\"request\":\"ping\"}\n".repeat(ASKED));
    // Until its thread waits for room.
    let mut before = 0;
    while answered.load(Ordering::SeqCst) == 0 || answered.load(Ordering::SeqCst) != before {
        before = answered.load(Ordering::SeqCst);
        thread::sleep(Duration::from_millis(100));
    }
    let mut other = fixture.connect();
    send(&mut other, b"{\"request\":\"ping\"}\n");
    let number = |reply: Reply| match reply {
        Reply::Error { message } => message.split_once(' ').unwrap().0.parse().unwrap(),
        other => panic!("{other:?}"),
    };
    let between: usize = number(receive(&mut other));
    let slow: Vec<usize> = (0..ASKED).map(|_| number(receive(&mut slow))).collect();
    let expected: Vec<usize> = (0..=ASKED).filter(|n| *n != between).collect();
    assert_eq!(slow, expected);
    assert!(between < ASKED, "the slow client's answers came all before");
}

#[test]
fn nonsense_is_refused_and_the_client_may_go_on() {
    let fixture = Fixture::new();
    fixture.answer_all();
    let mut client = fixture.connect();
    for bad in [&b"hello\n"[..], b"\n", b"{\"request\":\"fly\"}\n", b"\xff\xfe\n"] {
        send(&mut client, bad);
        let Reply::Error { message } = receive(&mut client) else {
            panic!("{bad:?} was taken")
        };
        assert!(message.starts_with("not a request: "), "{message}");
    }
    send(&mut client, b"{\"request\":\"ping\"}\n");
    assert!(is_ok(&receive(&mut client)));
}

#[test]
fn too_many_clients_are_told_so() {
    let mut fixture = Fixture::new();
    fixture.answer_all();
    let mut clients: Vec<_> = (0..CLIENTS_MAX).map(|_| fixture.connect()).collect();
    for client in &mut clients {
        send(client, b"{\"request\":\"ping\"}\n");
        assert!(is_ok(&receive(client)));
    }
    let Reply::Error { message } = receive(&mut fixture.connect()) else {
        panic!("one too many")
    };
    assert!(message.contains("64 clients"), "{message}");
    // One leaves, and soon there is room.
    drop(clients.pop());
    let start = Instant::now();
    loop {
        let mut client = fixture.connect();
        // One that is refused may be closed before it has asked.
        let _ = client.get_mut().write_all(b"{\"request\":\"ping\"}\n");
        if is_ok(&receive(&mut client)) {
            break;
        }
        assert!(start.elapsed() < Duration::from_secs(10));
    }
    // All leave, and their threads but those that wait for clients; those end with the server.
    drop(clients);
    let server = fixture.server.take().unwrap();
    let door = server.door.clone();
    threads_of(&door, 2 + WAITING_MAX);
    drop(server);
    threads_of(&door, 1);
}

/// How: clients that come and go all at once, and one at a time among them. Goal: as many threads wait for clients afterwards as before,
/// so the next one is served.
#[test]
fn threads_wait_for_clients_whatever_came() {
    let mut fixture = Fixture::new();
    fixture.answer_all();
    for _ in 0..20 {
        thread::scope(|scope| {
            for _ in 0..8 {
                scope.spawn(|| {
                    for _ in 0..10 {
                        let mut client = fixture.connect();
                        send(&mut client, b"{\"request\":\"ping\"}\n");
                        assert!(is_ok(&receive(&mut client)));
                    }
                });
            }
        });
    }
    let server = fixture.server.take().unwrap();
    threads_of(&server.door, 1 + WAITING_MAX);
    assert_eq!(server.door.waiting.load(Ordering::Relaxed), WAITING_MAX);
    assert_eq!(server.door.clients.load(Ordering::Relaxed), 0);
    let mut client = fixture.connect();
    send(&mut client, b"{\"request\":\"ping\"}\n");
    assert!(is_ok(&receive(&mut client)));
}

/// Waits until so many hold it.
fn threads_of(door: &Arc<Door>, wanted: usize) {
    let start = Instant::now();
    while Arc::strong_count(door) != wanted {
        assert!(start.elapsed() < Duration::from_secs(10), "{}", Arc::strong_count(door));
        thread::sleep(Duration::from_millis(1));
    }
}

#[test]
fn one_daemon_a_path_and_stale_files_are_replaced() {
    let mut fixture = Fixture::new();
    let (sender, _requests) = crossbeam_channel::unbounded();
    let error = Server::start(&fixture.path, sender.clone()).unwrap_err().to_string();
    assert!(error.contains(&format!("(process {})", std::process::id())), "{error}");
    drop(fixture.server.take());
    assert!(!fixture.path.exists());
    // What a killed daemon leaves.
    drop(UnixListener::bind(&fixture.path).unwrap());
    assert!(fixture.path.exists());
    drop(Server::start(&fixture.path, sender.clone()).unwrap());
    fs::write(&fixture.path, "text").unwrap();
    let error = Server::start(&fixture.path, sender).unwrap_err();
    assert!(matches!(error, ServerError::NotASocket { .. }), "{error}");
    assert_eq!(fs::read_to_string(&fixture.path).unwrap(), "text");
}

#[test]
fn a_daemon_that_stops_without_answering_says_so() {
    let fixture = Fixture::new();
    let mut client = fixture.connect();
    send(&mut client, b"{\"request\":\"ping\"}\n");
    drop(fixture.requests.recv().unwrap());
    let Reply::Error { message } = receive(&mut client) else {
        panic!()
    };
    assert_eq!(message, "uvs is stopping");
}

#[test]
fn the_last_answer_is_written_before_the_server_is_gone() {
    let mut fixture = Fixture::new();
    let mut client = fixture.connect();
    send(&mut client, b"{\"request\":\"ping\"}\n");
    let (_, answering) = fixture.requests.recv().unwrap().into_parts();
    answering.reply_with(|| {
        thread::sleep(Duration::from_millis(200));
        ok()
    });
    let server = fixture.server.take().unwrap();
    let door = server.door.clone();
    assert_eq!(door.busy.load(Ordering::Relaxed), 1);
    drop(server);
    assert_eq!(door.busy.load(Ordering::Relaxed), 0);
    assert!(is_ok(&receive(&mut client)));
}

/// Goal: when a stop is answered nobody else comes in, and where another daemon will come the file says so.
#[test]
fn a_closed_server_answers_those_who_asked() {
    for leave_file in [true, false] {
        let mut fixture = Fixture::new();
        let mut client = fixture.connect();
        send(&mut client, b"{\"request\":\"ping\"}\n");
        let (_, answering) = fixture.requests.recv().unwrap().into_parts();
        let mut server = fixture.server.take().unwrap();
        server.close(leave_file);
        assert_eq!(fixture.path.exists(), leave_file);
        assert!(UnixStream::connect(&fixture.path).is_err());
        answering.reply(ok());
        drop(server);
        assert!(is_ok(&receive(&mut client)));
        assert_eq!(fixture.path.exists(), leave_file);
    }
}

/// Else the program could end between reading a request and counting it, and its client would not know what became of it.
#[test]
fn a_client_that_came_with_a_request_is_waited_for() {
    let mut fixture = Fixture::new();
    let mut client = fixture.connect();
    let server = fixture.server.take().unwrap();
    let start = Instant::now();
    while server.door.busy.load(Ordering::Relaxed) == 0 {
        assert!(start.elapsed() < Duration::from_secs(10), "it is not counted");
        thread::sleep(Duration::from_millis(1));
    }
    // Nobody carries anything out any more.
    fixture.requests = crossbeam_channel::never();
    let gone = thread::spawn(move || drop(server));
    thread::sleep(Duration::from_millis(5));
    assert!(!gone.is_finished(), "its request is on the way");
    send(&mut client, b"{\"request\":\"ping\"}\n");
    match receive(&mut client) {
        Reply::Error { message } => assert_eq!(message, STOPPING),
        other => panic!("{other:?}"),
    }
    gone.join().unwrap();
}

#[test]
fn root_and_our_own_user_only() {
    assert!(may_ask(0, 0) && may_ask(0, 1000) && may_ask(1000, 1000));
    assert!(!may_ask(1000, 0) && !may_ask(1001, 1000));
}
