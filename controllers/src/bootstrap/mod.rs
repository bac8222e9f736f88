//! Bootstrap tokens (upstream `pkg/controller/bootstrap`), Secrets of type `bootstrap.kubernetes.io/token` in kube-system:
//! [`signer`] signs `kube-public/cluster-info` with each, so that its holder can tell the true one; [`cleaner`] deletes
//! those that have ended. Both are off unless asked for, as upstream.

pub mod cleaner;
pub mod signer;

use jiff::Timestamp;
use k8s_openapi::api::core::v1::Secret;
use keelson_runtime::informer::{Informer, InformerConfig};
use kube::Api;

use crate::Context;

const NAMESPACE: &str = "kube-system";
const TYPE: &str = "bootstrap.kubernetes.io/token";
const NAME_PREFIX: &str = "bootstrap-token-";

/// The tokens alone: no other Secret of the cluster is held in memory.
fn tokens(context: &Context, identity: &str) -> Informer<Secret> {
    Informer::start(
        Api::namespaced(context.client(identity), NAMESPACE),
        InformerConfig {
            fields: format!("type={TYPE}"),
            ..Default::default()
        },
        context.clock.clone(),
        context.shutdown.child_token(),
    )
}

fn text<'a>(secret: &'a Secret, key: &str) -> &'a str {
    secret
        .data
        .as_ref()
        .and_then(|data| data.get(key))
        .and_then(|value| std::str::from_utf8(&value.0).ok())
        .unwrap_or_default()
}

/// When the token ends (`Err` for a text that is no time, which counts as ended, as upstream has it).
fn end(secret: &Secret) -> Result<Option<Timestamp>, jiff::Error> {
    match text(secret, "expiration") {
        "" => Ok(None),
        time => time.parse().map(Some),
    }
}

/// Id and secret of a token that may sign at `now`.
fn signs(secret: &Secret, now: Timestamp) -> Option<(&str, &str)> {
    let (id, key) = (text(secret, "token-id"), text(secret, "token-secret"));
    let name = secret.metadata.name.as_deref()?;
    let lasts = match end(secret) {
        Ok(None) => true,
        Ok(Some(end)) => end > now,
        Err(_) => false,
    };
    (secret.type_.as_deref() == Some(TYPE)
        && name.strip_prefix(NAME_PREFIX) == Some(id)
        && !id.is_empty()
        && !key.is_empty()
        && lasts
        && text(secret, "usage-bootstrap-signing") == "true")
        .then_some((id, key))
}
