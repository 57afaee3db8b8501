//! What goes wrong, and that it stays where it went wrong.

use super::*;

/// The error of an attempt to open.
fn refused(link: &EdgeLink, request: &OpenRequest) -> LinkError {
    match link.open(request) {
        Ok(_) => panic!("opened"),
        Err(error) => error,
    }
}

/// Talks as a client that breaks the rules would.
fn raw(
    server: &RunningServer,
    messages: Vec<proto::edge_message::Kind>,
) -> Result<Vec<proto::CloudMessage>, tonic::Status> {
    let runtime = tokio::runtime::Runtime::new().unwrap();
    runtime.block_on(async {
        let channel = tonic::transport::Endpoint::new(format!("http://{}", server.local_addr()))
            .unwrap()
            .connect()
            .await
            .unwrap();
        let mut client = proto::split_client::SplitClient::new(channel);
        let messages = messages
            .into_iter()
            .map(|kind| proto::EdgeMessage { kind: Some(kind) });
        let mut inbound = client
            .generate(tokio_stream::iter(messages.collect::<Vec<_>>()))
            .await?
            .into_inner();
        let mut got = Vec::new();
        while let Some(message) = inbound.message().await? {
            got.push(message);
        }
        Ok(got)
    })
}

fn rows(first_position: u32, frame: Vec<u8>) -> proto::edge_message::Kind {
    proto::edge_message::Kind::Rows(proto::Rows {
        first_position,
        frame,
        want_token: false,
    })
}

#[test]
fn another_pair_is_refused_with_both_values() {
    type Spoil = fn(&mut Contract);
    let (server, backend) = serve(ServerOptions::default());
    let link = dial(&server);
    let spoilt: [(Spoil, &str, &str); 4] = [
        (|c| c.pair_id.0 = [0xab; 16], "0101010101", "ababababab"),
        (|c| c.split = 11, "10", "11"),
        (|c| c.n_layer = 32, "30", "32"),
        (|c| c.width = 577, "576", "577"),
    ];
    for (spoil, ours, theirs) in spoilt {
        let mut request = request();
        spoil(&mut request.contract);
        let error = refused(&link, &request);
        assert!(matches!(error, LinkError::Mismatch { .. }), "{error}");
        assert!(!error.may_retry());
        let text = error.to_string();
        assert!(text.contains(ours) && text.contains(theirs), "{text}");
        assert!(text.contains(link.peer()), "{text}");
    }
    assert!(backend.opened.lock().unwrap().is_empty());
    let unknown = OpenRequest {
        codec: "unknown".into(),
        ..request()
    };
    let text = refused(&link, &unknown).to_string();
    assert!(text.contains("no codec `unknown`"), "{text}");
    assert_eq!(server.sessions(), 0);
}

#[test]
fn a_full_server_says_so_and_has_room_again() {
    let (server, _) = serve(ServerOptions {
        max_sessions: 2,
        ..ServerOptions::default()
    });
    let link = dial(&server);
    let first = link.open(&request()).unwrap();
    let _second = link.open(&request()).unwrap();
    let error = refused(&link, &request());
    assert!(matches!(error, LinkError::Full { .. }), "{error}");
    assert!(
        error.may_retry() && error.to_string().contains("all 2 sessions"),
        "{error}"
    );
    drop(first);
    eventually("there is room", || server.sessions() == 1);
    link.open(&request()).unwrap();
}

#[test]
fn a_panic_hurts_nobody_else() {
    let (server, _) = serve(ServerOptions::default());
    let link = dial(&server);
    let mut good = link.open(&request()).unwrap();
    for bad in [PANIC, BAD, BAD_END] {
        let mut stream = link.open(&request()).unwrap();
        stream.send_rows(0, vec![bad], true).unwrap();
        if bad == BAD_END {
            stream.recv_token().unwrap();
            stream.close().unwrap();
            continue;
        }
        let error = stream.recv_token().unwrap_err();
        let want = if bad == PANIC {
            "Internal"
        } else {
            "no such codec"
        };
        assert!(error.to_string().contains(want), "{error}");
        // And it stays so.
        assert_eq!(stream.recv_token().unwrap_err(), error);
        assert_eq!(stream.send_rows(1, vec![1], true).unwrap_err(), error);
    }
    let panicking = OpenRequest {
        codec: "panic".into(),
        ..request()
    };
    let error = refused(&link, &panicking);
    assert!(matches!(error, LinkError::Refused { .. }), "{error}");
    good.send_rows(0, vec![9], true).unwrap();
    assert_eq!(good.recv_token().unwrap().id, 9);
    drop(good);
    eventually("all sessions are freed", || server.sessions() == 0);
}

