//! Keeps a joined node's certificates fresh: asks for new ones when their time has come, and exchanges those of the clients
//! that are in use. The kubelet's server looks at its files itself.

use std::sync::{Arc, PoisonError, RwLock};
use std::time::Duration;

use keelson_machinery::clock::Clock;
use keelson_runtime::client;
use kube::Client;
use kube::client::Body;
use tokio_util::sync::CancellationToken;

use super::join::{self, Identity, Options};
use crate::cluster::layout::Layout;

/// How often the clock is looked at. Not one long sleep: a machine may have been suspended, or its clock set.
const CHECK: Duration = Duration::from_secs(60);
/// How long a renewal that failed rests. The last fifth of a year has room for thousands.
const RETRY: Duration = Duration::from_secs(600);

/// The certificates of one node, and the clients that use them.
pub struct Renewal {
    layout: Layout,
    options: Options,
    identity: Identity,
    clock: Clock,
    clients: Vec<(&'static str, Renewable)>,
}

impl Renewal {
    /// Begins with what the node joined with. Its token is not needed any more.
    pub fn new(layout: Layout, options: Options, identity: Identity, clock: Clock) -> Self {
        let options = Options {
            token: None,
            ..options
        };
        Renewal {
            layout,
            options,
            identity,
            clock,
            clients: Vec::new(),
        }
    }

    /// A client that always has the current certificate.
    ///
    /// # Errors
    /// When the node's kubeconfig cannot be used.
    pub async fn client(&mut self, user_agent: &'static str) -> anyhow::Result<Client> {
        let first = client::from_kubeconfig(&self.identity.kubeconfig, user_agent).await?;
        let renewable = Renewable::new(first);
        let client = renewable.client();
        self.clients.push((user_agent, renewable));
        Ok(client)
    }

    /// Runs until `shutdown`.
    pub async fn run(&mut self, shutdown: &CancellationToken) {
        loop {
            let rest = self.step().await;
            tokio::select! {
                () = shutdown.cancelled() => return,
                () = tokio::time::sleep(rest) => {}
            }
        }
    }

    /// Renews what is due, and tells how long to rest. A failure is logged: the old certificates still last.
    pub async fn step(&mut self) -> Duration {
        if self.clock.now() < self.identity.renew_at {
            return CHECK;
        }
        match self.renew().await {
            Ok(()) if self.clock.now() < self.identity.renew_at => CHECK,
            Ok(()) => RETRY,
            Err(error) => {
                tracing::error!(
                    error = format!("{error:#}"),
                    "the node's certificates are not renewed"
                );
                RETRY
            }
        }
    }

    async fn renew(&mut self) -> anyhow::Result<()> {
        self.identity = join::join(&self.layout, &self.options, &self.clock).await?;
        for (user_agent, renewable) in &self.clients {
            let fresh = client::from_kubeconfig(&self.identity.kubeconfig, user_agent).await?;
            renewable.replace(fresh);
        }
        tracing::info!(next = %self.identity.renew_at, "the node's certificates are renewed");
        Ok(())
    }
}

/// A client whose credentials can be exchanged while it is in use: requests that begin after [`Self::replace`] go out with
/// the new ones, over new connections. Watches that run stay on theirs until the server ends them, as it regularly does.
#[derive(Clone)]
struct Renewable(Arc<RwLock<Client>>);

impl Renewable {
    /// Begins with the credentials of `client`.
    fn new(client: Client) -> Self {
        Renewable(Arc::new(RwLock::new(client)))
    }

    /// Goes on with those of `client`.
    fn replace(&self, client: Client) {
        *self.0.write().unwrap_or_else(PoisonError::into_inner) = client;
    }

    /// The client to hand out; all of them change together.
    fn client(&self) -> Client {
        let current = self.0.clone();
        let read = move || {
            let client = current.read().unwrap_or_else(PoisonError::into_inner);
            client.clone()
        };
        let namespace = read().default_namespace().to_owned();
        let service = tower::service_fn(move |request: http::Request<Body>| {
            let client = read();
            async move { client.send(request).await }
        });
        Client::new(service, namespace)
    }
}

#[cfg(test)]
mod tests {
    use std::net::{IpAddr, Ipv4Addr, TcpListener};
    use std::sync::Arc;
    use std::sync::atomic::{AtomicI64, Ordering};

