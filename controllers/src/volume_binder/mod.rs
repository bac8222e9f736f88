//! Brings claims and persistent volumes together (upstream `pkg/controller/volume/persistentvolume`).
//!
//! A binding is four writes: the volume's reference to the claim, its phase, the claim's volume, its phase. Each builds on the
//! version that was read, so that two claims never get one volume however old the informers are, and a binding that was cut short
//! is completed by the next look. Volumes are made and deleted by provisioners outside.

mod matching;
mod plan;

use std::sync::Arc;

use k8s_openapi::api::core::v1::{ObjectReference, PersistentVolume, PersistentVolumeClaim};
use k8s_openapi::api::storage::v1::StorageClass;
use keelson_runtime::ObjectKey;
use keelson_runtime::controller::{Action, Controller};
use keelson_runtime::events::{EventType, Recorder, reference};
use keelson_runtime::informer::Informer;
use keelson_runtime::workqueue::WorkQueue;
use kube::api::PostParams;
use kube::{Api, Client};

use crate::common::{annotations, name, namespace, uid};
use crate::error::{Error, is_conflict, is_not_found};
use crate::{Context, synced};
use matching::claim_ref;
use plan::{ClaimStep, Holder, Note, Reclaim, VolumeStep};

const ACCOUNT: &str = "persistent-volume-binder";
/// How long a claim that found nothing waits without a change (upstream `PVClaimBinderSyncPeriod`).
const LOOK_AGAIN: std::time::Duration = std::time::Duration::from_secs(15);
/// On claims: who is to make their volume. The older form is still read by provisioners.
const PROVISIONER: [&str; 2] = [
    "volume.kubernetes.io/storage-provisioner",
    "volume.beta.kubernetes.io/storage-provisioner",
];

/// What is looked at.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
enum Key {
    Claim(ObjectKey),
    Volume(String),
}

struct Binder {
    client: Client,
    recorder: Recorder,
    claims: Informer<PersistentVolumeClaim>,
    volumes: Informer<PersistentVolume>,
    classes: Informer<StorageClass>,
    queue: Arc<WorkQueue<Key>>,
}

/// Runs until the context's shutdown.
///
/// # Errors
/// None; what fails is tried again.
pub async fn run(context: Context) -> anyhow::Result<()> {
    let claims = context.informers.informer::<PersistentVolumeClaim>();
    let volumes = context.informers.informer::<PersistentVolume>();
    let classes = context.informers.informer::<StorageClass>();
    let queue: Arc<WorkQueue<Key>> = WorkQueue::new("persistentvolume", &context.metrics);
    claims.on_event({
        let queue = queue.clone();
        move |event| {
            let claim = event.object();
            queue.add(Key::Claim(ObjectKey::of(&claim.metadata)));
            let named = plan::volume_name(claim);
            if !named.is_empty() {
                queue.add(Key::Volume(named.to_owned()));
            }
        }
    });
    volumes.on_event({
        let (queue, claims) = (queue.clone(), claims.clone());
        move |event| {
            let volume = event.object();
            queue.add(Key::Volume(name(&volume.metadata).to_owned()));
            match claim_ref(volume) {
                Some(r) => queue.add(Key::Claim(ObjectKey::new(
                    r.namespace.clone().unwrap_or_default(),
                    r.name.clone().unwrap_or_default(),
                ))),
                // Any claim that waits may have it.
                None => waiting(&claims, &queue),
            }
        }
    });
    classes.on_event({
        let (queue, claims) = (queue.clone(), claims.clone());
        move |_| waiting(&claims, &queue)
    });
    synced!(claims, volumes, classes);
    let client = context.client(ACCOUNT);
    let binder = Arc::new(Binder {
        recorder: context.recorder(&client, "persistentvolume-controller"),
        client,
        claims,
        volumes,
        classes,
        queue: queue.clone(),
    });
    // One at a time, as upstream: claims do not compete for volumes.
    Controller::new("persistentvolume-binder-controller", queue)
        .run(context.shutdown.clone(), move |key| {
            let binder = binder.clone();
            async move {
                let result = match key {
                    Key::Claim(key) => binder.sync_claim(&key).await,
                    Key::Volume(name) => binder.sync_volume(&name).await,
                };
                match result {
                    Err(Error::Api(error)) if is_conflict(&error) => Ok(Action::Retry),
                    Err(Error::Api(error)) if is_not_found(&error) => Ok(Action::Done),
                    result => result,
                }
            }
        })
        .await;
    Ok(())
}

