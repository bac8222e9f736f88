//! Resource amounts of pods and containers: what was asked for, what it means for the kernel, and the quality of
//! service that follows from it.

use std::collections::BTreeMap;

use k8s_openapi::api::core::v1::{Container, Pod, ResourceRequirements};
use k8s_openapi::apimachinery::pkg::api::resource::Quantity;

use crate::podutil;

/// The smallest share the kernel takes (upstream `cm.MinShares`).
pub const MIN_SHARES: i64 = 2;
/// The largest share the kernel takes.
pub const MAX_SHARES: i64 = 262_144;
/// The smallest CPU quota per period, in microseconds (upstream `cm.MinQuotaPeriod`).
pub const MIN_QUOTA_US: i64 = 1000;

type List = BTreeMap<String, Quantity>;

/// The value of a quantity in thousandths, rounded up as upstream's `MilliValue`. Text that is no quantity, which
/// the API server lets nobody store, counts as zero.
pub fn milli(q: &Quantity) -> i64 {
    scaled(&q.0, 1000).unwrap_or(0)
}

/// The value of a quantity in whole units, rounded up as upstream's `Value`.
pub fn value(q: &Quantity) -> i64 {
    scaled(&q.0, 1).unwrap_or(0)
}

/// Whether the text is a quantity.
pub fn is_quantity(text: &str) -> bool {
    scaled(text, 1).is_some()
}

/// Parses a quantity and returns `ceil(quantity * scale)`, capped to 64 bits.
fn scaled(text: &str, scale: i128) -> Option<i64> {
    let text = text.trim();
    let split = text
        .char_indices()
        .find(|(i, c)| !(c.is_ascii_digit() || *c == '.' || (*i == 0 && (*c == '-' || *c == '+'))))
        .map_or(text.len(), |(i, _)| i);
    let (number, suffix) = text.split_at(split);
    let negative = number.starts_with('-');
    let number = number.trim_start_matches(['-', '+']);
    let (whole, fraction) = number.split_once('.').unwrap_or((number, ""));
    if whole.is_empty() && fraction.is_empty() || fraction.contains('.') {
        return None;
    }
    // Nine decimal places are as precise as a quantity gets.
    let mut digits = String::from(whole);
    let fraction: String = fraction.chars().take(15).collect();
    digits.push_str(&fraction);
    let mantissa: i128 = if digits.is_empty() {
        0
    } else {
        digits.parse().ok()?
    };
    let mut denominator: i128 = 10i128.checked_pow(fraction.len() as u32)?;
    let numerator: i128 = match suffix {
        "" => 1,
        "n" => {
            denominator = denominator.checked_mul(1_000_000_000)?;
            1
        }
        "u" => {
            denominator = denominator.checked_mul(1_000_000)?;
            1
        }
        "m" => {
            denominator = denominator.checked_mul(1000)?;
            1
        }
        "k" => 1000,
        "M" => 1_000_000,
        "G" => 1_000_000_000,
        "T" => 1_000_000_000_000,
        "P" => 1_000_000_000_000_000,
        "E" => 1_000_000_000_000_000_000,
        "Ki" => 1 << 10,
        "Mi" => 1 << 20,
        "Gi" => 1 << 30,
        "Ti" => 1 << 40,
        "Pi" => 1 << 50,
        "Ei" => 1 << 60,
        _ => {
            let exponent: i32 = suffix.strip_prefix(['e', 'E'])?.parse().ok()?;
            if exponent >= 0 {
                10i128.checked_pow(exponent as u32)?
            } else {
                denominator =
                    denominator.checked_mul(10i128.checked_pow(exponent.unsigned_abs())?)?;
                1
            }
        }
    };
    let product = mantissa.checked_mul(numerator)?.checked_mul(scale)?;
    let magnitude = if negative {
        -(product / denominator)
    } else {
        product.div_euclid(denominator) + i128::from(product.rem_euclid(denominator) != 0)
    };
    Some(magnitude.clamp(i128::from(i64::MIN), i128::from(i64::MAX)) as i64)
}

/// Writes a byte count the way upstream does: the largest binary suffix without a rest.
pub fn format_bytes(n: i64) -> String {
    for (shift, suffix) in [
        (60, "Ei"),
        (50, "Pi"),
        (40, "Ti"),
        (30, "Gi"),
        (20, "Mi"),
        (10, "Ki"),
    ] {
        if n != 0 && n % (1i64 << shift) == 0 {
            return format!("{}{suffix}", n >> shift);
        }
    }
    n.to_string()
}

