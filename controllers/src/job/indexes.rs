//! Completion indexes: sets of small numbers, written `1,3-5,7`.

use std::collections::BTreeSet;

use k8s_openapi::api::core::v1::Pod;

use crate::common::annotations;

/// On each pod of an indexed job.
pub const INDEX: &str = "batch.kubernetes.io/job-completion-index";

/// Reads a set. What does not read as an index below `completions` is left out: the text was written by us, or by an older
/// `completions`.
pub fn parse(text: &str, completions: i32) -> BTreeSet<i32> {
    let mut set = BTreeSet::new();
    for part in text.split(',').filter(|p| !p.is_empty()) {
        let (first, last) = part.split_once('-').unwrap_or((part, part));
        if let (Ok(first), Ok(last)) = (first.parse::<i32>(), last.parse::<i32>()) {
            set.extend(first.max(0)..=last.min(completions - 1));
        }
    }
    set
}

/// Writes a set: two neighbours as `1,2`, more as `1-3`.
pub fn format(set: &BTreeSet<i32>) -> String {
    let mut runs: Vec<(i32, i32)> = Vec::new();
    for index in set {
        match runs.last_mut() {
            Some((_, last)) if *last + 1 == *index => *last = *index,
            _ => runs.push((*index, *index)),
        }
    }
    let runs: Vec<_> = runs
        .into_iter()
        .map(|(first, last)| match last - first {
            0 => first.to_string(),
            1 => format!("{first},{last}"),
            _ => format!("{first}-{last}"),
        })
        .collect();
    runs.join(",")
}

/// The completion index of a pod.
pub fn of(pod: &Pod) -> Option<i32> {
    annotations(&pod.metadata)
        .get(INDEX)?
        .parse()
        .ok()
        .filter(|index| *index >= 0)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn sets_read_and_write() {
        for (text, clean) in [
            ("", ""),
            ("1", "1"),
            ("1,3-5,7", "1,3-5,7"),
            ("3,1,2", "1-3"),
            ("1,2", "1,2"),
            ("8-12", "8,9"),
            ("x,4,-,5-", "4"),
        ] {
            assert_eq!(format(&parse(text, 10)), clean, "{text}");
        }
    }
}
