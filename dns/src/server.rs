//! The sockets: UDP and TCP on one port, one question in, one answer out.

use std::io;
use std::net::{IpAddr, SocketAddr};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use hickory_proto::op::{Edns, Message, OpCode, Query, ResponseCode};
use hickory_proto::rr::{DNSClass, Name};
use parking_lot::RwLock;
use socket2::{Domain, Protocol, Socket, Type};
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::{TcpListener, TcpStream, UdpSocket};
use tokio::sync::Semaphore;
use tokio::time::timeout;
use tokio_util::sync::CancellationToken;
use tracing::{debug, warn};

use crate::answer::{Answer, Settings, answer, start_of_authority};
use crate::forward::Forwarder;
use crate::metrics::Metrics;
use crate::zone::Zone;

/// TCP connections at once.
const MAX_CONNECTIONS: usize = 1000;
/// How long a TCP client may stay silent (RFC 7766 asks for some seconds).
const IDLE: Duration = Duration::from_secs(10);
/// UDP questions that wait for an upstream; in-zone answers never wait.
const MAX_WAITING: usize = 2000;
/// What a client without EDNS can take over UDP (RFC 1035, section 4.2.1).
const PLAIN_UDP_PAYLOAD: usize = 512;
/// The most we send over UDP, whatever a client says (RFC 9715).
const MAX_UDP_PAYLOAD: u16 = 1232;

/// Everything an answer depends on.
pub struct Resolver {
    /// The cluster's names.
    pub zone: RwLock<Zone>,
    /// False until every list has been read: until then "no such name" would be a lie.
    pub synced: AtomicBool,
    /// Domain and lifetimes.
    pub settings: Settings,
    /// Names outside.
    pub forwarder: Forwarder,
    /// Counters.
    pub metrics: Metrics,
}

/// How a question was settled without waiting, or what remains to be asked.
enum Settled {
    Done(Message),
    /// Ask the forwarder this; the CNAME leads to it.
    Ask(Message, Name),
}

impl Resolver {
    /// The answer to one request in wire form; `None` when it deserves none (it is no request at all).
    pub async fn respond(&self, request: &[u8], over_udp: bool) -> Option<Vec<u8>> {
        let request = parse(request)?;
        let limit = if over_udp {
            udp_limit(&request)
        } else {
            usize::from(u16::MAX)
        };
        let response = match self.settle(&request) {
            Settled::Done(response) => response,
            Settled::Ask(response, name) => self.forward(&request, response, name).await,
        };
        self.encode(response, limit, over_udp)
    }

    /// Answers at once if no upstream is needed.
    fn respond_now(&self, request: &Message) -> Option<Option<Vec<u8>>> {
        match self.settle(request) {
            Settled::Done(response) => Some(self.encode(response, udp_limit(request), true)),
            Settled::Ask(..) => None,
        }
    }

    fn settle(&self, request: &Message) -> Settled {
        let mut response = Message::response(request.metadata.id, request.metadata.op_code);
        response.metadata.recursion_desired = request.metadata.recursion_desired;
        response.metadata.recursion_available = true;
        response.add_queries(request.queries.iter().cloned());
        if let Some(edns) = &request.edns {
            let mut ours = Edns::new();
            ours.set_max_payload(MAX_UDP_PAYLOAD);
            response.set_edns(ours);
            if edns.version() != 0 {
                response.metadata.response_code = ResponseCode::BADVERS;
                return Settled::Done(response);
            }
        }
        if request.metadata.op_code != OpCode::Query {
            response.metadata.response_code = ResponseCode::NotImp;
            return Settled::Done(response);
        }
        let [query] = request.queries.as_slice() else {
            response.metadata.response_code = ResponseCode::FormErr;
            return Settled::Done(response);
        };
        if query.query_class != DNSClass::IN {
            response.metadata.response_code = ResponseCode::Refused;
            return Settled::Done(response);
        }
        let in_domain = self.settings.domain.zone_of(&query.name);
        if in_domain && !self.synced.load(Ordering::Acquire) {
            response.metadata.response_code = ResponseCode::ServFail;
            return Settled::Done(response);
        }
        response.metadata.authoritative = true;
        let found = answer(
            &self.zone.read(),
            &self.settings,
            &query.name,
            query.query_type,
        );
        match found {
            Answer::Forward => {
                response.metadata.authoritative = false;
                Settled::Ask(response, query.name.clone())
            }
            Answer::Alias(alias, target) => {
                response.add_answer(alias);
                Settled::Ask(response, target)
            }
            Answer::Records {
                answers,
                additionals,
            } => {
                response.insert_answers(answers);
                response.insert_additionals(additionals);
                Settled::Done(response)
            }
            Answer::Nothing(code) => {
                response.metadata.response_code = code;
                response.add_authority(start_of_authority(&self.settings));
                Settled::Done(response)
            }
        }
    }

