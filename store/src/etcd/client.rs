//! Connections to the members of an etcd cluster, and single calls on them.

use std::error::Error as StdError;
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::Duration;

use http::Uri;
use http::uri::PathAndQuery;
use hyper_util::rt::TokioIo;
use rustls::pki_types::ServerName;
use tokio::net::TcpStream;
use tokio_rustls::TlsConnector;
use tonic::client::Grpc;
use tonic::transport::{Channel, Endpoint};
use tonic::{Code, Request, Status, Streaming};
use tonic_prost::ProstCodec;

use super::OpenError;
use super::proto::{WatchRequest, WatchResponse};
use crate::Error;

/// How long a connection attempt may take.
const DIAL: Duration = Duration::from_secs(5);
/// How long a call may take; etcd itself gives up a proposal after about 7 s.
const CALL: Duration = Duration::from_secs(10);
/// Largest answer that is read. A list is read in pages by its callers; a page of large objects may be large.
const MAX_ANSWER: usize = 1 << 30;

/// The members, one of them in use.
pub(super) struct Client {
    channels: Vec<Channel>,
    /// Which one is in use; moved on when it does not answer.
    current: AtomicUsize,
}

impl Client {
    /// Prepares connections; none is made before it is needed.
    pub fn new(
        endpoints: &[String],
        tls: Option<Arc<rustls::ClientConfig>>,
    ) -> Result<Self, OpenError> {
        let mut channels = Vec::new();
        for text in endpoints {
            channels.push(channel(text, tls.clone())?);
        }
        if channels.is_empty() {
            return Err(OpenError::NoEndpoint);
        }
        Ok(Client {
            channels,
            current: AtomicUsize::new(0),
        })
    }

    fn grpc(&self, at: usize) -> Grpc<Channel> {
        Grpc::new(self.channels[at % self.channels.len()].clone())
            .max_decoding_message_size(MAX_ANSWER)
    }

    /// Turns to the next member, unless somebody else already has.
    fn move_on(&self, from: usize) {
        let _ = self.current.compare_exchange(
            from,
            from.wrapping_add(1),
            Ordering::Relaxed,
            Ordering::Relaxed,
        );
    }

    /// One call to the member in use; to the others in turn while it certainly did not reach one. A member that is
    /// away is left for the next call; whether this one was carried out is then unknown.
    pub async fn call<Q, A>(&self, path: &'static str, request: Q) -> Result<A, Status>
    where
        Q: prost::Message + Clone + Send + Sync + 'static,
        A: prost::Message + Default + Send + Sync + 'static,
    {
        let mut tries = self.channels.len();
        loop {
            match self.try_call(path, request.clone()).await {
                Err(status) if was_not_sent(&status) && tries > 1 => tries -= 1,
                result => return result,
            }
        }
    }

    async fn try_call<Q, A>(&self, path: &'static str, request: Q) -> Result<A, Status>
    where
        Q: prost::Message + Clone + Send + Sync + 'static,
        A: prost::Message + Default + Send + Sync + 'static,
    {
        let at = self.current.load(Ordering::Relaxed);
        let result = tokio::time::timeout(CALL, async {
            let mut grpc = self.grpc(at);
            grpc.ready()
                .await
                .map_err(|e| Status::from_error(Box::new(e)))?;
            let codec: ProstCodec<Q, A> = ProstCodec::default();
            grpc.unary(
                Request::new(request),
                PathAndQuery::from_static(path),
                codec,
            )
            .await
        })
        .await
        .unwrap_or_else(|_| Err(Status::deadline_exceeded("etcd did not answer in time")));
        if let Err(status) = &result
            && is_away(status)
        {
            self.move_on(at);
        }
        result.map(tonic::Response::into_inner)
    }

    /// The same for calls that change nothing: tried on each member in turn.
    pub async fn read<Q, A>(&self, path: &'static str, request: Q) -> Result<A, Status>
    where
        Q: prost::Message + Clone + Send + Sync + 'static,
        A: prost::Message + Default + Send + Sync + 'static,
    {
        let mut tries = self.channels.len();
        loop {
            match self.try_call(path, request.clone()).await {
                Err(status) if is_away(&status) && tries > 1 => tries -= 1,
                result => return result,
            }
        }
    }

    /// Opens a watch stream.
    pub async fn watch(
        &self,
        requests: impl futures::Stream<Item = WatchRequest> + Send + 'static,
    ) -> Result<Streaming<WatchResponse>, Status> {
        let at = self.current.load(Ordering::Relaxed);
        let path = PathAndQuery::from_static("/etcdserverpb.Watch/Watch");
        let result = tokio::time::timeout(CALL, async {
            let mut grpc = self.grpc(at);
            grpc.ready()
                .await
                .map_err(|e| Status::from_error(Box::new(e)))?;
            let codec: ProstCodec<WatchRequest, WatchResponse> = ProstCodec::default();
            grpc.streaming(Request::new(requests), path, codec).await
        })
        .await
        .unwrap_or_else(|_| Err(Status::deadline_exceeded("etcd did not answer in time")));
        if let Err(status) = &result
            && is_away(status)
        {
            self.move_on(at);
        }
        result.map(tonic::Response::into_inner)
    }
}

/// Whether a call failed for want of a connection, so that nobody has seen it.
fn was_not_sent(status: &Status) -> bool {
    causes(status).any(|cause| cause.is::<tonic::ConnectError>())
}

/// What caused a status, from the nearest to the root.
fn causes<'a>(status: &'a Status) -> impl Iterator<Item = &'a (dyn StdError + 'static)> {
    let next = |cause: &&'a (dyn StdError + 'static)| {
        let cause: &'a (dyn StdError + 'static) = *cause;
        cause.source()
    };
    std::iter::successors(status.source(), next)
}