/// Asks for all claims that have no volume yet.
fn waiting(claims: &Informer<PersistentVolumeClaim>, queue: &WorkQueue<Key>) {
    for claim in claims.store().list() {
        if !annotations(&claim.metadata).contains_key(plan::BIND_COMPLETED) {
            queue.add(Key::Claim(ObjectKey::of(&claim.metadata)));
        }
    }
}

impl Binder {
    fn tell(&self, about: &ObjectReference, note: Option<Note>) {
        if let Some((warning, reason, text)) = note {
            let kind = if warning {
                EventType::Warning
            } else {
                EventType::Normal
            };
            self.recorder.event(about, kind, reason, text);
        }
    }

    fn claims_in(&self, space: &str) -> Api<PersistentVolumeClaim> {
        Api::namespaced(self.client.clone(), space)
    }

    fn all_volumes(&self) -> Api<PersistentVolume> {
        Api::all(self.client.clone())
    }

    async fn sync_claim(&self, key: &ObjectKey) -> Result<Action, Error> {
        let Some(claim) = self.claims.store().get(key) else {
            return Ok(Action::Done);
        };
        let (volumes, classes) = (self.volumes.store().list(), self.classes.store().list());
        let api = self.claims_in(&key.namespace);
        let post = PostParams::default();
        match plan::claim(&claim, &volumes, &classes).map_err(Error::Object)? {
            ClaimStep::Phase(phase, note) => {
                let pending = phase == "Pending";
                if let Some(new) = plan::claim_in(&claim, phase) {
                    api.replace_status(&key.name, &post, &new).await?;
                    self.tell(&reference(&*claim), note);
                } else if pending {
                    // That it still waits is told again and again; that it is lost, once.
                    self.tell(&reference(&*claim), note);
                }
                Ok(if pending {
                    Action::RequeueAfter(LOOK_AGAIN)
                } else {
                    Action::Done
                })
            }
            ClaimStep::Bind(volume) => self.bind(&claim, &volume).await,
            ClaimStep::AssignClass(class) => {
                let mut new = (*claim).clone();
                new.spec.get_or_insert_default().storage_class_name = Some(class);
                api.replace(&key.name, &post, &new).await?;
                Ok(Action::Done)
            }
            ClaimStep::Provision { provisioner, note } => {
                let known = annotations(&claim.metadata);
                if PROVISIONER
                    .iter()
                    .any(|k| known.get(*k) != Some(&provisioner))
                {
                    let mut new = (*claim).clone();
                    let notes = new.metadata.annotations.get_or_insert_default();
                    for key in PROVISIONER {
                        notes.insert(key.to_owned(), provisioner.clone());
                    }
                    api.replace(&key.name, &post, &new).await?;
                    return Ok(Action::Done);
                }
                self.tell(&reference(&*claim), Some(note));
                if let Some(new) = plan::claim_in(&claim, "Pending") {
                    api.replace_status(&key.name, &post, &new).await?;
                }
                Ok(Action::RequeueAfter(LOOK_AGAIN))
            }
        }
    }

    /// Writes what of a binding is missing (upstream `bind`).
    async fn bind(
        &self,
        claim: &PersistentVolumeClaim,
        volume: &PersistentVolume,
    ) -> Result<Action, Error> {
        let post = PostParams::default();
        let volumes = self.all_volumes();
        let mut volume = volume.clone();
        if let Some(new) = plan::promised_to(&volume, claim) {
            volume = volumes.replace(name(&volume.metadata), &post, &new).await?;
        }
        self.set_phase(&volume, "Bound", None).await?;
        let claims = self.claims_in(namespace(&claim.metadata));
        let mut claim = claim.clone();
        if let Some(new) = plan::claim_with(&claim, &volume) {
            claim = claims.replace(name(&claim.metadata), &post, &new).await?;
        }
        if let Some(new) = plan::claim_bound(&claim, &volume) {
            claims
                .replace_status(name(&claim.metadata), &post, &new)
                .await?;
        }
        Ok(Action::Done)
    }

