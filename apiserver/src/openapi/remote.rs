//! The documents with what other API servers add: the index of v3 names their documents too (which they serve
//! themselves), the one document of v2 holds all.

use std::collections::BTreeMap;

use keelson_machinery::catalog::Catalog;
use sha2::{Digest, Sha512};

use super::{Document, Form, OpenApi};
use crate::aggregation::Remotes;
use crate::aggregation::remote::merge_v2;

/// Names a content by what it is made of.
fn hash(parts: impl IntoIterator<Item = String>) -> String {
    let mut hasher = Sha512::new();
    for part in parts {
        hasher.update(part);
        hasher.update(" ");
    }
    let digest = hasher.finalize();
    digest.iter().map(|byte| format!("{byte:02X}")).collect()
}

/// `/openapi/v3`.
pub(super) fn index(
    openapi: &OpenApi,
    catalog: &Catalog,
    remotes: &Remotes,
) -> std::io::Result<Document> {
    let own = openapi.index_document(catalog)?;
    let more: BTreeMap<String, &String> = remotes
        .iter()
        .filter_map(|((group, version), remote)| {
            Some((
                format!("apis/{group}/{version}"),
                remote.openapi_v3.as_ref()?,
            ))
        })
        .collect();
    if more.is_empty() {
        return Ok(own);
    }
    let parts = more.iter().map(|(path, hash)| format!("{path} {hash}"));
    let name = hash(std::iter::once(own.hash.clone()).chain(parts));
    if let Some(kept) = openapi.kept_as("v3 of all", &name) {
        return Ok(kept);
    }
    let mut document = own.value()?;
    for (path, hash) in more {
        document["paths"][&path]["serverRelativeURL"] =
            format!("/openapi/v3/{path}?hash={hash}").into();
    }
    openapi.kept("v3 of all", name, Form::Json, || document)
}

/// `/openapi/v2`.
pub(super) fn v2(
    openapi: &OpenApi,
    catalog: &Catalog,
    form: Form,
    remotes: &Remotes,
) -> std::io::Result<Document> {
    let more: BTreeMap<_, _> = remotes
        .iter()
        .filter_map(|(key, remote)| Some((key, remote.openapi_v2.as_ref()?)))
        .collect();
    if more.is_empty() {
        return openapi.v2(catalog, form);
    }
    let own = openapi.v2(catalog, Form::Json)?;
    let kept_as = match form {
        Form::Json => "v2 of all",
        Form::Protobuf => "v2 of all protobuf",
    };
    let parts = more.values().map(|(_, name)| name.clone());
    let name = hash(std::iter::once(own.hash.clone()).chain(parts));
    if let Some(kept) = openapi.kept_as(kept_as, &name) {
        return Ok(kept);
    }
    let mut document = own.value()?;
    for (part, _) in more.values() {
        merge_v2(&mut document, part);
    }
    openapi.kept(kept_as, name, form, || document)
}
