//! Which thread serves the socket at the edge, and which computes at the server.

use super::*;

/// Between tokens nobody at the edge waits, and pings must be answered all the same.
#[test]
fn an_edge_that_computes_for_long_stays_connected() {
    let (server, _) = serve(ServerOptions {
        keepalive: Duration::from_millis(500),
        ..ServerOptions::default()
    });
    let link = EdgeLink::connect(EdgeOptions {
        keepalive: Duration::from_millis(500),
        ..to(server.local_addr())
    })
    .unwrap();
    let mut stream = link.open(&request()).unwrap();
    for (i, pause) in [(0, 0), (1, 3000), (2, 20), (3, 2000), (4, 0)] {
        thread::sleep(Duration::from_millis(pause));
        stream.send_rows(i, vec![1], true).unwrap();
        assert_eq!(stream.recv_token().unwrap().id, i + 1);
    }
}

#[test]
fn rows_go_out_while_their_sender_computes() {
    let (server, backend) = serve(ServerOptions::default());
    let mut stream = dial(&server).open(&request()).unwrap();
    let served = || backend.served.load(Ordering::SeqCst);
    // One of them is more than a socket and HTTP/2's first window hold.
    let limit = stream.info().max_frame_bytes;
    let start = Instant::now();
    for (i, frame) in [vec![1], vec![0; limit], vec![1]].into_iter().enumerate() {
        stream.send_rows(i as u32, frame, false).unwrap();
        eventually("the frame is served", || served() == i + 1);
    }
    // Asked for a token and not waited for, it goes out too.
    stream.send_rows(3, vec![1], true).unwrap();
    eventually("the last one is served", || served() == 4);
    // Long before the keeper would have looked by itself.
    let took = start.elapsed();
    assert!(took < Duration::from_secs(3), "{took:?}");
    assert_eq!(stream.recv_token().unwrap().position, 4);
}

#[test]
fn quick_tokens_of_a_single_session_are_made_where_their_row_came_in() {
    let (server, backend) = serve(ServerOptions::default());
    let link = dial(&server);
    let mut stream = link.open(&request()).unwrap();
    let mut at = 0;
    let mut token = |stream: &mut Stream, frame: Vec<u8>| {
        let rows = frame.len() as u32;
        stream.send_rows(at, frame, true).unwrap();
        stream.recv_token().unwrap();
        at += rows;
        backend.threads.lock().unwrap().pop().unwrap()
    };
    // Nothing is known of the first, nor of a prompt or what comes after one.
    assert_eq!(token(&mut stream, vec![1]), "session");
    assert_eq!(token(&mut stream, vec![1]), "link");
    assert_eq!(token(&mut stream, vec![1; 2]), "session");
    assert_eq!(token(&mut stream, vec![1]), "session");
    assert_eq!(token(&mut stream, vec![1]), "link");
    // One that took long is no reason to expect a quick one.
    assert_eq!(token(&mut stream, vec![SLOW]), "link");
    assert_eq!(token(&mut stream, vec![1]), "session");
    assert_eq!(token(&mut stream, vec![1]), "link");
    // Nor one of long ago.
    thread::sleep(Duration::from_millis(1100));
    assert_eq!(token(&mut stream, vec![1]), "session");
    assert_eq!(token(&mut stream, vec![1]), "link");
    // Others are not kept waiting.
    let other = link.open(&request()).unwrap();
    assert_eq!(token(&mut stream, vec![1]), "session");
    other.close().unwrap();
    eventually("the other is gone", || server.sessions() == 1);
    token(&mut stream, vec![1]);
    assert_eq!(token(&mut stream, vec![1]), "link");
}

#[test]
fn what_goes_wrong_on_the_networks_thread_stays_with_its_session() {
    let (server, backend) = serve(ServerOptions::default());
    let link = dial(&server);
    for trouble in [PANIC, BAD, BAD_END] {
        let mut stream = link.open(&request()).unwrap();
        for i in 0..2 {
            stream.send_rows(i, vec![1], true).unwrap();
            stream.recv_token().unwrap();
        }
        stream.send_rows(2, vec![trouble], true).unwrap();
        assert_eq!(stream.recv_token().is_err(), trouble != BAD_END);
        drop(stream);
        eventually("the session is freed", || server.sessions() == 0);
        assert_eq!(backend.living.load(Ordering::SeqCst), 0);
    }
}

/// A token that is due when its user has left leaves nothing behind.
#[test]
fn a_stream_that_is_dropped_ends_its_session_soon() {
    let (server, _) = serve(ServerOptions::default());
    let link = dial(&server);
    let mut stream = link.open(&request()).unwrap();
    stream.send_rows(0, vec![SLOW], true).unwrap();
    let start = Instant::now();
    drop(stream);
    eventually("the session is freed", || server.sessions() == 0);
    assert!(
        start.elapsed() < Duration::from_secs(2),
        "{:?}",
        start.elapsed()
    );
}
