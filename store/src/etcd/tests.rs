//! The engine under the suite, on a real etcd that the tests start; and what only it can show: etcd lost and back,
//! leases, compaction by agreement. Without an etcd on this machine the tests say so and pass.

use std::net::TcpListener;
use std::path::PathBuf;
use std::process::{Child, Command, Stdio};
use std::sync::Arc;
use std::time::Duration;

use async_trait::async_trait;
use bytes::Bytes;
use futures::StreamExt;

use super::{Etcd, OpenError, Options, Tls, compact, proto};
use crate::suite::{self, Subject};
use crate::{Commit, Error, Expect, Range, Store, WatchItem};

fn etcd_binary() -> Option<PathBuf> {
    let path = std::env::var_os("PATH")?;
    let found = std::env::split_paths(&path)
        .map(|dir| dir.join("etcd"))
        .find(|file| file.is_file());
    if found.is_none() {
        eprintln!("LEFT OUT: there is no etcd on this machine (Debian package etcd-server)");
    }
    found
}

/// A running etcd with its data; ended when dropped.
struct Server {
    binary: PathBuf,
    dir: tempfile::TempDir,
    ports: (u16, u16),
    child: Option<Child>,
    extra: Vec<String>,
    scheme: &'static str,
}

impl Server {
    fn new(binary: PathBuf, scheme: &'static str, extra: Vec<String>) -> Self {
        // Free when asked; nobody else takes them in between on a machine at rest.
        let free = || TcpListener::bind("127.0.0.1:0").unwrap();
        let (a, b) = (free(), free());
        let port = |l: &TcpListener| l.local_addr().unwrap().port();
        Server {
            binary,
            dir: tempfile::tempdir().unwrap(),
            ports: (port(&a), port(&b)),
            child: None,
            extra,
            scheme,
        }
    }

    fn url(&self) -> String {
        format!("{}://127.0.0.1:{}", self.scheme, self.ports.0)
    }

    fn start(&mut self) {
        let peer = format!("http://127.0.0.1:{}", self.ports.1);
        let child = Command::new(&self.binary)
            .arg("--data-dir")
            .arg(self.dir.path().join("data"))
            .args(["--listen-client-urls", &self.url()])
            .args(["--advertise-client-urls", &self.url()])
            .args(["--listen-peer-urls", &peer])
            .args(["--initial-advertise-peer-urls", &peer])
            .args(["--initial-cluster", &format!("default={peer}")])
            // The disk is not what is tested here.
            .arg("--unsafe-no-fsync")
            .args(&self.extra)
            .stdout(Stdio::null())
            .stderr(Stdio::null())
            .spawn()
            .unwrap();
        self.child = Some(child);
    }

    fn stop(&mut self) {
        if let Some(mut child) = self.child.take() {
            child.kill().unwrap();
            child.wait().unwrap();
        }
    }

    fn options(&self) -> Options {
        Options {
            compaction_interval: None,
            ..Options::new(vec![self.url()])
        }
    }
}

impl Drop for Server {
    fn drop(&mut self) {
        self.stop();
    }
}

/// Waits until etcd answers.
async fn ready(store: &Etcd) {
    for _ in 0..400 {
        if store.revision().await.is_ok() {
            return;
        }
        tokio::time::sleep(Duration::from_millis(50)).await;
    }
    panic!("etcd does not answer");
}

fn create(key: &str) -> Commit {
    Commit {
        key: key.to_owned(),
        expect: Expect::Absent,
        value: Some(Bytes::from_static(b"{}")),
        ttl_seconds: None,
    }
}

struct Case {
    server: Arc<parking_lot::Mutex<Server>>,
    store: Arc<Etcd>,
    name: &'static str,
}

#[async_trait]
impl Subject for Case {
    fn store(&self) -> Arc<dyn Store> {
        self.store.clone()
    }

    fn prefix(&self) -> String {
        format!("/suite/{}/", self.name)
    }

    async fn restart(&mut self) -> bool {
        {
            let mut server = self.server.lock();
            server.stop();
            server.start();
        }
        // The same engine: it has to find etcd again by itself.
        ready(&self.store).await;
        true
    }

