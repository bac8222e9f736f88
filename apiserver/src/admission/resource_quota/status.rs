//! The status of stored quotas, written by compare-and-swap.

use std::sync::Arc;

use async_trait::async_trait;
use keelson_machinery::meta::{self, GroupResource};
use keelson_machinery::status::ApiError;
use keelson_machinery::value;

use super::QuotaStatus;
use crate::registry::Registry;
use crate::registry::store::{self, Storage};
use crate::registry::strategy::Context;
use crate::request::UserInfo;

/// Quotas in a server's storage.
pub struct StoredQuotas {
    /// Where they are.
    pub storage: Storage,
    /// How they are stored.
    pub registry: Arc<Registry>,
}

#[async_trait]
impl QuotaStatus for StoredQuotas {
    async fn set_used(
        &self,
        namespace: &str,
        name: &str,
        resource_version: &str,
        used: Vec<(String, String)>,
    ) -> Result<(), ApiError> {
        let at = GroupResource::new("", "resourcequotas");
        let table = self.registry.table();
        let served = table.storage(&at).ok_or_else(ApiError::no_such_resource)?;
        let user = UserInfo {
            name: crate::loopback::USER.to_owned(),
            ..UserInfo::default()
        };
        let context = Context {
            served,
            user: &user,
            clock: &self.storage.clock,
            subresource: "status",
            dry_run: false,
        };
        store::edit(&self.storage, &context, &at, namespace, name, |quota| {
            if meta::resource_version(quota) != resource_version {
                return Err(ApiError::optimistic_lock(&at, name));
            }
            let mut next = quota.clone();
            for (resource, amount) in &used {
                value::set(&mut next, &["status", "used", resource], amount.as_str());
            }
            Ok(next)
        })
        .await
        .map(drop)
    }
}
