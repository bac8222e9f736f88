//! Names outside the cluster: asked of the upstream resolvers, remembered for as long as their answers allow.

use std::collections::HashMap;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr};
use std::path::Path;
use std::time::Duration;

use hickory_proto::op::{Edns, Message, MessageType, OpCode, Query, ResponseCode};
use hickory_proto::rr::RecordType;
use keelson_machinery::clock::Clock;
use parking_lot::Mutex;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::{TcpStream, UdpSocket};
use tokio::sync::Semaphore;
use tokio::time::{Instant, timeout};

/// How long one upstream may take; with the usual stub timeout of 5 s, a second one still gets its turn.
const UPSTREAM_TIMEOUT: Duration = Duration::from_secs(2);
/// Questions under way at once; more are refused at once rather than queued without end.
const MAX_IN_FLIGHT: usize = 1000;
/// Answers remembered.
const CACHE_ENTRIES: usize = 10_000;
/// Upper bounds on how long an answer is remembered, as CoreDNS's `cache 30` sets them.
const MAX_TTL: Duration = Duration::from_secs(30);
/// UDP payload that we can take (RFC 9715 recommends staying below the common MTU).
const UDP_PAYLOAD: u16 = 1232;

/// Why there is no answer.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// There is nobody to ask.
    #[error("no upstream resolver is configured")]
    NoUpstream,
    /// Too many questions are under way.
    #[error("too many questions are being forwarded")]
    Busy,
    /// Every upstream failed; the last one like this.
    #[error("upstream {upstream}: {reason}")]
    Upstream {
        /// The last one asked.
        upstream: SocketAddr,
        /// What happened.
        reason: String,
    },
}

/// Asks upstream resolvers.
pub struct Forwarder {
    upstreams: Vec<SocketAddr>,
    clock: Clock,
    in_flight: Semaphore,
    cache: Mutex<HashMap<Query, Remembered>>,
}

struct Remembered {
    message: Message,
    stored: Instant,
    until: Instant,
}

/// The `nameserver` lines of a resolv.conf, without those that would come back to `own` addresses.
///
/// # Errors
/// When the file cannot be read.
pub fn upstreams_of(resolv_conf: &Path, own: &[IpAddr]) -> std::io::Result<Vec<SocketAddr>> {
    let text = std::fs::read_to_string(resolv_conf)?;
    let servers = text.lines().filter_map(|line| {
        line.trim()
            .strip_prefix("nameserver")?
            .trim()
            .parse::<IpAddr>()
            .ok()
    });
    Ok(servers
        .filter(|ip| !own.contains(ip))
        .map(|ip| SocketAddr::new(ip, 53))
        .collect())
}

impl Forwarder {
    /// Asks `upstreams` in order, the next when one fails.
    pub fn new(upstreams: Vec<SocketAddr>, clock: Clock) -> Self {
        Forwarder {
            upstreams,
            clock,
            in_flight: Semaphore::new(MAX_IN_FLIGHT),
            cache: Mutex::new(HashMap::new()),
        }
    }

    /// The answer to `query`, from memory or from an upstream. Its id and question are to be set by the caller.
    ///
    /// # Errors
    /// When no upstream answers.
    pub async fn ask(&self, query: &Query) -> Result<Message, Error> {
        let mut key = query.clone();
        key.name = key.name.to_lowercase();
        if let Some(message) = self.recall(&key) {
            return Ok(message);
        }
        let _permit = self.in_flight.try_acquire().map_err(|_| Error::Busy)?;
        let mut last = Error::NoUpstream;
        for upstream in &self.upstreams {
            match self.ask_one(*upstream, &key).await {
                // A refusal may be this upstream's own trouble; the next may know.
                Ok(message)
                    if message.metadata.response_code == ResponseCode::ServFail
                        || message.metadata.response_code == ResponseCode::Refused =>
                {
                    last = Error::Upstream {
                        upstream: *upstream,
                        reason: message.metadata.response_code.to_string(),
                    };
                }
                Ok(message) => {
                    self.remember(key, &message);
                    return Ok(message);
                }
                Err(reason) => {
                    last = Error::Upstream {
                        upstream: *upstream,
                        reason,
                    }
                }
            }
        }
        Err(last)
    }

