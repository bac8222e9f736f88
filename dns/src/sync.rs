//! Keeps the zone equal to what the API server says: one list and watch per kind.

use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::Duration;

use futures::{StreamExt, pin_mut};
use k8s_openapi::api::core::v1::{Namespace, Service};
use k8s_openapi::api::discovery::v1::EndpointSlice;
use kube::runtime::WatchStreamExt;
use kube::runtime::watcher::{self, Event};
use kube::{Api, Client, Resource};
use serde::de::DeserializeOwned;
use tokio_util::sync::CancellationToken;
use tracing::warn;

use crate::server::Resolver;
use crate::zone::Zone;

/// A kind of object that names are made from.
pub trait Source:
    Resource<DynamicType = ()> + Clone + DeserializeOwned + std::fmt::Debug + Send + 'static
{
    /// Takes in the present state of an object.
    fn apply(&self, zone: &mut Zone);
    /// Forgets an object.
    fn delete(&self, zone: &mut Zone);
    /// Forgets all objects of this kind.
    fn clear(zone: &mut Zone);
}

impl Source for Service {
    fn apply(&self, zone: &mut Zone) {
        zone.apply_service(self);
    }
    fn delete(&self, zone: &mut Zone) {
        if let (Some(namespace), Some(name)) = (&self.metadata.namespace, &self.metadata.name) {
            zone.delete_service(namespace, name);
        }
    }
    fn clear(zone: &mut Zone) {
        zone.clear_services();
    }
}

impl Source for EndpointSlice {
    fn apply(&self, zone: &mut Zone) {
        zone.apply_slice(self);
    }
    fn delete(&self, zone: &mut Zone) {
        zone.delete_slice_object(self);
    }
    fn clear(zone: &mut Zone) {
        zone.clear_slices();
    }
}

impl Source for Namespace {
    fn apply(&self, zone: &mut Zone) {
        zone.apply_namespace(self);
    }
    fn delete(&self, zone: &mut Zone) {
        if let Some(name) = &self.metadata.name {
            zone.delete_namespace(name);
        }
    }
    fn clear(zone: &mut Zone) {
        zone.clear_namespaces();
    }
}

/// Number of kinds that must have been listed before the zone is complete.
const KINDS: usize = 3;

/// Follows all kinds until told to stop.
pub async fn run(resolver: Arc<Resolver>, client: Client, shutdown: CancellationToken) {
    let listed = Arc::new(AtomicUsize::new(0));
    tokio::join!(
        follow::<Service>(&resolver, &client, &listed, &shutdown),
        follow::<EndpointSlice>(&resolver, &client, &listed, &shutdown),
        follow::<Namespace>(&resolver, &client, &listed, &shutdown),
    );
}

async fn follow<K: Source>(
    resolver: &Resolver,
    client: &Client,
    listed: &AtomicUsize,
    shutdown: &CancellationToken,
) {
    let events = watcher::watcher(Api::<K>::all(client.clone()), watcher::Config::default())
        .default_backoff();
    pin_mut!(events);
    let mut first = true;
    // A list replaces what is known only when it is complete, so that names never vanish while it is read.
    let mut listing: Vec<K> = Vec::new();
    loop {
        let event = tokio::select! {
            () = shutdown.cancelled() => return,
            event = events.next() => event,
        };
        match event {
            Some(Ok(Event::Init)) => listing.clear(),
            Some(Ok(Event::InitApply(object))) => listing.push(object),
            Some(Ok(Event::InitDone)) => {
                let mut zone = resolver.zone.write();
                K::clear(&mut zone);
                listing.drain(..).for_each(|object| object.apply(&mut zone));
                drop(zone);
                if std::mem::take(&mut first) && listed.fetch_add(1, Ordering::AcqRel) + 1 == KINDS
                {
                    resolver.synced.store(true, Ordering::Release);
                }
            }
            Some(Ok(Event::Apply(object))) => object.apply(&mut resolver.zone.write()),
            Some(Ok(Event::Delete(object))) => object.delete(&mut resolver.zone.write()),
            Some(Err(error)) => {
                warn!(kind = %K::kind(&()), %error, "watching");
                tokio::time::sleep(Duration::from_millis(10)).await;
            }
            None => return,
        }
    }
}
