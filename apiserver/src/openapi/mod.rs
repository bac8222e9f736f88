//! OpenAPI documents, built from the type table and the catalog when first asked for: `/openapi/v3` with one document
//! per group version, and `/openapi/v2` with all in one. Nothing happens at start; what was built is kept compressed.

mod paths;
mod remote;
mod schemas;
pub mod serve;
mod v2;
mod v2_proto;

use std::collections::HashMap;
use std::io::{Read, Write};
use std::sync::Arc;

use bytes::Bytes;
use flate2::Compression;
use flate2::read::GzDecoder;
use flate2::write::GzEncoder;
use keelson_machinery::catalog::{Catalog, Resource};
use keelson_machinery::value::{Object, Value};
use parking_lot::Mutex;
use serde_json::json;
use sha2::{Digest, Sha512};

/// How a document is written.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Form {
    /// JSON, for both versions.
    Json,
    /// The messages of `gnostic-models`, for version 2.
    Protobuf,
}

impl Form {
    /// What the `Content-Type` header says.
    pub fn media_type(self) -> &'static str {
        match self {
            Form::Json => "application/json",
            Form::Protobuf => "application/com.github.proto-openapi.spec.v2.v1.0+protobuf",
        }
    }

    /// The media types by which clients ask for it.
    fn asked_as(self) -> &'static [&'static str] {
        match self {
            Form::Json => &["application/json"],
            Form::Protobuf => &[
                "application/com.github.proto-openapi.spec.v2@v1.0+protobuf",
                "application/com.github.proto-openapi.spec.v2.v1.0+protobuf",
            ],
        }
    }
}

/// An answer to a request for a document.
#[derive(Clone, Debug)]
pub struct Document {
    /// The content, gzip-compressed.
    gzip: Bytes,
    /// The media type of the content.
    pub media_type: &'static str,
    /// What names this content: the `hash` of the index, and the value of the `ETag` header once quoted.
    pub hash: String,
}

impl Document {
    fn new(value: &Value, hash: String, form: Form) -> std::io::Result<Self> {
        let mut encoder = GzEncoder::new(Vec::new(), Compression::fast());
        match form {
            Form::Json => serde_json::to_writer(&mut encoder, value)?,
            Form::Protobuf => encoder.write_all(&v2_proto::encode(value))?,
        }
        encoder.flush()?;
        Ok(Document {
            gzip: encoder.finish()?.into(),
            media_type: form.media_type(),
            hash,
        })
    }

    /// The content of a JSON document.
    fn value(&self) -> std::io::Result<Value> {
        Ok(serde_json::from_reader(GzDecoder::new(&self.gzip[..]))?)
    }

    /// The content compressed, for clients that accept `gzip`.
    pub fn gzip(&self) -> Bytes {
        self.gzip.clone()
    }

    /// The content as it is.
    pub fn identity(&self) -> std::io::Result<Bytes> {
        let mut out = Vec::new();
        GzDecoder::new(&self.gzip[..]).read_to_end(&mut out)?;
        Ok(out.into())
    }

    /// The value of the `ETag` header.
    pub fn etag(&self) -> String {
        format!("\"{}\"", self.hash)
    }
}

/// Builds and keeps the documents.
#[derive(Debug)]
pub struct OpenApi {
    /// The server's version as `/version` tells it, for `info.version`.
    version: String,
    kept: Mutex<HashMap<String, Document>>,
}

/// What a path below `/openapi/v3/` stands for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Subject<'a> {
    /// `version`: the server's version.
    Version,
    /// `api`: the core group's versions.
    Core,
    /// `apis`: the list of groups.
    Groups,
    /// `apis/GROUP`.
    Group(&'a str),
    /// `api/v1`, `apis/GROUP/VERSION`.
    GroupVersion(&'a str, &'a str),
}

impl<'a> Subject<'a> {
    fn parse(path: &'a str) -> Option<Self> {
        let mut steps = path.split('/');
        let subject = match (steps.next()?, steps.next(), steps.next()) {
            ("version", None, _) => Subject::Version,
            ("api", None, _) => Subject::Core,
            ("apis", None, _) => Subject::Groups,
            ("api", Some(version), None) => Subject::GroupVersion("", version),
            ("apis", Some(group), None) => Subject::Group(group),
            ("apis", Some(group), Some(version)) => Subject::GroupVersion(group, version),
            _ => return None,
        };
        steps.next().is_none().then_some(subject)
    }

    fn path(&self) -> String {
        match self {
            Subject::Version => "version".to_owned(),
            Subject::Core => "api".to_owned(),
            Subject::Groups => "apis".to_owned(),
            Subject::Group(group) => format!("apis/{group}"),
            Subject::GroupVersion("", version) => format!("api/{version}"),
            Subject::GroupVersion(group, version) => format!("apis/{group}/{version}"),
        }
    }