    async fn ask_one(&self, upstream: SocketAddr, query: &Query) -> Result<Message, String> {
        let mut id = [0u8; 2];
        self.clock.fill_random(&mut id);
        let mut message = Message::new(u16::from_be_bytes(id), MessageType::Query, OpCode::Query);
        message.metadata.recursion_desired = true;
        message.add_query(query.clone());
        let mut edns = Edns::new();
        edns.set_max_payload(UDP_PAYLOAD);
        message.set_edns(edns);
        let bytes = message.to_vec().map_err(|e| e.to_string())?;
        let answer = timeout(UPSTREAM_TIMEOUT, over_udp(upstream, &bytes, &message))
            .await
            .map_err(|_| "no answer in time".to_owned())??;
        if !answer.metadata.truncation {
            return Ok(answer);
        }
        timeout(UPSTREAM_TIMEOUT, over_tcp(upstream, &bytes, &message))
            .await
            .map_err(|_| "no answer over TCP in time".to_owned())?
    }

    /// The remembered answer with what is left of its records' lives.
    fn recall(&self, key: &Query) -> Option<Message> {
        let now = Instant::now();
        let cache = self.cache.lock();
        let entry = cache.get(key).filter(|entry| entry.until > now)?;
        let age = u32::try_from((now - entry.stored).as_secs()).unwrap_or(u32::MAX);
        let mut message = entry.message.clone();
        for record in message
            .answers
            .iter_mut()
            .chain(&mut message.authorities)
            .chain(&mut message.additionals)
        {
            record.ttl = record.ttl.saturating_sub(age);
        }
        Some(message)
    }

    fn remember(&self, key: Query, message: &Message) {
        let records = || message.answers.iter().chain(&message.authorities);
        // Without any record there is nothing that says how long it holds (RFC 2308, section 5).
        let Some(ttl) = records()
            .filter(|r| r.record_type() != RecordType::OPT)
            .map(|r| r.ttl)
            .min()
        else {
            return;
        };
        let now = Instant::now();
        let until = now + Duration::from_secs(u64::from(ttl)).min(MAX_TTL);
        let mut cache = self.cache.lock();
        if cache.len() >= CACHE_ENTRIES {
            cache.retain(|_, entry| entry.until > now);
            if cache.len() >= CACHE_ENTRIES {
                // Still full of living entries: start over rather than grow.
                cache.clear();
            }
        }
        cache.insert(
            key,
            Remembered {
                message: message.clone(),
                stored: now,
                until,
            },
        );
    }
}

/// Sends `bytes` and waits for the answer that belongs to them; others are passed over (a forger's guesses).
async fn over_udp(upstream: SocketAddr, bytes: &[u8], sent: &Message) -> Result<Message, String> {
    let any: IpAddr = if upstream.is_ipv4() {
        Ipv4Addr::UNSPECIFIED.into()
    } else {
        Ipv6Addr::UNSPECIFIED.into()
    };
    let text = |e: std::io::Error| e.to_string();
    // A socket per question: its random port is a part of the defence against forged answers.
    let socket = UdpSocket::bind((any, 0)).await.map_err(text)?;
    socket.connect(upstream).await.map_err(text)?;
    socket.send(bytes).await.map_err(text)?;
    let mut buffer = [0u8; 4096];
    loop {
        let length = socket.recv(&mut buffer).await.map_err(text)?;
        if let Ok(answer) = Message::from_vec(&buffer[..length]) {
            if belongs(&answer, sent) {
                return Ok(answer);
            }
        }
    }
}

async fn over_tcp(upstream: SocketAddr, bytes: &[u8], sent: &Message) -> Result<Message, String> {
    let text = |e: std::io::Error| e.to_string();
    let mut stream = TcpStream::connect(upstream).await.map_err(text)?;
    let length = u16::try_from(bytes.len()).map_err(|_| "the question is too long".to_owned())?;
    stream
        .write_all(&[&length.to_be_bytes(), bytes].concat())
        .await
        .map_err(text)?;
    let length = stream.read_u16().await.map_err(text)?;
    let mut buffer = vec![0u8; usize::from(length)];
    stream.read_exact(&mut buffer).await.map_err(text)?;
    let answer = Message::from_vec(&buffer).map_err(|e| e.to_string())?;
    if belongs(&answer, sent) {
        Ok(answer)
    } else {
        Err("the answer is to another question".to_owned())
    }
}

fn belongs(answer: &Message, sent: &Message) -> bool {
    answer.metadata.message_type == MessageType::Response
        && answer.metadata.id == sent.metadata.id
        && answer.queries == sent.queries
}