/// Writes thousandths of a core: whole cores without a suffix.
pub fn format_milli(n: i64) -> String {
    if n % 1000 == 0 {
        (n / 1000).to_string()
    } else {
        format!("{n}m")
    }
}

/// A request of a container, or its limit, in milli-units for `cpu` and units for all else.
pub fn get(list: Option<&List>, name: &str) -> Option<i64> {
    list.and_then(|l| l.get(name))
        .map(|q| if name == "cpu" { milli(q) } else { value(q) })
}

/// What a container asks for.
pub fn request(r: Option<&ResourceRequirements>, name: &str) -> Option<i64> {
    get(r.and_then(|r| r.requests.as_ref()), name)
}

/// What a container may use at most.
pub fn limit(r: Option<&ResourceRequirements>, name: &str) -> Option<i64> {
    get(r.and_then(|r| r.limits.as_ref()), name)
}

/// The quality of service of a pod.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Qos {
    /// Limits equal requests for CPU and memory in every container.
    Guaranteed,
    /// Something is asked for.
    Burstable,
    /// Nothing is asked for.
    BestEffort,
}

impl Qos {
    /// The name in `status.qosClass`.
    pub fn as_str(self) -> &'static str {
        match self {
            Qos::Guaranteed => "Guaranteed",
            Qos::Burstable => "Burstable",
            Qos::BestEffort => "BestEffort",
        }
    }
}

/// The quality of service (upstream `qos.ComputePodQOS`).
pub fn qos(pod: &Pod) -> Qos {
    let Some(spec) = &pod.spec else {
        return Qos::BestEffort;
    };
    let sets: Vec<Option<&ResourceRequirements>> = if pod_level(pod).is_some() {
        vec![spec.resources.as_ref()]
    } else {
        podutil::init_containers(pod)
            .iter()
            .chain(spec.containers.iter())
            .map(|c| c.resources.as_ref())
            .collect()
    };
    let (mut any, mut guaranteed) = (false, true);
    for r in sets {
        for name in ["cpu", "memory"] {
            let (req, lim) = (request(r, name).unwrap_or(0), limit(r, name).unwrap_or(0));
            any |= req > 0 || lim > 0;
            guaranteed &= lim > 0 && (req == lim || request(r, name).is_none());
        }
    }
    match (any, guaranteed) {
        (false, _) => Qos::BestEffort,
        (true, true) => Qos::Guaranteed,
        (true, false) => Qos::Burstable,
    }
}

fn pod_level(pod: &Pod) -> Option<&ResourceRequirements> {
    let r = pod.spec.as_ref()?.resources.as_ref()?;
    let set = |l: &Option<List>| l.as_ref().is_some_and(|l| !l.is_empty());
    (set(&r.requests) || set(&r.limits)).then_some(r)
}

/// The names of all resources that a pod's containers mention as requests or limits.
pub fn names(pod: &Pod) -> Vec<String> {
    let mut out: Vec<String> = podutil::init_containers(pod)
        .iter()
        .chain(podutil::containers(pod))
        .filter_map(|c| c.resources.as_ref())
        .flat_map(|r| r.requests.iter().chain(r.limits.iter()))
        .flat_map(|l| l.keys().cloned())
        .collect();
    out.sort();
    out.dedup();
    out
}

/// What a pod as a whole needs of one resource (upstream `resource.PodRequests` / `PodLimits`): all regular
/// containers and sidecars together, or the greatest init container with the sidecars before it; plus overhead.
pub fn pod_total(
    pod: &Pod,
    name: &str,
    of: fn(Option<&ResourceRequirements>, &str) -> Option<i64>,
) -> i64 {
    let amount = |c: &Container| of(c.resources.as_ref(), name).unwrap_or(0);
    let mut total: i64 = podutil::containers(pod).iter().map(amount).sum();
    let (mut sidecars, mut init_max) = (0i64, 0i64);
    for c in podutil::init_containers(pod) {
        if podutil::is_sidecar(c) {
            sidecars = sidecars.saturating_add(amount(c));
            total = total.saturating_add(amount(c));
            init_max = init_max.max(sidecars);
        } else {
            init_max = init_max.max(sidecars.saturating_add(amount(c)));
        }
    }
    let mut total = total.max(init_max);
    if let Some(own) = of(pod_level(pod), name) {
        total = own;
    }
    total
        .saturating_add(get(pod.spec.as_ref().and_then(|s| s.overhead.as_ref()), name).unwrap_or(0))
}

