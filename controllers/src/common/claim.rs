//! Which objects belong to an owner: adoption of matching orphans, release of what matches no longer (upstream
//! `ControllerRefManager`).

use std::fmt::Debug;
use std::sync::Arc;

use k8s_openapi::NamespaceResourceScope;
use kube::api::{Patch, PatchParams};
use kube::{Api, Client, Resource};
use serde::de::DeserializeOwned;
use serde_json::json;

use super::{Labels, controller_of, controller_reference, labels, name, namespace, uid};
use crate::error::{Error, is_code, is_not_found};

/// The outcome of [`claim`].
#[derive(Debug)]
pub struct Claim<T> {
    /// Owned and matching.
    pub owned: Vec<Arc<T>>,
    /// Matching, owned by nobody: to be taken.
    pub adopt: Vec<Arc<T>>,
    /// Owned, no longer matching: to be let go.
    pub release: Vec<Arc<T>>,
}

/// Sorts `objects` for `owner`. An owner that is being deleted neither adopts nor releases.
pub fn claim<O: Resource, T: Resource>(
    owner: &O,
    matches: impl Fn(&Labels) -> bool,
    objects: impl IntoIterator<Item = Arc<T>>,
) -> Claim<T> {
    let mut claim = Claim {
        owned: Vec::new(),
        adopt: Vec::new(),
        release: Vec::new(),
    };
    let leaving = owner.meta().deletion_timestamp.is_some();
    for object in objects {
        let fits = matches(labels(object.meta()));
        match controller_of(object.meta()) {
            Some(reference) if reference.uid != uid(owner.meta()) => {}
            Some(_) if fits => claim.owned.push(object),
            Some(_) if !leaving => claim.release.push(object),
            Some(_) => {}
            None if fits && !leaving && object.meta().deletion_timestamp.is_none() => {
                claim.adopt.push(object)
            }
            None => {}
        }
    }
    claim
}

/// Carries a claim out and gives back all that is owned then.
///
/// # Errors
/// Of the API; and when the owner, read live before the first adoption, is another or on its way out.
pub async fn settle<O, T>(client: &Client, owner: &O, claim: Claim<T>) -> Result<Vec<Arc<T>>, Error>
where
    O: Resource<DynamicType = (), Scope = NamespaceResourceScope>
        + Clone
        + DeserializeOwned
        + Debug,
    T: Resource<DynamicType = (), Scope = NamespaceResourceScope>
        + Clone
        + DeserializeOwned
        + Debug,
{
    let mut owned = claim.owned;
    let space = namespace(owner.meta());
    let api: Api<T> = Api::namespaced(client.clone(), space);
    if !claim.adopt.is_empty() {
        let owners: Api<O> = Api::namespaced(client.clone(), space);
        let live = owners.get(name(owner.meta())).await?;
        if uid(live.meta()) != uid(owner.meta()) {
            return Err(Error::Object(format!(
                "original {} {space}/{} is gone: got uid {}, wanted {}",
                O::kind(&()),
                name(owner.meta()),
                uid(live.meta()),
                uid(owner.meta())
            )));
        }
        if live.meta().deletion_timestamp.is_some() {
            return Err(Error::Object(format!(
                "{space}/{} has just been deleted",
                name(owner.meta())
            )));
        }
    }
    for object in claim.adopt {
        let patch = json!({ "metadata": {
            "uid": uid(object.meta()),
            "ownerReferences": [controller_reference(owner)],
        }});
        match api
            .patch(
                name(object.meta()),
                &PatchParams::default(),
                &Patch::Strategic(&patch),
            )
            .await
        {
            Ok(adopted) => owned.push(Arc::new(adopted)),
            Err(error) if is_not_found(&error) => {}
            Err(error) => return Err(error.into()),
        }
    }
    for object in claim.release {
        let patch = json!({ "metadata": {
            "uid": uid(object.meta()),
            "ownerReferences": [{ "$patch": "delete", "uid": uid(owner.meta()) }],
        }});
        match api
            .patch(
                name(object.meta()),
                &PatchParams::default(),
                &Patch::Strategic(&patch),
            )
            .await
        {
            Ok(_) => {}
            // Gone, or (Invalid) another object by now.
            Err(error) if is_not_found(&error) || is_code(&error, 422) => {}
            Err(error) => return Err(error.into()),
        }
    }
    Ok(owned)
}
