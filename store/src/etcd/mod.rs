//! The etcd engine: the store's contract on an etcd cluster, for more than one API server at a time. Keys and values are
//! laid out as upstream does, so that either may take over the other's data.
//!
//! - `client`: connections and calls.
//! - `watch`: watches that go on by themselves when etcd was away.
//! - `compact`: the compaction that all API servers of a cluster do together.
//! - `proto`: the messages.

mod client;
mod compact;
mod proto;
#[cfg(test)]
mod tests;
mod watch;

use std::ops::Bound;
use std::sync::Arc;
use std::time::Duration;

use async_trait::async_trait;
use bytes::Bytes;
use parking_lot::Mutex;
use tokio::time::Instant;
use tonic::{Code, Status};

use crate::{Commit, Error, Expect, KeyValue, Page, Range, Revision, Store, Watch};
use client::Client;
use proto::{Compare, RangeRequest, RangeResponse, RequestOp, ResponseHeader, Target};

const RANGE: &str = "/etcdserverpb.KV/Range";
const TXN: &str = "/etcdserverpb.KV/Txn";
const COMPACT: &str = "/etcdserverpb.KV/Compact";
const LEASE_GRANT: &str = "/etcdserverpb.Lease/LeaseGrant";

/// Which etcd to use, and how.
#[derive(Clone, Debug)]
pub struct Options {
    /// The members (`--etcd-servers`), such as `https://10.0.0.1:2379`.
    pub endpoints: Vec<String>,
    /// TLS for `https` endpoints.
    pub tls: Option<Tls>,
    /// How often history is compacted to where it was that long ago (`--etcd-compaction-interval`); `None`: never.
    pub compaction_interval: Option<Duration>,
}

impl Options {
    /// Plain connections to `endpoints`, compaction every five minutes.
    pub fn new(endpoints: Vec<String>) -> Self {
        Options {
            endpoints,
            tls: None,
            compaction_interval: Some(Duration::from_secs(300)),
        }
    }
}

/// What secures the connections to etcd, in PEM.
#[derive(Clone)]
pub struct Tls {
    /// Certificates of the authorities that etcd's certificate may come from (`--etcd-cafile`).
    pub ca: Vec<u8>,
    /// Certificate chain and key shown to etcd (`--etcd-certfile`, `--etcd-keyfile`).
    pub identity: Option<(Vec<u8>, Vec<u8>)>,
}

impl std::fmt::Debug for Tls {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str("Tls")
    }
}

/// Why the engine could not be set up. Nothing has been sent yet.
#[derive(Debug, thiserror::Error)]
pub enum OpenError {
    /// No endpoint was given.
    #[error("no etcd endpoint was given")]
    NoEndpoint,
    /// An endpoint makes no sense.
    #[error("etcd endpoint {endpoint:?}: {reason}")]
    Endpoint {
        /// As it was given.
        endpoint: String,
        /// What is wrong with it.
        reason: String,
    },
    /// The certificates or the key cannot be used.
    #[error("TLS towards etcd: {0}")]
    Tls(String),
}

/// The store on etcd.
pub struct Etcd {
    shared: Arc<Shared>,
    compactor: Option<tokio::task::JoinHandle<()>>,
}

struct Shared {
    client: Client,
    lease: Mutex<Option<Lease>>,
}

impl Drop for Etcd {
    fn drop(&mut self) {
        if let Some(compactor) = &self.compactor {
            compactor.abort();
        }
    }
}

impl Etcd {
    /// Sets up the engine; must be called within a tokio runtime. Connects only when it is used.
    pub fn open(options: Options) -> Result<Arc<Self>, OpenError> {
        let tls = options.tls.as_ref().map(tls_config).transpose()?;
        let shared = Arc::new(Shared {
            client: Client::new(&options.endpoints, tls)?,
            lease: Mutex::new(None),
        });
        let compactor = options
            .compaction_interval
            .map(|interval| tokio::spawn(compact::run(shared.clone(), interval)));
        Ok(Arc::new(Etcd { shared, compactor }))
    }
}

fn tls_config(tls: &Tls) -> Result<Arc<rustls::ClientConfig>, OpenError> {
    use rustls::pki_types::pem::PemObject;
    use rustls::pki_types::{CertificateDer, PrivateKeyDer};
    let bad = |what: &str, e: &dyn std::fmt::Display| OpenError::Tls(format!("{what}: {e}"));
    let mut roots = rustls::RootCertStore::empty();
    for certificate in CertificateDer::pem_slice_iter(&tls.ca) {
        let certificate = certificate.map_err(|e| bad("the CA file", &e))?;
        roots.add(certificate).map_err(|e| bad("the CA file", &e))?;
    }
    if roots.is_empty() {
        return Err(bad("the CA file", &"it holds no certificate"));
    }
    let provider = Arc::new(rustls::crypto::ring::default_provider());
    let builder = rustls::ClientConfig::builder_with_provider(provider)
        .with_safe_default_protocol_versions()
        .map_err(|e| bad("the protocol versions", &e))?
        .with_root_certificates(roots);
    let mut config = match &tls.identity {
        None => builder.with_no_client_auth(),
        Some((chain, key)) => {
            let chain = CertificateDer::pem_slice_iter(chain)
                .collect::<Result<Vec<_>, _>>()
                .map_err(|e| bad("the certificate file", &e))?;
            let key = PrivateKeyDer::from_pem_slice(key).map_err(|e| bad("the key file", &e))?;
            builder
                .with_client_auth_cert(chain, key)
                .map_err(|e| bad("the certificate and key", &e))?
        }
    };
    config.alpn_protocols = vec![b"h2".to_vec()];
    Ok(Arc::new(config))
}

