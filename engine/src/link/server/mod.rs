//! The cloud's end: listens, lets in who may, and gives each stream a session of its own.

mod accept;
mod session;
mod worker;

use std::future::Future;
use std::net::{SocketAddr, TcpListener, ToSocketAddrs};
use std::sync::Arc;
use std::thread::JoinHandle;
use std::time::Duration;

use tokio::runtime::Runtime;
use tokio::sync::{Semaphore, mpsc, oneshot, watch};
use tokio_stream::wrappers::ReceiverStream;
use tonic::metadata::MetadataMap;
use tonic::service::interceptor::InterceptedService;
use tonic::transport::server::Server as Transport;
use tonic::{Request, Response, Status, Streaming};
use tonic_health::ServingStatus;

use super::address::Address;
use super::backend::Backend;
use super::error::LinkError;
use super::security::{self, ServerTls, Token};
use super::{MAX_MESSAGE_BYTES, proto, status};
use accept::Peer;
use proto::split_server::{Split, SplitServer};
use session::Shared;

/// HTTP/2 streams one connection may have at a time, health checks included.
const MAX_STREAMS_PER_CONNECTION: u32 = 64;
/// Answers that wait for the network.
const OUT_QUEUE: usize = 8;

/// How to serve.
#[derive(Clone, Debug)]
pub struct ServerOptions {
    /// Certificate and key. Needed, unless `insecure`, where other machines can connect.
    pub tls: Option<ServerTls>,
    /// The secret every call must carry. Needed like `tls`.
    pub token: Option<Token>,
    /// Serve other machines without TLS or token all the same.
    pub insecure: bool,
    /// Sessions at a time; more are refused.
    pub max_sessions: usize,
    /// How long a new stream may take to send `Open`, a new connection its TLS handshake, and how
    /// long a connection may be without a stream: one that has had none that was let in (or a
    /// health call) for this long is closed. Clients connect anew when they need to.
    pub open_timeout: Duration,
    /// How long a session may do nothing: its user may be reading or thinking.
    pub idle_timeout: Duration,
    /// Pings go out at this interval and must be answered within another: some 200 ms at least, for an edge
    /// that computes takes up to 50 to answer. A connection without a sign of life for three is cut off.
    pub keepalive: Duration,
    /// How long streams get to end when the server stops.
    pub shutdown_grace: Duration,
}

impl Default for ServerOptions {
    /// No TLS, no token; 8 sessions; 10 s to open, 30 minutes idle, pings every 15 s, 5 s to stop.
    fn default() -> Self {
        Self {
            tls: None,
            token: None,
            insecure: false,
            max_sessions: 8,
            open_timeout: Duration::from_secs(10),
            idle_timeout: Duration::from_mins(30),
            keepalive: Duration::from_secs(15),
            shutdown_grace: Duration::from_secs(5),
        }
    }
}

/// A bound server that does not serve yet.
#[derive(Debug)]
pub struct Server {
    listener: TcpListener,
    address: SocketAddr,
    options: ServerOptions,
    slots: Arc<Semaphore>,
}

impl Server {
    /// Checks the options and listens at `address`; port 0 lets the system choose.
    ///
    /// # Errors
    /// When others could connect and TLS or token are missing, the options make no sense, the
    /// certificate and key are unfit, or the address cannot be had.
    pub fn bind(address: &Address, options: ServerOptions) -> Result<Self, LinkError> {
        if options.max_sessions == 0 || options.max_sessions > 100_000 {
            return Err(LinkError::BadOption(format!(
                "{} sessions cannot be served; --max-sessions takes 1 to 100000",
                options.max_sessions
            )));
        }
        for (name, wait) in [
            ("open", options.open_timeout),
            ("idle", options.idle_timeout),
            ("keepalive", options.keepalive),
        ] {
            // A day is longer than any wait here makes sense, and far from overflowing a clock.
            if wait.is_zero() || wait > Duration::from_hours(24) {
                return Err(LinkError::BadOption(format!(
                    "the {name} timeout is {wait:?}; it must be more than 0 and at most a day"
                )));
            }
        }
        let unbound = |e: std::io::Error| LinkError::Bind {
            address: address.to_string(),
            reason: e.to_string(),
        };
        let found: Vec<SocketAddr> = (address.host(), address.port())
            .to_socket_addrs()
            .map_err(unbound)?
            .collect();
        let open = found.iter().any(|a| !a.ip().to_canonical().is_loopback());
        if let Some(missing) = security::missing(options.tls.is_some(), options.token.is_some())
            && open
            && !options.insecure
        {
            return Err(LinkError::OpenListen {
                address: address.to_string(),
                missing,
            });
        }
        let listener = TcpListener::bind(&found[..]).map_err(unbound)?;
        listener.set_nonblocking(true).map_err(unbound)?;
        let this = Self {
            address: listener.local_addr().map_err(unbound)?,
            listener,
            slots: Arc::new(Semaphore::new(options.max_sessions)),
            options,
        };
        // Said now and not when the first edge comes.
        this.transport()?;
        Ok(this)
    }

