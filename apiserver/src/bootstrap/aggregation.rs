//! Keeping aggregated ClusterRoles up to date as the roles change that they gather
//! (`pkg/controller/clusterroleaggregation`). Upstream runs this in the controller manager; here it stands beside the
//! reconciliation that does the same at start, until it moves there.

use std::collections::HashMap;
use std::sync::Arc;
use std::time::Duration;

use futures::StreamExt;
use keelson_machinery::meta;
use keelson_machinery::value::Value;
use tokio_util::sync::CancellationToken;

use super::{ObjectWriter, rbac};
use crate::authz::rbac::GROUP;
use crate::objects::Objects;
use crate::reader::{Change, GroupResource};

/// Changes that come close together are answered together.
const QUIET: Duration = Duration::from_millis(20);
/// How long to wait after a write that failed.
const RETRY: Duration = Duration::from_secs(1);

/// Follows ClusterRoles until `shutdown`. Several servers may do so at once: they want the same, and the loser of a
/// conflict sees the winner's write.
pub async fn follow_aggregation(
    objects: Objects,
    writer: Arc<dyn ObjectWriter>,
    shutdown: CancellationToken,
) {
    let mut changes = objects
        .0
        .changes(&GroupResource::new(GROUP, "clusterroles"));
    let mut roles: HashMap<String, Arc<Value>> = HashMap::new();
    let (mut synced, mut dirty) = (false, false);
    loop {
        let wait = if synced && dirty {
            QUIET
        } else {
            Duration::MAX
        };
        let next = shutdown.run_until_cancelled(tokio::time::timeout(wait, changes.next()));
        match next.await {
            None | Some(Ok(None)) => return,
            Some(Ok(Some(Change::Synced))) => synced = true,
            Some(Ok(Some(Change::Applied(role)))) => {
                dirty = true;
                roles.insert(meta::name(&role).to_owned(), role);
            }
            Some(Ok(Some(Change::Deleted(role)))) => {
                dirty = true;
                roles.remove(meta::name(&role));
            }
            Some(Err(_quiet)) => {
                dirty = false;
                for write in rbac::gather(&roles) {
                    match writer.write(write).await {
                        Ok(()) => {}
                        // Somebody was faster; their change is on its way here and will be answered.
                        Err(error) if error.is_conflict() || error.is_not_found() => dirty = true,
                        Err(error) => {
                            tracing::warn!(%error, "an aggregated role could not be written");
                            dirty = true;
                        }
                    }
                }
                if dirty
                    && shutdown
                        .run_until_cancelled(tokio::time::sleep(RETRY))
                        .await
                        .is_none()
                {
                    return;
                }
            }
        }
    }
}
