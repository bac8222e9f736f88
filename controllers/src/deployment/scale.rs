//! How many replicas each ReplicaSet should have: all the arithmetic of a rollout, on plain numbers.

use k8s_openapi::apimachinery::pkg::util::intstr::IntOrString;

/// A number or a percentage of `total`. Text that is neither counts as nothing (validation does not let it in).
pub fn resolve(value: &IntOrString, total: i32, up: bool) -> i32 {
    match value {
        IntOrString::Int(n) => *n,
        IntOrString::String(text) => {
            let percent: i64 = text
                .strip_suffix('%')
                .and_then(|p| p.parse().ok())
                .unwrap_or(0);
            let product = percent * i64::from(total);
            let rounded = if up {
                product.div_euclid(100) + i64::from(product.rem_euclid(100) != 0)
            } else {
                product.div_euclid(100)
            };
            i32::try_from(rounded).unwrap_or(i32::MAX)
        }
    }
}

/// Surge and unavailability in pods: surge rounds up, unavailability down, and they are never both nothing
/// (`ResolveFenceposts`).
pub fn fenceposts(
    surge: Option<&IntOrString>,
    unavailable: Option<&IntOrString>,
    total: i32,
) -> (i32, i32) {
    let default = IntOrString::String("25%".into());
    let surge = resolve(surge.unwrap_or(&default), total, true);
    let unavailable = resolve(unavailable.unwrap_or(&default), total, false);
    if surge == 0 && unavailable == 0 {
        (0, 1)
    } else {
        (surge, unavailable.min(total.max(0)))
    }
}

/// A ReplicaSet as the arithmetic sees it.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Set {
    /// `spec.replicas`.
    pub replicas: i32,
    /// `status.availableReplicas`.
    pub available: i32,
    /// What was wanted with surge when it was last scaled (annotation `max-replicas`), 0 if unknown.
    pub last_max: i32,
}

/// How far the new set may grow in one step (`NewRSNewReplicas` for rolling updates).
pub fn new_set(desired: i32, surge: i32, new: i32, total: i32) -> i32 {
    let room = desired + surge - total;
    if room <= 0 {
        return new;
    }
    new + room.min(desired - new)
}

/// The old sets' replicas after one step of scaling down: first what is not healthy, then as many as availability allows.
/// `old` is sorted by age, oldest first.
pub fn old_sets(desired: i32, unavailable: i32, new: Set, old: &[Set]) -> Vec<i32> {
    let mut replicas: Vec<i32> = old.iter().map(|s| s.replicas).collect();
    let min_available = desired - unavailable;
    let all: i32 = replicas.iter().sum::<i32>() + new.replicas;
    let new_unavailable = (new.replicas - new.available).max(0);
    let most = all - min_available - new_unavailable;
    if most <= 0 {
        return replicas;
    }
    // Pods that are not available anyway cost nothing (`cleanupUnhealthyReplicas`).
    let mut cleaned = 0;
    for (n, set) in replicas.iter_mut().zip(old) {
        if cleaned >= most {
            break;
        }
        if *n == 0 || *n == set.available {
            continue;
        }
        let down = (most - cleaned).min((*n - set.available).max(0));
        *n -= down;
        cleaned += down;
    }
    // The rest is bounded by what is available in truth (`scaleDownOldReplicaSetsForRollingUpdate`).
    let available: i32 = old.iter().map(|s| s.available).sum::<i32>() + new.available;
    let spare = available - min_available;
    let mut down = 0;
    for n in &mut replicas {
        if down >= spare {
            break;
        }
        let step = (*n).min(spare - down);
        *n -= step;
        down += step;
    }
    replicas
}

/// Spreads a change of the wish over the sets that are running, in proportion to their size (`scale`). `sets` are the
/// active ones, newest first when growing, oldest first when shrinking; answers their new replicas.
pub fn proportional(desired: i32, surge: i32, sets: &[Set]) -> Vec<i32> {
    let total: i32 = sets.iter().map(|s| s.replicas).sum();
    let allowed = if desired > 0 { desired + surge } else { 0 };
    let to_add = allowed - total;
    let mut added = 0;
    let mut result: Vec<i32> = sets
        .iter()
        .map(|set| {
            if to_add == 0 {
                return set.replicas;
            }
            let share = share(*set, desired, surge, to_add, added);
            added += share;
            set.replicas + share
        })
        .collect();
    if let Some(first) = result.first_mut() {
        *first = (*first + to_add - added).max(0);
    }
    result
}

/// One set's share of `to_add` (`GetReplicaSetProportion`).
fn share(set: Set, desired: i32, surge: i32, to_add: i32, added: i32) -> i32 {
    if set.replicas == 0 || to_add == added {
        return 0;
    }
    let fraction = if desired == 0 {
        -set.replicas
    } else {
        let before = if set.last_max > 0 {
            set.last_max
        } else {
            desired + surge
        };
        let size = f64::from(set.replicas) * f64::from(desired + surge) / f64::from(before);
        size.round() as i32 - set.replicas
    };
    if to_add > 0 {
        fraction.min(to_add - added)
    } else {
        fraction.max(to_add - added)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn set(replicas: i32, available: i32) -> Set {
        Set {
            replicas,
            available,
            last_max: 0,
        }
    }

    #[test]
    fn percentages() {
        let p = |s: &str| IntOrString::String(s.into());
        assert_eq!(fenceposts(None, None, 10), (3, 2));
        assert_eq!(fenceposts(None, None, 3), (1, 0));
        assert_eq!(fenceposts(Some(&p("0%")), Some(&p("0%")), 10), (0, 1));
        assert_eq!(
            fenceposts(Some(&IntOrString::Int(2)), Some(&p("50%")), 5),
            (2, 2)
        );
    }

    #[test]
    fn growing_stops_at_the_surge() {
        for (desired, surge, new, total, want) in [
            (10, 0, 0, 10, 0),
            (10, 2, 0, 10, 2),
            (10, 5, 0, 5, 10),
            (10, 5, 5, 10, 10),
            (10, 2, 8, 15, 8),
        ] {
            assert_eq!(new_set(desired, surge, new, total), want);
        }
    }

    #[test]
    fn shrinking_keeps_enough_available() {
        for (desired, unavailable, new, old, want) in [
            // Nothing of the new is up: at most `unavailable` may go.
            (10, 2, set(0, 0), vec![set(10, 10)], vec![8]),
            (10, 2, set(2, 0), vec![set(10, 10)], vec![8]),
            (10, 2, set(2, 2), vec![set(10, 10)], vec![6]),
            // What is broken goes first, wherever it is.
            (10, 2, set(2, 0), vec![set(8, 0)], vec![8]),
            (10, 2, set(0, 0), vec![set(5, 5), set(5, 3)], vec![5, 3]),
            (3, 1, set(3, 3), vec![set(1, 1)], vec![0]),
        ] {
            assert_eq!(
                old_sets(desired, unavailable, new, &old),
                want,
                "{new:?} {old:?}"
            );
        }
    }

    #[test]
    fn a_change_of_the_wish_is_spread() {
        let of = |replicas, last_max| Set {
            replicas,
            available: replicas,
            last_max,
        };
        // Upstream's documented example: 10 -> 15 with surge 3, at 8 old and 5 new.
        assert_eq!(proportional(15, 3, &[of(5, 13), of(8, 13)]), [7, 11]);
        assert_eq!(proportional(0, 3, &[of(5, 13), of(8, 13)]), [0, 0]);
        assert_eq!(proportional(6, 0, &[of(8, 10), of(2, 10)]), [5, 1]);
    }
}
