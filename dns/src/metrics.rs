//! Counters by CoreDNS's names.

use hickory_proto::op::Message;
use hickory_proto::rr::RecordType;
use prometheus_client::encoding::EncodeLabelSet;
use prometheus_client::metrics::counter::Counter;
use prometheus_client::metrics::family::Family;
use prometheus_client::registry::Registry;

#[derive(Clone, Debug, PartialEq, Eq, Hash, EncodeLabelSet)]
struct RequestLabels {
    proto: &'static str,
    r#type: String,
}

#[derive(Clone, Debug, PartialEq, Eq, Hash, EncodeLabelSet)]
struct ResponseLabels {
    proto: &'static str,
    rcode: String,
}

/// What the server counts.
#[derive(Debug, Default)]
pub struct Metrics {
    requests: Family<RequestLabels, Counter>,
    responses: Family<ResponseLabels, Counter>,
}

impl Metrics {
    /// Registers all counters.
    pub fn register(&self, registry: &mut Registry) {
        registry.register(
            "coredns_dns_requests",
            "DNS requests by protocol and type",
            self.requests.clone(),
        );
        registry.register(
            "coredns_dns_responses",
            "DNS responses by protocol and response code",
            self.responses.clone(),
        );
    }

    /// Counts one answered request.
    pub fn count(&self, response: &Message, over_udp: bool) {
        let proto = if over_udp { "udp" } else { "tcp" };
        // Types are bounded: the server knows a fixed set and calls the rest by one name.
        let kind = response.queries.first().map_or_else(
            || "other".to_owned(),
            |q| {
                if matches!(q.query_type, RecordType::Unknown(_)) {
                    "other".to_owned()
                } else {
                    q.query_type.to_string()
                }
            },
        );
        self.requests
            .get_or_create(&RequestLabels {
                proto,
                r#type: kind,
            })
            .inc();
        self.responses
            .get_or_create(&ResponseLabels {
                proto,
                rcode: response.metadata.response_code.to_string(),
            })
            .inc();
    }
}