    async fn forward(&self, request: &Message, mut response: Message, name: Name) -> Message {
        let Some(kind) = request.queries.first().map(|q| q.query_type) else {
            return response;
        };
        match self.forwarder.ask(&Query::query(name, kind)).await {
            Ok(answer) => {
                response.metadata.response_code = answer.metadata.response_code;
                response.add_answers(answer.answers);
                response.insert_authorities(answer.authorities);
            }
            // An alias that leads nowhere reachable is still a correct alias.
            Err(error) if !response.answers.is_empty() => {
                debug!(%error, "following an ExternalName")
            }
            Err(error) => {
                debug!(%error, "forwarding");
                response.metadata.response_code = ResponseCode::ServFail;
            }
        }
        response
    }

    fn encode(&self, response: Message, limit: usize, over_udp: bool) -> Option<Vec<u8>> {
        self.metrics.count(&response, over_udp);
        let encoded = match response.to_vec() {
            Ok(bytes) if bytes.len() <= limit => Ok(bytes),
            // Too long: the client asks again over TCP.
            Ok(_) => response.truncate().to_vec(),
            Err(error) => Err(error),
        };
        encoded
            .map_err(|error| warn!(%error, "encoding an answer"))
            .ok()
    }
}

/// The request, or `None` for what is no request: answering answers would let two servers shout at each other for ever.
fn parse(bytes: &[u8]) -> Option<Message> {
    use hickory_proto::op::MessageType;
    match Message::from_vec(bytes) {
        Ok(message) if message.metadata.message_type == MessageType::Query => Some(message),
        Ok(_) => None,
        Err(_) => None,
    }
}

/// `FORMERR` for a request that has a readable header and nothing more.
fn format_error(bytes: &[u8]) -> Option<Vec<u8>> {
    let header = bytes.get(..12)?;
    if header[2] & 0x80 != 0 {
        return None;
    }
    let id = u16::from_be_bytes([header[0], header[1]]);
    Message::error_msg(id, OpCode::Query, ResponseCode::FormErr)
        .to_vec()
        .ok()
}

fn udp_limit(request: &Message) -> usize {
    request.edns.as_ref().map_or(PLAIN_UDP_PAYLOAD, |edns| {
        usize::from(edns.max_payload().clamp(512, MAX_UDP_PAYLOAD))
    })
}

/// Opens `count` UDP sockets on one address; the kernel spreads clients over them.
///
/// # Errors
/// When the address is taken or not ours.
pub fn udp_sockets(address: SocketAddr, count: usize) -> io::Result<Vec<UdpSocket>> {
    (0..count)
        .map(|_| {
            let socket = Socket::new(
                Domain::for_address(address),
                Type::DGRAM,
                Some(Protocol::UDP),
            )?;
            socket.set_reuse_port(true)?;
            accept_both_families(&socket, address)?;
            socket.set_nonblocking(true)?;
            socket.bind(&address.into())?;
            UdpSocket::from_std(socket.into())
        })
        .collect()
}

/// Opens the TCP listener.
///
/// # Errors
/// When the address is taken or not ours.
pub fn tcp_listener(address: SocketAddr) -> io::Result<TcpListener> {
    let socket = Socket::new(
        Domain::for_address(address),
        Type::STREAM,
        Some(Protocol::TCP),
    )?;
    socket.set_reuse_address(true)?;
    accept_both_families(&socket, address)?;
    socket.set_nonblocking(true)?;
    socket.bind(&address.into())?;
    socket.listen(1024)?;
    TcpListener::from_std(socket.into())
}