    /// The rows that the document is made of; `None` when the catalog has nothing for it.
    fn rows(&self, catalog: &Catalog) -> Option<Vec<Arc<Resource>>> {
        let fits = |row: &Resource| match self {
            Subject::Version => false,
            Subject::Core => row.group.is_empty(),
            Subject::Groups => !row.group.is_empty(),
            Subject::Group(group) => !row.group.is_empty() && row.group == *group,
            Subject::GroupVersion(group, version) => row.group == *group && row.version == *version,
        };
        let rows: Vec<Arc<Resource>> = catalog.rows().iter().filter(|r| fits(r)).cloned().collect();
        (*self == Subject::Version || !rows.is_empty()).then_some(rows)
    }
}

impl OpenApi {
    /// A builder for a server that calls itself `version` (`v1.36.2`).
    pub fn new(version: impl Into<String>) -> Self {
        OpenApi {
            version: version.into(),
            kept: Mutex::default(),
        }
    }

    /// `/openapi/v3`: where each document is, named by its content. No document is built for it.
    pub fn index(&self, catalog: &Catalog) -> Value {
        let groups = catalog.groups();
        let mut subjects = vec![Subject::Version, Subject::Core, Subject::Groups];
        for group in &groups {
            if !group.name.is_empty() {
                subjects.push(Subject::Group(&group.name));
            }
            for version in &group.versions {
                subjects.push(Subject::GroupVersion(&group.name, version));
            }
        }
        let mut paths = Object::new();
        for subject in subjects {
            if let Some(rows) = subject.rows(catalog) {
                let path = subject.path();
                let url = format!("/openapi/v3/{path}?hash={}", self.hash(&path, &rows));
                paths.insert(path, json!({ "serverRelativeURL": url }));
            }
        }
        json!({ "paths": paths })
    }

    /// The index as a document.
    pub fn index_document(&self, catalog: &Catalog) -> std::io::Result<Document> {
        let hash = self.hash("v3", catalog.rows());
        self.kept("v3", hash, Form::Json, || self.index(catalog))
    }

    /// The document at `path` (what follows `/openapi/v3/`, without the query); `None` where there is none.
    pub fn document(&self, catalog: &Catalog, path: &str) -> Option<std::io::Result<Document>> {
        let path = path.trim_end_matches('/');
        let subject = Subject::parse(path)?;
        let rows = subject.rows(catalog)?;
        let hash = self.hash(path, &rows);
        Some(self.kept(path, hash, Form::Json, || self.build(subject, &rows)))
    }

    /// `/openapi/v2`: all group versions in one document of the older version. Both forms have one hash.
    pub fn v2(&self, catalog: &Catalog, form: Form) -> std::io::Result<Document> {
        let hash = self.hash("v2", catalog.rows());
        let name = match form {
            Form::Json => "v2",
            Form::Protobuf => "v2 protobuf",
        };
        self.kept(name, hash, form, || v2::document(catalog, &self.version))
    }

    /// What was built before for the same content.
    fn kept_as(&self, path: &str, hash: &str) -> Option<Document> {
        let kept = self.kept.lock();
        kept.get(path).filter(|kept| kept.hash == hash).cloned()
    }

    /// What was built before for the same content, or what `build` makes. Two requests at once may both build.
    fn kept(
        &self,
        path: &str,
        hash: String,
        form: Form,
        build: impl FnOnce() -> Value,
    ) -> std::io::Result<Document> {
        if let Some(kept) = self.kept.lock().get(path)
            && kept.hash == hash
        {
            return Ok(kept.clone());
        }
        let document = Document::new(&build(), hash, form)?;
        self.kept.lock().insert(path.to_owned(), document.clone());
        Ok(document)
    }

    /// Names a document by what it is made of, so that no document need be built for it: this build's type table is
    /// told by the crate's version.
    fn hash(&self, path: &str, rows: &[Arc<Resource>]) -> String {
        let mut hasher = Sha512::new();
        let made_of = format!("{} {} {path} ", env!("CARGO_PKG_VERSION"), self.version);
        hasher.update(made_of);
        for row in rows {
            hasher.update(format!("{row:?}"));
        }
        hasher
            .finalize()
            .iter()
            .map(|byte| format!("{byte:02X}"))
            .collect()
    }

    fn build(&self, subject: Subject<'_>, rows: &[Arc<Resource>]) -> Value {
        let (group, version) = match subject {
            Subject::GroupVersion(group, version) => (group, version),
            _ => ("", "v1"),
        };
        let paths = match subject {
            Subject::Version => paths::version(),
            Subject::Core => paths::core_versions(),
            Subject::Groups => paths::groups(),
            Subject::Group(group) => paths::group(group),
            Subject::GroupVersion(group, version) => paths::group_version(group, version, rows),
        };
        let mut components = schemas::Components::new(group, version);
        for row in rows {
            components.custom(row);
        }
        components.referenced_by(&Value::Object(paths.clone()));
        json!({
            "openapi": "3.0.0",
            "info": {"title": "Kubernetes", "version": self.version},
            "paths": paths,
            "components": {
                "schemas": components.finish(),
                "securitySchemes": {"BearerToken": {
                    "type": "apiKey",
                    "description": "Bearer Token authentication",
                    "name": "authorization",
                    "in": "header",
                }},
            },
        })
    }
}

#[cfg(test)]
mod tests;
