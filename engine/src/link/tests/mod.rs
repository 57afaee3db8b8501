//! Both ends against each other over loopback.

mod conversation;
mod interrupt;
mod protection;
mod rogue;
mod trouble;
mod turns;

use std::io::{Read, Write};
use std::net::{Shutdown, TcpListener, TcpStream};
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::sync::{Arc, Mutex};
use std::thread;
use std::time::{Duration, Instant};

use formats::pair::{Contract, PairId};

use super::*;

const CONTRACT: Contract = Contract {
    pair_id: PairId([1; 16]),
    split: 10,
    n_layer: 30,
    width: 576,
};
const N_CTX: u32 = 1000;

/// Frames are one byte a row, zeros are padding (but one row there is); the token is the sum of all bytes held. Some bytes make trouble.
const PANIC: u8 = 255;
const BAD: u8 = 254;
/// Takes 200 ms.
const SLOW: u8 = 253;
/// Panics when the session is dropped.
const BAD_END: u8 = 252;

#[derive(Default)]
struct Sums {
    living: Arc<AtomicUsize>,
    served: Arc<AtomicUsize>,
    opened: Mutex<Vec<OpenRequest>>,
    threads: Arc<Mutex<Vec<String>>>,
}

struct Sum {
    held: Vec<u8>,
    living: Arc<AtomicUsize>,
    served: Arc<AtomicUsize>,
    /// The names of the threads on which rows were run.
    threads: Arc<Mutex<Vec<String>>>,
}

impl Backend for Sums {
    fn contract(&self) -> Contract {
        CONTRACT
    }

    fn open(&self, request: &OpenRequest) -> Result<Opened, Refusal> {
        self.opened.lock().unwrap().push(request.clone());
        match request.codec.as_str() {
            "unknown" => return Err(Refusal::Unfit("no codec `unknown`; use f16".into())),
            "panic" => panic!("opening went wrong"),
            _ => {}
        }
        self.living.fetch_add(1, Ordering::SeqCst);
        Ok(Opened {
            session: Box::new(Sum {
                held: Vec::new(),
                living: self.living.clone(),
                served: self.served.clone(),
                threads: self.threads.clone(),
            }),
            n_ctx: N_CTX,
            max_rows_per_message: 64,
        })
    }
}

impl Session for Sum {
    fn rows(&mut self, frame: &[u8], want_token: bool) -> Result<RowsDone, SessionError> {
        let name = thread::current().name().unwrap_or_default().to_owned();
        self.threads.lock().unwrap().push(name);
        for &row in frame {
            match row {
                PANIC => panic!("a kernel went wrong"),
                BAD => return Err(SessionError::BadFrame("row 0: no such codec".into())),
                SLOW => thread::sleep(Duration::from_millis(200)),
                _ => {}
            }
        }
        self.served.fetch_add(1, Ordering::SeqCst);
        let mut rows: Vec<u8> = frame.iter().copied().filter(|&row| row != 0).collect();
        if rows.is_empty() {
            rows.push(0);
        }
        self.held.extend(&rows);
        let id = self.held.iter().map(|&b| u32::from(b)).sum();
        Ok(RowsDone {
            rows: rows.len() as u32,
            token: want_token.then(|| Sampled {
                id,
                logprob: Some(-0.5),
                top_logprobs: vec![(id, -0.5), (7, -2.0)],
            }),
        })
    }

    fn is_single(&self, frame: &[u8]) -> bool {
        frame.len() == 1
    }

    fn truncate(&mut self, len: u32) -> Result<(), SessionError> {
        self.held.truncate(len as usize);
        Ok(())
    }
}

impl Drop for Sum {
    fn drop(&mut self) {
        self.living.fetch_sub(1, Ordering::SeqCst);
        assert!(!self.held.contains(&BAD_END), "closing went wrong");
    }
}

fn request() -> OpenRequest {
    OpenRequest {
        contract: CONTRACT,
        codec: "f16".into(),
        n_ctx: 512,
        sampling: Sampling {
            temperature: 0.7,
            ..Sampling::default()
        },
        top_logprobs: 2,
        tail_ids: vec![3, 4],
    }
}

fn serve(options: ServerOptions) -> (RunningServer, Arc<Sums>) {
    let backend = Arc::new(Sums::default());
    let server = Server::bind(&"127.0.0.1:0".parse().unwrap(), options)
        .unwrap()
        .spawn(backend.clone())
        .unwrap();
    (server, backend)
}

fn to(address: impl std::fmt::Display) -> EdgeOptions {
    EdgeOptions::new(address.to_string().parse().unwrap())
}

fn dial(server: &RunningServer) -> EdgeLink {
    EdgeLink::connect(to(server.local_addr())).unwrap()
}

/// Waits until `done`, or fails.
fn eventually(what: &str, done: impl Fn() -> bool) {
    let start = Instant::now();
    while !done() {
        assert!(start.elapsed() < Duration::from_secs(10), "never: {what}");
        thread::sleep(Duration::from_millis(5));
    }
}

/// A wire that can be cut (`cut`) or go dead without a word (`mute`).
struct Wire {
    address: std::net::SocketAddr,
    mute: Arc<AtomicBool>,
    ends: Arc<Mutex<Vec<TcpStream>>>,
}

impl Wire {
    fn to(target: std::net::SocketAddr) -> Self {
        let listener = TcpListener::bind("127.0.0.1:0").unwrap();
        let this = Self {
            address: listener.local_addr().unwrap(),
            mute: Arc::default(),
            ends: Arc::default(),
        };
        let (mute, ends) = (this.mute.clone(), this.ends.clone());
        thread::spawn(move || {
            for near in listener.incoming() {
                let near = near.unwrap();
                let far = TcpStream::connect(target).unwrap();
                for (mut from, mut to) in [
                    (near.try_clone().unwrap(), far.try_clone().unwrap()),
                    (far.try_clone().unwrap(), near.try_clone().unwrap()),
                ] {
                    let mute = mute.clone();
                    thread::spawn(move || {
                        let mut buffer = [0; 4096];
                        while let Ok(n @ 1..) = from.read(&mut buffer) {
                            if !mute.load(Ordering::SeqCst) && to.write_all(&buffer[..n]).is_err() {
                                break;
                            }
                        }
                    });
                }
                ends.lock().unwrap().extend([near, far]);
            }
        });
        this
    }

    fn mute(&self) {
        self.mute.store(true, Ordering::SeqCst);
    }

    fn cut(&self) {
        for end in self.ends.lock().unwrap().iter() {
            let _ = end.shutdown(Shutdown::Both);
        }
    }
}