    use jiff::{SignedDuration, Timestamp};
    use k8s_openapi::api::authentication::v1::SelfSubjectReview;
    use keelson_machinery::clock::Source;
    use kube::Api;
    use kube::api::PostParams;

    use super::*;
    use crate::cluster::control_plane;
    use crate::cluster::joining::TOKEN_FILE;
    use crate::components::apiserver::EtcdFlags;

    /// The machine's clock, some seconds behind.
    struct Behind(Arc<AtomicI64>, Clock);

    impl Source for Behind {
        fn now(&self) -> Timestamp {
            self.1.now() - SignedDuration::from_secs(self.0.load(Ordering::Relaxed))
        }

        fn fill_random(&self, buf: &mut [u8]) {
            self.1.fill_random(buf);
        }
    }

    /// A hash of the certificate by which the server knows the client.
    async fn credential(client: &Client) -> String {
        let reviews: Api<SelfSubjectReview> = Api::all(client.clone());
        let review = reviews
            .create(&PostParams::default(), &SelfSubjectReview::default())
            .await
            .unwrap();
        let user = review.status.unwrap().user_info.unwrap();
        assert_eq!(user.username.as_deref(), Some("system:node:n"));
        user.extra.unwrap()["authentication.kubernetes.io/credential-id"].join(",")
    }

    /// A control plane and a node that joined it, both believing that it is 300 days ago, so that TLS, which asks the
    /// machine's clock, finds their certificates good; then they are told the truth.
    #[tokio::test(flavor = "multi_thread", worker_threads = 2)]
    async fn certificates_are_renewed_in_use() {
        let dir = tempfile::tempdir().unwrap();
        let day = 24 * 3600;
        let behind = Arc::new(AtomicI64::new(300 * day));
        let clock = Clock::from_source(Behind(behind.clone(), Clock::system()));
        let localhost = IpAddr::from(Ipv4Addr::LOCALHOST);
        let port = TcpListener::bind((localhost, 0))
            .unwrap()
            .local_addr()
            .unwrap()
            .port();
        let server_dir = dir.path().join("server");
        std::fs::create_dir_all(&server_dir).unwrap();
        let shutdown = CancellationToken::new();
        let options = control_plane::Options {
            data_dir: server_dir.clone(),
            etcd: EtcdFlags::default(),
            bind_address: localhost,
            secure_port: port,
            advertise_address: "10.9.8.7".parse().unwrap(),
            names: Vec::new(),
            service_cidr: "10.96.0.0/16".parse().unwrap(),
            pod_cidr: "10.244.0.0/16".parse().unwrap(),
        };
        let mut server = control_plane::start(&options, clock.clone(), &shutdown)
            .await
            .unwrap();

        let layout = Layout::new(&dir.path().join("node")).unwrap();
        for directory in layout.directories() {
            std::fs::create_dir_all(directory).unwrap();
        }
        let token = std::fs::read_to_string(server_dir.join(TOKEN_FILE)).unwrap();
        let options = Options {
            server: format!("https://127.0.0.1:{port}"),
            name: "n".to_owned(),
            ip: "10.9.8.6".parse().unwrap(),
            token: Some(token.parse().unwrap()),
        };
        let identity = join::join(&layout, &options, &clock).await.unwrap();
        let serving = identity.serving.0.clone();
        let mut renewal = Renewal::new(layout, options, identity, clock);
        let client = renewal.client("kubelet").await.unwrap();
        let (before, served) = (credential(&client).await, std::fs::read(&serving).unwrap());
        assert!(before.starts_with("X509SHA256="), "{before}");

        for (days_behind, due) in [(300, false), (10, false), (0, true)] {
            behind.store(days_behind * day, Ordering::Relaxed);
            assert_eq!(renewal.step().await, CHECK, "{days_behind}");
            let renewed = (
                credential(&client).await != before,
                std::fs::read(&serving).unwrap() != served,
            );
            assert_eq!(renewed, (due, due), "{days_behind} days behind");
        }
        let after = credential(&client).await;
        assert_eq!(renewal.step().await, CHECK);
        assert_eq!(credential(&client).await, after, "renewed once");

        // Without a server: what there is stays.
        shutdown.cancel();
        server.wait(&shutdown).await.unwrap();
        behind.store(-300 * day, Ordering::Relaxed);
        assert_eq!(renewal.step().await, RETRY);
    }
}
