//! The user's Ctrl-C while the link waits.

use super::*;

/// A flag, and options that heed it.
fn with_flag(address: impl std::fmt::Display) -> (Arc<AtomicBool>, EdgeOptions) {
    let flag = Arc::new(AtomicBool::new(false));
    let seen = Arc::clone(&flag);
    let options = EdgeOptions {
        interrupt: Some(Interrupt::new(move || seen.load(Ordering::SeqCst))),
        ..to(address)
    };
    (flag, options)
}

fn soon(flag: &Arc<AtomicBool>) {
    let flag = Arc::clone(flag);
    thread::spawn(move || {
        thread::sleep(Duration::from_millis(100));
        flag.store(true, Ordering::SeqCst);
    });
}

#[test]
fn a_wait_for_a_token_ends_and_the_stream_goes_on() {
    let (server, _) = serve(ServerOptions::default());
    let (flag, options) = with_flag(server.local_addr());
    let link = EdgeLink::connect(options).unwrap();
    let mut stream = link.open(&request()).unwrap();
    // 2 s of compute.
    stream.send_rows(0, vec![SLOW; 10], true).unwrap();
    soon(&flag);
    let start = Instant::now();
    let error = stream.recv_token().unwrap_err();
    assert!(
        start.elapsed() < Duration::from_secs(1),
        "{:?}",
        start.elapsed()
    );
    assert!(matches!(error, LinkError::Interrupted { .. }), "{error}");
    assert!(!error.may_retry());

    flag.store(false, Ordering::SeqCst);
    stream.truncate(0).unwrap();
    stream.send_rows(0, vec![7], true).unwrap();
    let token = stream.recv_token().unwrap();
    assert_eq!((token.id, token.position), (7, 1), "the token of old came");
    stream.close().unwrap();
}

#[test]
fn leaving_is_quick_but_in_order_where_it_can_be() {
    let (server, _) = serve(ServerOptions::default());
    let (flag, options) = with_flag(server.local_addr());
    let link = EdgeLink::connect(options).unwrap();
    let idle = link.open(&request()).unwrap();
    let mut busy = link.open(&request()).unwrap();
    busy.send_rows(0, vec![SLOW; 20], true).unwrap();
    flag.store(true, Ordering::SeqCst);
    let start = Instant::now();
    idle.close().unwrap();
    assert!(start.elapsed() < Duration::from_millis(900));
    busy.close().unwrap();
    assert!(start.elapsed() < Duration::from_secs(3));
    eventually("all sessions are freed", || server.sessions() == 0);
}

#[test]
fn a_silent_server_can_be_left() {
    let silent = TcpListener::bind("127.0.0.1:0").unwrap();
    let (flag, options) = with_flag(silent.local_addr().unwrap());
    soon(&flag);
    let start = Instant::now();
    let error = EdgeLink::connect(options)
        .and_then(|link| link.open(&request()).map(drop))
        .unwrap_err();
    assert!(matches!(error, LinkError::Interrupted { .. }), "{error}");
    assert!(start.elapsed() < Duration::from_secs(2));
}
