//! What a new cluster is born with, and what a new release adds to an old one: system namespaces, the default roles and
//! bindings, priority classes, the levels of priority and fairness, the `kubernetes` Service's ground. Every server start
//! compares what is there with what should be and writes the difference; nothing that an administrator added is taken
//! away.
//!
//! [`plan`] is a pure function from what is there to the writes; [`run`] reads, plans and writes, in two rounds
//! (namespaces must stand before what lives in them).

mod aggregation;
pub mod join;
pub mod policy;
mod rbac;
mod system;
#[cfg(test)]
mod tests;

use std::sync::Arc;
use std::time::Duration;

use async_trait::async_trait;
use futures::{StreamExt, TryStreamExt};
use keelson_machinery::meta;
use keelson_machinery::status::ApiError;
use keelson_machinery::value::Value;

use crate::flow_control;
use crate::objects::Objects;
use crate::reader::GroupResource;

pub use aggregation::follow_aggregation;
pub use rbac::aggregate;
pub use system::{ClusterFacts, authentication_config_map};

/// How many writes are under way at once. The store commits those that wait together in one go.
const CONCURRENT_WRITES: usize = 32;

/// One write that is to happen.
#[derive(Clone, Debug, PartialEq)]
pub enum Write {
    /// A new object.
    Create(GroupResource, Value),
    /// The object in a new state; carries the resourceVersion that it was read with.
    Update(GroupResource, Value),
}

/// Does the writes, as a member of `system:masters`, by the same path as any request.
#[async_trait]
pub trait ObjectWriter: Send + Sync {
    /// Creates or updates. The answer to an object that is there already, or changed meanwhile, is the usual 409.
    async fn write(&self, write: Write) -> Result<(), ApiError>;
}

/// The object with `metadata` like `wanted`'s among `existing`.
pub(crate) fn find<'a>(existing: &'a [Arc<Value>], wanted: &Value) -> Option<&'a Arc<Value>> {
    existing.iter().find(|one| {
        meta::name(one) == meta::name(wanted) && meta::namespace(one) == meta::namespace(wanted)
    })
}

/// Makes everything so. Another server may be doing the same: what it was faster with is read and compared again, a
/// bounded number of times.
pub async fn run(
    objects: &Objects,
    writer: &dyn ObjectWriter,
    facts: &ClusterFacts,
) -> Result<(), ApiError> {
    const ATTEMPTS: u64 = 5;
    let mut attempt = 1;
    loop {
        let result = async {
            write_all(
                writer,
                system::namespaces(&objects.list("", "namespaces", None).await?),
            )
            .await?;
            let mut writes = system::plan(objects, facts).await?;
            writes.extend(rbac::plan(objects).await?);
            writes.extend(flow_control::defaults::plan(
                &objects
                    .list(flow_control::GROUP, flow_control::SCHEMAS, None)
                    .await?,
                &objects
                    .list(flow_control::GROUP, flow_control::LEVELS, None)
                    .await?,
            ));
            write_all(writer, writes).await
        };
        match result.await {
            Err(error)
                if (error.is_conflict() || error.is_already_exists() || error.is_not_found())
                    && attempt < ATTEMPTS =>
            {
                // The cache needs a moment to see what another server wrote.
                tokio::time::sleep(Duration::from_millis(50 * attempt)).await;
                attempt += 1
            }
            result => return result,
        }
    }
}

async fn write_all(writer: &dyn ObjectWriter, writes: Vec<Write>) -> Result<(), ApiError> {
    futures::stream::iter(writes)
        .map(|write| writer.write(write))
        .buffer_unordered(CONCURRENT_WRITES)
        .try_collect()
        .await
}
