//! A server that answers what was not asked.

use tokio::sync::mpsc;
use tokio_stream::wrappers::{ReceiverStream, TcpListenerStream};
use tonic::{Request, Response, Status, Streaming};

use super::*;
use proto::cloud_message::Kind;

/// Accepts, and then tells the same story over and over, 20 ms a message.
#[derive(Clone)]
struct Rogue(Vec<Kind>);

#[tonic::async_trait]
impl proto::split_server::Split for Rogue {
    type GenerateStream = ReceiverStream<Result<proto::CloudMessage, Status>>;

    async fn generate(
        &self,
        request: Request<Streaming<proto::EdgeMessage>>,
    ) -> Result<Response<Self::GenerateStream>, Status> {
        let (tx, rx) = mpsc::channel(1);
        let story = self.0.clone();
        tokio::spawn(async move {
            let mut inbound = request.into_inner();
            let accepted = Kind::Accepted(proto::Accepted {
                protocol: PROTOCOL,
                n_ctx: 100,
                max_rows_per_message: 8,
                max_message_bytes: 1 << 20,
                ..proto::Accepted::default()
            });
            let say = |kind| {
                let tx = tx.clone();
                async move { tx.send(Ok(proto::CloudMessage { kind: Some(kind) })).await }
            };
            let _ = inbound.message().await;
            let _ = say(accepted).await;
            let _ = inbound.message().await;
            for kind in story.into_iter().cycle() {
                tokio::time::sleep(Duration::from_millis(20)).await;
                if say(kind).await.is_err() {
                    return;
                }
            }
        });
        Ok(Response::new(ReceiverStream::new(rx)))
    }
}

/// A stream to a server that tells `story`.
fn listen_to(story: Vec<Kind>) -> Stream {
    let listener = TcpListener::bind("127.0.0.1:0").unwrap();
    listener.set_nonblocking(true).unwrap();
    let address = listener.local_addr().unwrap();
    thread::spawn(move || {
        tokio::runtime::Runtime::new().unwrap().block_on(async {
            let listener = tokio::net::TcpListener::from_std(listener).unwrap();
            tonic::transport::Server::builder()
                .add_service(proto::split_server::SplitServer::new(Rogue(story)))
                .serve_with_incoming(TcpListenerStream::new(listener))
                .await
        })
    });
    EdgeLink::connect(to(address))
        .unwrap()
        .open(&request())
        .unwrap()
}

fn token(position: u32) -> Kind {
    Kind::Token(proto::Token {
        id: 1,
        position,
        ..proto::Token::default()
    })
}

fn progress(len: u32) -> Kind {
    Kind::Progress(proto::Progress { len })
}

#[test]
fn only_what_is_due_is_taken() {
    // Two rows from 4 on, 8 may be in a message.
    for (kind, want_token, part) in [
        (progress(6), true, "progress where a token was due"),
        (token(6), false, "a token where progress was due"),
        (token(4), true, "position 4, which must be between 5 and 12"),
        (token(13), true, "position 13"),
        (progress(u32::MAX), false, "position 4294967295"),
        (Kind::Accepted(proto::Accepted::default()), true, "twice"),
    ] {
        let mut stream = listen_to(vec![kind]);
        stream.send_rows(4, vec![1, 1], want_token).unwrap();
        let error = stream.recv_token().unwrap_err();
        assert!(matches!(error, LinkError::Protocol { .. }), "{error}");
        assert!(error.to_string().contains(part), "{error} lacks {part}");
        assert_eq!(stream.recv_token().unwrap_err(), error);
    }
}

#[test]
fn one_answer_a_message() {
    let mut stream = listen_to(vec![token(6)]);
    stream.send_rows(4, vec![1, 1], true).unwrap();
    assert_eq!(stream.recv_token().unwrap().position, 6);
    let text = stream.recv_token().unwrap_err().to_string();
    assert!(text.contains("nothing was due"), "{text}");
}

#[test]
fn endless_progress_ends_close_and_sending_too() {
    let mut stream = listen_to(vec![progress(6)]);
    stream.send_rows(4, vec![1, 1], false).unwrap();
    let error = stream.close().unwrap_err();
    assert!(error.to_string().contains("nothing was due"), "{error}");
}

#[test]
fn a_truncation_is_answered_with_its_length() {
    let mut stream = listen_to(vec![progress(3)]);
    stream.truncate(3).unwrap();
    stream.send_rows(3, vec![1], true).unwrap();
    let text = stream.recv_token().unwrap_err().to_string();
    assert!(text.contains("where a token was due"), "{text}");
    let mut stream = listen_to(vec![progress(4)]);
    stream.truncate(3).unwrap();
    let text = stream.recv_token().unwrap_err().to_string();
    assert!(text.contains("between 3 and 3"), "{text}");
}

#[test]
fn a_close_has_one_deadline() {
    let (server, _) = serve(ServerOptions::default());
    let link = EdgeLink::connect(EdgeOptions {
        reply_timeout: Duration::from_millis(500),
        ..to(server.local_addr())
    })
    .unwrap();
    let mut stream = link.open(&request()).unwrap();
    // Each answer comes in time, all of them do not.
    for i in 0..6 {
        stream.send_rows(i, vec![SLOW], false).unwrap();
    }
    let start = Instant::now();
    let error = stream.close().unwrap_err();
    assert!(matches!(error, LinkError::Timeout { .. }), "{error}");
    assert!(start.elapsed() < Duration::from_millis(950));
}