#[test]
fn sending_on_tells_why_the_stream_ended() {
    let (server, _) = serve(ServerOptions::default());
    let mut stream = dial(&server).open(&request()).unwrap();
    let error = (0..1_000_000)
        .find_map(|i| stream.send_rows(i, vec![BAD], false).err())
        .unwrap();
    assert!(error.to_string().contains("no such codec"), "{error}");
}

#[test]
fn an_edge_that_leaves_frees_its_session() {
    let (server, backend) = serve(ServerOptions::default());
    let mut stream = dial(&server).open(&request()).unwrap();
    stream.send_rows(0, vec![SLOW], false).unwrap();
    for i in 1..5 {
        stream.send_rows(i, vec![SLOW], false).unwrap();
    }
    assert_eq!(server.sessions(), 1);
    drop(stream);
    eventually("the session is freed", || server.sessions() == 0);
    assert_eq!(backend.living.load(Ordering::SeqCst), 0);
    // What was queued was not computed for nobody.
    assert!(backend.served.load(Ordering::SeqCst) < 4);
}

#[test]
fn a_server_killed_in_mid_stream_is_an_error() {
    let (server, _) = serve(ServerOptions::default());
    let wire = Wire::to(server.local_addr());
    let link = EdgeLink::connect(to(wire.address)).unwrap();
    let mut stream = link.open(&request()).unwrap();
    stream.send_rows(0, vec![SLOW], true).unwrap();
    let start = Instant::now();
    wire.cut();
    let error = stream.recv_token().unwrap_err();
    assert!(matches!(error, LinkError::Gone { .. }), "{error}");
    assert!(error.may_retry() && start.elapsed() < Duration::from_secs(5));
    // The server notices too, and the link finds its way back.
    eventually("the session is freed", || server.sessions() == 0);
    let mut stream = link.open(&request()).unwrap();
    stream.send_rows(0, vec![3], true).unwrap();
    assert_eq!(stream.recv_token().unwrap().id, 3);
}

#[test]
fn a_dead_wire_is_noticed_at_both_ends() {
    let (server, _) = serve(ServerOptions {
        keepalive: Duration::from_millis(300),
        ..ServerOptions::default()
    });
    let wire = Wire::to(server.local_addr());
    let link = EdgeLink::connect(EdgeOptions {
        keepalive: Duration::from_millis(300),
        ..to(wire.address)
    })
    .unwrap();
    let mut stream = link.open(&request()).unwrap();
    wire.mute();
    let start = Instant::now();
    stream.send_rows(0, vec![1], true).unwrap();
    let error = stream.recv_token().unwrap_err();
    assert!(matches!(error, LinkError::Gone { .. }), "{error}");
    assert!(
        start.elapsed() < Duration::from_secs(10),
        "{:?}",
        start.elapsed()
    );
    eventually("the session is freed", || server.sessions() == 0);
}

#[test]
fn a_server_that_never_answers_times_out() {
    let silent = TcpListener::bind("127.0.0.1:0").unwrap();
    let address = silent.local_addr().unwrap();
    let holder = thread::spawn(move || silent.accept().map(|(s, _)| s));
    let start = Instant::now();
    let wait = Duration::from_millis(400);
    let error = EdgeLink::connect(EdgeOptions {
        connect_timeout: wait,
        reply_timeout: wait,
        ..to(address)
    })
    .and_then(|link| link.open(&request()).map(drop))
    .unwrap_err();
    assert!(matches!(error, LinkError::Timeout { .. }), "{error}");
    assert!(error.to_string().contains("0.4 s"), "{error}");
    assert!(start.elapsed() < Duration::from_secs(5));
    drop(holder.join());
}

#[test]
fn slow_compute_times_out_at_the_edge() {
    let (server, _) = serve(ServerOptions::default());
    let link = EdgeLink::connect(EdgeOptions {
        reply_timeout: Duration::from_millis(300),
        ..to(server.local_addr())
    })
    .unwrap();
    let mut stream = link.open(&request()).unwrap();
    // Three times 200 ms, with progress told in between: in time.
    stream.send_rows(0, vec![SLOW], false).unwrap();
    stream.send_rows(1, vec![SLOW], false).unwrap();
    stream.send_rows(2, vec![SLOW], true).unwrap();
    stream.recv_token().unwrap();
    // In one message: too late.
    stream.send_rows(3, vec![SLOW; 3], true).unwrap();
    let error = stream.recv_token().unwrap_err();
    assert!(matches!(error, LinkError::Timeout { .. }), "{error}");
}

