//! Answers to requests for the documents: content types, compression, caching by `ETag` and by `hash`.

use std::sync::Arc;

use bytes::Bytes;
use http::header::{self, HeaderMap, HeaderName, HeaderValue};
use http::{Response as HttpResponse, StatusCode};
use jiff::Timestamp;
use jiff::ToSpan;
use keelson_machinery::status::ApiError;

use super::{Document, Form, OpenApi, remote};
use crate::aggregation::Remotes;
use crate::body::{Response, full};
use crate::codec::negotiate::{header_text, preferred};
use crate::registry::Table;

/// What a request says of the document it wants.
#[derive(Clone, Debug)]
pub struct Wanted {
    /// The path: `/openapi/v2`, `/openapi/v3` or one below.
    pub path: String,
    /// The `hash` of the query.
    pub hash: Option<String>,
}

/// Answers a request; `None` when there is no such document. A document is built on a thread for blocking work.
pub async fn answer(
    openapi: Arc<OpenApi>,
    table: Arc<Table>,
    remotes: Arc<Remotes>,
    wanted: Wanted,
    headers: &HeaderMap,
    now: Timestamp,
) -> Option<Result<Response, ApiError>> {
    let path = wanted.path.clone();
    let offered: &[Form] = match path.trim_end_matches('/') {
        "/openapi/v2" => &[Form::Json, Form::Protobuf],
        _ => &[Form::Json],
    };
    let Some(form) = negotiate(headers, offered) else {
        let mut response = HttpResponse::new(full(Bytes::new()));
        *response.status_mut() = StatusCode::NOT_ACCEPTABLE;
        return Some(Ok(response));
    };
    let found = tokio::task::spawn_blocking(move || {
        let catalog = table.catalog();
        match path.trim_end_matches('/') {
            "/openapi/v2" => Some(remote::v2(&openapi, catalog, form, &remotes)),
            "/openapi/v3" => Some(remote::index(&openapi, catalog, &remotes)),
            path => openapi.document(catalog, path.strip_prefix("/openapi/v3/")?),
        }
    });
    let document = match found.await {
        Ok(found) => found?,
        Err(error) => return Some(Err(ApiError::internal(error))),
    };
    Some(match document {
        Ok(document) => respond(&document, &wanted, headers, now).map_err(ApiError::internal),
        Err(error) => Err(ApiError::internal(error)),
    })
}

fn respond(
    document: &Document,
    wanted: &Wanted,
    headers: &HeaderMap,
    now: Timestamp,
) -> std::io::Result<Response> {
    let mut extra: Vec<(HeaderName, String)> = vec![
        (header::VARY, "Accept, Accept-Encoding".to_owned()),
        (header::ETAG, document.etag()),
    ];
    if let Some(hash) = wanted.hash.as_deref().filter(|hash| !hash.is_empty()) {
        if hash != document.hash {
            let path = wanted.path.trim_end_matches('/');
            extra.push((header::LOCATION, format!("{path}?hash={}", document.hash)));
            return Ok(response(StatusCode::MOVED_PERMANENTLY, Bytes::new(), extra));
        }
        extra.push((header::CACHE_CONTROL, "public, immutable".to_owned()));
        extra.push((header::EXPIRES, a_year_after(now)));
    }
    let known = header_text(headers, header::IF_NONE_MATCH);
    if known.split(',').any(|tag| tag.trim() == document.etag()) {
        return Ok(response(StatusCode::NOT_MODIFIED, Bytes::new(), extra));
    }
    extra.push((header::CONTENT_TYPE, document.media_type.to_owned()));
    let body = if accepts_gzip(headers) {
        extra.push((header::CONTENT_ENCODING, "gzip".to_owned()));
        document.gzip()
    } else {
        document.identity()?
    };
    Ok(response(StatusCode::OK, body, extra))
}

fn response(status: StatusCode, body: Bytes, headers: Vec<(HeaderName, String)>) -> Response {
    let mut response = HttpResponse::new(full(body));
    *response.status_mut() = status;
    for (name, value) in headers {
        if let Ok(value) = HeaderValue::from_str(&value) {
            response.headers_mut().insert(name, value);
        }
    }
    response
}