/// CPU shares of so many milli-cores (upstream `MilliCPUToShares`).
pub fn milli_to_shares(milli: i64) -> i64 {
    if milli == 0 {
        return MIN_SHARES;
    }
    (milli * 1024 / 1000).clamp(MIN_SHARES, MAX_SHARES)
}

/// The CPU quota of so many milli-cores in a period, both in microseconds; 0 for no limit.
pub fn milli_to_quota(milli: i64, period_us: i64) -> i64 {
    if milli == 0 {
        return 0;
    }
    (milli * period_us / 1000).max(MIN_QUOTA_US)
}

/// The out-of-memory score adjustment of a container (upstream `qos.GetContainerOOMScoreAdjust`).
pub fn oom_score_adj(pod: &Pod, container: &Container, memory_capacity: i64) -> i64 {
    const GUARANTEED: i64 = -997;
    const BEST_EFFORT: i64 = 1000;
    if podutil::is_node_critical(pod) {
        return GUARANTEED;
    }
    match qos(pod) {
        Qos::Guaranteed => GUARANTEED,
        Qos::BestEffort => BEST_EFFORT,
        Qos::Burstable => {
            let request = request(container.resources.as_ref(), "memory").unwrap_or(0);
            let adj = if memory_capacity > 0 {
                1000 - (1000 * i128::from(request) / i128::from(memory_capacity)) as i64
            } else {
                1000
            };
            if adj < 1000 + GUARANTEED {
                1000 + GUARANTEED
            } else if adj == BEST_EFFORT {
                adj - 1
            } else {
                adj
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn quantities() {
        for (text, units, thousandths) in [
            ("1", 1, 1000),
            ("100m", 1, 100),
            ("0.1", 1, 100),
            ("1500m", 2, 1500),
            ("1Gi", 1 << 30, (1 << 30) * 1000),
            ("12e6", 12_000_000, 12_000_000_000),
            ("1u", 1, 1),
            ("-1.5", -1, -1500),
            ("1e-3", 1, 1),
        ] {
            let q = Quantity(text.to_owned());
            assert_eq!((value(&q), milli(&q)), (units, thousandths), "{text}");
        }
        for bad in ["", "Gi", "1.2.3", "1Q", "e3"] {
            assert!(!is_quantity(bad), "{bad}");
        }
        assert_eq!(
            (
                format_bytes(1 << 30),
                format_bytes(1000),
                format_milli(1500)
            ),
            ("1Gi".into(), "1000".into(), "1500m".into())
        );
    }

    #[test]
    fn pod_needs() {
        let pod = |text: &str| -> Pod { serde_yaml_ng::from_str(text).unwrap() };
        let check = |containers: &str, inits: &str, want: (Qos, i64)| {
            let p = pod(&format!(
                "spec: {{containers: {containers}, initContainers: {inits}}}"
            ));
            assert_eq!(
                (qos(&p), pod_total(&p, "cpu", request)),
                want,
                "{containers} {inits}"
            );
        };
        check("[{name: a}]", "[]", (Qos::BestEffort, 0));
        check(
            "[{name: a, resources: {requests: {cpu: 100m}}}, {name: b}]",
            "[]",
            (Qos::Burstable, 100),
        );
        check(
            "[{name: a, resources: {requests: {cpu: 1, memory: 1Gi}, limits: {cpu: 1, memory: 1Gi}}}]",
            "[]",
            (Qos::Guaranteed, 1000),
        );
        // A sidecar counts beside the regular containers; an init container only by itself.
        check(
            "[{name: a, resources: {requests: {cpu: 100m}}}]",
            "[{name: s, restartPolicy: Always, resources: {requests: {cpu: 50m}}}, {name: i, resources: {requests: {cpu: 80m}}}]",
            (Qos::Burstable, 150),
        );
        check(
            "[{name: a, resources: {requests: {cpu: 100m}}}]",
            "[{name: i, resources: {requests: {cpu: 2}}}]",
            (Qos::Burstable, 2000),
        );
    }
}