#[test]
fn nobody_listening_is_said_at_once() {
    let free = TcpListener::bind("127.0.0.1:0")
        .unwrap()
        .local_addr()
        .unwrap();
    let Err(error) = EdgeLink::connect(to(free)) else {
        panic!("connected to nobody")
    };
    assert!(matches!(error, LinkError::Unreachable { .. }), "{error}");
    let text = error.to_string();
    assert!(
        text.contains(&free.to_string()) && text.contains("refused"),
        "{text}"
    );
}

#[test]
fn idle_and_silent_peers_are_cut_off() {
    let (server, _) = serve(ServerOptions {
        idle_timeout: Duration::from_millis(300),
        open_timeout: Duration::from_millis(300),
        keepalive: Duration::from_millis(200),
        ..ServerOptions::default()
    });
    let link = dial(&server);
    let mut stream = link.open(&request()).unwrap();
    // Long compute is not idleness.
    stream.send_rows(0, vec![SLOW; 3], true).unwrap();
    stream.recv_token().unwrap();
    thread::sleep(Duration::from_millis(100));
    let error = stream.recv_token().unwrap_err();
    assert!(
        error.to_string().contains("sent nothing for 0.3 s"),
        "{error}"
    );
    eventually("the session is freed", || server.sessions() == 0);

    // A connection that never says a word.
    let mut mute = TcpStream::connect(server.local_addr()).unwrap();
    mute.set_read_timeout(Some(Duration::from_secs(10)))
        .unwrap();
    let mut rest = Vec::new();
    let end = mute.read_to_end(&mut rest);
    assert!(
        !matches!(&end, Err(e) if e.kind() == std::io::ErrorKind::WouldBlock),
        "still open after 10 s"
    );
}

#[test]
fn a_stopping_server_says_so() {
    let (server, _) = serve(ServerOptions::default());
    let mut stream = dial(&server).open(&request()).unwrap();
    stream.send_rows(0, vec![1], true).unwrap();
    stream.recv_token().unwrap();
    let start = Instant::now();
    server.stop().unwrap();
    assert!(
        start.elapsed() < Duration::from_secs(4),
        "{:?}",
        start.elapsed()
    );
    let error = stream.recv_token().unwrap_err();
    assert!(
        error.to_string().contains("server is shutting down"),
        "{error}"
    );
    assert!(error.may_retry());
}

#[test]
fn rules_are_kept() {
    use proto::edge_message::Kind::{Close, Open, Truncate};
    let (server, _) = serve(ServerOptions::default());
    let open = || Open(request().to_proto());
    let newer = proto::Open {
        protocol: 2,
        ..request().to_proto()
    };
    let truncate = Truncate(proto::Truncate { len: 3 });
    let cases = vec![
        (
            vec![rows(0, vec![1])],
            tonic::Code::InvalidArgument,
            "must be Open",
        ),
        (
            vec![open(), open()],
            tonic::Code::InvalidArgument,
            "second Open",
        ),
        (
            vec![Open(newer)],
            tonic::Code::FailedPrecondition,
            "protocol 1, the edge 2",
        ),
        (
            vec![open(), rows(0, vec![])],
            tonic::Code::InvalidArgument,
            "empty",
        ),
        (
            vec![open(), rows(1, vec![1])],
            tonic::Code::InvalidArgument,
            "is at 0",
        ),
        (
            vec![open(), truncate],
            tonic::Code::InvalidArgument,
            "holds 0",
        ),
        (
            vec![open(), rows(0, vec![0; 4 << 20])],
            tonic::Code::OutOfRange,
            "too large",
        ),
        (
            vec![
                open(),
                rows(0, vec![1; N_CTX as usize]),
                rows(N_CTX, vec![1]),
            ],
            tonic::Code::OutOfRange,
            "context is full",
        ),
    ];
    for (messages, code, part) in cases {
        let status = raw(&server, messages).unwrap_err();
        assert_eq!(status.code(), code, "{status:?}");
        assert!(status.message().contains(part), "{status:?}");
    }
    // What keeps them passes, with or without Close.
    for end in [vec![], vec![Close(proto::Close {})]] {
        let mut messages = vec![open(), rows(0, vec![1])];
        messages.extend(end);
        assert_eq!(raw(&server, messages).unwrap().len(), 2);
    }
    eventually("all sessions are freed", || server.sessions() == 0);
}