/// Revisions of etcd are positive; one that is not is taken for none.
fn revision(wire: i64) -> Revision {
    u64::try_from(wire).unwrap_or(0)
}

fn wire(revision: Revision) -> i64 {
    i64::try_from(revision).unwrap_or(i64::MAX)
}

fn header(header: &Option<ResponseHeader>) -> Revision {
    header.as_ref().map_or(0, |h| revision(h.revision))
}

fn key_value(kv: proto::KeyValue) -> Result<KeyValue, Error> {
    Ok(KeyValue {
        key: String::from_utf8(kv.key.into())
            .map_err(|e| Error::Failed(format!("a key in etcd is not text: {e}")))?,
        value: kv.value,
        create_revision: revision(kv.create_revision),
        mod_revision: revision(kv.mod_revision),
    })
}

fn text(key: &str) -> Bytes {
    Bytes::copy_from_slice(key.as_bytes())
}

/// The range as etcd writes it: first key, and the key behind the last (NUL: no end).
fn bounds(range: &Range) -> (Bytes, Bytes) {
    let first = match &range.start {
        Bound::Included(start) => start.clone(),
        Bound::Excluded(start) => format!("{start}\0"),
        Bound::Unbounded => String::new(),
    };
    let first = if first.is_empty() {
        "\0".to_owned()
    } else {
        first
    };
    let end = range.end.clone().unwrap_or_else(|| "\0".to_owned());
    (text(&first), text(&end))
}

fn is_empty(range: &Range) -> bool {
    match (&range.start, &range.end) {
        (Bound::Included(start) | Bound::Excluded(start), Some(end)) => start >= end,
        (Bound::Unbounded, Some(end)) => end.is_empty(),
        _ => false,
    }
}

impl Shared {
    /// The newest revision, as a majority knows it.
    async fn revision(&self) -> Result<Revision, Error> {
        // Any key does; the answer's header is what counts.
        let request = RangeRequest {
            key: Bytes::from_static(b"\0"),
            count_only: true,
            ..RangeRequest::default()
        };
        let answer: RangeResponse = self
            .client
            .read(RANGE, request)
            .await
            .map_err(client::error)?;
        Ok(header(&answer.header))
    }

    /// Why a request that names a revision was refused. etcd has one code for too old and too new; which it is follows
    /// from the newest revision.
    async fn refused(&self, status: Status, requested: Revision) -> Error {
        if status.code() != Code::OutOfRange {
            return client::error(status);
        }
        match self.revision().await {
            Ok(current) if requested > current => Error::Future { requested, current },
            Ok(_) => Error::Compacted {
                requested,
                // etcd does not say; that it is later is certain.
                oldest: 0,
            },
            Err(error) => error,
        }
    }

    async fn range(
        &self,
        request: RangeRequest,
        at: Option<Revision>,
    ) -> Result<RangeResponse, Error> {
        let request = RangeRequest {
            revision: at.map_or(0, wire),
            ..request
        };
        match self.client.read(RANGE, request).await {
            Ok(answer) => Ok(answer),
            Err(status) => Err(self.refused(status, at.unwrap_or(0)).await),
        }
    }

    /// A lease that lasts at least `ttl` seconds from now, shared by the keys of about the same time as upstream does
    /// (`leaseManager`): events come by the thousand, and a lease is dear.
    async fn lease(&self, ttl: u64) -> Result<i64, Error> {
        let now = Instant::now();
        let until = now + Duration::from_secs(ttl);
        if let Some(lease) = self.lease.lock().as_mut()
            && lease.uses < LEASE_KEYS
            && lease.ends >= until
            // One that lasts much longer would keep short-lived keys alive.
            && lease.ends <= until + LEASE_SLACK
        {
            lease.uses += 1;
            return Ok(lease.id);
        }
        // Lasts longer than asked, so that it can be used again for some time.
        let slack = LEASE_SLACK.min(Duration::from_secs(ttl / 20 + 1));
        let request = proto::LeaseGrantRequest {
            ttl: wire(ttl + slack.as_secs()),
        };
        let granted: proto::LeaseGrantResponse = self
            .client
            .call(LEASE_GRANT, request)
            .await
            .map_err(client::error)?;
        if !granted.error.is_empty() {
            return Err(Error::Unwritable(format!("etcd: {}", granted.error)));
        }
        *self.lease.lock() = Some(Lease {
            id: granted.id,
            ends: now + Duration::from_secs(ttl) + slack,
            uses: 1,
        });
        Ok(granted.id)
    }
}

