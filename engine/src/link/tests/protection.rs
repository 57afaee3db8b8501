//! Who may talk to whom.

use super::*;

fn options_with(tls: Option<ServerTls>, token: Option<&str>) -> ServerOptions {
    ServerOptions {
        tls,
        token: token.map(|t| Token::new(t).unwrap()),
        ..ServerOptions::default()
    }
}

/// An authority and a certificate of `127.0.0.1` and `cloud.test` by it.
fn certificates() -> (String, ServerTls) {
    let ca_key = rcgen::KeyPair::generate().unwrap();
    let mut ca = rcgen::CertificateParams::new(Vec::new()).unwrap();
    ca.is_ca = rcgen::IsCa::Ca(rcgen::BasicConstraints::Unconstrained);
    let ca_pem = ca.self_signed(&ca_key).unwrap().pem();
    let issuer = rcgen::Issuer::new(ca, ca_key);
    let key = rcgen::KeyPair::generate().unwrap();
    let names = vec!["127.0.0.1".to_owned(), "cloud.test".to_owned()];
    let cert = rcgen::CertificateParams::new(names)
        .unwrap()
        .signed_by(&key, &issuer)
        .unwrap();
    (ca_pem, ServerTls::from_pem(cert.pem(), key.serialize_pem()))
}

fn trusting(ca_pem: &str) -> EdgeTls {
    EdgeTls {
        ca_pem: Some(ca_pem.as_bytes().to_vec()),
        server_name: None,
    }
}

#[test]
fn a_token_is_wanted() {
    let (server, backend) = serve(options_with(None, Some("s3cret")));
    let open = |token: Option<&str>| {
        let link = EdgeLink::connect(EdgeOptions {
            token: token.map(|t| Token::new(t).unwrap()),
            ..to(server.local_addr())
        })
        .unwrap();
        link.open(&request()).map(drop)
    };
    for token in [None, Some("s3creT"), Some("s3cret2")] {
        let error = open(token).unwrap_err();
        assert!(
            matches!(error, LinkError::Unauthenticated { .. }),
            "{error}"
        );
        let text = error.to_string();
        assert!(text.contains(&server.local_addr().to_string()), "{text}");
        assert!(
            text.contains("--token-file") && !text.contains("s3c"),
            "{text}"
        );
    }
    assert!(backend.opened.lock().unwrap().is_empty());
    open(Some("s3cret")).unwrap();
}

#[test]
fn tls_works_with_the_right_authority_only() {
    let (ca, tls) = certificates();
    let (other_ca, _) = certificates();
    let (server, _) = serve(ServerOptions {
        open_timeout: Duration::from_secs(1),
        ..options_with(Some(tls), Some("t"))
    });
    let connect = |tls: EdgeTls| {
        EdgeLink::connect(EdgeOptions {
            tls: Some(tls),
            token: Some(Token::new("t").unwrap()),
            ..to(server.local_addr())
        })
    };
    let mut stream = connect(trusting(&ca)).unwrap().open(&request()).unwrap();
    stream.send_rows(0, vec![5], true).unwrap();
    assert_eq!(stream.recv_token().unwrap().id, 5);
    // Its stream keeps the connection open, as without TLS.
    thread::sleep(Duration::from_millis(2200));
    stream.send_rows(1, vec![1], true).unwrap();
    assert_eq!(stream.recv_token().unwrap().id, 6);
    stream.close().unwrap();

    let named = |name: &str| EdgeTls {
        server_name: Some(name.to_owned()),
        ..trusting(&ca)
    };
    connect(named("cloud.test")).unwrap();
    for tls in [trusting(&other_ca), named("other.test")] {
        let Err(error) = connect(tls) else {
            panic!("trusted the wrong one")
        };
        assert!(matches!(error, LinkError::Tls { .. }), "{error}");
        assert!(error.to_string().contains("certificate"), "{error}");
    }
}

#[test]
fn tls_on_one_side_only_is_an_error_that_says_so() {
    let (ca, tls) = certificates();
    let (plain, _) = serve(ServerOptions::default());
    let Err(error) = EdgeLink::connect(EdgeOptions {
        tls: Some(trusting(&ca)),
        ..to(plain.local_addr())
    }) else {
        panic!("TLS with a server that has none")
    };
    assert!(matches!(error, LinkError::Tls { .. }), "{error:?}");

    let (guarded, _) = serve(options_with(Some(tls), None));
    let error = EdgeLink::connect(to(guarded.local_addr()))
        .and_then(|link| link.open(&request()).map(drop))
        .unwrap_err();
    assert!(matches!(error, LinkError::Unreachable { .. }), "{error:?}");
    assert!(error.to_string().contains("--tls"), "{error}");
}

