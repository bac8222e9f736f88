//! Content negotiation (upstream `k8s.io/apiserver/pkg/endpoints/handlers/negotiation`).

use http::HeaderMap;
use http::header::{ACCEPT, CONTENT_TYPE, USER_AGENT};
use keelson_machinery::status::ApiError;

use crate::request::Query;

/// How objects stand in a body.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Format {
    /// `application/json`.
    Json,
    /// `application/yaml`.
    Yaml,
    /// `application/vnd.kubernetes.protobuf`.
    Protobuf,
}

impl Format {
    /// The media type.
    pub fn media_type(self) -> &'static str {
        match self {
            Format::Json => "application/json",
            Format::Yaml => "application/yaml",
            Format::Protobuf => "application/vnd.kubernetes.protobuf",
        }
    }

    fn of_media_type(text: &str) -> Option<Format> {
        ALL.into_iter()
            .find(|f| f.media_type().eq_ignore_ascii_case(text))
    }
}

/// In upstream's order of preference.
const ALL: [Format; 3] = [Format::Json, Format::Yaml, Format::Protobuf];

/// A transformation of the answer that the client asked for by `as=`, with the meta API version (`v1`, `v1beta1`).
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Convert {
    /// A table for people.
    Table(String),
    /// Only the metadata of one object.
    PartialObjectMetadata(String),
    /// Only the metadata of each object of a list.
    PartialObjectMetadataList(String),
}

/// What the answer shall look like.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Output {
    /// Form of the body.
    pub format: Format,
    /// Indented JSON.
    pub pretty: bool,
    /// Transformation.
    pub convert: Option<Convert>,
}

impl Output {
    /// Plain JSON.
    pub fn json() -> Output {
        Output {
            format: Format::Json,
            pretty: false,
            convert: None,
        }
    }

    /// Negotiates the form of an object or list.
    pub fn negotiate(headers: &HeaderMap, query: &Query) -> Result<Output, ApiError> {
        Output::choose(headers, query, |_| true).ok_or_else(|| not_acceptable(false))
    }

    /// Negotiates the form of an answer that has no table: reviews, bindings and the like are asked and forgotten
    /// (upstream `RequestScope.AllowsMediaTypeTransform` without a `TableConvertor`).
    pub fn negotiate_without_table(headers: &HeaderMap, query: &Query) -> Result<Output, ApiError> {
        Output::choose(headers, query, |output| {
            !matches!(output.convert, Some(Convert::Table(_)))
        })
        .ok_or_else(|| not_acceptable(false))
    }

    /// The same for objects that have no protobuf form: custom resources. Their metadata do have one.
    pub fn negotiate_untyped(headers: &HeaderMap, query: &Query) -> Result<Output, ApiError> {
        Output::choose(headers, query, Output::fits_untyped).ok_or_else(|| not_acceptable(false))
    }

    /// Negotiates the form of a watch stream. YAML has no framing, so it is not acceptable here.
    /// With `typed`, objects have a protobuf form.
    pub fn negotiate_stream(
        headers: &HeaderMap,
        query: &Query,
        typed: bool,
    ) -> Result<Output, ApiError> {
        Output::choose(headers, query, |output| typed || output.fits_untyped())
            .filter(|output| output.format != Format::Yaml)
            .ok_or_else(|| not_acceptable(true))
    }

    fn fits_untyped(&self) -> bool {
        self.format != Format::Protobuf || self.convert.is_some()
    }

    /// The first form that a clause of the header asks for, and that is `possible`.
    fn choose(
        headers: &HeaderMap,
        query: &Query,
        possible: impl Fn(&Output) -> bool,
    ) -> Option<Output> {
        let pretty = is_pretty(headers, query);
        let accept = header_text(headers, ACCEPT);
        if accept.is_empty() {
            return Some(Output {
                pretty,
                ..Output::json()
            });
        }
        for clause in parse_accept(&accept) {
            for format in ALL {
                if clause.matches(format)
                    && let Some(mut output) = clause.output(format).filter(&possible)
                {
                    output.pretty |= pretty;
                    return Some(output);
                }
            }
        }
        None
    }
}

/// The form of a request body.
pub fn input_format(headers: &HeaderMap) -> Result<Format, ApiError> {
    let text = header_text(headers, CONTENT_TYPE);
    if text.is_empty() {
        return Ok(Format::Json);
    }
    let media_type = text.split(';').next().unwrap_or_default().trim();
    Format::of_media_type(media_type)
        .ok_or_else(|| ApiError::unsupported_media_type(&ALL.map(|f| f.media_type().to_string())))
}

/// The 406 that lists what there is.
pub fn not_acceptable(stream: bool) -> ApiError {
    if stream {
        ApiError::not_acceptable(&[
            "application/json;stream=watch",
            "application/vnd.kubernetes.protobuf;stream=watch",
        ])
    } else {
        ApiError::not_acceptable(&ALL.map(|f| f.media_type().to_string()))
    }
}

/// One clause of an Accept header.
struct Clause {
    main: String,
    sub: String,
    parameters: Vec<(String, String)>,
    quality: f32,
}

impl Clause {
    fn matches(&self, format: Format) -> bool {
        self.takes(format.media_type())
    }

    fn takes(&self, media_type: &str) -> bool {
        let (main, sub) = media_type.split_once('/').unwrap_or((media_type, ""));
        (self.main == "*" || self.main.eq_ignore_ascii_case(main))
            && (self.sub == "*" || self.sub.eq_ignore_ascii_case(sub))
    }