fn accept_both_families(socket: &Socket, address: SocketAddr) -> io::Result<()> {
    match address.ip() {
        IpAddr::V6(ip) if ip.is_unspecified() => socket.set_only_v6(false),
        _ => Ok(()),
    }
}

/// Serves one UDP socket until told to stop.
pub async fn serve_udp(resolver: Arc<Resolver>, socket: UdpSocket, shutdown: CancellationToken) {
    let socket = Arc::new(socket);
    let waiting = Arc::new(Semaphore::new(MAX_WAITING));
    let mut buffer = [0u8; 4096];
    loop {
        let received = tokio::select! {
            () = shutdown.cancelled() => return,
            received = socket.recv_from(&mut buffer) => received,
        };
        let (length, peer) = match received {
            Ok(received) => received,
            // A peer's ICMP refusal of an earlier answer surfaces here; it concerns nobody else.
            Err(error) => {
                debug!(%error, "receiving over UDP");
                continue;
            }
        };
        let bytes = &buffer[..length];
        let Some(request) = parse(bytes) else {
            if Message::from_vec(bytes).is_err() {
                if let Some(answer) = format_error(bytes) {
                    send(&socket, &answer, peer).await;
                }
            }
            continue;
        };
        if let Some(now) = resolver.respond_now(&request) {
            if let Some(answer) = now {
                send(&socket, &answer, peer).await;
            }
            continue;
        }
        // Without a place the question is dropped: the client's retry is the queue.
        let Ok(place) = waiting.clone().try_acquire_owned() else {
            continue;
        };
        let (resolver, socket, bytes) = (resolver.clone(), socket.clone(), bytes.to_vec());
        tokio::spawn(async move {
            if let Some(answer) = resolver.respond(&bytes, true).await {
                send(&socket, &answer, peer).await;
            }
            drop(place);
        });
    }
}

async fn send(socket: &UdpSocket, answer: &[u8], peer: SocketAddr) {
    if let Err(error) = socket.send_to(answer, peer).await {
        debug!(%error, %peer, "answering over UDP");
    }
}

/// Serves TCP until told to stop.
pub async fn serve_tcp(
    resolver: Arc<Resolver>,
    listener: TcpListener,
    shutdown: CancellationToken,
) {
    let places = Arc::new(Semaphore::new(MAX_CONNECTIONS));
    loop {
        let accepted = tokio::select! {
            () = shutdown.cancelled() => return,
            accepted = listener.accept() => accepted,
        };
        let stream = match accepted {
            Ok((stream, _)) => stream,
            Err(error) => {
                // Out of file descriptors, most likely: give connections time to end.
                warn!(%error, "accepting a TCP connection");
                tokio::time::sleep(Duration::from_millis(100)).await;
                continue;
            }
        };
        let Ok(place) = places.clone().try_acquire_owned() else {
            continue;
        };
        let resolver = resolver.clone();
        tokio::spawn(async move {
            if let Err(error) = serve_connection(&resolver, stream).await {
                debug!(%error, "serving a TCP connection");
            }
            drop(place);
        });
    }
}

async fn serve_connection(resolver: &Resolver, mut stream: TcpStream) -> io::Result<()> {
    loop {
        let length = match timeout(IDLE, stream.read_u16()).await {
            Ok(Ok(length)) => usize::from(length),
            // Closed or silent for too long.
            Ok(Err(_)) | Err(_) => return Ok(()),
        };
        let mut request = vec![0u8; length];
        timeout(IDLE, stream.read_exact(&mut request)).await??;
        let answer = match parse(&request) {
            Some(_) => resolver.respond(&request, false).await,
            None => format_error(&request),
        };
        let Some(answer) = answer else { return Ok(()) };
        let length = u16::try_from(answer.len()).map_err(io::Error::other)?;
        timeout(
            IDLE,
            stream.write_all(&[&length.to_be_bytes(), answer.as_slice()].concat()),
        )
        .await??;
    }
}