#[test]
fn other_machines_need_both_or_insecure() {
    let anywhere = "0.0.0.0:0".parse().unwrap();
    let (_, tls) = certificates();
    for (tls, token, missing) in [
        (None, None, "no TLS and no token"),
        (None, Some("t"), "no TLS"),
        (Some(tls.clone()), None, "no token"),
    ] {
        let error = Server::bind(&anywhere, options_with(tls, token))
            .unwrap_err()
            .to_string();
        for part in [
            missing,
            "--tls-cert",
            "--tls-key",
            "--token-file",
            "--insecure",
        ] {
            assert!(error.contains(part), "{error} lacks {part}");
        }
    }
    Server::bind(&anywhere, options_with(Some(tls), Some("t"))).unwrap();
    let insecure = ServerOptions {
        insecure: true,
        ..ServerOptions::default()
    };
    Server::bind(&anywhere, insecure).unwrap();

    let Err(error) = EdgeLink::connect(to("192.0.2.1:1")) else {
        panic!("dialled in the clear")
    };
    assert!(matches!(error, LinkError::OpenDial { .. }), "{error}");
    assert!(error.to_string().contains("--insecure"), "{error}");
}

#[test]
fn unfit_options_are_refused_at_once() {
    let here = "127.0.0.1:0".parse().unwrap();
    let garbage = ServerTls::from_pem("-----BEGIN CERTIFICATE-----\nx", "y");
    let none = ServerOptions {
        max_sessions: 0,
        ..ServerOptions::default()
    };
    let hasty = ServerOptions {
        idle_timeout: Duration::ZERO,
        ..ServerOptions::default()
    };
    for (options, part) in [
        (options_with(Some(garbage), None), "--tls-cert"),
        (none, "--max-sessions"),
        (hasty, "idle"),
    ] {
        let error = Server::bind(&here, options).unwrap_err().to_string();
        assert!(error.contains(part), "{error}");
    }
    let taken = Server::bind(&here, ServerOptions::default()).unwrap();
    let again = taken.local_addr().to_string().parse().unwrap();
    let error = Server::bind(&again, ServerOptions::default()).unwrap_err();
    assert!(matches!(error, LinkError::Bind { .. }), "{error}");
}

#[test]
fn health_answers_without_a_token() {
    use tonic_health::pb::HealthCheckRequest;
    use tonic_health::pb::health_client::HealthClient;
    let (server, _) = serve(options_with(None, Some("t")));
    let runtime = tokio::runtime::Runtime::new().unwrap();
    runtime.block_on(async {
        let endpoint = format!("http://{}", server.local_addr());
        let channel = tonic::transport::Endpoint::new(endpoint)
            .unwrap()
            .connect()
            .await
            .unwrap();
        for service in ["", "splitrun.v1.Split"] {
            let service = service.to_owned();
            let answer = HealthClient::new(channel.clone())
                .check(HealthCheckRequest { service })
                .await
                .unwrap();
            assert_eq!(answer.into_inner().status, 1, "SERVING");
        }
    });
}

/// Answers and sends pings for as long as it may, and does nothing else.
fn only_pings(server: &RunningServer) -> Duration {
    let mut peer = TcpStream::connect(server.local_addr()).unwrap();
    let start = Instant::now();
    peer.write_all(b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n").unwrap();
    // Empty SETTINGS.
    peer.write_all(&[0, 0, 0, 4, 0, 0, 0, 0, 0]).unwrap();
    peer.set_read_timeout(Some(Duration::from_millis(30)))
        .unwrap();
    let mut ping = vec![0, 0, 8, 6, 0, 0, 0, 0, 0];
    ping.extend([7; 8]);
    while start.elapsed() < Duration::from_secs(5) {
        let mut got = [0; 256];
        if peer.write_all(&ping).is_err() || matches!(peer.read(&mut got), Ok(0)) {
            break;
        }
        thread::sleep(Duration::from_millis(30));
    }
    start.elapsed()
}

#[test]
fn a_connection_without_business_is_closed() {
    let (server, _) = serve(ServerOptions {
        open_timeout: Duration::from_millis(300),
        ..options_with(None, Some("t"))
    });
    let dial = |token: &str| {
        EdgeLink::connect(EdgeOptions {
            token: Some(Token::new(token).unwrap()),
            ..to(server.local_addr())
        })
        .unwrap()
    };
    let link = dial("t");
    let mut stream = link.open(&request()).unwrap();
    stream.send_rows(0, vec![1], true).unwrap();
    stream.recv_token().unwrap();
    let stayed = only_pings(&server);
    assert!(
        stayed >= Duration::from_millis(250) && stayed < Duration::from_secs(4),
        "{stayed:?}"
    );
    // A stream keeps its connection, quiet as it may be.
    thread::sleep(Duration::from_secs(1));
    stream.send_rows(1, vec![1], true).unwrap();
    assert_eq!(stream.recv_token().unwrap().id, 2);
    stream.close().unwrap();
    // Without one it goes, and another stream brings a new one.
    thread::sleep(Duration::from_secs(1));
    link.open(&request()).unwrap().close().unwrap();
}

#[test]
fn many_pinging_peers_do_not_keep_an_edge_out() {
    let (server, _) = serve(ServerOptions {
        open_timeout: Duration::from_millis(300),
        max_sessions: 1,
        ..ServerOptions::default()
    });
    thread::scope(|scope| {
        for _ in 0..66 {
            scope.spawn(|| only_pings(&server));
        }
        thread::sleep(Duration::from_millis(100));
        let start = Instant::now();
        dial(&server).open(&request()).unwrap().close().unwrap();
        assert!(
            start.elapsed() < Duration::from_secs(3),
            "{:?}",
            start.elapsed()
        );
    });
}