    /// `None` when a parameter asks for what `format` cannot do (upstream `acceptMediaTypeOptions`).
    fn output(&self, format: Format) -> Option<Output> {
        let (mut group, mut version, mut kind) = (None, None, None);
        let mut pretty = false;
        for (key, value) in &self.parameters {
            match key.as_str() {
                "as" => kind = Some(value.as_str()),
                "g" => group = Some(value.as_str()),
                "v" => version = Some(value.as_str()),
                "stream" if !value.is_empty() && (value != "watch" || format == Format::Yaml) => {
                    return None;
                }
                "sv" if !value.is_empty() && value != "v1" => return None,
                "pretty" => pretty = value == "1",
                _ => {}
            }
        }
        let convert = if kind.is_some() || group.is_some() || version.is_some() {
            let version = version.unwrap_or_default();
            if group.unwrap_or_default() != "meta.k8s.io" || !matches!(version, "v1" | "v1beta1") {
                return None;
            }
            let version = version.to_string();
            match kind.unwrap_or_default() {
                "Table" if format != Format::Protobuf => Some(Convert::Table(version)),
                "PartialObjectMetadata" => Some(Convert::PartialObjectMetadata(version)),
                "PartialObjectMetadataList" => Some(Convert::PartialObjectMetadataList(version)),
                _ => return None,
            }
        } else {
            None
        };
        Some(Output {
            format,
            pretty,
            convert,
        })
    }
}

/// Which of the offered media types an Accept header asks for first; an empty header takes anything.
pub fn preferred(accept: &str, offered: &[&str]) -> Option<usize> {
    if accept.is_empty() {
        return (!offered.is_empty()).then_some(0);
    }
    let clauses = parse_accept(accept);
    let mut found = clauses
        .iter()
        .filter_map(|clause| offered.iter().position(|media| clause.takes(media)));
    found.next()
}

/// Clauses in falling order of quality, wildcards last, else in the header's order.
fn parse_accept(text: &str) -> Vec<Clause> {
    let mut clauses: Vec<Clause> = text
        .split(',')
        .filter_map(|part| {
            let mut pieces = part.split(';');
            let media = pieces.next()?.trim();
            let (main, sub) = match media.split_once('/') {
                Some(pair) => pair,
                None if media == "*" => ("*", "*"),
                None => return None,
            };
            let mut quality = 1.0;
            let mut parameters = Vec::new();
            for piece in pieces {
                let (key, value) = piece.split_once('=').unwrap_or((piece, ""));
                let (key, value) = (key.trim(), value.trim().trim_matches('"'));
                if key == "q" {
                    quality = value.parse().unwrap_or(1.0);
                } else {
                    parameters.push((key.to_string(), value.to_string()));
                }
            }
            Some(Clause {
                main: main.trim().to_string(),
                sub: sub.trim().to_string(),
                parameters,
                quality,
            })
        })
        .collect();
    clauses.sort_by(|a, b| {
        let wild = |c: &Clause| (c.main == "*", c.sub == "*");
        b.quality
            .total_cmp(&a.quality)
            .then_with(|| wild(a).cmp(&wild(b)))
    });
    clauses
}

/// All values of a header, joined by commas.
pub fn header_text(headers: &HeaderMap, name: http::HeaderName) -> String {
    let mut text = String::new();
    for value in headers.get_all(name) {
        if let Ok(value) = value.to_str() {
            if !text.is_empty() {
                text.push(',');
            }
            text.push_str(value);
        }
    }
    text
}

fn is_pretty(headers: &HeaderMap, query: &Query) -> bool {
    if let Some(text) = query.text("pretty") {
        return matches!(text, "1" | "t" | "T" | "true" | "TRUE" | "True");
    }
    let agent = headers
        .get(USER_AGENT)
        .and_then(|v| v.to_str().ok())
        .unwrap_or_default();
    ["curl", "Wget", "Mozilla/5.0"]
        .iter()
        .any(|p| agent.starts_with(p))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn negotiate(accept: &str) -> Result<Output, ApiError> {
        let mut headers = HeaderMap::new();
        if !accept.is_empty() {
            headers.insert(ACCEPT, accept.parse().unwrap());
        }
        Output::negotiate(&headers, &Query::default())
    }

    #[test]
    fn accept_headers() {
        let table = Some(Convert::Table("v1".into()));
        let list = Some(Convert::PartialObjectMetadataList("v1".into()));
        let cases = [
            ("", Format::Json, None),
            ("*/*", Format::Json, None),
            ("application/*", Format::Json, None),
            ("application/yaml", Format::Yaml, None),
            (
                "application/vnd.kubernetes.protobuf, application/json",
                Format::Protobuf,
                None,
            ),
            (
                "application/json;q=0.5, application/yaml",
                Format::Yaml,
                None,
            ),
            (
                "application/json;as=Table;v=v1;g=meta.k8s.io,application/json",
                Format::Json,
                table.clone(),
            ),
            (
                "application/json;as=Table;v=v2;g=meta.k8s.io,application/json",
                Format::Json,
                None,
            ),
            (
                "application/vnd.kubernetes.protobuf;as=Table;v=v1;g=meta.k8s.io,application/json;as=Table;v=v1;g=meta.k8s.io",
                Format::Json,
                table,
            ),
            (
                "application/vnd.kubernetes.protobuf;as=PartialObjectMetadataList;g=meta.k8s.io;v=v1",
                Format::Protobuf,
                list,
            ),
        ];
        for (accept, format, convert) in cases {
            let output = negotiate(accept).unwrap();
            assert_eq!(
                (output.format, output.convert),
                (format, convert),
                "{accept}"
            );
        }
        let error = negotiate("text/html").unwrap_err();
        assert_eq!(error.code, 406);
        assert_eq!(
            error.message,
            "only the following media types are accepted: application/json, application/yaml, application/vnd.kubernetes.protobuf"
        );
    }
}
