//! Which endpoints traffic may go to from this node: traffic policies, topology hints, terminating endpoints
//! (`proxy.CategorizeEndpoints`).

use crate::model::Endpoint;

/// What decides about a service port's endpoints.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Policy {
    /// `internalTrafficPolicy: Local`.
    pub internal_local: bool,
    /// `externalTrafficPolicy: Local`.
    pub external_local: bool,
    /// Whether it can be reached from outside the cluster.
    pub externally_accessible: bool,
}

impl Policy {
    /// Whether endpoints on other nodes are used. Even with external policy `Local`, traffic from pods to an external address is
    /// short-circuited to them.
    pub fn uses_cluster(self) -> bool {
        !self.internal_local || self.externally_accessible
    }

    /// Whether endpoints on this node are used by themselves.
    pub fn uses_local(self) -> bool {
        self.internal_local || (self.external_local && self.externally_accessible)
    }
}

/// The endpoints of a service port by use.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Categorized<'a> {
    /// For traffic that may go anywhere.
    pub cluster: Vec<&'a Endpoint>,
    /// For traffic that must stay on this node.
    pub local: Vec<&'a Endpoint>,
    /// All that either may reach, each once.
    pub reachable: Vec<&'a Endpoint>,
    /// Whether there is any usable endpoint in the cluster.
    pub any: bool,
}

/// The node whose view is taken.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Place {
    /// Its name.
    pub node: String,
    /// Its zone; empty when it has none.
    pub zone: String,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Mode {
    Anywhere,
    SameNode,
    SameZone,
}

/// Sorts a service port's endpoints by use.
pub fn categorize<'a>(endpoints: &'a [Endpoint], policy: Policy, place: &Place) -> Categorized<'a> {
    let mut result = Categorized::default();
    if endpoints.is_empty() {
        return result;
    }
    let going = |e: &Endpoint| e.serving && e.terminating;
    if policy.uses_cluster() {
        let mode = mode_from_hints(endpoints, place);
        result.cluster = endpoints
            .iter()
            .filter(|e| e.ready && available(e, mode, place))
            .collect();
        if result.cluster.is_empty() {
            // None is ready anywhere: those that are going are better than none.
            result.cluster = endpoints.iter().filter(|e| going(e)).collect();
        }
        result.any = !result.cluster.is_empty();
    }
    if !policy.uses_local() {
        result.reachable = result.cluster.clone();
        return result;
    }
    result.any |= endpoints.iter().any(|e| e.ready || going(e));
    result.local = endpoints.iter().filter(|e| e.local && e.ready).collect();
    if result.local.is_empty() {
        result.local = endpoints.iter().filter(|e| e.local && going(e)).collect();
    }
    if !policy.uses_cluster() {
        result.reachable = result.local.clone();
        return result;
    }
    result.reachable = result
        .cluster
        .iter()
        .chain(&result.local)
        .copied()
        .collect();
    result.reachable.sort_unstable();
    result.reachable.dedup();
    result
}

/// Hints count only when every ready endpoint has them and one is meant for here.
fn mode_from_hints(endpoints: &[Endpoint], place: &Place) -> Mode {
    let ready = || endpoints.iter().filter(|e| e.ready);
    if ready().next().is_none() {
        return Mode::Anywhere;
    }
    if ready().all(|e| !e.node_hints.is_empty())
        && ready().any(|e| e.node_hints.contains(&place.node))
    {
        return Mode::SameNode;
    }
    if ready().all(|e| !e.zone_hints.is_empty())
        && ready().any(|e| e.zone_hints.contains(&place.zone))
    {
        return Mode::SameZone;
    }
    Mode::Anywhere
}

fn available(endpoint: &Endpoint, mode: Mode, place: &Place) -> bool {
    match mode {
        Mode::Anywhere => true,
        Mode::SameNode => endpoint.node_hints.contains(&place.node),
        Mode::SameZone => endpoint.zone_hints.contains(&place.zone),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// `1` to `9` is the address; then `r`eady, `s`erving, `t`erminating, `l`ocal, `z`one a, `y` zone b, `n`ode here, `m` elsewhere.
    fn endpoint(text: &str) -> Endpoint {
        let has = |c| text.contains(c);
        let hints = |pairs: [(char, &str); 2]| {
            pairs
                .into_iter()
                .filter(|(c, _)| has(*c))
                .map(|(_, hint)| hint.to_owned())
                .collect()
        };
        Endpoint {
            ip: format!("10.0.0.{}", &text[..1]).parse().unwrap(),
            port: 80,
            ready: has('r'),
            serving: has('r') || has('s'),
            terminating: has('t'),
            local: has('l'),
            zone_hints: hints([('z', "a"), ('y', "b")]),
            node_hints: hints([('n', "here"), ('m', "there")]),
        }
    }

    fn show(endpoints: &[&Endpoint]) -> String {
        endpoints
            .iter()
            .map(|e| {
                e.ip.to_string()
                    .rsplit('.')
                    .next()
                    .unwrap_or_default()
                    .to_owned()
            })
            .collect()
    }

    #[test]
    fn categories() {
        let cluster = Policy {
            internal_local: false,
            external_local: false,
            externally_accessible: false,
        };
        let internal = Policy {
            internal_local: true,
            ..cluster
        };
        let external = Policy {
            external_local: true,
            externally_accessible: true,
            ..cluster
        };
        for (name, policy, endpoints, want) in [
            ("none", cluster, "", "|||false"),
            ("ready ones", cluster, "1r 2 3rl", "13||13|true"),
            ("none ready", cluster, "1 2", "|||false"),
            ("only going", cluster, "1st 2 3stl", "13||13|true"),
            ("going beside ready", cluster, "1st 2r", "2||2|true"),
            ("same zone", cluster, "1rz 2ry", "1||1|true"),
            ("one without a hint", cluster, "1rz 2r", "12||12|true"),
            ("no hint for here", cluster, "1ry 2ry", "12||12|true"),
            ("same node before zone", cluster, "1rzn 2rzm", "1||1|true"),
            ("internal local", internal, "1r 2rl", "|2|2|true"),
            ("internal local, none here", internal, "1r", "|||true"),
            ("external local", external, "1r 2rl", "12|2|12|true"),
            (
                "external local, going here",
                external,
                "1r 2stl",
                "1|2|12|true",
            ),
            (
                "external local, other zone",
                external,
                "1rz 2rly",
                "1|2|12|true",
            ),
            ("external local, nothing", external, "1 2l", "|||false"),
        ] {
            let endpoints: Vec<Endpoint> = endpoints.split_whitespace().map(endpoint).collect();
            let place = Place {
                node: "here".into(),
                zone: "a".into(),
            };
            let got = categorize(&endpoints, policy, &place);
            let got = format!(
                "{}|{}|{}|{}",
                show(&got.cluster),
                show(&got.local),
                show(&got.reachable),
                got.any
            );
            assert_eq!(got, want, "{name}");
        }
    }
}