/// Keys that share a lease, at most, and how much longer than asked they may live for it (upstream's
/// `--lease-max-object-count` and `defaultLeaseReuseDurationSeconds`).
const LEASE_KEYS: u32 = 1000;
const LEASE_SLACK: Duration = Duration::from_secs(60);

struct Lease {
    id: i64,
    ends: Instant,
    uses: u32,
}

#[async_trait]
impl Store for Etcd {
    async fn get(
        &self,
        key: &str,
        at: Option<Revision>,
    ) -> Result<(Option<KeyValue>, Revision), Error> {
        let request = RangeRequest {
            key: text(key),
            ..RangeRequest::default()
        };
        let answer = self.shared.range(request, at).await?;
        let revision = at.unwrap_or(header(&answer.header));
        let found = answer.kvs.into_iter().next().map(key_value).transpose()?;
        Ok((found, revision))
    }

    async fn list(&self, range: Range, at: Option<Revision>, limit: usize) -> Result<Page, Error> {
        let (key, range_end) = bounds(&range);
        let mut request = RangeRequest {
            key,
            range_end,
            limit: i64::try_from(limit).unwrap_or(i64::MAX),
            ..RangeRequest::default()
        };
        if is_empty(&range) {
            // etcd would refuse it; but the revision has to be checked all the same.
            request.range_end = Bytes::new();
            request.count_only = true;
        }
        let answer = self.shared.range(request, at).await?;
        let count = match is_empty(&range) {
            true => 0,
            false => u64::try_from(answer.count).unwrap_or(0),
        };
        let revision = at.unwrap_or(header(&answer.header));
        let items = answer
            .kvs
            .into_iter()
            .map(key_value)
            .collect::<Result<Vec<_>, _>>()?;
        Ok(Page {
            remaining: count.saturating_sub(items.len() as u64),
            items,
            revision,
        })
    }

    async fn commit(&self, commit: Commit) -> Result<Revision, Error> {
        let key = text(&commit.key);
        let expected = match commit.expect {
            Expect::Absent => 0,
            Expect::ModRevision(revision) => wire(revision),
        };
        let change = match commit.value {
            Some(value) => {
                let lease = match commit.ttl_seconds {
                    Some(ttl) => self.shared.lease(ttl).await?,
                    None => 0,
                };
                proto::Request::Put(proto::PutRequest {
                    key: key.clone(),
                    value,
                    lease,
                })
            }
            // Deleting what must not exist is a conflict either way.
            None if expected == 0 => {
                let (current, _) = self.get(&commit.key, None).await?;
                return Err(Error::Conflict { current });
            }
            None => proto::Request::Delete(proto::DeleteRangeRequest { key: key.clone() }),
        };
        let look = proto::Request::Range(RangeRequest {
            key: key.clone(),
            ..RangeRequest::default()
        });
        let op = |request| RequestOp {
            request: Some(request),
        };
        let request = proto::TxnRequest {
            compare: vec![Compare {
                target: proto::TARGET_MOD,
                key,
                target_union: Some(Target::ModRevision(expected)),
            }],
            success: vec![op(change)],
            failure: vec![op(look)],
        };
        let answer: proto::TxnResponse = self
            .shared
            .client
            .call(TXN, request)
            .await
            .map_err(client::error)?;
        if answer.succeeded {
            return Ok(header(&answer.header));
        }
        let looked = answer.responses.into_iter().find_map(|op| op.response);
        let current = match looked {
            Some(proto::Response::Range(found)) => {
                found.kvs.into_iter().next().map(key_value).transpose()?
            }
            None => None,
        };
        Err(Error::Conflict { current })
    }

    async fn watch(&self, range: Range, after: Revision) -> Result<Watch, Error> {
        let current = self.shared.revision().await?;
        if after > current {
            return Err(Error::Future {
                requested: after,
                current,
            });
        }
        Ok(watch::start(self.shared.clone(), &range, after))
    }

    async fn compact(&self, revision: Revision) -> Result<(), Error> {
        let request = proto::CompactionRequest {
            revision: wire(revision),
        };
        let answer: Result<proto::CompactionResponse, Status> =
            self.shared.client.call(COMPACT, request).await;
        match answer {
            Ok(_) => Ok(()),
            Err(status) => Err(self.shared.refused(status, revision).await),
        }
    }

    async fn revision(&self) -> Result<Revision, Error> {
        self.shared.revision().await
    }
}
