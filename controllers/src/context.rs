//! What every controller is started with.

use std::sync::Arc;

use keelson_machinery::clock::Clock;
use keelson_runtime::events::{Form, Recorder};
use keelson_runtime::informer::InformerFactory;
use keelson_runtime::metrics::Metrics;
use kube::Client;
use tokio_util::sync::CancellationToken;

use crate::Config;

type ClientOf = dyn Fn(&str) -> Client + Send + Sync;

/// The clients of the controllers: one to read with, shared, and one per identity to write with.
#[derive(Clone)]
pub struct Clients {
    shared: Client,
    by_name: Arc<ClientOf>,
}

impl Clients {
    /// `shared` reads for all (upstream user `system:kube-controller-manager`); `by_name` makes the client of service
    /// account `kube-system:<name>` (upstream `--use-service-account-credentials`).
    pub fn new(shared: Client, by_name: impl Fn(&str) -> Client + Send + Sync + 'static) -> Self {
        Clients {
            shared,
            by_name: Arc::new(by_name),
        }
    }

    /// Everything with one client.
    pub fn single(client: Client) -> Self {
        let all = client.clone();
        Clients::new(client, move |_| all.clone())
    }
}

/// Shared by all controllers; clones are cheap.
#[derive(Clone)]
pub struct Context {
    /// The settings.
    pub config: Arc<Config>,
    /// The shared informers. Ask for all that a controller reads before waiting for any.
    pub informers: InformerFactory,
    /// Time and randomness.
    pub clock: Clock,
    /// Where queues are measured.
    pub metrics: Metrics,
    /// Cancelled when the controller is to end.
    pub shutdown: CancellationToken,
    clients: Clients,
}

impl Context {
    /// A context whose informers run until `shutdown`.
    pub fn new(config: Config, clients: Clients, shutdown: CancellationToken) -> Self {
        Context {
            informers: InformerFactory::new(
                clients.shared.clone(),
                config.clock.clone(),
                shutdown.clone(),
            ),
            clock: config.clock.clone(),
            metrics: config.metrics.0.clone(),
            config: Arc::new(config),
            shutdown,
            clients,
        }
    }

    /// The context of one start of one controller: its token ends with the controller, so that a second start leaves nothing
    /// of the first behind.
    pub fn for_start(&self) -> Self {
        Context {
            shutdown: self.shutdown.child_token(),
            ..self.clone()
        }
    }

    /// The client of service account `kube-system:<name>`, upstream's identity of the controller.
    pub fn client(&self, name: &str) -> Client {
        (self.clients.by_name)(name)
    }

    /// The client that reads for all: for a controller whose informer is not the shared one.
    pub fn reader(&self) -> Client {
        self.clients.shared.clone()
    }

    /// A recorder of `v1` Events that names `component` as their source and writes with `client`.
    pub fn recorder(&self, client: &Client, component: &str) -> Recorder {
        Recorder::new(
            client.clone(),
            self.clock.clone(),
            Form::Core,
            component,
            "",
            self.shutdown.clone(),
        )
    }
}

/// Waits for the first lists of the named informers; leaves the surrounding controller with `Ok(())` when it is shut down
/// before that.
#[macro_export]
macro_rules! synced {
    ($($informer:expr),+ $(,)?) => {
        $(if !$informer.wait_synced().await {
            return Ok(());
        })+
    };
}
