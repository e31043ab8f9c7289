//! The order in which pods go when memory is short. Pure.

use std::cmp::Reverse;

use crate::convert::Qos;

/// A pod that could go.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Candidate {
    pub(super) class: Qos,
    pub(super) priority: i32,
    /// Bytes.
    pub(super) used: u64,
    /// Bytes that it is sure to get.
    pub(super) asked: u64,
}

/// The index of the pod that goes first: one that uses more than it asked for before one that does not, then the lowest
/// priority, then the lower class, then the one that is furthest above what it asked for (the kubelet's
/// `rankMemoryPressure`, with the class between).
pub(super) fn first(candidates: &[Candidate]) -> Option<usize> {
    let order = |one: &Candidate| {
        let modest = one.used <= one.asked;
        (modest, one.priority, one.class, Reverse(one.used.saturating_sub(one.asked)), Reverse(one.used))
    };
    candidates.iter().enumerate().min_by_key(|(_, one)| order(one)).map(|(index, _)| index)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn order(mut candidates: Vec<(&'static str, Candidate)>) -> Vec<&'static str> {
        let mut names = Vec::new();
        while let Some(index) = first(&candidates.iter().map(|(_, one)| *one).collect::<Vec<_>>()) {
            names.push(candidates.remove(index).0);
        }
        names
    }

    #[test]
    fn eviction_goes_by_excess_then_priority_then_class_then_size() {
        let one = |class, priority, used, asked| Candidate { class, priority, used, asked };
        let pods = vec![
            ("guaranteed", one(Qos::Guaranteed, 0, 50, 100)),
            ("modest and unimportant", one(Qos::Burstable, -10, 40, 50)),
            ("important glutton", one(Qos::Burstable, 1000, 900, 10)),
            ("small glutton", one(Qos::Burstable, 0, 60, 10)),
            ("big glutton", one(Qos::Burstable, 0, 600, 10)),
            ("best effort", one(Qos::BestEffort, 0, 5, 0)),
        ];
        let expected = [
            "best effort",
            "big glutton",
            "small glutton",
            "important glutton",
            "modest and unimportant",
            "guaranteed",
        ];
        assert_eq!(order(pods), expected);
        assert_eq!(first(&[]), None);
    }
}