    /// Writes a volume's phase, if it is another one.
    async fn set_phase(
        &self,
        volume: &PersistentVolume,
        phase: &str,
        message: Option<String>,
    ) -> Result<bool, Error> {
        let old = volume.status.as_ref().and_then(|s| s.phase.as_deref());
        if old == Some(phase) {
            return Ok(false);
        }
        let mut new = volume.clone();
        let status = new.status.get_or_insert_default();
        status.phase = Some(phase.to_owned());
        status.message = message;
        self.all_volumes()
            .replace_status(name(&volume.metadata), &PostParams::default(), &new)
            .await?;
        Ok(true)
    }

    async fn sync_volume(&self, own: &str) -> Result<Action, Error> {
        let Some(volume) = self.volumes.store().get_parts("", own) else {
            return Ok(Action::Done);
        };
        let claim = match claim_ref(&volume) {
            Some(r) if r.uid.as_deref().is_some_and(|u| !u.is_empty()) => {
                self.holder(&volume, r).await?
            }
            _ => None,
        };
        let holder = claim.as_deref().map_or(Holder::Gone, Holder::Here);
        match plan::volume(&volume, holder) {
            VolumeStep::Phase(phase) => {
                self.set_phase(&volume, phase, None).await?;
            }
            VolumeStep::LookAtClaim => {
                if let Some(claim) = &claim {
                    self.queue.add(Key::Claim(ObjectKey::of(&claim.metadata)));
                }
            }
            VolumeStep::Mismatch => {
                if let Some(claim) = &claim {
                    let of_claim = name(&claim.metadata);
                    let text = format!(
                        "Cannot bind PersistentVolume to requested PersistentVolumeClaim {of_claim:?} due to incompatible volumeMode."
                    );
                    self.tell(&reference(&*volume), Some((true, "VolumeMismatch", text)));
                    let text = format!(
                        "Cannot bind PersistentVolume {own:?} to requested PersistentVolumeClaim due to incompatible volumeMode."
                    );
                    self.tell(&reference(&**claim), Some((true, "VolumeMismatch", text)));
                }
            }
            VolumeStep::Unbind => {
                let new = plan::unbound(&volume);
                self.all_volumes()
                    .replace(own, &PostParams::default(), &new)
                    .await?;
            }
            VolumeStep::Release(reclaim) => {
                // A failure stays visible.
                let failed =
                    volume.status.as_ref().and_then(|s| s.phase.as_deref()) == Some("Failed");
                match reclaim {
                    Reclaim::Keep if failed => {}
                    Reclaim::Keep => {
                        self.set_phase(&volume, "Released", None).await?;
                    }
                    Reclaim::Fail(note) => {
                        let message = Some(note.2.clone());
                        if self.set_phase(&volume, "Failed", message).await? {
                            self.tell(&reference(&*volume), Some(note));
                        }
                    }
                }
            }
        }
        Ok(Action::Done)
    }

    /// The claim that a volume means; `None` only if the server says that there is none, since what follows may cost data.
    async fn holder(
        &self,
        volume: &PersistentVolume,
        r: &ObjectReference,
    ) -> Result<Option<Arc<PersistentVolumeClaim>>, Error> {
        let (space, own) = (
            r.namespace.as_deref().unwrap_or_default(),
            r.name.as_deref().unwrap_or_default(),
        );
        let same = |c: &PersistentVolumeClaim| r.uid.as_deref() == Some(uid(&c.metadata));
        if let Some(known) = self.claims.store().get_parts(space, own)
            && same(&known)
        {
            return Ok(Some(known));
        }
        let settled = volume.status.as_ref().and_then(|s| s.phase.as_deref());
        if matches!(settled, Some("Released" | "Failed")) {
            return Ok(None);
        }
        let live = self.claims_in(space).get_opt(own).await?;
        Ok(live.filter(same).map(Arc::new))
    }
}

#[cfg(test)]
mod tests;