/// Whether another member should be asked.
fn is_away(status: &Status) -> bool {
    matches!(
        status.code(),
        Code::Unavailable | Code::DeadlineExceeded | Code::Unknown | Code::Cancelled
    )
}

/// The error of a call that the store's contract has no other name for. No code of etcd's means "maybe", except those
/// of a member that is away.
pub(super) fn error(status: Status) -> Error {
    match status.code() {
        // Out of space, too many requests; etcd refuses before it does anything.
        Code::ResourceExhausted => Error::Unwritable(format!("etcd: {}", status.message())),
        _ => {
            // Such as "connection refused", which the status itself does not say.
            let root = causes(&status).last().map(ToString::to_string);
            let root = root.filter(|root| !status.message().contains(root.as_str()));
            let root = root.map_or(String::new(), |root| format!(": {root}"));
            Error::Failed(format!("etcd: {}{root}", status.message()))
        }
    }
}

/// A connection to one member, made at first use and again whenever it is lost.
fn channel(text: &str, tls: Option<Arc<rustls::ClientConfig>>) -> Result<Channel, OpenError> {
    let bad = |reason: String| OpenError::Endpoint {
        endpoint: text.to_owned(),
        reason,
    };
    // A bare host:port means http, as for upstream's --etcd-servers.
    let full = match text.contains("://") {
        true => text.to_owned(),
        false => format!("http://{text}"),
    };
    let uri: Uri = full.parse().map_err(|e| bad(format!("{e}")))?;
    let secure = match uri.scheme_str() {
        Some("http") => false,
        Some("https") => true,
        _ => return Err(bad("the scheme must be http or https".to_owned())),
    };
    let host = uri
        .host()
        .ok_or_else(|| bad("there is no host".to_owned()))?
        .trim_matches(['[', ']'])
        .to_owned();
    let port = uri.port_u16().unwrap_or(2379);
    let tls = match (secure, tls) {
        (false, _) => None,
        (true, None) => {
            return Err(bad("https needs a CA certificate to check it by".to_owned()));
        }
        (true, Some(config)) => {
            let name = ServerName::try_from(host.clone()).map_err(|e| bad(e.to_string()))?;
            Some((TlsConnector::from(config), name))
        }
    };
    let connector = tower::service_fn(move |_: Uri| {
        let (host, tls) = (host.clone(), tls.clone());
        async move {
            let tcp = TcpStream::connect((host.as_str(), port)).await?;
            tcp.set_nodelay(true)?;
            let io: Box<dyn Io> = match tls {
                None => Box::new(tcp),
                Some((connector, name)) => Box::new(connector.connect(name, tcp).await?),
            };
            Ok::<_, std::io::Error>(TokioIo::new(io))
        }
    });
    // tonic insists on http for a connector of one's own, which does the TLS.
    let authority = uri.authority().map_or("", |a| a.as_str());
    let endpoint = Endpoint::from_shared(format!("http://{authority}"))
        .map_err(|e| bad(e.to_string()))?
        .connect_timeout(DIAL)
        .http2_keep_alive_interval(Duration::from_secs(30))
        .keep_alive_timeout(Duration::from_secs(10))
        .keep_alive_while_idle(true);
    Ok(endpoint.connect_with_connector_lazy(connector))
}

trait Io: tokio::io::AsyncRead + tokio::io::AsyncWrite + Send + Unpin {}
impl<T: tokio::io::AsyncRead + tokio::io::AsyncWrite + Send + Unpin> Io for T {}