    async fn pass(&mut self, _seconds: u64) -> bool {
        false
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn passes_the_suite() {
    let Some(binary) = etcd_binary() else { return };
    let server = Arc::new(parking_lot::Mutex::new(Server::new(
        binary,
        "http",
        Vec::new(),
    )));
    server.lock().start();
    suite::run(suite::CASES.iter().copied(), async |name| {
        let store = Etcd::open(server.lock().options()).unwrap();
        ready(&store).await;
        let server = server.clone();
        Box::new(Case {
            server,
            store,
            name,
        }) as Box<dyn Subject>
    })
    .await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn outlives_etcd_and_shares_it() {
    let Some(binary) = etcd_binary() else { return };
    let mut server = Server::new(binary, "http", Vec::new());
    server.start();
    let (one, two) = (
        Etcd::open(server.options()).unwrap(),
        Etcd::open(server.options()).unwrap(),
    );
    ready(&one).await;
    // Two engines see each other's writes, in order, and conflict with each other.
    let start = two.revision().await.unwrap();
    let mut watch = two.watch(Range::prefix("/k/"), start).await.unwrap();
    let created = one.commit(create("/k/a")).await.unwrap();
    let conflict = two.commit(create("/k/a")).await;
    assert!(
        matches!(&conflict, Err(Error::Conflict { current: Some(kv) }) if kv.mod_revision == created),
        "{conflict:?}"
    );
    let mut next = async || loop {
        let item = tokio::time::timeout(Duration::from_secs(30), watch.items.next()).await;
        match item.expect("silent").expect("ended").expect("failed") {
            WatchItem::Events(events) => {
                break events.into_iter().map(|e| e.key).collect::<Vec<_>>();
            }
            WatchItem::Progress(_) => {}
        }
    };
    assert_eq!(next().await, ["/k/a"]);
    // Lost: clear errors. Back: everything goes on, the watch too.
    server.stop();
    assert!(matches!(
        one.commit(create("/k/b")).await,
        Err(Error::Failed(_))
    ));
    assert!(matches!(one.revision().await, Err(Error::Failed(_))));
    server.start();
    ready(&one).await;
    one.commit(create("/k/c")).await.unwrap();
    assert_eq!(next().await, ["/k/c"]);

    // Keys with a time to live share a lease.
    for name in ["/t/a", "/t/b"] {
        let commit = Commit {
            ttl_seconds: Some(3600),
            ..create(name)
        };
        one.commit(commit).await.unwrap();
    }
    let leases = async |key: &str| {
        let request = proto::RangeRequest {
            key: Bytes::copy_from_slice(key.as_bytes()),
            ..Default::default()
        };
        let answer = one.shared.range(request, None).await.unwrap();
        answer.kvs[0].lease
    };
    let lease = leases("/t/a").await;
    assert!(lease != 0 && lease == leases("/t/b").await);
    assert_eq!(leases("/k/a").await, 0);

    // Rounds of compaction: whoever is first does it, the other learns of it.
    let (v1, seen1) = compact::round(&one.shared, 0, 0).await.unwrap();
    let (w1, _) = compact::round(&two.shared, 0, 0).await.unwrap();
    assert_eq!((v1, w1), (1, 1));
    let (v2, _) = compact::round(&one.shared, v1, seen1).await.unwrap();
    assert_eq!(v2, 2);
    let old = one.get("/k/a", Some(seen1 - 1)).await;
    assert!(matches!(old, Err(Error::Compacted { .. })), "{old:?}");
    assert!(one.get("/k/a", Some(seen1)).await.unwrap().0.is_some());
}

/// A small quota: refused as unwritable, and reads go on.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn says_when_etcd_is_full() {
    let Some(binary) = etcd_binary() else { return };
    let quota = ["--quota-backend-bytes", "1000000"].map(str::to_owned);
    let mut server = Server::new(binary, "http", quota.to_vec());
    server.start();
    let store = Etcd::open(server.options()).unwrap();
    ready(&store).await;
    let mut refused = None;
    for n in 0..100 {
        let commit = Commit {
            value: Some(Bytes::from(vec![b'x'; 50_000])),
            ..create(&format!("/k/{n}"))
        };
        if let Err(error) = store.commit(commit).await {
            refused = Some(error);
            break;
        }
    }
    assert!(matches!(refused, Some(Error::Unwritable(_))), "{refused:?}");
    assert!(store.get("/k/0", None).await.unwrap().0.is_some());
}

/// TLS both ways; and members that are not there are passed over, by writes too.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn speaks_tls_and_passes_over_dead_members() {
    let Some(binary) = etcd_binary() else { return };
    let authority = |name: &str| {
        let mut params = rcgen::CertificateParams::default();
        params.is_ca = rcgen::IsCa::Ca(rcgen::BasicConstraints::Unconstrained);
        params
            .distinguished_name
            .push(rcgen::DnType::CommonName, name);
        let key = rcgen::KeyPair::generate().unwrap();
        let certificate = params.self_signed(&key).unwrap();
        (certificate.pem(), rcgen::Issuer::new(params, key))
    };
    let (ca, issuer) = authority("ca");
    let (other_ca, other_issuer) = authority("other");
    let leaf = |issuer: &rcgen::Issuer<'_, rcgen::KeyPair>| {
        let params = rcgen::CertificateParams::new(vec!["127.0.0.1".to_owned()]).unwrap();
        let key = rcgen::KeyPair::generate().unwrap();
        let certificate = params.signed_by(&key, issuer).unwrap();
        (certificate.pem(), key.serialize_pem())
    };
    let (certificate, key) = leaf(&issuer);
    let files = tempfile::tempdir().unwrap();
    let write = |name: &str, text: &str| {
        let path = files.path().join(name);
        std::fs::write(&path, text).unwrap();
        path.to_str().unwrap().to_owned()
    };
    let extra = vec![
        format!("--cert-file={}", write("server.crt", &certificate)),
        format!("--key-file={}", write("server.key", &key)),
        format!("--trusted-ca-file={}", write("ca.crt", &ca)),
        "--client-cert-auth".to_owned(),
    ];
    let mut server = Server::new(binary, "https", extra);
    server.start();
    let dead = {
        let listener = TcpListener::bind("127.0.0.1:0").unwrap();
        format!("https://{}", listener.local_addr().unwrap())
    };
    let options = |ca: &str, identity: Option<(String, String)>| Options {
        endpoints: vec![dead.clone(), server.url()],
        tls: Some(Tls {
            ca: ca.as_bytes().to_vec(),
            identity: identity.map(|(c, k)| (c.into_bytes(), k.into_bytes())),
        }),
        ..server.options()
    };
    let store = Etcd::open(options(&ca, Some(leaf(&issuer)))).unwrap();
    ready(&store).await;
    // Each begins with the dead member.
    let store = Etcd::open(options(&ca, Some(leaf(&issuer)))).unwrap();
    store.commit(create("/k/a")).await.unwrap();
    let store = Etcd::open(options(&ca, Some(leaf(&issuer)))).unwrap();
    assert!(store.get("/k/a", None).await.unwrap().0.is_some());
    for (ca, identity) in [
        (&other_ca, Some(leaf(&issuer))),
        (&ca, Some(leaf(&other_issuer))),
        (&ca, None),
    ] {
        let store = Etcd::open(options(ca, identity)).unwrap();
        let refused = store.revision().await;
        assert!(matches!(refused, Err(Error::Failed(_))), "{refused:?}");
    }
}

#[tokio::test]
async fn refuses_what_it_cannot_use() {
    let open = |endpoints: &[&str], tls: Option<Tls>| {
        let endpoints = endpoints.iter().map(|e| e.to_string()).collect();
        let options = Options {
            tls,
            ..Options::new(endpoints)
        };
        Etcd::open(options).err().map(|e| e.to_string())
    };
    let tls = |ca: &[u8]| {
        Some(Tls {
            ca: ca.to_vec(),
            identity: None,
        })
    };
    for (endpoints, tls, expected) in [
        (&[][..], None, "no etcd endpoint was given"),
        (
            &["ftp://a"],
            None,
            "etcd endpoint \"ftp://a\": the scheme must be http or https",
        ),
        (
            &["https://a:1"],
            None,
            "etcd endpoint \"https://a:1\": https needs a CA certificate to check it by",
        ),
        (
            &["https://a:1"],
            tls(b"none"),
            "TLS towards etcd: the CA file: it holds no certificate",
        ),
    ] {
        assert_eq!(open(endpoints, tls).as_deref(), Some(expected));
    }
    assert!(matches!(
        Etcd::open(Options::new(vec!["http://a b".to_owned()])).err(),
        Some(OpenError::Endpoint { .. })
    ));
}