    /// Where it listens, with the true port.
    pub fn local_addr(&self) -> SocketAddr {
        self.address
    }

    fn transport(&self) -> Result<Transport, LinkError> {
        let options = &self.options;
        let transport = Transport::builder()
            .max_concurrent_streams(MAX_STREAMS_PER_CONNECTION)
            .http2_max_header_list_size(16 << 10)
            .http2_keepalive_interval(Some(options.keepalive))
            .http2_keepalive_timeout(Some(options.keepalive));
        match &options.tls {
            None => Ok(transport),
            Some(tls) => transport
                .tls_config(tls.config().timeout(options.open_timeout))
                .map_err(|e| {
                    LinkError::BadOption(format!(
                        "the certificate and key cannot be used: {}; check --tls-cert and --tls-key",
                        status::chain(&e)
                    ))
                }),
        }
    }

    /// Serves until `shutdown` resolves; streams then end with `UNAVAILABLE` and get
    /// `shutdown_grace` to do so. Needs a tokio runtime with time and I/O.
    ///
    /// # Errors
    /// When the listener fails as a whole; what happens to one connection stays there.
    pub async fn serve(
        self,
        backend: Arc<dyn Backend>,
        shutdown: impl Future<Output = ()>,
    ) -> Result<(), LinkError> {
        let transport = self.transport()?;
        let failed = |reason: String| LinkError::Bind {
            address: self.address.to_string(),
            reason,
        };
        let options = &self.options;
        let listener =
            tokio::net::TcpListener::from_std(self.listener).map_err(|e| failed(e.to_string()))?;
        let (stop, stopping) = watch::channel(false);
        let service = Service {
            shared: Arc::new(Shared {
                backend,
                slots: Arc::clone(&self.slots),
                max_sessions: u32::try_from(options.max_sessions).unwrap_or(u32::MAX),
                open_timeout: options.open_timeout,
                idle_timeout: options.idle_timeout,
                stopping: stopping.clone(),
            }),
            token: options.token.clone(),
        };
        let (reporter, health) = tonic_health::server::health_reporter();
        reporter.set_serving::<SplitServer<Service>>().await;
        let incoming = accept::incoming(
            listener,
            64 + 2 * options.max_sessions,
            accept::Limits {
                quiet: 3 * options.keepalive,
                linger: options.open_timeout,
            },
        );
        let serving = transport_with(transport, health, service, incoming, stopping);
        tokio::pin!(serving);
        let ended = tokio::select! {
            ended = &mut serving => ended,
            () = shutdown => {
                tracing::info!("stopping");
                for name in ["", <SplitServer<Service> as tonic::server::NamedService>::NAME] {
                    reporter.set_service_status(name, ServingStatus::NotServing).await;
                }
                stop.send_replace(true);
                // A health watcher may stay for ever.
                tokio::time::timeout(options.shutdown_grace, &mut serving).await.unwrap_or(Ok(()))
            }
        };
        ended.map_err(|e| failed(status::chain(&e)))
    }

    /// Serves on this thread until Ctrl-C (or SIGTERM) comes.
    ///
    /// # Errors
    /// As [`Server::serve`], and when the system gives no threads.
    pub fn run(self, backend: Arc<dyn Backend>) -> Result<(), LinkError> {
        let runtime = runtime()?;
        let ended = runtime.block_on(self.serve(backend, interrupted()));
        runtime.shutdown_background();
        ended
    }

    /// Serves on a thread of its own until the returned handle is stopped or dropped.
    ///
    /// # Errors
    /// When the system gives no threads.
    pub fn spawn(self, backend: Arc<dyn Backend>) -> Result<RunningServer, LinkError> {
        let runtime = runtime()?;
        let (stop, stopped) = oneshot::channel::<()>();
        let address = self.address;
        let slots = Arc::clone(&self.slots);
        let max_sessions = self.options.max_sessions;
        let thread = std::thread::Builder::new()
            .name("server".to_owned())
            .spawn(move || {
                let ended = runtime.block_on(self.serve(backend, async {
                    // The handle's end is a stop, told or dropped.
                    let _ = stopped.await;
                }));
                runtime.shutdown_background();
                ended
            })
            .map_err(|e| LinkError::Runtime(e.to_string()))?;
        Ok(RunningServer {
            address,
            slots,
            max_sessions,
            stop: Some(stop),
            thread: Some(thread),
        })
    }
}

