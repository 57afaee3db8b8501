//! What goes well.

use super::*;

#[test]
fn rows_go_up_and_tokens_come_down() {
    let (server, backend) = serve(ServerOptions::default());
    let link = dial(&server);
    let mut stream = link.open(&request()).unwrap();
    assert_eq!(backend.opened.lock().unwrap()[..], [request()]);
    assert_eq!(stream.info().n_ctx, N_CTX);
    assert_eq!(stream.info().max_rows_per_message, 64);
    assert!(stream.info().server.starts_with("splitrun/"));

    // A prompt in chunks, then single rows.
    stream.send_rows(0, vec![1, 2, 3], false).unwrap();
    stream.send_rows(3, vec![4, 5], true).unwrap();
    let token = stream.recv_token().unwrap();
    assert_eq!((token.id, token.position), (15, 5));
    assert_eq!(token.logprob, Some(-0.5));
    assert_eq!(token.top_logprobs, [(15, -0.5), (7, -2.0)]);
    for i in 0..20 {
        stream.send_rows(5 + i, vec![1], true).unwrap();
        let token = stream.recv_token().unwrap();
        assert_eq!((token.id, token.position), (16 + i, 6 + i));
    }
    assert_eq!(stream.uplink_bytes(), 25);
    assert_eq!(stream.confirmed_len(), 25);

    // Rolled back, the sum is that of what is left.
    stream.truncate(2).unwrap();
    stream.send_rows(2, vec![10], true).unwrap();
    assert_eq!(stream.recv_token().unwrap().id, 13);
    stream.close().unwrap();
    eventually("the session is freed", || server.sessions() == 0);
    assert_eq!(backend.living.load(Ordering::SeqCst), 0);
    server.stop().unwrap();
}

#[test]
fn compute_time_is_that_of_the_session() {
    let (server, _) = serve(ServerOptions::default());
    let mut stream = dial(&server).open(&request()).unwrap();
    stream.send_rows(0, vec![SLOW], false).unwrap();
    stream.send_rows(1, vec![1], true).unwrap();
    let cloud = stream.recv_token().unwrap().cloud;
    assert!(
        cloud >= Duration::from_millis(200) && cloud < Duration::from_secs(2),
        "{cloud:?}"
    );
    stream.send_rows(2, vec![1], true).unwrap();
    let cloud = stream.recv_token().unwrap().cloud;
    assert!(cloud < Duration::from_millis(150), "{cloud:?}");
}

#[test]
fn chunks_are_taken_while_one_is_computed() {
    let (server, _) = serve(ServerOptions::default());
    let mut stream = dial(&server).open(&request()).unwrap();
    let start = Instant::now();
    stream.send_rows(0, vec![SLOW], false).unwrap();
    for i in 1..4 {
        stream.send_rows(i, vec![1], false).unwrap();
    }
    assert!(
        start.elapsed() < Duration::from_millis(150),
        "sending waited for the compute"
    );
    stream.send_rows(4, vec![1], true).unwrap();
    assert_eq!(stream.recv_token().unwrap().position, 5);
    assert!(start.elapsed() >= Duration::from_millis(200));
}

#[test]
fn a_long_prompt_is_paced_and_arrives_whole() {
    let (server, backend) = serve(ServerOptions::default());
    let mut stream = dial(&server).open(&request()).unwrap();
    for i in 0..900 {
        stream.send_rows(i, vec![1], false).unwrap();
    }
    stream.send_rows(900, vec![1], true).unwrap();
    assert_eq!(stream.recv_token().unwrap().id, 901);
    assert_eq!(backend.served.load(Ordering::SeqCst), 901);
}

#[test]
fn several_edges_do_not_mix() {
    let (server, _) = serve(ServerOptions::default());
    thread::scope(|scope| {
        for edge in 1..=6_u8 {
            let server = &server;
            scope.spawn(move || {
                let link = dial(server);
                let mut stream = link.open(&request()).unwrap();
                for i in 0..50 {
                    stream.send_rows(i, vec![edge], true).unwrap();
                    assert_eq!(stream.recv_token().unwrap().id, (i + 1) * u32::from(edge));
                }
                stream.close().unwrap();
            });
        }
    });
    eventually("all sessions are freed", || server.sessions() == 0);
}

#[test]
fn one_link_carries_several_streams() {
    let (server, _) = serve(ServerOptions::default());
    let link = dial(&server);
    let mut a = link.open(&request()).unwrap();
    let mut b = link.open(&request()).unwrap();
    a.send_rows(0, vec![1], true).unwrap();
    b.send_rows(0, vec![2], true).unwrap();
    assert_eq!(b.recv_token().unwrap().id, 2);
    assert_eq!(a.recv_token().unwrap().id, 1);
    drop(link);
    a.send_rows(1, vec![1], true).unwrap();
    assert_eq!(a.recv_token().unwrap().id, 2);
}

#[test]
fn frames_up_to_the_limit_pass() {
    let (server, _) = serve(ServerOptions::default());
    let mut stream = dial(&server).open(&request()).unwrap();
    let limit = stream.info().max_frame_bytes;
    assert!(limit > 4_000_000);
    stream.send_rows(0, vec![0; limit], false).unwrap();
    let error = stream.send_rows(0, vec![0; limit + 1], false).unwrap_err();
    assert!(matches!(error, LinkError::FrameTooLarge { .. }), "{error}");
    stream.close().unwrap();
}

/// Prints what one row costs on the way; the bound is loose, for tests share their machine.
#[test]
fn a_row_comes_and_goes_quickly() {
    let (server, _) = serve(ServerOptions::default());
    let mut stream = dial(&server).open(&request()).unwrap();
    let mut laps = Vec::new();
    for i in 0..999 {
        let start = Instant::now();
        stream.send_rows(i, vec![1], true).unwrap();
        stream.recv_token().unwrap();
        laps.push(start.elapsed());
    }
    laps.sort();
    println!(
        "round trip of one row over loopback: median {} us, 90 % {} us, 99 % {} us",
        laps[499].as_micros(),
        laps[899].as_micros(),
        laps[989].as_micros()
    );
    // Nagle's algorithm against delayed acknowledgements would cost 40 ms.
    assert!(laps[499] < Duration::from_millis(20), "{:?}", laps[499]);
}