/// A year from now, as HTTP writes dates.
fn a_year_after(now: Timestamp) -> String {
    let now = now.to_zoned(jiff::tz::TimeZone::UTC);
    let then = now.checked_add(1.year()).unwrap_or(now);
    then.strftime("%a, %d %b %Y %H:%M:%S GMT").to_string()
}

/// The first of the offered forms that the client's best clause takes.
fn negotiate(headers: &HeaderMap, offered: &[Form]) -> Option<Form> {
    let accept = header_text(headers, header::ACCEPT);
    let media: Vec<(&str, Form)> = offered
        .iter()
        .flat_map(|form| form.asked_as().iter().map(|media| (*media, *form)))
        .collect();
    let names: Vec<&str> = media.iter().map(|(name, _)| *name).collect();
    let chosen = preferred(&accept, &names)?;
    media.get(chosen).map(|(_, form)| *form)
}

fn accepts_gzip(headers: &HeaderMap) -> bool {
    let accept = header_text(headers, header::ACCEPT_ENCODING);
    accept.split(',').any(|coding| {
        let mut pieces = coding.split(';').map(str::trim);
        let named = matches!(pieces.next(), Some("gzip" | "*"));
        named && !pieces.any(|piece| matches!(piece, "q=0" | "q=0.0"))
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn answers() {
        let openapi = OpenApi::new("v1.36.2");
        let catalog = keelson_machinery::catalog::Catalog::builtin();
        let document = openapi
            .document(catalog, "apis/policy/v1")
            .expect("found")
            .expect("builds");
        let now: Timestamp = "2024-02-29T00:00:00Z".parse().expect("valid");
        let ask = |hash: Option<&str>, headers: &[(HeaderName, &str)]| {
            let wanted = Wanted {
                path: "/openapi/v3/apis/policy/v1".to_owned(),
                hash: hash.map(str::to_owned),
            };
            let headers = headers
                .iter()
                .map(|(name, value)| (name.clone(), HeaderValue::from_str(value).expect("valid")))
                .collect();
            respond(&document, &wanted, &headers, now).expect("answers")
        };
        let of = |response: &Response, name: HeaderName| header_text(response.headers(), name);

        let plain = ask(None, &[]);
        assert_eq!(plain.status(), 200);
        assert_eq!(of(&plain, header::CONTENT_ENCODING), "");
        assert_eq!(of(&plain, header::CACHE_CONTROL), "");

        let same = ask(
            Some(&document.hash),
            &[(header::ACCEPT_ENCODING, "gzip, br")],
        );
        assert_eq!(of(&same, header::CONTENT_ENCODING), "gzip");
        assert_eq!(of(&same, header::CACHE_CONTROL), "public, immutable");
        assert_eq!(of(&same, header::EXPIRES), "Fri, 28 Feb 2025 00:00:00 GMT");

        let other = ask(Some("old"), &[]);
        assert_eq!(other.status(), 301);
        let location = format!("/openapi/v3/apis/policy/v1?hash={}", document.hash);
        assert_eq!(of(&other, header::LOCATION), location);

        let known = ask(None, &[(header::IF_NONE_MATCH, &document.etag())]);
        assert_eq!(known.status(), 304);
    }

    #[test]
    fn what_clients_accept() {
        let (json, protobuf) = (Some(Form::Json), Some(Form::Protobuf));
        for (accept, v2, v3) in [
            ("", json, json),
            ("application/json", json, json),
            ("application/vnd.kubernetes.protobuf, */*;q=0.5", json, json),
            (
                "application/com.github.proto-openapi.spec.v2@v1.0+protobuf",
                protobuf,
                None,
            ),
            (
                "application/json;q=0.2,application/com.github.proto-openapi.spec.v2.v1.0+protobuf",
                protobuf,
                json,
            ),
            (
                "*/*,application/com.github.proto-openapi.spec.v2@v1.0+protobuf",
                protobuf,
                json,
            ),
        ] {
            let mut headers = HeaderMap::new();
            headers.insert(header::ACCEPT, HeaderValue::from_static(accept));
            let both = [Form::Json, Form::Protobuf];
            assert_eq!(negotiate(&headers, &both), v2, "{accept}");
            assert_eq!(negotiate(&headers, &[Form::Json]), v3, "{accept}");
        }
    }
}