/// A server on its own thread. Dropping it stops it.
#[derive(Debug)]
pub struct RunningServer {
    address: SocketAddr,
    slots: Arc<Semaphore>,
    max_sessions: usize,
    stop: Option<oneshot::Sender<()>>,
    thread: Option<JoinHandle<Result<(), LinkError>>>,
}

impl RunningServer {
    /// Where it listens.
    pub fn local_addr(&self) -> SocketAddr {
        self.address
    }

    /// Sessions at this moment.
    pub fn sessions(&self) -> usize {
        self.max_sessions - self.slots.available_permits().min(self.max_sessions)
    }

    /// Ends all streams, and waits for them at most the grace of the options.
    ///
    /// # Errors
    /// What ended the server before, if something did.
    pub fn stop(mut self) -> Result<(), LinkError> {
        self.end()
    }

    fn end(&mut self) -> Result<(), LinkError> {
        self.stop.take();
        match self.thread.take().map(JoinHandle::join) {
            None => Ok(()),
            Some(Ok(ended)) => ended,
            Some(Err(_)) => Err(LinkError::Runtime(
                "the server's thread panicked".to_owned(),
            )),
        }
    }
}

impl Drop for RunningServer {
    fn drop(&mut self) {
        if let Err(e) = self.end() {
            tracing::warn!("{e}");
        }
    }
}

/// One thread carries bytes for all sessions. A second would be woken with each message, to see whether there is more,
/// and take a processor from those who compute.
fn runtime() -> Result<Runtime, LinkError> {
    tokio::runtime::Builder::new_multi_thread()
        .worker_threads(1)
        .thread_name("link")
        .enable_all()
        .build()
        .map_err(|e| LinkError::Runtime(e.to_string()))
}

async fn transport_with<H>(
    mut transport: Transport,
    health: tonic_health::pb::health_server::HealthServer<H>,
    service: Service,
    incoming: ReceiverStream<std::io::Result<accept::Connection>>,
    mut stopping: watch::Receiver<bool>,
) -> Result<(), tonic::transport::Error>
where
    H: tonic_health::pb::health_server::Health,
{
    transport
        .add_service(InterceptedService::new(health, |request: Request<()>| {
            if let Some(peer) = Peer::of(request.extensions()) {
                peer.standing.checked();
            }
            Ok(request)
        }))
        .add_service(
            SplitServer::new(service)
                .max_decoding_message_size(MAX_MESSAGE_BYTES)
                .max_encoding_message_size(MAX_MESSAGE_BYTES),
        )
        .serve_with_incoming_shutdown(incoming, async move {
            // An error means that the sender is gone, which is a stop too.
            let _ = stopping.wait_for(|stop| *stop).await;
        })
        .await
}

/// Resolves on Ctrl-C, and where there is one, on SIGTERM.
async fn interrupted() {
    let ctrl_c = async {
        if tokio::signal::ctrl_c().await.is_err() {
            std::future::pending::<()>().await;
        }
    };
    #[cfg(unix)]
    let terminated = async {
        match tokio::signal::unix::signal(tokio::signal::unix::SignalKind::terminate()) {
            Ok(mut signal) => {
                signal.recv().await;
            }
            Err(_) => std::future::pending::<()>().await,
        }
    };
    #[cfg(not(unix))]
    let terminated = std::future::pending::<()>();
    tokio::select! {
        () = ctrl_c => {}
        () = terminated => {}
    }
}

/// The gRPC service.
struct Service {
    shared: Arc<Shared>,
    token: Option<Token>,
}

impl Service {
    fn admit(&self, metadata: &MetadataMap) -> Result<(), Status> {
        let Some(token) = &self.token else {
            return Ok(());
        };
        match metadata.get("authorization") {
            None => Err(Status::unauthenticated("this server wants a token")),
            Some(header) if token.admits(header.as_bytes()) => Ok(()),
            Some(_) => Err(Status::unauthenticated("that is not this server's token")),
        }
    }
}

#[tonic::async_trait]
impl Split for Service {
    type GenerateStream = ReceiverStream<Result<proto::CloudMessage, Status>>;

    async fn generate(
        &self,
        request: Request<Streaming<proto::EdgeMessage>>,
    ) -> Result<Response<Self::GenerateStream>, Status> {
        self.admit(request.metadata())?;
        let peer = Peer::of(request.extensions()).cloned();
        let (out, rx) = mpsc::channel(OUT_QUEUE);
        tokio::spawn(session::drive(
            Arc::clone(&self.shared),
            peer,
            request.into_inner(),
            out,
        ));
        Ok(Response::new(ReceiverStream::new(rx)))
    }
}
