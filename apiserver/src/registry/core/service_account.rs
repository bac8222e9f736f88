//! Service accounts: of the secrets only the names are kept (upstream `pkg/registry/core/serviceaccount`).

use keelson_machinery::value::{self, Object, Value};

use crate::registry::defaults::for_items;
use crate::registry::strategy::{Context, Strategy};

/// Strategy of service accounts.
pub struct ServiceAccount;

impl Strategy for ServiceAccount {
    fn prepare_for_create(&self, _: &Context<'_>, object: &mut Value) {
        keep_names_of_secrets(object);
    }

    fn prepare_for_update(&self, _: &Context<'_>, object: &mut Value, _: &Value) {
        keep_names_of_secrets(object);
    }
}

fn keep_names_of_secrets(object: &mut Value) {
    for_items(object, &["secrets"], |secret| {
        let name = value::get(secret, &["name"]).cloned();
        let name = name.map(|name| ("name".to_string(), name));
        *secret = Value::Object(name.into_iter().collect::<Object>());
    });
}
